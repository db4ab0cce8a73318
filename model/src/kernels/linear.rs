//! Linear layers: `y = x W^T + b`.

use super::fresh::{repeated, zeros};
use super::matmul::{Mat, matmul, parallel};
use super::{output, plain, values};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;
use std::borrow::Cow;

/// `x W^T + b` for `x` `(rows, in)`, `weight` `(out, in)`, `bias` `(out)`; f32, gives `(rows, out)`.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ((_, k), (n, wk), bn) = (x.dims2()?, weight.dims2()?, bias.dims1()?);
    if k != wk || n != bn {
        bail!("linear: x {:?}, weight {:?}, bias {:?}", x.dims(), weight.dims(), bias.dims())
    }
    if !x.device().is_cpu() {
        return plain::linear(x, weight, bias);
    }
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
}

/// dL/dx, dL/dweight and dL/dbias of [`linear`].
pub(crate) fn linear_backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
    let grad = grad.contiguous()?;
    if !grad.device().is_cpu() {
        return plain::linear_backward(x, weight, &grad);
    }
    Ok([
        grad.apply_op2_no_bwd(weight, &Product::Plain)?,
        grad.apply_op2_no_bwd(x, &Product::LeftTransposed)?,
        grad.apply_op1_no_bwd(&ColumnSum)?,
    ])
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, k) = x_layout.shape().dims2()?;
        let n = bias_layout.shape().dims1()?;
        let computed = rows_computed(rows, n);
        let mut x = Cow::from(values("linear", x, x_layout)?);
        if computed > rows {
            x.to_mut().resize(computed * k, 0.0);
        }
        let x = Mat::new(&x, computed, k);
        let weight = Mat::new(values("linear", weight, weight_layout)?, n, k);
        let mut y = repeated(values("linear", bias, bias_layout)?, computed);
        matmul(&mut y, x, weight.t(), 1.0, true, parallel(computed * k * n));
        y.truncate(rows * n);
        output(y, (rows, n))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let product = |a: &Tensor, b: &Tensor, op| a.apply_op2_no_bwd(b, &op);
        let dx = x.track_op().then(|| product(&grad, weight, Product::Plain)).transpose()?;
        let dweight = product(&grad, x, Product::LeftTransposed)?;
        let dbias = grad.apply_op1_no_bwd(&ColumnSum)?;
        Ok((dx, Some(dweight), Some(dbias)))
    }
}

/// As many rows as it takes, zeros behind the real ones, for a row's result not to depend on how
/// many others there are: `gemm` sums products of few rows and columns in other orders.
fn rows_computed(rows: usize, n: usize) -> usize {
    /// Up to this many rows and columns, sums are divided otherwise.
    const SMALL_SIDE: usize = 64;
    /// Up to this many elements, dot products are taken instead.
    const SMALL_AREA: usize = 256;
    if n <= SMALL_SIDE { rows.max(SMALL_SIDE + 1) } else { rows.max(SMALL_AREA / n + 1).max(2) }
}

/// A matrix product of the backward pass.
enum Product {
    /// `a b`
    Plain,
    /// `a^T b`
    LeftTransposed,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear-backward"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((a_rows, a_cols), (b_rows, n)) =
            (a_layout.shape().dims2()?, b_layout.shape().dims2()?);
        let a = Mat::new(values(self.name(), a, a_layout)?, a_rows, a_cols);
        let b = Mat::new(values(self.name(), b, b_layout)?, b_rows, n);
        let (a, m) = match self {
            Self::Plain => (a, a_rows),
            Self::LeftTransposed => (a.t(), a_cols),
        };
        let mut product = zeros(m * n);
        matmul(&mut product, a, b, 1.0, false, parallel(m * n * b_rows));
        output(product, (m, n))
    }
}

/// Sums over the rows.
struct ColumnSum;

impl CustomOp1 for ColumnSum {
    fn name(&self) -> &'static str {
        "column-sum"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        const COLUMNS: usize = 256;
        let (rows, width) = layout.shape().dims2()?;
        let x = values(self.name(), x, layout)?;
        let mut sums = vec![0f32; width];
        sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
            for row in 0..rows {
                let start = row * width + chunk * COLUMNS;
                for (sum, value) in sums.iter_mut().zip(&x[start..]) {
                    *sum += value;
                }
            }
        });
        output(sums, width)
    }
}
