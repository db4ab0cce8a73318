//! Convolutions with folded batch norm, pools, and branches of them, over channels-last images.

use candle_core::{D, DType, Device, Tensor};
use lapflow_model::Result;
use lapflow_model::kernels::{ConvGeometry, conv2d};
use lapflow_model::weights::Weights;

/// Of every batch norm.
const EPS: f64 = 1e-3;

/// Convolution, batch norm and ReLU.
pub(super) struct Conv {
    /// (Cout, Cin, kh, kw).
    weight: Tensor,
    bias: Tensor,
    geometry: ConvGeometry,
}

/// A step of a branch.
pub(super) enum Op {
    Conv(Conv),
    /// Two convolutions of the same input, side by side.
    Split(Conv, Conv),
    /// 3x3 mean with stride 1; pixels outside the image do not count.
    AveragePool,
    /// 3x3 maximum with stride 1, as large as its input.
    MaxPool,
    /// 3x3 maximum with stride 2, inside the image.
    Shrink,
}

/// Parallel branches whose outputs lie side by side.
pub(super) struct Mixed(pub Vec<Vec<Op>>);

impl Conv {
    /// Loads `{name}.conv` and `{name}.bn`; a convolution with stride 1 keeps the size when `same`.
    pub(super) fn load(
        weights: &Weights,
        name: &str,
        stride: usize,
        same: bool,
        device: &Device,
    ) -> Result<Self> {
        let weight = tensor(weights, &format!("{name}.conv.weight"), 4)?;
        let bn = |part: &str| tensor(weights, &format!("{name}.bn.{part}"), 1);
        let scale = (bn("weight")? / (bn("running_var")? + EPS)?.sqrt()?)?;
        let bias = (bn("bias")? - (bn("running_mean")? * &scale)?)?.to_device(device)?;
        let weight = weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
        let (_, _, height, width) = weight.dims4()?;
        let pad = if same { ConvGeometry::same([height, width]).pad_before } else { [0, 0] };
        let geometry = ConvGeometry { stride, pad_before: pad, pad_after: pad };
        Ok(Self { weight: weight.contiguous()?.to_device(device)?, bias, geometry })
    }

    /// `x` and the result are (B, H, W, C).
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, Some(&self.bias), self.geometry)?.relu()?)
    }
}

impl Op {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Op::Conv(conv) => conv.forward(x),
            Op::Split(a, b) => Ok(Tensor::cat(&[a.forward(x)?, b.forward(x)?], D::Minus1)?),
            Op::AveragePool => average_pool(x),
            // After a ReLU the padding's zeros never exceed the maximum.
            Op::MaxPool => channels_first(x, |x| {
                x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?.max_pool2d_with_stride(3, 1)
            }),
            Op::Shrink => shrink(x),
        }
    }
}

impl Mixed {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let branch = |ops: &Vec<Op>| ops.iter().try_fold(x.clone(), |x, op| op.forward(&x));
        let outputs = self.0.iter().map(branch).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&outputs, D::Minus1)?)
    }

    /// The first branch alone.
    pub(super) fn first(&self, x: &Tensor) -> Result<Tensor> {
        self.0[0].iter().try_fold(x.clone(), |x, op| op.forward(&x))
    }
}

/// 3x3 maximum with stride 2.
pub(super) fn shrink(x: &Tensor) -> Result<Tensor> {
    channels_first(x, |x| x.max_pool2d_with_stride(3, 2))
}

fn average_pool(x: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    let inside = |at: usize, size: usize| 3 - usize::from(at == 0) - usize::from(at + 1 == size);
    let share = |i: usize| 9.0 / (inside(i / width, height) * inside(i % width, width)) as f32;
    let shares: Vec<f32> = (0..height * width).map(share).collect();
    let shares = Tensor::from_vec(shares, (1, height, width, 1), x.device())?;
    let means = channels_first(x, |x| {
        x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?.avg_pool2d_with_stride(3, 1)
    })?;
    Ok(means.broadcast_mul(&shares)?)
}

fn channels_first(
    x: &Tensor,
    pool: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Tensor> {
    Ok(pool(&x.permute((0, 3, 1, 2))?.contiguous()?)?.permute((0, 2, 3, 1))?.contiguous()?)
}

/// Tensor `key` in f32, which must have `rank` axes.
pub(super) fn tensor(weights: &Weights, key: &str, rank: usize) -> Result<Tensor> {
    let found = weights.tensors.get(key).filter(|tensor| tensor.rank() == rank);
    let missing = || candle_core::Error::Msg(format!("no `{key}` of {rank} axes"));
    Ok(found.ok_or_else(missing)?.to_dtype(DType::F32)?)
}
