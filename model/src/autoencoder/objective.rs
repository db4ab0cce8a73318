//! What an autoencoder is trained for: reconstruction, a Gaussian latent, and EQ-VAE's equivariance.

use super::equivariance::Transform;
use super::{KlNetwork, Posterior};
use crate::error::{ModelError, Result};
use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

/// Resolutions at which the gradients of an image are compared.
const GRADIENT_SCALES: usize = 3;

/// The weights of the terms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// Weight of the L1 error of horizontal and vertical differences at three scales. Default 1.
    pub gradient_weight: f64,
    /// Weight of the KL divergence, a latent value. Default 1e-6.
    pub kl_weight: f64,
    /// Probability of a step under a scaling and rotation of the latent (EQ-VAE). Default 0.
    pub equivariance: f64,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self { gradient_weight: 1.0, kl_weight: 1e-6, equivariance: 0.0 }
    }
}

impl ObjectiveConfig {
    /// # Errors
    /// [`ModelError::Config`] naming a weight that is negative or a probability beyond 1.
    pub fn validate(&self) -> Result<()> {
        let weights = [("gradient_weight", self.gradient_weight), ("kl_weight", self.kl_weight)];
        if let Some((name, weight)) = weights.iter().find(|(_, w)| !w.is_finite() || *w < 0.0) {
            return Err(ModelError::config("objective", format!("{name} is {weight}")));
        }
        if !(0.0..=1.0).contains(&self.equivariance) {
            let reason = format!("equivariance is {}, not a probability", self.equivariance);
            return Err(ModelError::config("objective", reason));
        }
        Ok(())
    }
}

/// The terms of one step, each a mean; `total` carries the gradient.
pub struct Losses {
    /// The weighted sum.
    pub total: Tensor,
    /// Mean absolute error of the pixels.
    pub l1: Tensor,
    /// Mean absolute error of their differences, summed over scales and directions.
    pub gradient: Tensor,
    /// KL divergence from N(0, 1), a latent value.
    pub kl: Tensor,
}

impl Losses {
    /// Encodes `images` `[B, 3, H, W]`, samples with `noise` of the latents' shape, and compares
    /// the decoding with the images, both under `transform` if there is one:
    /// `L(decode(T z), T x)` of EQ-VAE.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn evaluate(
        network: &KlNetwork,
        images: &Tensor,
        noise: &Tensor,
        transform: Option<Transform>,
        config: &ObjectiveConfig,
    ) -> Result<Self> {
        let posterior = network.encode(images)?;
        let latents = posterior.sample(noise)?;
        let error = match transform {
            Some(transform) => {
                let factor = images.dim(D::Minus1)? / latents.dim(D::Minus1)?;
                let decoded = network.decode(&transform.apply(&latents, 1)?)?;
                (decoded - transform.apply(images, factor)?)?
            }
            None => (network.decode(&latents)? - images)?,
        };
        let l1 = error.abs()?.mean_all()?;
        let gradient = gradient_error(&error)?;
        let kl = divergence(&posterior)?;
        let total = (&l1 + (&gradient * config.gradient_weight)?)?;
        let total = (total + (&kl * config.kl_weight)?)?;
        Ok(Self { total, l1, gradient, kl })
    }
}

/// Sum over scales of the mean absolute vertical and horizontal differences of `error`.
fn gradient_error(error: &Tensor) -> Result<Tensor> {
    let mut error = error.clone();
    let mut sum = error.zeros_like()?.mean_all()?;
    for scale in 0..GRADIENT_SCALES {
        let (b, c, h, w) = error.dims4()?;
        if h < 2 || w < 2 {
            break;
        }
        let vertical = (error.narrow(2, 1, h - 1)? - error.narrow(2, 0, h - 1)?)?;
        let horizontal = (error.narrow(3, 1, w - 1)? - error.narrow(3, 0, w - 1)?)?;
        sum = ((sum + vertical.abs()?.mean_all()?)? + horizontal.abs()?.mean_all()?)?;
        if scale + 1 < GRADIENT_SCALES {
            let even = error.narrow(2, 0, h / 2 * 2)?.narrow(3, 0, w / 2 * 2)?.contiguous()?;
            error = even.reshape((b, c, h / 2, 2, w / 2, 2))?.mean(5)?.mean(3)?;
        }
    }
    Ok(sum)
}

/// Mean over the latent values of `(mean^2 + variance - 1 - logvar) / 2`.
fn divergence(posterior: &Posterior) -> Result<Tensor> {
    let square = posterior.mean.sqr()?;
    match &posterior.logvar {
        Some(logvar) => {
            let terms = ((square + logvar.exp()?)? - logvar)?.affine(0.5, -0.5)?;
            Ok(terms.mean_all()?)
        }
        None => Ok(square.affine(0.5, 0.0)?.mean_all()?),
    }
}
