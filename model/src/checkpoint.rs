//! Checkpoints: one safetensors file that holds weights and all that sampling and resuming need.
//!
//! Tensors are grouped by prefix: `model.` the trained weights, `ema.` their average, and whatever
//! the trainer adds. The header's metadata carries a [`Card`] as JSON under `lapflow`, and the
//! trainer's own state under `training`. Files are written beside and renamed.

use crate::error::{ModelError, Result};
use crate::flow::FlowConfig;
use crate::net::{Geometry, ModelConfig, Transformer};
use crate::normalization::Normalization;
use crate::params::Params;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The format's version.
pub const VERSION: u32 = 1;

/// What a checkpoint is of: enough to build the network and to turn its output into images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// [`VERSION`] when written.
    pub version: u32,
    /// Optimizer steps taken.
    pub step: u64,
    /// The network.
    pub model: ModelConfig,
    /// The paths.
    pub flow: FlowConfig,
    /// What the network works on.
    pub geometry: Geometry,
    /// Raw latents to the network's.
    pub normalization: Normalization,
    /// Identity of the autoencoder that made the latents, as the dataset states it.
    pub autoencoder: serde_json::Value,
    /// How that autoencoder was found, to find it again.
    pub autoencoder_config: serde_json::Value,
    /// Class names; empty for an unconditional model.
    pub classes: Vec<String>,
}

/// Which of a checkpoint's weights to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightSet {
    /// The exponential moving average where there is one, else the trained weights.
    #[default]
    Ema,
    /// The trained weights themselves.
    Raw,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// What it is of.
    pub card: Card,
    /// The trainer's state, if it left one.
    pub training: Option<serde_json::Value>,
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Checkpoint {
    /// Reads `path` onto the CPU.
    ///
    /// # Errors
    /// Names the file when it is absent, cut short, of another format or of a later version.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let wrong = |reason: String| ModelError::weights(&path, reason);
        let bytes = fs::read(&path).map_err(|e| wrong(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| wrong(format!("not a readable checkpoint: {e}")))?;
        let text = |key| header.metadata().as_ref().and_then(|m| m.get(key));
        let card = text("lapflow").ok_or_else(|| wrong("not a lapflow checkpoint".into()))?;
        let version = serde_json::from_str::<serde_json::Value>(card)
            .ok()
            .and_then(|card| card["version"].as_u64());
        if version != Some(u64::from(VERSION)) {
            let found = version.map_or("unstated".into(), |v| v.to_string());
            return Err(wrong(format!("checkpoint version {found}, this lapflow reads {VERSION}")));
        }
        let card =
            serde_json::from_str(card).map_err(|e| wrong(format!("checkpoint card: {e}")))?;
        let training = text("training")
            .map(|json| serde_json::from_str(json))
            .transpose()
            .map_err(|e| wrong(format!("training state: {e}")))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| wrong(format!("not a readable checkpoint: {e}")))?;
        Ok(Self { card, training, path, tensors })
    }

    /// Writes `tensors` with their card to `path`: beside it first, flushed to disk, then renamed.
    ///
    /// # Errors
    /// When the folder cannot be written; `path` then holds what it held before.
    pub fn write(
        path: &Path,
        card: &Card,
        training: Option<&serde_json::Value>,
        tensors: &[(String, Tensor)],
    ) -> Result<()> {
        let wrong = |reason: String| ModelError::weights(path, reason);
        let json = |value: &serde_json::Value| value.to_string();
        let card = serde_json::to_value(card).map_err(|e| wrong(e.to_string()))?;
        let mut metadata = HashMap::from([("lapflow".to_string(), json(&card))]);
        metadata.extend(training.map(|state| ("training".to_string(), json(state))));
        let beside = path.with_extension("partial");
        let views = tensors.iter().map(|(name, tensor)| (name, tensor));
        safetensors::serialize_to_file(views, Some(metadata), &beside)
            .map_err(|e| wrong(e.to_string()))?;
        File::open(&beside)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&beside, path))
            .map_err(|e| wrong(e.to_string()))
    }

    /// The tensors whose names start with `group` and a dot, without that prefix.
    pub fn group(&self, group: &str) -> BTreeMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, tensor)| {
                let name = name.strip_prefix(group)?.strip_prefix('.')?;
                Some((name.to_string(), tensor.clone()))
            })
            .collect()
    }

    /// The network with the weights asked for, in f32 on `device`, for inference.
    ///
    /// # Errors
    /// When the weights do not fit the card's configuration: the key is named.
    pub fn network(&self, set: WeightSet, device: &Device) -> Result<Transformer> {
        let ema = self.group("ema");
        let weights = match set {
            WeightSet::Ema if !ema.is_empty() => ema,
            _ => self.group("model"),
        };
        Params::frozen(weights, DType::F32, device, |scope| {
            Transformer::new(scope, &self.card.model, &self.card.geometry)
        })
        .map_err(|e| ModelError::weights(&self.path, e))
    }
}
