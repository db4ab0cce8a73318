//! Linear layers, alone and one a level.

use super::precision::Precision;
use crate::error::Result;
use crate::kernels::{PackedLinear, TokenLayout, linear, linear_backward};
use crate::params::{Init, Scope};
use candle_core::{DType, Tensor, TensorId};

/// `x W^T + b` over `(rows, in)`.
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    /// Of constants on the CPU, and what their products are computed from.
    packed: Option<PackedLinear>,
}

impl Linear {
    /// Parameters `weight` `(outputs, inputs)` drawn by `init` and a zero `bias` `(outputs)`.
    pub fn new(scope: &Scope, inputs: usize, outputs: usize, init: Init) -> Result<Self> {
        let weight = scope.get("weight", [outputs, inputs], init)?;
        let bias = scope.get("bias", [outputs], Init::Zeros)?;
        let constant = !weight.is_variable() && !bias.is_variable();
        let packs = constant && weight.device().is_cpu() && weight.dtype() == DType::F32;
        let packed = packs.then(|| PackedLinear::new(&weight, &bias)).transpose()?;
        Ok(Self { weight, bias, packed })
    }

    /// `(rows, inputs)` to `(rows, outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_in(Precision::F32, x)
    }

    /// [`Linear::forward`] of `x` in `precision`, as is the result.
    pub fn forward_in(&self, precision: Precision, x: &Tensor) -> Result<Tensor> {
        if let (Some(packed), Precision::F32) = (&self.packed, precision) {
            return Ok(packed.forward(x)?);
        }
        let (weight, bias) = (precision.narrow(&self.weight)?, precision.narrow(&self.bias)?);
        Ok(precision.narrow(&linear(x, &weight, &bias)?)?)
    }

    /// dL/dx in `precision`, in which `x` and `grad` are; the parameters' gradients go to
    /// `gradients` in f32.
    pub fn backward(
        &self,
        precision: Precision,
        x: &Tensor,
        grad: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let weight = precision.narrow(&self.weight)?;
        let [dx, dweight, dbias] = linear_backward(x, &weight, grad)?;
        let dweight = precision.widen(&precision.narrow(&dweight)?)?;
        gradients.push((self.weight.id(), dweight));
        gradients.push((self.bias.id(), precision.widen(&dbias)?));
        Ok(precision.narrow(&dx)?)
    }
}

/// Gradients of parameters by the tensor's id.
pub type Gradients = Vec<(TensorId, Tensor)>;

/// A part that all levels share, or that each level has its own copy of.
pub struct PerLevel<T> {
    copies: Vec<T>,
}

impl<T> PerLevel<T> {
    /// `copies` of a part: one tied under `scope` itself, or one a pyramid level under `level{k}`.
    pub fn new(scope: &Scope, copies: usize, build: impl Fn(&Scope) -> Result<T>) -> Result<Self> {
        let copies = match copies {
            1 => vec![build(scope)?],
            _ => (0..copies)
                .map(|k| build(&scope.at(format_args!("level{k}"))))
                .collect::<Result<_>>()?,
        };
        Ok(Self { copies })
    }

    /// The copy of pyramid level `k` (0 the finest).
    pub fn level(&self, k: usize) -> &T {
        &self.copies[if self.copies.len() == 1 { 0 } else { k }]
    }

    /// Whether all levels share one copy.
    pub fn tied(&self) -> bool {
        self.copies.len() == 1
    }

    /// Applies each level's copy to its rows of `x`; a tied part sees all rows at once.
    ///
    /// `finest` is the finest active pyramid level: the layout's levels run from the coarsest to it.
    pub fn over_rows(
        &self,
        x: &Tensor,
        layout: &TokenLayout,
        finest: usize,
        apply: impl Fn(&T, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.tied() || layout.levels() == 1 {
            return apply(self.level(finest), x);
        }
        let parts = (0..layout.levels())
            .map(|i| {
                let rows = layout.level_rows(i);
                let part = x.narrow(0, rows.start, rows.len())?;
                apply(self.level(finest + layout.levels() - 1 - i), &part)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// [`PerLevel::over_rows`] the other way: `apply` gets each level's copy with its rows of `x`
    /// and of `grad`, and its results are the rows of dL/dx.
    pub fn over_rows_backward(
        &self,
        x: &Tensor,
        grad: &Tensor,
        layout: &TokenLayout,
        finest: usize,
        mut apply: impl FnMut(&T, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if self.tied() || layout.levels() == 1 {
            return apply(self.level(finest), x, grad);
        }
        let parts = (0..layout.levels())
            .map(|i| {
                let rows = layout.level_rows(i);
                let part = |all: &Tensor| all.narrow(0, rows.start, rows.len());
                let copy = self.level(finest + layout.levels() - 1 - i);
                apply(copy, &part(x)?, &part(grad)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}
