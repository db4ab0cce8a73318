//! Raw latents to what the network sees, `z = (raw - shift) * scale` per channel, and back.

use crate::error::Result;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// A shift and a scale for every latent channel.
///
/// Residual levels have no mean of their own, so only the coarsest level is shifted; one scale for
/// all levels keeps the pyramid linear: normalizing commutes with splitting and merging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Subtracted from the raw latents.
    pub shift: Vec<f64>,
    /// Multiplied afterwards.
    pub scale: Vec<f64>,
}

impl Normalization {
    /// Normalizes a raw pyramid, finest level first, each `(b, c, h, w)`.
    ///
    /// # Errors
    /// When a level has another channel count.
    pub fn apply(&self, levels: &[Tensor]) -> Result<Vec<Tensor>> {
        let coarsest = levels.len().saturating_sub(1);
        levels
            .iter()
            .enumerate()
            .map(|(k, level)| {
                let scale = channels(&self.scale, level)?;
                let level = match k == coarsest {
                    true => level.broadcast_sub(&channels(&self.shift, level)?)?,
                    false => level.clone(),
                };
                Ok(level.broadcast_mul(&scale)?)
            })
            .collect()
    }

    /// Raw latents of merged, normalized ones, `(b, c, h, w)`.
    ///
    /// # Errors
    /// When there is another channel count.
    pub fn invert(&self, latents: &Tensor) -> Result<Tensor> {
        let raw = latents.broadcast_div(&channels(&self.scale, latents)?)?;
        Ok(raw.broadcast_add(&channels(&self.shift, latents)?)?)
    }
}

fn channels(values: &[f64], like: &Tensor) -> Result<Tensor> {
    let values = Tensor::new(values, like.device())?.to_dtype(DType::F32)?;
    Ok(values.to_dtype(like.dtype())?.reshape((1, values.elem_count(), 1, 1))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Flow, FlowConfig, Path, image_rng};
    use crate::pyramid;
    use candle_core::Device;

    #[test]
    fn normalizing_commutes_with_the_pyramid_and_inverts() {
        let path = Path::new(&FlowConfig { levels: 1, ..FlowConfig::default() }).unwrap();
        let mut rngs = [image_rng(rand::random(), 0)];
        let raw = path.draw_noise(&mut rngs, [2, 8, 8], &Device::Cpu).unwrap().remove(0);
        let n = Normalization { shift: vec![0.7, -1.5], scale: vec![2.0, 0.3] };
        let levels = n.apply(&pyramid::split(&raw, 3).unwrap()).unwrap();
        let whole = n.apply(std::slice::from_ref(&raw)).unwrap().remove(0);
        let merged = pyramid::merge(&levels).unwrap();
        let error = |a: &Tensor, b: &Tensor| crate::kernels::largest(&(a - b).unwrap()).unwrap();
        assert!(error(&merged, &whole) < 1e-6);
        assert!(error(&n.invert(&merged).unwrap(), &raw) < 1e-5);
    }
}
