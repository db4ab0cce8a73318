//! The `[train]` section.

use crate::error::{Result, TrainError};
use lapflow_model::checkpoint::average_group;
use lapflow_model::net::Precision;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::PathBuf;

/// How to train: defaults are the paper's CelebA-HQ recipe where it states one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The run folder.
    pub folder: PathBuf,
    /// Whether each of several ranks holds its share alone of moments and averages (ZeRO-1): the same
    /// training, in less memory a rank, with one more exchange of the weights a step.
    pub shard_optimizer: bool,
    /// Optimizer steps in all.
    pub steps: u64,
    /// Samples a step.
    pub batch: usize,
    /// Parts that a step's batch goes through the network in, one after the other, their gradients
    /// summed: the same step to rounding, in less memory.
    pub accumulate: usize,
    /// Whether blocks keep their input alone and run again in the backward pass: a third more
    /// arithmetic for a small part of the activations' memory.
    pub recompute: bool,
    /// What the blocks' products are computed in.
    pub precision: Precision,
    /// Seed of initialization, sample order, times, noise and label dropout.
    pub seed: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the last step of a cosine schedule.
    pub lr_final: f64,
    /// How the learning rate moves after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// AdamW's decay rates.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
    /// Decay of the weights' moving average, warmed up as (1 + n) / (10 + n); 0 for none.
    pub ema_decay: f64,
    /// Decays of further averages, warmed up in the same way; sampled with `sample.weights`.
    pub ema_decays: Vec<f64>,
    /// How a batch is spread over the stages.
    pub stages: Stages,
    /// How the times of a stage are drawn.
    pub times: Times,
    /// Weight of each level's loss, finest first; empty for 1.
    pub level_weights: Vec<f64>,
    /// Probability with which a label is replaced by the null class.
    pub label_dropout: f64,
    /// What is subtracted and multiplied before the network sees a latent.
    pub normalize: Normalize,
    /// Rows that the loader mixes with each other.
    pub shuffle_window_rows: usize,
    /// Bytes of decoded row groups kept from one epoch to the next; 0 keeps none.
    pub memory_cache_bytes_max: usize,
    /// A local folder that keeps what was read of datasets, which processes may share.
    pub disk_cache: Option<PathBuf>,
    /// Bytes that folder may hold.
    pub disk_cache_bytes_max: u64,
    /// Datasets read beside `data.dataset`, which has weight 1: of the same latents and classes.
    pub mixture: Vec<Source>,
    /// Steps in a row without a finite loss and gradient after which the run halts.
    pub skips_max: u32,
    /// Steps between two lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between two checkpoints; the last step always has one.
    pub checkpoint_every: u64,
    /// Checkpoints kept, newest first.
    pub checkpoints_kept: usize,
    /// Checkpoints of multiples of this step are never removed; 0 for none.
    pub checkpoint_keep_every: u64,
    /// Whether the checkpoint with the lowest mean loss since the one before it is kept too, as
    /// `best.safetensors`.
    pub checkpoint_best: bool,
    /// Steps between two grids of samples, drawn from fixed noise with the averaged weights; the
    /// last step has one too. 0 for none.
    pub sample_every: u64,
    /// Images of such a grid.
    pub sample_images: usize,
}

/// A dataset among several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Where it is.
    pub dataset: String,
    /// Its share of the batches, relative to the others'.
    pub weight: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            folder: "runs/lapflow".into(),
            shard_optimizer: false,
            steps: 100_000,
            batch: 256,
            accumulate: 1,
            recompute: false,
            precision: Precision::F32,
            seed: 0,
            lr: 2e-4,
            lr_final: 1e-6,
            schedule: Schedule::Cosine,
            warmup_steps: 0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: 0.0,
            ema_decay: 0.9999,
            ema_decays: Vec::new(),
            stages: Stages::Step,
            times: Times::Uniform,
            level_weights: Vec::new(),
            label_dropout: 0.1,
            normalize: Normalize::Channel,
            shuffle_window_rows: 8192,
            memory_cache_bytes_max: 0,
            disk_cache: None,
            disk_cache_bytes_max: 100_000_000_000,
            mixture: Vec::new(),
            skips_max: 10,
            log_every: 50,
            checkpoint_every: 5_000,
            checkpoints_kept: 2,
            checkpoint_keep_every: 0,
            checkpoint_best: true,
            sample_every: 0,
            sample_images: 16,
        }
    }
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine from `lr` to `lr_final`.
    Cosine,
    /// `lr` throughout.
    Constant,
}

/// How a batch is spread over the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stages {
    /// One stage a step, uniform (paper).
    Step,
    /// Every step divides its batch over all stages: less variance at equal cost.
    Balanced,
}

/// Distribution of t inside a stage's `[S_s, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Times {
    /// Uniform (paper).
    Uniform,
    /// The logistic function of N(0, 1), stretched over the range.
    LogitNormal,
}

/// Where the latents' normalization comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Mean 0 and standard deviation 1 for every channel over the dataset.
    Channel,
    /// The autoencoder's own shift and scale.
    Autoencoder,
}

