//! Nearest-neighbour doubling of channels-last images, with its gradient.

use super::fresh::zeros;
use super::vector::vectorized;
use super::{output, values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// `[B, H, W, C]` to `[B, 2H, 2W, C]`: every pixel becomes four.
///
/// On the CPU (f32) this is the crate's own kernel. Elsewhere it is a reshape and a broadcast,
/// because the backward pass of Candle's own upsampling is wrong.
///
/// # Errors
/// When `x` has not four dimensions.
pub fn upsample(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Upsample);
    }
    upsample_candle(x)
}

/// The same by Candle operations.
pub(super) fn upsample_candle(x: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let y = x.reshape((b, h, 1, w, 1, c))?.broadcast_as((b, h, 2, w, 2, c))?;
    y.reshape((b, 2 * h, 2 * w, c))
}

struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, h, w, c) = layout.shape().dims4()?;
        let x = values(self.name(), x, layout)?;
        let mut y = zeros(4 * x.len());
        let rows = y.par_chunks_exact_mut((4 * w * c).max(1));
        rows.zip(x.par_chunks_exact((w * c).max(1))).for_each(|(y, x)| {
            let (first, second) = y.split_at_mut(2 * w * c);
            for (pair, pixel) in first.chunks_exact_mut(2 * c).zip(x.chunks_exact(c)) {
                pair[..c].copy_from_slice(pixel);
                pair[c..].copy_from_slice(pixel);
            }
            second.copy_from_slice(first);
        });
        output(y, (b, 2 * h, 2 * w, c))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&SumOfFour)?))
    }
}

/// The sum of each 2x2 block: the gradient of [`Upsample`].
struct SumOfFour;

impl CustomOp1 for SumOfFour {
    fn name(&self) -> &'static str {
        "upsample_backward"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, h, w, c) = layout.shape().dims4()?;
        let grad = values(self.name(), grad, layout)?;
        let mut sum = zeros(grad.len() / 4);
        let rows = sum.par_chunks_exact_mut((w / 2 * c).max(1));
        rows.zip(grad.par_chunks_exact((2 * w * c).max(1))).for_each(|(sum, grad)| {
            let (first, second) = grad.split_at(w * c);
            let pairs = first.chunks_exact(2 * c).zip(second.chunks_exact(2 * c));
            vectorized(
                #[inline(always)]
                || {
                    for (sum, (first, second)) in sum.chunks_exact_mut(c).zip(pairs) {
                        for i in 0..c {
                            sum[i] = (first[i] + first[c + i]) + (second[i] + second[c + i]);
                        }
                    }
                },
            );
        });
        output(sum, (b, h / 2, w / 2, c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn doubles_and_sums_back() {
        let x = Tensor::arange(0f32, 2.0 * 3.0 * 5.0 * 7.0, &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.reshape((2, 3, 5, 7)).unwrap()).unwrap();
        let y = upsample(&x).unwrap();
        let planes = x.permute((0, 3, 1, 2)).unwrap().upsample_nearest2d(6, 10).unwrap();
        let expected = planes.permute((0, 2, 3, 1)).unwrap();
        assert_eq!(y.dims(), [2, 6, 10, 7]);
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&y), flat(&expected));

        let loss = (&y * &y).unwrap().sum_all().unwrap(); // d/dx of 4 x^2
        let grads = loss.backward().unwrap();
        assert_eq!(flat(grads.get(&x).unwrap()), flat(&(x.as_tensor() * 8.0).unwrap()));
    }
}
