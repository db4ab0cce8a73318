//! DiT checkpoints in the layout in which they are published, as checkpoints of this crate.

use crate::checkpoint::{Card, VERSION};
use crate::error::{ModelError, Result};
use crate::flow::{FlowConfig, Method};
use crate::kernels::largest;
use crate::net::{Geometry, ModelConfig, Preset, Transformer, positions};
use crate::normalization::Normalization;
use crate::params::Params;
use crate::weights::Weights;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// The key that tells a DiT.
const MARKER: &str = "x_embedder.proj.weight";

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
    /// Classes; by default one fewer than the label table has rows, whose last is the null class.
    pub classes: Option<usize>,
}

/// Reads the layout `x_embedder.proj`, `t_embedder.mlp`, `y_embedder.embedding_table`, `blocks.N`,
/// `final_layer`, `pos_embed`: bare, or under the names that trainers put before it (`model`, `ema`,
/// `module`, `_orig_mod`, `state_dict` and the like); a set under `ema` is the average of the other.
/// Width, depth, classes, patch, channels, latent size and whether the variance is learned follow from
/// the shapes.
///
/// # Errors
/// Names the file, and the key that is absent, does not fit, is not finite or is no DiT's.
pub fn dit(path: &std::path::Path, weights: Weights, unsaid: &Unsaid) -> Result<Published> {
    let wrong = |reason: String| ModelError::weights(path, reason);
    let (trained, averages) = sets(&weights).map_err(&wrong)?;
    let found = match (trained, averages) {
        (Some(trained), Some(average)) => vec![("model", trained), ("ema", average)],
        (Some(only), None) | (None, Some(only)) => vec![("model", only)],
        (None, None) => {
            let keys = weights.first_keys();
            return Err(wrong(format!("no DiT: `{MARKER}` is absent, {keys}")));
        }
    };
    let mut card = None;
    let mut tensors = Vec::new();
    for (group, prefix) in found {
        let of_group = weights.tensors.iter().filter_map(|(name, tensor)| {
            Some((name.strip_prefix(&prefix)?.to_string(), tensor.clone()))
        });
        let mut layout = Layout { tensors: of_group.collect() };
        let read = layout.card(unsaid).map_err(|e| wrong(e.to_string()))?;
        if card.get_or_insert(read.clone()) != &read {
            return Err(wrong("its model and ema are of different networks".into()));
        }
        Params::frozen(layout.tensors.clone(), DType::F32, &Device::Cpu, |scope| {
            Transformer::new(scope, &read.model, &read.geometry)
        })
        .map_err(|e| wrong(format!("not a DiT as published: {e}")))?;
        let all = layout.tensors.into_iter();
        tensors.extend(all.map(|(name, tensor)| (format!("{group}.{name}"), tensor)));
    }
    let card = card.ok_or_else(|| wrong("it holds no weights".into()))?;
    Ok(Published { card, tensors })
}

/// What stands before the keys of the trained weights and of their average, where there are any.
fn sets(weights: &Weights) -> Result<(Option<String>, Option<String>), String> {
    let prefixes = weights.tensors.keys().filter_map(|key| key.strip_suffix(MARKER));
    let whole = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    let average = |prefix: &&str| prefix.split('.').any(|part| part.contains("ema"));
    let (averages, trained): (Vec<_>, Vec<_>) = whole.partition(average);
    let one = |found: Vec<&str>| match found[..] {
        [] => Ok(None),
        [prefix] => Ok(Some(prefix.to_owned())),
        [first, second, ..] => Err(format!("several DiTs, under `{first}` and `{second}`")),
    };
    Ok((one(trained)?, one(averages)?))
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
        let makes = unsaid.normalization.scale.len();
        if makes != channels {
            let reason = format!("works on latents of {channels} channels");
            return wrong(format!("{reason}, the autoencoder given makes {makes}"));
        }
        let classes = self.classes(unsaid)?;
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
        let Some(heads) = unsaid.heads.or_else(|| named_heads(width, depth)) else {
            let size = format!("width {width} and depth {depth}");
            return wrong(format!(
                "{size} are no named size's: state its attention heads (--heads)"
            ));
        };
        let model = ModelConfig {
            width: Some(width),
            depth: Some(depth),
            heads: Some(heads),
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

    /// A network trained without label dropout has no row for the null class, which does not show.
    fn classes(&self, unsaid: &Unsaid) -> Result<usize> {
        let wrong = |reason: String| Err(ModelError::config("DiT layout", reason));
        let rows = self.dims("y_embedder.embedding_table.weight", 2)?[0];
        match (rows, unsaid.classes) {
            (0 | 1, _) => {
                wrong(format!("a label table of {rows} rows has no class beside the null"))
            }
            (_, None) => Ok(rows - 1),
            (_, Some(classes)) if classes + 1 == rows => Ok(classes),
            (_, Some(classes)) if classes == rows => wrong(format!(
                "its label table has {rows} rows for {classes} classes and none for the null class, \
                 which guidance and unlabelled samples need"
            )),
            (_, Some(classes)) => {
                wrong(format!("its label table has {rows} rows, not those of {classes} classes"))
            }
        }
    }

    /// The network computes its positions: the table of the file must be the same, but for the
    /// rounding of its dtype.
    fn check_positions(&mut self, grid: usize, width: usize) -> Result<()> {
        let Some(table) = self.tensors.remove("pos_embed") else { return Ok(()) };
        let tolerance = match table.dtype() {
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            _ => 1e-4,
        };
        let ours = positions(grid, grid, width, &Device::Cpu)?;
        let table = table.to_dtype(DType::F32)?.reshape((grid * grid, width))?;
        let gap = largest(&(table - ours)?)?;
        if gap.is_nan() || gap > tolerance {
            let reason = format!("pos_embed is not the sine-cosine table, off by {gap}");
            return Err(ModelError::config("DiT layout", reason));
        }
        Ok(())
    }
}

/// Heads of the named size with this width and depth.
fn named_heads(width: usize, depth: usize) -> Option<usize> {
    let named = [Preset::S, Preset::B, Preset::L, Preset::XL]
        .map(|preset| ModelConfig { preset, ..ModelConfig::default() })
        .into_iter()
        .find(|config| (config.width(), config.depth()) == (width, depth));
    named.map(|config| config.heads())
}
