//! The Inception network that FID is defined by: pytorch-fid's port of the TensorFlow graph of
//! 2015-12-05, from the user's own `pt_inception-2015-12-05-6726825d.pth`.

mod layers;
mod resize;

use crate::error::{Result, SampleError};
use candle_core::{Device, Tensor};
use lapflow_ingest::RgbImage;
use lapflow_model::weights::Weights;
use layers::{Conv, Mixed, Op, shrink, tensor};
use rayon::prelude::*;
use std::path::Path;

/// The network, without gradients.
pub struct Inception {
    /// Up to the first pool, and up to the second.
    stem: [Vec<Conv>; 2],
    /// Mixed_5b to Mixed_7c.
    mixed: Vec<Mixed>,
    /// (2048, 1008).
    classifier: Tensor,
    sha256: String,
}

/// What the network says about a batch of N images.
#[derive(Debug)]
pub struct InceptionFeatures {
    /// N x 2048: the mean of Mixed_7c over the image, the features of FID.
    pub pool: Vec<f32>,
    /// N x 2023: the first seven channels of Mixed_6d's 1x1 branch, 17 x 17 x 7, for sFID.
    pub spatial: Vec<f32>,
    /// N x 1008: class logits without their bias, for the Inception Score.
    pub logits: Vec<f32>,
}

/// Index of Mixed_6d among the mixed blocks.
const MIXED_6D: usize = 6;

/// Images that a task takes through the network on the CPU: the pools use one thread, and what
/// more images leave behind no longer fits the allocator's kept pages.
const CPU_IMAGES: usize = 8;

impl Inception {
    /// Features of [`InceptionFeatures::pool`].
    pub const POOL: usize = 2048;
    /// Features of [`InceptionFeatures::spatial`].
    pub const SPATIAL: usize = 2023;
    /// Classes of [`InceptionFeatures::logits`].
    pub const CLASSES: usize = 1008;

    /// Reads the weights at `path`.
    ///
    /// # Errors
    /// When the file cannot be read or lacks a parameter.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::read(path)?;
        Self::new(&weights, device).map_err(|e| {
            SampleError::file(path, format!("is not the Inception network of pytorch-fid: {e}"))
        })
    }

    fn new(weights: &Weights, device: &Device) -> lapflow_model::Result<Self> {
        let build = Builder { weights, device };
        let stem = |name: &str, stride, same| Conv::load(weights, name, stride, same, device);
        Ok(Self {
            stem: [
                vec![
                    stem("Conv2d_1a_3x3", 2, false)?,
                    stem("Conv2d_2a_3x3", 1, false)?,
                    stem("Conv2d_2b_3x3", 1, true)?,
                ],
                vec![stem("Conv2d_3b_1x1", 1, false)?, stem("Conv2d_4a_3x3", 1, false)?],
            ],
            mixed: vec![
                build.block_a("Mixed_5b")?,
                build.block_a("Mixed_5c")?,
                build.block_a("Mixed_5d")?,
                build.block_b("Mixed_6a")?,
                build.block_c("Mixed_6b")?,
                build.block_c("Mixed_6c")?,
                build.block_c("Mixed_6d")?,
                build.block_c("Mixed_6e")?,
                build.block_d("Mixed_7a")?,
                build.block_e("Mixed_7b", Op::AveragePool)?,
                // The original network takes the maximum here, and FID is defined by it.
                build.block_e("Mixed_7c", Op::MaxPool)?,
            ],
            classifier: tensor(weights, "fc.weight", 2)?.t()?.contiguous()?.to_device(device)?,
            sha256: weights.sha256.clone(),
        })
    }

    /// Lower-case hex SHA-256 of the weight file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Features of images of one size: bilinearly resized to 299 x 299 (half-pixel centres, no
    /// antialiasing) and scaled to [-1, 1], as pytorch-fid does it.
    ///
    /// # Errors
    /// When the images differ in size.
    pub fn features(&self, images: &[RgbImage]) -> Result<InceptionFeatures> {
        let device = self.classifier.device();
        let x = resize::to_input(images, device)?; // (B, 299, 299, 3)
        let size = if device.is_cpu() { CPU_IMAGES } else { images.len() };
        let first: Vec<usize> = (0..images.len()).step_by(size).collect();
        let parts: Vec<[Vec<f32>; 3]> = first
            .into_par_iter()
            .map(|first| self.forward(x.narrow(0, first, size.min(images.len() - first))?))
            .collect::<Result<_>>()?;
        let side_by_side = |part: usize| parts.iter().flat_map(|all| &all[part]).copied().collect();
        Ok(InceptionFeatures {
            pool: side_by_side(0),
            spatial: side_by_side(1),
            logits: side_by_side(2),
        })
    }

    /// Pool, spatial features and logits of `x` (B, 299, 299, 3).
    fn forward(&self, mut x: Tensor) -> Result<[Vec<f32>; 3]> {
        for convs in &self.stem {
            x = convs.iter().try_fold(x, |x, conv| conv.forward(&x))?;
            x = shrink(&x)?; // (B, 73, 73, 64), then (B, 35, 35, 192)
        }
        let mut spatial = None;
        for (i, block) in self.mixed.iter().enumerate() {
            if i == MIXED_6D {
                spatial = Some(block.first(&x)?.narrow(3, 0, 7)?); // (B, 17, 17, 7)
            }
            x = block.forward(&x)?; // (B, 35, 35, 288), (B, 17, 17, 768), (B, 8, 8, 2048)
        }
        let pool = x.mean((1, 2))?; // (B, 2048)
        let logits = pool.matmul(&self.classifier)?; // (B, 1008)
        let spatial = spatial.expect("Mixed_6d is one of the blocks");
        let values = |x: &Tensor| x.flatten_all()?.to_vec1();
        Ok([values(&pool)?, values(&spatial)?, values(&logits)?])
    }
}

