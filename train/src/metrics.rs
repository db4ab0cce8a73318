//! What a run says of itself: averages over a window of steps.

use crate::trainer::StepReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps taken when it was written.
    pub step: u64,
    /// Mean loss since the line before; none if every step was skipped.
    pub loss: Option<f64>,
    /// Mean squared velocity error, keyed `stage/level`.
    pub levels: BTreeMap<String, f64>,
    /// Mean global gradient norm, likewise.
    pub grad_norm: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Steps skipped since the line before.
    pub skipped: u64,
    /// Training throughput.
    pub images_per_second: f64,
    /// Share of the time spent waiting for the loader.
    pub loader_wait: f64,
    /// Multiply-accumulates of the network a second: forward, and twice that backward.
    #[serde(default)]
    pub macs_per_second: f64,
    /// That as a share of the machine's matrix rate, measured when the run began.
    #[serde(default)]
    pub matrix_share: f64,
}

impl Line {
    /// Its values by name, for charts.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let named = [
            ("lr", self.lr),
            ("skipped", self.skipped as f64),
            ("images_per_second", self.images_per_second),
            ("macs_per_second", self.macs_per_second),
            ("matrix_share", self.matrix_share),
            ("loader_wait", self.loader_wait),
        ];
        let levels = self.levels.iter().filter_map(|(key, &value)| {
            let (stage, level) = key.split_once('/')?;
            Some((format!("loss/stage_{stage}/level_{level}"), value))
        });
        let means = [("loss", self.loss), ("grad_norm", self.grad_norm)];
        let means = means.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let named = means.chain(named).map(|(name, value)| (name.to_string(), value));
        named.chain(levels).collect()
    }

    /// The line with its newline.
    pub fn to_json(&self) -> String {
        // A struct of numbers and string keys always serializes.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

/// Gathers steps between two lines.
#[derive(Default)]
pub(crate) struct Window {
    steps: u64,
    skipped: u64,
    loss: f64,
    grad_norm: f64,
    levels: BTreeMap<String, (f64, u64)>,
    lr: f64,
    images: usize,
    seconds: f64,
    wait_seconds: f64,
    macs: f64,
}

impl Window {
    /// Adds a step on `images` images, which took `seconds` of which `wait_seconds` for the loader.
    pub fn add(&mut self, report: &StepReport, images: usize, seconds: f64, wait_seconds: f64) {
        self.images += images;
        self.seconds += seconds;
        self.wait_seconds += wait_seconds;
        self.macs += report.macs;
        self.lr = report.lr;
        if report.skipped {
            self.skipped += 1;
            return;
        }
        self.steps += 1;
        self.loss += report.loss;
        self.grad_norm += report.grad_norm;
        for ((stage, level), error) in &report.levels {
            let entry = self.levels.entry(format!("{stage}/{level}")).or_default();
            entry.0 += error;
            entry.1 += 1;
        }
    }

    /// The line after `step` steps on a machine of `matrix_rate`.
    pub fn line(&self, step: u64, matrix_rate: f64) -> Line {
        let macs_per_second = self.macs / self.seconds.max(1e-9);
        let mean_step = |sum: f64| (self.steps > 0).then(|| sum / self.steps as f64);
        let mean =
            |(name, (sum, count)): (&String, &(f64, u64))| (name.clone(), sum / *count as f64);
        Line {
            step,
            loss: mean_step(self.loss),
            levels: self.levels.iter().map(mean).collect(),
            grad_norm: mean_step(self.grad_norm),
            lr: self.lr,
            skipped: self.skipped,
            images_per_second: self.images as f64 / self.seconds.max(1e-9),
            loader_wait: self.wait_seconds / self.seconds.max(1e-9),
            macs_per_second,
            matrix_share: macs_per_second / matrix_rate,
        }
    }
}
