//! What a dataset holds: its levels, their type, and where they came from.

use half::prelude::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Newest dataset format this crate reads and the one it writes.
pub const FORMAT_VERSION: u32 = 1;
/// Pyramid levels a dataset may have.
pub const LEVELS_MAX: usize = 8;
/// Values a level may hold per sample (256 MiB of f32).
pub const LEVEL_VALUES_MAX: usize = 1 << 26;

/// Number format of the stored levels, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 half precision.
    F16,
    /// Brain floating point: the upper half of an f32.
    Bf16,
    /// IEEE 754 single precision.
    F32,
}

impl Dtype {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Name as stored in field metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// Reads little-endian values; `bytes` holds a whole number of them.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let bits = || -> Vec<u16> {
            bytes.chunks_exact(2).map(|value| u16::from_le_bytes([value[0], value[1]])).collect()
        };
        match self {
            Self::F16 => bits().reinterpret_cast::<f16>().to_f32_vec(),
            Self::Bf16 => bits().reinterpret_cast::<bf16>().to_f32_vec(),
            Self::F32 => bytes
                .chunks_exact(4)
                .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]))
                .collect(),
        }
    }

    /// Writes `values` as little-endian bytes, rounding to nearest even where needed.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(values.len() * self.bytes());
        for &value in values {
            match self {
                Self::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                Self::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                Self::F32 => bytes.extend(value.to_le_bytes()),
            }
        }
        bytes
    }
}

/// Shape of one level of one sample, stored in C, H, W order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LevelSpec {
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl LevelSpec {
    /// Values of one sample.
    pub fn values(self) -> usize {
        self.channels * self.height * self.width
    }

    /// Bytes of one sample.
    pub fn bytes(self, dtype: Dtype) -> usize {
        self.values() * dtype.bytes()
    }
}

/// What of the autoencoder's posterior was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posterior {
    /// Its mean.
    Mean,
    /// One draw, seeded per image.
    Sample,
    /// Its mean as levels and its log-variance at full size.
    Moments,
}

/// The dataset's own description, fixed when it is created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Version of the format; [`FORMAT_VERSION`] when written.
    pub format_version: u32,
    /// Shapes of the levels, level 0 (finest) first.
    pub levels: Vec<LevelSpec>,
    /// Number format of every level.
    pub dtype: Dtype,
    /// What of the posterior the levels hold.
    pub posterior: Posterior,
    /// Identity of the autoencoder (architecture, sha256 of its weights, scale, ...); opaque here.
    #[serde(default)]
    pub autoencoder: serde_json::Value,
    /// How pixels were prepared; opaque here.
    #[serde(default)]
    pub preprocessing: serde_json::Value,
    /// Class names; a row's label indexes them. Empty for unlabelled data.
    #[serde(default)]
    pub classes: Vec<String>,
}

impl Metadata {
    /// Metadata of the current format version, without autoencoder, preprocessing or classes.
    pub fn new(levels: Vec<LevelSpec>, dtype: Dtype, posterior: Posterior) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            levels,
            dtype,
            posterior,
            autoencoder: serde_json::Value::Null,
            preprocessing: serde_json::Value::Null,
            classes: Vec::new(),
        }
    }

    /// Says what is wrong with it, if anything is.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        if self.levels.is_empty() || self.levels.len() > LEVELS_MAX {
            return Err(format!("{} levels, expected 1 to {LEVELS_MAX}", self.levels.len()));
        }
        for (index, level) in self.levels.iter().enumerate() {
            let values = level
                .channels
                .checked_mul(level.height)
                .and_then(|area| area.checked_mul(level.width))
                .unwrap_or(usize::MAX);
            if values == 0 || values > LEVEL_VALUES_MAX {
                let LevelSpec { channels, height, width } = level;
                return Err(format!("level {index} has shape {channels}x{height}x{width}"));
            }
        }
        Ok(())
    }

    /// Shape of the log-variance column: present where the posterior's moments are stored.
    pub fn logvar(&self) -> Option<LevelSpec> {
        (self.posterior == Posterior::Moments).then(|| self.levels[0])
    }

    /// Bytes of all levels (and log-variance) of one sample.
    pub fn sample_bytes(&self) -> usize {
        self.levels.iter().chain(self.logvar().iter()).map(|level| level.bytes(self.dtype)).sum()
    }
}

/// One image's pyramid with its provenance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Position of the image in the sorted source listing.
    pub id: i64,
    /// Class index, -1 where there is none.
    pub label: i32,
    /// Path or archive member the image came from.
    pub source: String,
    /// SHA-256 of the source file's bytes.
    pub sha256: [u8; 32],
    /// Original width in pixels.
    pub width: i32,
    /// Original height in pixels.
    pub height: i32,
    /// 0 as it is, 1 mirrored left to right.
    pub view: i8,
    /// One buffer a level, level 0 (finest) first: little-endian, C, H, W order, raw latents.
    pub levels: Vec<Vec<u8>>,
    /// Log-variance at full size, where the posterior is [`Posterior::Moments`].
    pub logvar: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_encoding_in_every_dtype() {
        let values = [0.0, -1.5, 0.25, 96.0];
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
            let bytes = dtype.encode(&values);
            assert_eq!(bytes.len(), values.len() * dtype.bytes());
            assert_eq!(dtype.decode(&bytes), values);
        }
    }

    #[test]
    fn impossible_shapes_are_named() {
        let huge = LevelSpec { channels: usize::MAX, height: 2, width: 2 };
        let metadata = Metadata::new(vec![huge], Dtype::F16, Posterior::Mean);
        assert!(metadata.validate().unwrap_err().starts_with("level 0 has shape"));
        let none = Metadata::new(vec![], Dtype::F16, Posterior::Mean);
        assert_eq!(none.validate().unwrap_err(), "0 levels, expected 1 to 8");
    }
}