/// Builds blocks by torchvision's names.
struct Builder<'a> {
    weights: &'a Weights,
    device: &'a Device,
}

impl Builder<'_> {
    fn conv(&self, block: &str, name: &str) -> lapflow_model::Result<Conv> {
        Conv::load(self.weights, &format!("{block}.branch{name}"), 1, true, self.device)
    }

    fn convs(&self, block: &str, names: &[&str]) -> lapflow_model::Result<Vec<Op>> {
        names.iter().map(|name| Ok(Op::Conv(self.conv(block, name)?))).collect()
    }

    /// Convolutions of which the last has stride 2 and no padding.
    fn shrinking(&self, block: &str, names: &[&str]) -> lapflow_model::Result<Vec<Op>> {
        let (last, before) = names.split_last().expect("a branch has convolutions");
        let mut ops = self.convs(block, before)?;
        let last = format!("{block}.branch{last}");
        ops.push(Op::Conv(Conv::load(self.weights, &last, 2, false, self.device)?));
        Ok(ops)
    }

    fn pooled(&self, block: &str, pool: Op) -> lapflow_model::Result<Vec<Op>> {
        Ok(vec![pool, Op::Conv(self.conv(block, "_pool")?)])
    }

    /// Convolutions `names`, then two side by side.
    fn split(
        &self,
        block: &str,
        names: &[&str],
        last: [&str; 2],
    ) -> lapflow_model::Result<Vec<Op>> {
        let mut ops = self.convs(block, names)?;
        ops.push(Op::Split(self.conv(block, last[0])?, self.conv(block, last[1])?));
        Ok(ops)
    }

    fn block_a(&self, block: &str) -> lapflow_model::Result<Mixed> {
        Ok(Mixed(vec![
            self.convs(block, &["1x1"])?,
            self.convs(block, &["5x5_1", "5x5_2"])?,
            self.convs(block, &["3x3dbl_1", "3x3dbl_2", "3x3dbl_3"])?,
            self.pooled(block, Op::AveragePool)?,
        ]))
    }

    fn block_b(&self, block: &str) -> lapflow_model::Result<Mixed> {
        Ok(Mixed(vec![
            self.shrinking(block, &["3x3"])?,
            self.shrinking(block, &["3x3dbl_1", "3x3dbl_2", "3x3dbl_3"])?,
            vec![Op::Shrink],
        ]))
    }

    fn block_c(&self, block: &str) -> lapflow_model::Result<Mixed> {
        let long = ["7x7dbl_1", "7x7dbl_2", "7x7dbl_3", "7x7dbl_4", "7x7dbl_5"];
        Ok(Mixed(vec![
            self.convs(block, &["1x1"])?,
            self.convs(block, &["7x7_1", "7x7_2", "7x7_3"])?,
            self.convs(block, &long)?,
            self.pooled(block, Op::AveragePool)?,
        ]))
    }

    fn block_d(&self, block: &str) -> lapflow_model::Result<Mixed> {
        Ok(Mixed(vec![
            self.shrinking(block, &["3x3_1", "3x3_2"])?,
            self.shrinking(block, &["7x7x3_1", "7x7x3_2", "7x7x3_3", "7x7x3_4"])?,
            vec![Op::Shrink],
        ]))
    }

    fn block_e(&self, block: &str, pool: Op) -> lapflow_model::Result<Mixed> {
        Ok(Mixed(vec![
            self.convs(block, &["1x1"])?,
            self.split(block, &["3x3_1"], ["3x3_2a", "3x3_2b"])?,
            self.split(block, &["3x3dbl_1", "3x3dbl_2"], ["3x3dbl_3a", "3x3dbl_3b"])?,
            self.pooled(block, pool)?,
        ]))
    }
}
