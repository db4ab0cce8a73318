//! From images to features.

use super::inception::Inception;
use crate::error::{Result, SampleError};
use candle_core::{Device, Tensor};
use lapflow_ingest::RgbImage;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_model::pyramid;
use serde::{Deserialize, Serialize};

/// Latents are halved until they have no more values than this, Inception's number.
const LATENT_VALUES_MAX: usize = 2048;

/// A feature space.
pub enum Extractor {
    /// The one that FID, sFID, KID, precision, recall and the Inception Score are defined in.
    Inception(Box<Inception>),
    /// An autoencoder's latents (pixels, for none), for those without Inception's weights.
    Latents(Box<Autoencoder>, Device),
}

/// Which feature space statistics are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractorIdentity {
    /// The network.
    pub name: String,
    /// SHA-256 of its weights; `None` without any.
    pub weights_sha256: Option<String>,
    /// What is done to images before.
    pub input: String,
}

/// Features of a batch, rows in its order.
pub(super) struct Features {
    /// What distances are computed of.
    pub rows: Vec<f32>,
    /// Values in a row.
    pub dims: usize,
    /// Inception's spatial features.
    pub spatial: Option<Vec<f32>>,
    /// Inception's logits.
    pub logits: Option<Vec<f32>>,
}

impl Extractor {
    /// Names the feature space.
    pub fn identity(&self) -> ExtractorIdentity {
        match self {
            Extractor::Inception(network) => ExtractorIdentity {
                name: "inception-2015-12-05".into(),
                weights_sha256: Some(network.sha256().into()),
                input: "bilinear 299x299, half-pixel centres, no antialiasing".into(),
            },
            Extractor::Latents(autoencoder, _) => {
                let identity = autoencoder.identity();
                ExtractorIdentity {
                    name: format!("latents of {:?}", identity.architecture).to_lowercase(),
                    weights_sha256: identity.sha256.clone(),
                    input: format!("halved by 2x2 means to at most {LATENT_VALUES_MAX} values"),
                }
            }
        }
    }

    pub(super) fn features(&self, images: &[RgbImage]) -> Result<Features> {
        match self {
            Extractor::Inception(network) => {
                let found = network.features(images)?;
                let (spatial, logits) = (Some(found.spatial), Some(found.logits));
                Ok(Features { rows: found.pool, dims: Inception::POOL, spatial, logits })
            }
            Extractor::Latents(autoencoder, device) => {
                let mut latents = autoencoder.encode(&to_tensor(images, device)?)?.mean;
                while latents.elem_count() / images.len() > LATENT_VALUES_MAX {
                    latents = pyramid::down(&latents)?;
                }
                let dims = latents.elem_count() / images.len();
                let rows = latents.flatten_all()?.to_vec1()?;
                Ok(Features { rows, dims, spatial: None, logits: None })
            }
        }
    }
}

/// Images of one size as (B, 3, H, W) in [-1, 1].
fn to_tensor(images: &[RgbImage], device: &Device) -> Result<Tensor> {
    let first = images.first().ok_or_else(|| SampleError::setting("images", "are none"))?;
    let shape = (images.len(), first.height as usize, first.width as usize, 3);
    let bytes = images.iter().flat_map(|image| &image.pixels);
    let values: Vec<f32> = bytes.map(|byte| f32::from(*byte) / 127.5 - 1.0).collect();
    let images = Tensor::from_vec(values, shape, device)?;
    Ok(images.permute((0, 3, 1, 2))?.contiguous()?)
}
