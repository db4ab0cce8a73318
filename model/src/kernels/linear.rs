//! Linear layers: `y = x W^T + b`.

use super::fresh::{repeated, zeros};
use super::matmul::{Mat, matmul, parallel};
use super::panels::{Dense, ROWS, pack};
use super::{output, plain, values, with_values};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;

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

/// A constant linear layer on the CPU, its weight packed for the product once and not at every call.
pub(crate) struct PackedLinear {
    /// `[panels, in, PANEL]`
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl PackedLinear {
    /// From `weight` `(out, in)` and `bias` `(out)`, f32 on the CPU.
    pub fn new(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let inputs = weight.dims2()?.1;
        with_values("linear", [weight, bias], |[weight, bias]| Self {
            weight: pack(weight, inputs, 1),
            bias: bias.to_vec(),
            inputs,
        })
    }

    /// `x W^T + b` for `x` `(rows, in)` in f32. A row's result does not depend on the others.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (rows, inputs) = x.dims2()?;
        if inputs != self.inputs {
            bail!("linear: x {:?} for {} inputs", x.dims(), self.inputs)
        }
        let outputs = self.bias.len();
        let y = with_values("linear", [&x], |[x]| {
            let mut y = zeros(rows * outputs);
            let threads = match rows * inputs * outputs >= SHARED_MACS_MIN {
                true => rayon::current_num_threads(),
                false => 1,
            };
            let together = rows.div_ceil(threads).next_multiple_of(ROWS);
            let parts = y.par_chunks_mut(together * outputs).zip(x.par_chunks(together * inputs));
            parts.for_each(|(y, lhs)| {
                let (weight, bias) = (&self.weight, Some(&self.bias[..]));
                Dense { lhs, depth: inputs, weight, bias, y, columns: outputs }.run();
            });
            y
        })?;
        Tensor::from_vec(y, (rows, outputs), x.device())
    }
}

/// From so many multiply-accumulates on, all threads take part.
const SHARED_MACS_MIN: usize = 1 << 22;

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
        let x = Mat::new(values("linear", x, x_layout)?, rows, k);
        let weight = Mat::new(values("linear", weight, weight_layout)?, n, k);
        let mut y = repeated(values("linear", bias, bias_layout)?, rows);
        matmul(&mut y, x, weight.t(), 1.0, true, parallel(rows * k * n));
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn packed_weights_give_the_same_and_rows_do_not_depend_on_each_other() {
        for (rows, inputs, outputs) in [(1, 5, 3), (9, 300, 70), (80, 384, 1536), (33, 64, 32)] {
            let draw = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap();
            let (x, weight, bias) =
                (draw(&[rows, inputs]), draw(&[outputs, inputs]), draw(&[outputs]));
            let packed = PackedLinear::new(&weight, &bias).unwrap();
            let values = |y: &Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let all = values(&packed.forward(&x).unwrap());
            let plain = values(&linear(&x, &weight, &bias).unwrap());
            for (a, b) in all.iter().zip(&plain) {
                assert!((a - b).abs() < 1e-5 * (inputs as f32).sqrt() * 4.0, "{a} {b}");
            }
            let last = values(&packed.forward(&x.narrow(0, rows - 1, 1).unwrap()).unwrap());
            assert_eq!(all[(rows - 1) * outputs..], last);
        }
        let layer = PackedLinear::new(
            &Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap(),
            &Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap(),
        )
        .unwrap();
        let wrong = Tensor::zeros((4, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = layer.forward(&wrong).unwrap_err().to_string();
        assert!(error.contains("[4, 2] for 3 inputs"), "{error}");
    }
}