impl TrainConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first key that cannot be.
    pub fn validate(&self, levels: usize) -> Result<()> {
        let is_weight = |x: f64| x >= 0.0 && x.is_finite();
        let groups = self.average_groups();
        let rules = [
            (self.steps > 0, "steps must be positive"),
            (self.batch > 0, "batch must be positive"),
            (
                (1..=self.batch).contains(&self.accumulate),
                "accumulate must be positive and at most batch",
            ),
            (self.lr > 0.0 && self.lr.is_finite(), "lr must be positive"),
            (is_weight(self.lr_final), "lr_final must not be negative"),
            (self.betas.iter().all(|b| (0.0..1.0).contains(b)), "betas must be in [0, 1)"),
            (self.eps > 0.0 && self.eps.is_finite(), "eps must be positive"),
            (is_weight(self.weight_decay), "weight_decay must not be negative"),
            (is_weight(self.clip_norm), "clip_norm must not be negative"),
            ((0.0..1.0).contains(&self.ema_decay), "ema_decay must be in [0, 1)"),
            (
                self.ema_decays.iter().all(|decay| (0.0..1.0).contains(decay)),
                "ema_decays must be in [0, 1)",
            ),
            (
                groups.iter().collect::<HashSet<_>>().len() == groups.len()
                    && !self.ema_decays.contains(&self.ema_decay),
                "ema_decays must differ from each other and from ema_decay",
            ),
            (
                self.mixture.iter().all(|s| s.weight > 0.0 && s.weight.is_finite()),
                "mixture: a weight must be positive",
            ),
            (self.skips_max > 0, "skips_max must be positive"),
            (self.sample_images > 0, "sample_images must be positive"),
            ((0.0..=1.0).contains(&self.label_dropout), "label_dropout must be in [0, 1]"),
            (self.shuffle_window_rows > 0, "shuffle_window_rows must be positive"),
            (self.log_every > 0, "log_every must be positive"),
            (self.checkpoint_every > 0, "checkpoint_every must be positive"),
            (self.checkpoints_kept > 0, "checkpoints_kept must be positive"),
            (
                self.level_weights.is_empty() || self.level_weights.len() == levels,
                "level_weights must have one value a level",
            ),
            (
                self.level_weights.iter().all(|&weight| is_weight(weight)),
                "level_weights must not be negative",
            ),
            (
                self.stages == Stages::Step || self.batch >= levels,
                "batch must hold a sample for every stage when stages are balanced",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(TrainError::Config((*rule).to_string())),
            None => Ok(()),
        }
    }

    /// The learning rate of `step` (counted from 0).
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Cosine => {
                let span = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let done = ((step - self.warmup_steps) as f64 / span).min(1.0);
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                self.lr_final + (self.lr - self.lr_final) * cosine
            }
        }
    }

    /// The decays of all averages, the main one first.
    pub fn averages(&self) -> Vec<f64> {
        let main = Some(self.ema_decay).filter(|&decay| decay > 0.0);
        main.into_iter().chain(self.ema_decays.iter().copied()).collect()
    }

    /// Names of the averages' groups in a checkpoint, in the order of [`TrainConfig::averages`].
    pub fn average_groups(&self) -> Vec<String> {
        let main = (self.ema_decay > 0.0).then(|| "ema".to_string());
        main.into_iter().chain(self.ema_decays.iter().map(|&d| average_group(d))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_warms_up_and_falls_to_its_end() {
        let config = TrainConfig { steps: 100, warmup_steps: 10, ..TrainConfig::default() };
        assert!((config.learning_rate(0) - 2e-5).abs() < 1e-12);
        assert!((config.learning_rate(10) - 2e-4).abs() < 1e-12);
        assert!((config.learning_rate(55) - (1e-6 + 1.99e-4 / 2.0)).abs() < 1e-10);
        assert!((config.learning_rate(100) - 1e-6).abs() < 1e-12);
        let constant = TrainConfig { schedule: Schedule::Constant, ..config };
        assert_eq!(constant.learning_rate(99), 2e-4);
    }

    #[test]
    fn impossible_values_are_named() {
        let wrong = TrainConfig { betas: [0.9, 1.0], ..TrainConfig::default() };
        assert!(wrong.validate(2).unwrap_err().to_string().contains("betas"));
        for decays in [vec![0.5, 0.5], vec![0.9, 0.9999]] {
            let wrong = TrainConfig { ema_decays: decays, ..TrainConfig::default() };
            assert!(wrong.validate(2).unwrap_err().to_string().contains("ema_decays must differ"));
        }
        for value in [f64::NAN, f64::INFINITY] {
            let default = TrainConfig::default;
            for (key, wrong) in [
                ("lr_final", TrainConfig { lr_final: value, ..default() }),
                ("eps", TrainConfig { eps: value, ..default() }),
                ("weight_decay", TrainConfig { weight_decay: value, ..default() }),
                ("clip_norm", TrainConfig { clip_norm: value, ..default() }),
                ("level_weights", TrainConfig { level_weights: vec![1.0, value], ..default() }),
            ] {
                assert!(
                    wrong.validate(2).unwrap_err().to_string().contains(key),
                    "{key} = {value}"
                );
            }
        }
        assert!(TrainConfig::default().validate(2).is_ok());
    }
}
