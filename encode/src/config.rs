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
    /// How a source that grows is followed.
    pub watch: WatchConfig,
}

/// How a source that grows is followed; `[data.watch]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// Seconds between two looks at the source.
    pub poll_seconds: f64,
    /// A file is taken once it has not changed for so many seconds.
    pub settle_seconds: f64,
    /// A shard that is not full is closed when its oldest image has waited for so many seconds.
    pub age_seconds: f64,
    /// Class names of a dataset to be created, in the order of their labels; empty takes those of
    /// the images that are there. Images of other classes are left out.
    pub classes: Vec<String>,
}

impl Default for WatchConfig {
    fn default() -> Self {
        let classes = Vec::new();
        Self { poll_seconds: 10.0, settle_seconds: 10.0, age_seconds: 300.0, classes }
    }
}

impl WatchConfig {
    /// The longest that a time may be set to.
    const SECONDS_MAX: f64 = 1e6;

    fn validate(&self) -> Result<()> {
        let times = [
            ("watch.poll_seconds", self.poll_seconds),
            ("watch.settle_seconds", self.settle_seconds),
            ("watch.age_seconds", self.age_seconds),
        ];
        match times.iter().find(|(_, seconds)| !(0.0..=Self::SECONDS_MAX).contains(seconds)) {
            Some((key, seconds)) => {
                let reason = format!("{seconds} is outside 0..={}", Self::SECONDS_MAX);
                Err(EncodeError::config(key, reason))
            }
            None => Ok(()),
        }
    }
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
            watch: WatchConfig::default(),
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
            None => self.watch.validate(),
        }
    }
}
