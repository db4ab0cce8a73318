//! DiT checkpoints in the layout in which they are published, as checkpoints of this crate.

use crate::checkpoint::{Card, VERSION};
use crate::error::{ModelError, Result};
use crate::flow::{FlowConfig, Method};
use crate::kernels::largest;
use crate::net::{Geometry, ModelConfig, Preset, positions};
use crate::normalization::Normalization;
use crate::weights::Weights;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// Channels of a head where width and depth are not a named size's.
const HEAD_CHANNELS: usize = 64;
/// Largest difference of the file's position table from the sines and cosines it must hold.
const POSITION_TOLERANCE: f64 = 1e-4;

/// A checkpoint in parts, for [`crate::checkpoint::Checkpoint::write`].
pub struct Published {
    /// What it is of.
    pub card: Card,
    /// `model.` weights, and `ema.` ones where the file has both.
    pub tensors: Vec<(String, Tensor)>,
}

/// What a DiT checkpoint does not say about itself.
#[derive(Clone, Debug)]
pub struct Unsaid {
    /// Identity of the autoencoder of its latents.
    pub autoencoder: Value,
    /// How to find that autoencoder.
    pub autoencoder_config: Value,
    /// The autoencoder's normalization.
    pub normalization: Normalization,
    /// Attention heads; by default those of DiT's named sizes.
    pub heads: Option<usize>,
}

/// Reads the layout `x_embedder.proj`, `t_embedder.mlp`, `y_embedder.embedding_table`, `blocks.N`,
/// `final_layer`, `pos_embed`: bare, or under `model` and `ema`. Width, depth, classes, patch,
/// channels, latent size and whether the variance is learned follow from the shapes.
///
/// # Errors
/// Names the key that is absent or does not fit, and the file.
pub fn dit(path: &std::path::Path, weights: Weights, unsaid: &Unsaid) -> Result<Published> {
    let wrong = |reason: String| ModelError::weights(path, reason);
    let both = weights.tensors.contains_key("ema.pos_embed");
    let groups: &[&str] = if both { &["model", "ema"] } else { &["model"] };
    let mut card = None;
    let mut tensors = Vec::new();
    for group in groups {
        let prefix = if both { format!("{group}.") } else { String::new() };
        let of_group = weights.tensors.iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix(&prefix)?.to_string(), tensor.clone()))
        });
        let mut layout = Layout { tensors: of_group.collect() };
        let read = layout.card(unsaid).map_err(|e| wrong(e.to_string()))?;
        if card.get_or_insert(read.clone()) != &read {
            return Err(wrong("its model and ema are of different networks".into()));
        }
        let all = layout.tensors.into_iter();
        tensors.extend(all.map(|(name, tensor)| (format!("{group}.{name}"), tensor)));
    }
    let card = card.ok_or_else(|| wrong("it holds no weights".into()))?;
    Ok(Published { card, tensors })
}

/// The tensors of one set of weights by their published names.
struct Layout {
    tensors: std::collections::BTreeMap<String, Tensor>,
}

impl Layout {
    fn dims(&self, name: &str, rank: usize) -> Result<Vec<usize>> {
        let found = self.tensors.get(name).map(|tensor| tensor.dims().to_vec());
        found.filter(|dims| dims.len() == rank).ok_or_else(|| {
            ModelError::config("DiT layout", format!("`{name}` of rank {rank} is absent"))
        })
    }

    /// The card that follows from the shapes; takes the position table out and flattens the patch
    /// embedding.
    fn card(&mut self, unsaid: &Unsaid) -> Result<Card> {
        let wrong = |reason: String| Err(ModelError::config("DiT layout", reason));
        let embed = self.dims("x_embedder.proj.weight", 4)?;
        let (width, channels, patch) = (embed[0], embed[1], embed[2]);
        let classes = self.dims("y_embedder.embedding_table.weight", 2)?[0].saturating_sub(1);
        let outputs = self.dims("final_layer.linear.weight", 2)?[0];
        let learn_sigma = match outputs.checked_div(patch * patch * channels) {
            Some(1) => false,
            Some(2) => true,
            _ => return wrong(format!("final_layer.linear gives {outputs} values a patch")),
        };
        let block = |name: &str| name.strip_prefix("blocks.")?.split('.').next()?.parse().ok();
        let depth =
            self.tensors.keys().filter_map(|name| block(name)).max().map_or(0, |n: usize| n + 1);
        let tokens = self.dims("pos_embed", 3)?[1];
        let grid = tokens.isqrt();
        if grid * grid != tokens {
            return wrong(format!("{tokens} tokens are no square"));
        }
        self.check_positions(grid, width)?;
        let proj = self.tensors["x_embedder.proj.weight"].reshape((width, ()))?;
        self.tensors.insert("x_embedder.proj.weight".into(), proj);
        let model = ModelConfig {
            width: Some(width),
            depth: Some(depth),
            heads: Some(unsaid.heads.unwrap_or_else(|| named_heads(width, depth))),
            patch,
            untied: Vec::new(),
            cond_tokens: false,
            learn_sigma,
            ..ModelConfig::default()
        };
        let side = grid * patch;
        let geometry = Geometry { channels, height: side, width: side, levels: 1, classes };
        model.validate(&geometry)?;
        Ok(Card {
            version: VERSION,
            step: 0,
            model,
            flow: FlowConfig { method: Method::Dit, levels: 1, ..FlowConfig::default() },
            geometry,
            normalization: unsaid.normalization.clone(),
            autoencoder: unsaid.autoencoder.clone(),
            autoencoder_config: unsaid.autoencoder_config.clone(),
            classes: (0..classes).map(|class| class.to_string()).collect(),
        })
    }

    /// The network computes its positions: the table of the file must be the same.
    fn check_positions(&mut self, grid: usize, width: usize) -> Result<()> {
        let Some(table) = self.tensors.remove("pos_embed") else { return Ok(()) };
        let ours = positions(grid, grid, width, &Device::Cpu)?;
        let table = table.to_dtype(DType::F32)?.reshape((grid * grid, width))?;
        let gap = largest(&(table - ours)?)?;
        if gap.is_nan() || gap > POSITION_TOLERANCE {
            let reason = format!("pos_embed is not the sine-cosine table, off by {gap}");
            return Err(ModelError::config("DiT layout", reason));
        }
        Ok(())
    }
}

/// Heads of the named size with this width and depth.
fn named_heads(width: usize, depth: usize) -> usize {
    let named = [Preset::S, Preset::B, Preset::L, Preset::XL]
        .map(|preset| ModelConfig { preset, ..ModelConfig::default() })
        .into_iter()
        .find(|config| (config.width(), config.depth()) == (width, depth));
    named.map_or((width / HEAD_CHANNELS).max(1), |config| config.heads())
}
