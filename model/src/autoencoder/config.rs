//! Which autoencoder to use, and how one identifies itself.

use super::Tiling;
use crate::error::{ModelError, Result};
use crate::normalization::Normalization;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;

/// The answer to weights that are no known network's and come without a description.
const SCALE_UNSTATED: &str = "nothing states the scale of its latents (networks of one shape differ: \
    Stable Diffusion 0.18215, SDXL 0.13025): set autoencoder.scale, or state it in the weights with \
    `lapflow convert --scale`, or put their config.json beside them";

/// The `[autoencoder]` section of a config file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderConfig {
    /// `"builtin"`, `"pixel"`, a weight file or diffusers' folder of one, or
    /// `[encoder file, decoder file]`. Default `"builtin"`.
    pub weights: WeightsSource,
    /// Groups of an `AutoencoderKL`'s group normalisations, in place of those that its weights state:
    /// they decide every latent, and do not show in the shapes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// Replaces the scale that the weights state: a model sees `(latents - shift) * scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Replaces the shift that the weights state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Images larger than a tile are encoded and decoded in pieces, to bound the memory. Default:
    /// whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiling: Option<Tiling>,
}

impl AutoencoderConfig {
    /// Takes the groups that an autoencoder's recorded identity states where none are given, so that
    /// latents are decoded as they were encoded.
    pub fn recorded(mut self, identity: &serde_json::Value) -> Self {
        let groups = identity["groups"].as_u64().map(|groups| groups as usize);
        self.groups = self.groups.or(groups);
        self
    }
}

/// Where an autoencoder's weights are.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum WeightsSource {
    /// The small one that lapflow carries: f4 with 4 channels, trained on the demo's drawings of
    /// 64 pixels.
    #[default]
    Builtin,
    /// No autoencoder: the images themselves.
    Pixel,
    /// One file with encoder and decoder.
    File(PathBuf),
    /// Encoder and decoder in a file each, as the tiny autoencoders are published.
    Pair {
        /// The encoder's file.
        encoder: PathBuf,
        /// The decoder's file.
        decoder: PathBuf,
    },
}

impl<'de> Deserialize<'de> for WeightsSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Names)
    }
}

/// Reads a name or path, or encoder and decoder.
struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = WeightsSource;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("weights: \"builtin\", \"pixel\", a file, or [encoder file, decoder file]")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<WeightsSource, E> {
        Ok(name.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<WeightsSource, A::Error> {
        let mut paths: Vec<PathBuf> = Vec::new();
        while let Some(path) = names.next_element()? {
            paths.push(path);
        }
        let source = WeightsSource::from_paths(&paths).filter(|_| paths.len() <= 2);
        source.ok_or_else(|| A::Error::invalid_length(paths.len(), &self))
    }
}

impl Serialize for WeightsSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Builtin => "builtin".serialize(serializer),
            Self::Pixel => "pixel".serialize(serializer),
            Self::File(path) => path.to_string_lossy().serialize(serializer),
            Self::Pair { encoder, decoder } => [encoder, decoder].serialize(serializer),
        }
    }
}

impl WeightsSource {
    /// As given on a command line: nothing, a reserved name or one file, or encoder and decoder.
    pub fn from_paths(paths: &[PathBuf]) -> Option<Self> {
        match paths {
            [] => None,
            [one] => Some(one.to_str().map_or_else(|| Self::File(one.clone()), Self::from)),
            [encoder, decoder, ..] => {
                Some(Self::Pair { encoder: encoder.clone(), decoder: decoder.clone() })
            }
        }
    }
}

impl From<&str> for WeightsSource {
    /// A reserved name, or the path of one file.
    fn from(name: &str) -> Self {
        match name {
            "builtin" => Self::Builtin,
            "pixel" => Self::Pixel,
            path => Self::File(path.into()),
        }
    }
}

/// The kinds of autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// The images themselves.
    Pixel,
    /// `AutoencoderKL`: SD-VAE, EQ-VAE and the like.
    Kl,
    /// The TAESD family.
    Tiny,
}

/// What tells one autoencoder's latents from another's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The kind of network.
    pub architecture: Architecture,
    /// SHA-256 of the weight file; of both files' digests one after the other when there are two;
    /// `None` without weights.
    pub sha256: Option<String>,
    /// Latent channels.
    pub channels: usize,
    /// Image pixels a latent pixel, in each direction.
    pub factor: usize,
    /// Groups of an `AutoencoderKL`'s group normalisations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// A model sees `(latents - shift) * scale`; `None` where nothing states it.
    pub scale: Option<f64>,
    /// See `scale`.
    pub shift: f64,
}

impl Identity {
    /// Whether latents that a dataset records as `of` are this autoencoder's. Scale and shift are the
    /// model's business: latents are stored raw.
    pub fn made(&self, of: &serde_json::Value) -> bool {
        let here = self.beside(of);
        ["architecture", "sha256", "groups"].iter().all(|key| here[key] == of[key])
    }

    /// As datasets record it, for a comparison with `recorded`: older ones do not state the groups.
    pub fn beside(&self, recorded: &serde_json::Value) -> serde_json::Value {
        let groups = self.groups.filter(|_| !recorded["groups"].is_null());
        serde_json::json!(Self { groups, ..self.clone() })
    }

    /// Raw latents to a model's.
    ///
    /// # Errors
    /// [`ModelError::Config`] where nothing states the scale.
    pub fn normalization(&self) -> Result<Normalization> {
        let scale = self
            .scale
            .ok_or_else(|| ModelError::config("autoencoder", SCALE_UNSTATED.to_owned()))?;
        let all = |value| vec![value; self.channels];
        Ok(Normalization { shift: all(self.shift), scale: all(scale) })
    }

    /// Of images used as they are.
    pub const PIXEL: Self = Self {
        architecture: Architecture::Pixel,
        sha256: None,
        channels: 3,
        factor: 1,
        groups: None,
        scale: Some(1.0),
        shift: 0.0,
    };
}
