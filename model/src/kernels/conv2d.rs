//! 2-D convolution over channels-last images, with its gradients.
//!
//! Images are `[B, H, W, C]` because a pixel's channels then lie side by side: a patch row is one
//! copy, and every product is a plain matrix product. Weights keep PyTorch's `(out, in, kh, kw)`.

use super::vector::vectorized;
use super::{conv2d_im2col as im2col, conv2d_winograd as winograd, output, values, with_values};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Rows that one task of a bias gradient sums.
const SUM_ROWS: usize = 512;

/// Stride and zero padding of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Step between windows, the same in both directions.
    pub stride: usize,
    /// Rows of zeros above, columns of zeros to the left.
    pub pad_before: [usize; 2],
    /// Rows of zeros below, columns of zeros to the right.
    pub pad_after: [usize; 2],
}

impl ConvGeometry {
    /// Stride 1 and the padding that keeps the size, for a `kernel` of odd height and width.
    pub fn same(kernel: [usize; 2]) -> Self {
        let pad = kernel.map(|size| size / 2);
        Self { stride: 1, pad_before: pad, pad_after: pad }
    }
}

/// Convolution of `x` `[B, H, W, Cin]` with `weight` `(Cout, Cin, kh, kw)` and a bias `(Cout)`.
///
/// Returns `[B, H', W', Cout]` with `H' = (H + pad_before + pad_after - kh) / stride + 1`. On the
/// CPU (f32) this is the crate's own kernel, on other devices Candle's.
///
/// # Errors
/// When the shapes do not fit or the window is larger than the padded image.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
) -> Result<Tensor> {
    let op = Conv2dOp { shape: ConvShape::new(x, weight, geometry)? };
    if !x.device().is_cpu() {
        return conv2d_candle(x, weight, bias, geometry);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) if bias.dims() != [op.shape.channels_out] => {
            bail!("conv2d: bias {:?} for weight {:?}", bias.shape(), weight.shape())
        }
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
        None => x.apply_op2(&weight, op),
    }
}

/// Elements that a launch of Candle's kernels may count: they do so in 32 bits.
const LAUNCH_ELEMENTS_MAX: u64 = 1 << 31;

/// The same by Candle's channels-first convolution, so many images at a time as a launch can count.
pub(super) fn conv2d_candle(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
) -> Result<Tensor> {
    let images = ConvShape::new(x, weight, geometry)?.images_a_launch()?;
    conv2d_parts(x, weight, bias, geometry, images)
}

