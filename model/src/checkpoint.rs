//! Checkpoints: one safetensors file that holds weights and all that sampling and resuming need.
//!
//! Tensors are grouped by prefix: `model.` the trained weights, `ema.` their average, and whatever
//! the trainer adds. The header's metadata carries a [`Card`] as JSON under `lapflow`, and the
//! trainer's own state under `training`; `checksums` holds the CRC-32 of both and of every tensor,
//! compared on reading. Files are written beside and renamed.

use crate::error::{ModelError, Result};
use crate::flow::FlowConfig;
use crate::net::{Geometry, ModelConfig, Transformer};
use crate::normalization::Normalization;
use crate::params::Params;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use safetensors::{SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The format's version.
pub const VERSION: u32 = 1;

// The header's metadata: the card, the trainer's state, and the checksums of both and of all tensors.
const CARD: &str = "lapflow";
const TRAINING: &str = "training";
const CHECKSUMS: &str = "checksums";

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightSet {
    /// The exponential moving average where there is one, else the trained weights.
    #[default]
    Ema,
    /// The trained weights themselves.
    Raw,
    /// The further average of this decay (`train.ema_decays`).
    #[serde(untagged)]
    Decay(f64),
}

/// The group of the further average with `decay`.
pub fn average_group(decay: f64) -> String {
    format!("ema@{decay}")
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
    /// A checkpoint that was never written: `tensors` by their whole names.
    pub fn in_memory(card: Card, tensors: HashMap<String, Tensor>) -> Self {
        Self { card, training: None, path: "the network in memory".into(), tensors }
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `path` onto the CPU.
    ///
    /// # Errors
    /// Names the file when it is absent, cut short, damaged, of another format or of a later
    /// version; of damage, also the tensor.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let wrong = |reason: String| ModelError::weights(&path, reason);
        let bytes = fs::read(&path).map_err(|e| wrong(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| wrong(format!("not a readable checkpoint: {e}")))?;
        let text = |key| header.metadata().as_ref().and_then(|m| m.get(key));
        let card = text(CARD).ok_or_else(|| wrong("not a lapflow checkpoint".into()))?;
        let version = serde_json::from_str::<serde_json::Value>(card)
            .ok()
            .and_then(|card| card["version"].as_u64());
        if version != Some(u64::from(VERSION)) {
            let found = version.map_or("unstated".into(), |v| v.to_string());
            return Err(wrong(format!("checkpoint version {found}, this lapflow reads {VERSION}")));
        }
        if let Some(sums) = text(CHECKSUMS) {
            verify(&bytes, sums, &[(CARD, Some(card)), (TRAINING, text(TRAINING))])
                .map_err(&wrong)?;
        }
        let card =
            serde_json::from_str(card).map_err(|e| wrong(format!("checkpoint card: {e}")))?;
        let training = text(TRAINING)
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
        let mut metadata = HashMap::from([(CARD.to_string(), json(&card))]);
        metadata.extend(training.map(|state| (TRAINING.to_string(), json(state))));
        let texts =
            metadata.iter().map(|(key, text)| (key.clone(), crc32fast::hash(text.as_bytes())));
        let tensor_sum = |(name, tensor): &(String, Tensor)| {
            (format!("tensor {name}"), crc32fast::hash(&View::data(tensor)))
        };
        let sums: Vec<_> = tensors.par_iter().map(tensor_sum).collect();
        let sums: BTreeMap<String, u32> = texts.chain(sums).collect();
        let sums = serde_json::to_string(&sums).map_err(|e| wrong(e.to_string()))?;
        metadata.insert(CHECKSUMS.to_string(), sums);
        let beside = path.with_extension("partial");
        let views = tensors.iter().map(|(name, tensor)| (name, tensor));
        safetensors::serialize_to_file(views, Some(metadata), &beside)
            .map_err(|e| wrong(e.to_string()))?;
        File::open(&beside)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&beside, path))
            .and_then(|()| sync_folder(path))
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
            WeightSet::Ema | WeightSet::Raw => self.group("model"),
            WeightSet::Decay(decay) => self.group(&average_group(decay)),
        };
        Params::frozen(weights, DType::F32, device, |scope| {
            Transformer::new(scope, &self.card.model, &self.card.geometry)
        })
        .map_err(|e| ModelError::weights(&self.path, e))
    }
}

/// Compares the CRC-32 of every tensor and text with the sums of the header.
fn verify(bytes: &[u8], sums: &str, texts: &[(&str, Option<&String>)]) -> Result<(), String> {
    let sums: BTreeMap<String, u32> =
        serde_json::from_str(sums).map_err(|e| format!("its checksums: {e}"))?;
    let unreadable = |e| format!("not a readable checkpoint: {e}");
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let tensors = file.tensors();
    let present = texts.iter().filter(|(_, text)| text.is_some()).count() + tensors.len();
    if present != sums.len() {
        return Err(format!("damaged: {present} parts, its checksums are of {}", sums.len()));
    }
    let holds = |name: &str, data: &[u8]| match sums.get(name) {
        Some(&sum) if sum == crc32fast::hash(data) => Ok(()),
        _ => Err(format!("damaged: {name} does not match its checksum")),
    };
    for (name, text) in texts {
        text.map_or(Ok(()), |text| holds(name, text.as_bytes()))?;
    }
    tensors.par_iter().try_for_each(|(name, view)| holds(&format!("tensor {name}"), view.data()))
}

/// Makes a rename durable.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|folder| cfg!(unix) && !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
