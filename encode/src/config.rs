//! The encode part of the `[data]` section of a config file.

use lapflow_store::{Dtype, Posterior};
use serde::{Deserialize, Serialize};

use crate::error::{EncodeError, Result};

/// What becomes of the cropped images; beside `IngestConfig`, the `[data]` section of a config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncodeConfig {
    /// Pyramid levels to store.
    pub levels: usize,
    /// Number format of the stored levels; everything before is computed in f32.
    pub dtype: Dtype,
    /// What of the autoencoder's posterior to store.
    pub posterior: Posterior,
    /// Seed of [`Posterior::Sample`]; each draw depends on it, the image's id and its view alone.
    pub posterior_seed: u64,
    /// Images the autoencoder takes at once.
    pub batch: usize,
    /// Rows a shard holds at most (both views counted). A shard is the unit of work: what a killed
    /// worker loses, and what one commit adds.
    pub shard_rows: usize,
    /// Seed of the permutation that spreads the images over the shards.
    pub shuffle_seed: u64,
    /// Batches waiting for the device, and as many waiting for the writer.
    pub queue_batches_max: usize,
}

impl Default for EncodeConfig {
    fn default() -> Self {
        Self {
            levels: 2,
            dtype: Dtype::F16,
            posterior: Posterior::Mean,
            posterior_seed: 0,
            batch: 8,
            shard_rows: 2048,
            shuffle_seed: 0,
            queue_batches_max: 2,
        }
    }
}

impl EncodeConfig {
    /// Most levels a dataset may have.
    pub const LEVELS_MAX: usize = 8;

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`EncodeError::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if !(1..=Self::LEVELS_MAX).contains(&self.levels) {
            let reason = format!("{} is outside 1..={}", self.levels, Self::LEVELS_MAX);
            return Err(EncodeError::config("levels", reason));
        }
        let at_least_one = [
            ("batch", self.batch),
            ("shard_rows", self.shard_rows),
            ("queue_batches_max", self.queue_batches_max),
        ];
        match at_least_one.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(EncodeError::config(key, "must be at least 1")),
            None => Ok(()),
        }
    }
}