/// The same of at most so many `images` at a time.
fn conv2d_parts(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
    images: usize,
) -> Result<Tensor> {
    let batch = x.dim(0)?;
    if batch <= images {
        return conv2d_images(x, weight, bias, geometry);
    }
    let parts = (0..batch).step_by(images).map(|start| {
        let part = x.narrow(0, start, images.min(batch - start))?;
        conv2d_images(&part, weight, bias, geometry)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

fn conv2d_images(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
) -> Result<Tensor> {
    let ConvGeometry { stride, pad_before, pad_after } = geometry;
    let x = x
        .permute((0, 3, 1, 2))?
        .pad_with_zeros(D::Minus1, pad_before[1], pad_after[1])?
        .pad_with_zeros(D::Minus2, pad_before[0], pad_after[0])?;
    let y = x.conv2d(weight, 0, stride, 1, 1)?.permute((0, 2, 3, 1))?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => y.contiguous(),
    }
}

/// All sizes of one convolution. Pixels outside the image count as zeros, so the padding behind
/// the image follows from the size of the output.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvShape {
    pub batch: usize,
    pub height: usize,
    pub width: usize,
    pub channels_in: usize,
    pub height_out: usize,
    pub width_out: usize,
    pub channels_out: usize,
    /// Height and width of the window.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub pad_before: [usize; 2],
}

impl ConvShape {
    fn new(x: &Tensor, weight: &Tensor, geometry: ConvGeometry) -> Result<Self> {
        let (batch, height, width, channels_in) = x.dims4()?;
        let (channels_out, weight_in, kernel_height, kernel_width) = weight.dims4()?;
        let kernel = [kernel_height, kernel_width];
        let ConvGeometry { stride, pad_before, pad_after } = geometry;
        let size = [height, width];
        let padded: [usize; 2] = std::array::from_fn(|i| size[i] + pad_before[i] + pad_after[i]);
        if weight_in != channels_in
            || (0..2).any(|i| kernel[i] > padded[i] || pad_before[i] >= kernel[i])
            || stride == 0
        {
            bail!(
                "conv2d: x {:?} (B, H, W, C) does not fit weight {:?} with {geometry:?}",
                x.shape(),
                weight.shape()
            );
        }
        Ok(Self {
            batch,
            height,
            width,
            channels_in,
            height_out: (padded[0] - kernel[0]) / stride + 1,
            width_out: (padded[1] - kernel[1]) / stride + 1,
            channels_out,
            kernel,
            stride,
            pad_before,
        })
    }

    /// Images of which no launch of Candle's convolution counts more than [`LAUNCH_ELEMENTS_MAX`]
    /// elements: those of the patches, the largest of all.
    ///
    /// # Errors
    /// When one image alone has more than 32 bits can count.
    fn images_a_launch(&self) -> Result<usize> {
        let product = |sizes: &[usize]| sizes.iter().map(|&size| size as u64).product::<u64>();
        let [kernel_height, kernel_width] = self.kernel;
        let window = kernel_height * kernel_width;
        let out = [self.height_out, self.width_out];
        let patches = product(&[out[0], out[1], self.channels_in, window]);
        let largest = patches.max(product(&[out[0], out[1], self.channels_out]));
        if largest > u64::from(u32::MAX) {
            bail!(
                "conv2d: an image of {}x{} in {} channels has more patches than 32 bits count: cut it \
                 (autoencoder.tiling, --tile)",
                self.height,
                self.width,
                self.channels_in
            );
        }
        Ok((LAUNCH_ELEMENTS_MAX / largest.max(1)).max(1) as usize)
    }

    /// The convolution that carries this one's gradient back to its input: the kernel is turned by
    /// 180 degrees, and `stride - 1` zeros lie between the gradient's pixels.
    fn transposed(&self) -> Self {
        Self {
            height: (self.height_out - 1) * self.stride + 1,
            width: (self.width_out - 1) * self.stride + 1,
            channels_in: self.channels_out,
            height_out: self.height,
            width_out: self.width,
            channels_out: self.channels_in,
            stride: 1,
            pad_before: std::array::from_fn(|i| self.kernel[i] - 1 - self.pad_before[i]),
            ..*self
        }
    }

    /// Pixels of a window.
    pub fn positions(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Output pixels of the whole batch.
    pub fn pixels_out(&self) -> usize {
        self.batch * self.height_out * self.width_out
    }

    /// Whether every output pixel sees just the input pixel at its place.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1]
            && self.stride == 1
            && self.pixels_out() == self.batch * self.height * self.width
    }

    fn output(&self) -> [usize; 4] {
        [self.batch, self.height_out, self.width_out, self.channels_out]
    }
}

struct Conv2dOp {
    shape: ConvShape,
}

impl Conv2dOp {
    fn forward(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let y = if winograd::pays(&self.shape) {
            winograd::forward(x, weight, bias, &self.shape)
        } else {
            im2col::forward(x, weight, bias, &self.shape)
        };
        output(y, self.shape.output().as_slice())
    }

    /// Gradients of input, weight and bias.
    fn backward(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
        let grad = grad.contiguous()?;
        let turned = weight.contiguous()?.flip(&[2, 3])?.transpose(0, 1)?.contiguous()?;
        let transposed = Conv2dOp { shape: self.shape.transposed() };
        let grad_x = dilate(&grad, self.shape.stride)?.apply_op2_no_bwd(&turned, &transposed)?;
        let (grad_weight, grad_bias) = with_values("conv2d", [x, &grad], |[x, grad]| {
            (im2col::grad_weight(x, grad, &self.shape), sum_of_rows(grad, self.shape.channels_out))
        })?;
        Ok([
            grad_x,
            Tensor::from_vec(grad_weight, weight.shape(), x.device())?,
            Tensor::from_vec(grad_bias, self.shape.channels_out, x.device())?,
        ])
    }
}

/// Column sums of `[rows, width]`, in f32 within a chunk of rows and in f64 beyond.
fn sum_of_rows(values: &[f32], width: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = values
        .par_chunks(SUM_ROWS * width)
        .map(|rows| {
            let mut sum = vec![0f32; width];
            vectorized(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(width) {
                        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                    }
                },
            );
            sum
        })
        .collect();
    (0..width).map(|c| parts.iter().map(|part| f64::from(part[c])).sum::<f64>() as f32).collect()
}

/// `[B, (H - 1) stride + 1, (W - 1) stride + 1, C]`: `stride - 1` zeros between pixels.
fn dilate(x: &Tensor, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let (batch, height, width, channels) = x.dims4()?;
    x.reshape((batch, height, 1, width, 1, channels))?
        .pad_with_zeros(2, 0, stride - 1)?
        .pad_with_zeros(4, 0, stride - 1)?
        .reshape((batch, height * stride, width * stride, channels))?
        .narrow(1, 0, (height - 1) * stride + 1)?
        .narrow(2, 0, (width - 1) * stride + 1)?
        .contiguous()
}

impl CustomOp2 for Conv2dOp {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = values("conv2d", x, x_layout)?;
        self.forward(x, values("conv2d", weight, weight_layout)?, None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [grad_x, grad_weight, _] = self.backward(x, weight, grad)?;
        Ok((Some(grad_x), Some(grad_weight)))
    }
}

