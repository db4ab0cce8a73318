//! The config file of `lapflow autoencoder train`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lapflow_ingest::IngestConfig;
use lapflow_model::autoencoder::{KlConfig, ObjectiveConfig};
use lapflow_train::TrainConfig;
use serde::{Deserialize, Serialize};

/// Everything that makes an autoencoder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The images.
    pub data: DataConfig,
    /// The network.
    #[serde(default)]
    pub architecture: KlConfig,
    /// The loss.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// The optimisation.
    #[serde(default)]
    pub train: OptimisationConfig,
}

/// Which images to train on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "DataTable")]
pub enum DataConfig {
    /// The demo's drawings.
    Renderings(RenderingsConfig),
    /// Images of one's own.
    Images(IngestConfig),
}

/// Drawings of the demo, a new one each time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenderingsConfig {
    /// Side in pixels.
    pub size: u32,
    /// Seed of the first drawing; the held-out ones come before it.
    pub first_seed: u64,
}

/// `[data]` as it is written: serde's own errors for enums name no key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataTable {
    renderings: Option<RenderingsConfig>,
    images: Option<IngestConfig>,
}

impl TryFrom<DataTable> for DataConfig {
    type Error = &'static str;

    fn try_from(table: DataTable) -> Result<Self, Self::Error> {
        match (table.renderings, table.images) {
            (Some(renderings), None) => Ok(Self::Renderings(renderings)),
            (None, Some(images)) => Ok(Self::Images(images)),
            _ => Err("data needs one of [data.images] and [data.renderings]"),
        }
    }
}

/// How long and how fast to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimisationConfig {
    /// Weights to start from; without, fresh ones drawn from `seed`.
    pub init: Option<PathBuf>,
    /// Seed of initialisation, image order, posterior noise and transformations.
    pub seed: u64,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Images a step.
    pub batch: usize,
    /// Peak learning rate, reached after `warmup_steps` and then falling along half a cosine.
    pub lr: f64,
    /// Learning rate at the last step.
    pub lr_final: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decay of the weights' moving average, which is what is saved.
    pub ema_decay: f64,
    /// Images held out and scored at every checkpoint.
    pub held_out: usize,
    /// Steps between two lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
}

impl Default for OptimisationConfig {
    fn default() -> Self {
        Self {
            init: None,
            seed: 0,
            steps: 10_000,
            batch: 16,
            lr: 1e-3,
            lr_final: 1e-5,
            warmup_steps: 100,
            ema_decay: 0.999,
            held_out: 128,
            log_every: 50,
            checkpoint_every: 500,
        }
    }
}

impl Recipe {
    /// Reads and checks a config file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let recipe: Self =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        recipe.validate().with_context(|| format!("in {}", path.display()))?;
        Ok(recipe)
    }

    fn validate(&self) -> Result<()> {
        self.architecture.validate()?;
        self.objective.validate()?;
        self.optimizer().validate(1)?;
        let (size, factor) = (self.data.size(), self.architecture.factor() as u32);
        ensure!(
            size > 0 && size.is_multiple_of(factor),
            "data: size {size} is not a multiple of the autoencoder's factor {factor}"
        );
        Ok(())
    }

    /// The optimiser's share of the recipe.
    pub fn optimizer(&self) -> TrainConfig {
        let train = &self.train;
        TrainConfig {
            steps: train.steps,
            batch: train.batch,
            seed: train.seed,
            lr: train.lr,
            lr_final: train.lr_final,
            warmup_steps: train.warmup_steps,
            ema_decay: train.ema_decay,
            log_every: train.log_every,
            checkpoint_every: train.checkpoint_every,
            ..TrainConfig::default()
        }
    }
}

impl DataConfig {
    /// Side of the images in pixels.
    pub fn size(&self) -> u32 {
        match self {
            Self::Renderings(config) => config.size,
            Self::Images(config) => config.size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_of_data_is_asked_for_by_name() {
        let read = |data: &str| toml::from_str::<Recipe>(data).map(|recipe| recipe.data.size());
        let renderings = "[data.renderings]\nsize = 64\nfirst_seed = 100\n";
        let images = "[data.images]\nsource = \"photos\"\nsize = 32\n";
        assert_eq!(read(renderings).unwrap(), 64);
        assert_eq!(read(images).unwrap(), 32);
        for (data, wanted) in [
            ("[data]\nsource = \"photos\"\nsize = 32\n", "expected `renderings` or `images`"),
            (&format!("{renderings}{images}"), "one of [data.images] and [data.renderings]"),
            ("[data]\n", "one of [data.images] and [data.renderings]"),
        ] {
            let error = read(data).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