impl CustomOp3 for Conv2dOp {
    fn name(&self) -> &'static str {
        "conv2d_bias"
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
        let x = values("conv2d", x, x_layout)?;
        let bias = values("conv2d", bias, bias_layout)?;
        self.forward(x, values("conv2d", weight, weight_layout)?, Some(bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [grad_x, grad_weight, grad_bias] = self.backward(x, weight, grad)?;
        Ok((Some(grad_x), Some(grad_weight), Some(grad_bias)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::largest;
    use candle_core::{Device, Var};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Var {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn assert_close(what: &str, actual: &Tensor, expected: &Tensor) {
        assert_eq!(actual.dims(), expected.dims(), "{what}");
        let largest = |x: &Tensor| largest(x).unwrap();
        let error = largest(&(actual - expected).unwrap()) / largest(expected).max(1e-6);
        assert!(error < 2e-5, "{what}: {error}");
    }

    /// Forward and all gradients against Candle's convolution, on drawn sizes.
    #[test]
    fn agrees_with_candle() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut gradients = 0;
        for case in 0..56 {
            let kernel = [[1, 1], [3, 3], [3, 3], [5, 5], [1, 7], [7, 1], [3, 5]][case % 7];
            let pad = |rng: &mut ChaCha8Rng| kernel.map(|size| rng.random_range(0..size));
            let geometry = ConvGeometry {
                stride: rng.random_range(1..=2),
                pad_before: pad(&mut rng),
                pad_after: pad(&mut rng),
            };
            let [b, h, w] = [1..4, kernel[0].max(5)..20, kernel[1].max(5)..28]
                .map(|range| rng.random_range(range));
            let [c_in, c_out] = [1..70, 1..40].map(|range| rng.random_range(range));
            let x = random(&mut rng, &[b, h, w, c_in]);
            let weight = random(&mut rng, &[c_out, c_in, kernel[0], kernel[1]]);
            let bias = random(&mut rng, &[c_out]);
            let bias = (case % 3 > 0).then_some(bias.as_tensor());
            let actual = conv2d(&x, &weight, bias, geometry).unwrap();
            let expected = conv2d_candle(&x, &weight, bias, geometry).unwrap();
            let what = format!("{:?} * {:?}, {geometry:?}", x.dims(), weight.dims());
            assert_close(&what, &actual, &expected);

            // Candle's gradient at stride 2 fails where the two sizes leave different remainders.
            let ConvGeometry { stride, pad_before, pad_after } = geometry;
            let remainders = [(0, h), (1, w)]
                .map(|(i, size)| (size + pad_before[i] + pad_after[i] - kernel[i]) % stride);
            if remainders[0] != remainders[1] {
                continue;
            }
            gradients += 1;
            let seed = random(&mut rng, actual.dims());
            let grads = |y: &Tensor| (y * seed.as_tensor()).unwrap().sum_all().unwrap().backward();
            let (actual, expected) = (grads(&actual).unwrap(), grads(&expected).unwrap());
            for (name, var) in
                [("x", Some(x.as_tensor())), ("weight", Some(&weight)), ("bias", bias)]
            {
                let Some(var) = var else { continue };
                let (actual, expected) = (actual.get(var).unwrap(), expected.get(var).unwrap());
                assert_close(&format!("gradient of {name}, {what}"), actual, expected);
            }
        }
        assert!(gradients > 28, "{gradients} of 56 compared");
    }

    /// The SD-VAE's widest layer at full size, 256 channels of 3x3 windows.
    #[test]
    fn no_launch_counts_beyond_32_bits() {
        let images = |side: usize, channels_in: usize| {
            let shape = ConvShape {
                batch: 64,
                height: side,
                width: side,
                channels_in,
                height_out: side,
                width_out: side,
                channels_out: 128,
                kernel: [3, 3],
                stride: 1,
                pad_before: [1, 1],
            };
            shape.images_a_launch().map_err(|error| error.to_string())
        };
        assert_eq!(images(256, 256), Ok(14));
        assert_eq!(images(512, 256), Ok(3));
        // Beyond half of what 32 bits count, one at a time.
        assert_eq!(images(1024, 256), Ok(1));
        assert!(images(2048, 256).unwrap_err().contains("2048x2048 in 256 channels"));
        assert!(images(8, 3).unwrap() > 64);
    }

    #[test]
    fn images_in_parts_are_the_images_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let (x, weight) = (random(&mut rng, &[5, 9, 8, 3]), random(&mut rng, &[4, 3, 3, 3]));
        let geometry = ConvGeometry::same([3, 3]);
        let parts = |images| conv2d_parts(&x, &weight, None, geometry, images).unwrap();
        for images in [1, 2, 5] {
            assert_close(&format!("{images} at a time"), &parts(images), &parts(64));
        }
    }

    #[test]
    fn misfits_are_errors() {
        let zeros = |shape: [usize; 4]| {
            Tensor::zeros(&shape, candle_core::DType::F32, &Device::Cpu).unwrap()
        };
        let (x, weight) = (zeros([1, 4, 4, 3]), zeros([8, 4, 3, 3]));
        let error = conv2d(&x, &weight, None, ConvGeometry::same([3, 3])).unwrap_err().to_string();
        assert!(error.contains("does not fit weight [8, 4, 3, 3]"), "{error}");
        let wide = zeros([8, 3, 7, 7]);
        let none = ConvGeometry { stride: 1, pad_before: [0, 0], pad_after: [0, 0] };
        assert!(conv2d(&x, &wide, None, none).is_err());
    }
}
