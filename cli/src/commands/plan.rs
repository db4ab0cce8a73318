//! `lapflow train --dry-run`: what a run would cost.

use super::Context;
use crate::config::Config;
use crate::memory;
use anyhow::Result;
use candle_core::Device;
use lapflow_model::autoencoder::WeightsSource;
use lapflow_model::flow::Flow;
use lapflow_model::net::{Cost, Geometry, cost};
use lapflow_store::Dataset;
use lapflow_train::{Stages, geometry};
use serde_json::json;
use std::path::Path;

/// Multiples of the width that a token takes in a block until its backward pass: input, norms,
/// query, key and value, attention's output and projection, residual sums, the feed-forward
/// network's hidden layers of 4 widths each, 17 in all, and what the backward pass holds at once.
/// Measured at 192 wide and 6 deep, 64x64x3 in 1024 tokens: 21.6.
const KEPT_A_TOKEN: u64 = 21;

/// What a run takes before its first step.
pub struct Plan {
    /// Samples of the dataset, if it is there.
    pub samples: Option<u64>,
    /// What the network works on.
    pub geometry: Geometry,
    /// Parameters and operations.
    pub cost: Cost,
    /// Weights, gradients, both moments and the average.
    pub state_bytes: u64,
    /// What the largest stage's backward pass needs, estimated.
    pub activation_bytes: u64,
}

impl Plan {
    /// Refuses a run that one of `ranks` processes has no memory for on `device`.
    pub fn check_memory(&self, config: &Config, ranks: usize, device: &Device) -> Result<()> {
        let activations = self.activation_bytes / ranks.max(1) as u64;
        let what = format!("train.batch = {}", config.train.batch);
        memory::check(&what, self.state_bytes.saturating_add(activations), device)
    }
}

/// Counts `config`; a dataset that is not there is taken to be what the config would make,
/// with `classes` classes.
pub fn plan(config: &Config, dataset: Option<&Dataset>, classes: usize) -> Result<Plan> {
    let flow = config.flow.build()?;
    let geometry = match dataset {
        Some(dataset) => geometry(dataset.metadata(), flow.levels()),
        None => latents(config, flow.levels(), classes),
    };
    config.model.validate(&geometry)?;
    let cost = cost(&config.model, &geometry, flow.as_ref());
    let state_bytes = cost.parameters * 4 * (4 + config.train.averages().len() as u64);
    Ok(Plan {
        samples: dataset.map(|dataset| dataset.rows()),
        activation_bytes: activations(config, &geometry, flow.as_ref()),
        geometry,
        cost,
        state_bytes,
    })
}

/// Prints the plan.
pub fn print(config: &Config, classes: usize, context: &Context) -> Result<()> {
    let uri = &config.data.dataset;
    let dataset = match uri.contains("://") || Path::new(uri).exists() {
        true => Some(context.runtime.block_on(Dataset::open(uri))?),
        false => None,
    };
    let plan = plan(config, dataset.as_ref(), classes)?;
    let (steps, cost) = (config.train.steps, &plan.cost);
    let drawn = steps as f64 * config.train.batch as f64;
    let epochs = plan.samples.map(|samples| drawn / samples as f64);
    if context.json {
        let summary = json!({
            "parameters": cost.parameters, "segment_macs": cost.segment_macs,
            "mean_macs": cost.mean_macs, "state_bytes": plan.state_bytes,
            "activation_bytes": plan.activation_bytes, "steps": steps, "epochs": epochs,
        });
        println!("{summary}");
        return Ok(());
    }
    let Geometry { channels, height, width, levels, classes } = plan.geometry;
    let latents = format!("{height}x{width}x{channels} in {levels} levels, {classes} classes");
    match plan.samples {
        Some(samples) => println!("dataset     {samples} samples of {latents}"),
        None => println!("dataset     not there yet, taken as {latents}"),
    }
    println!("method      {:?}, {} levels", config.flow.method, plan.geometry.levels);
    println!("parameters  {:.2} M", cost.parameters as f64 / 1e6);
    let flow = config.flow.build()?;
    for (k, macs) in cost.segment_macs.iter().enumerate().rev() {
        let (start, end) = flow.segment(k);
        println!("t {start:.2}-{end:.2}  {:.3} GMACs an evaluation", *macs as f64 / 1e9);
    }
    println!("mean        {:.3} GMACs an evaluation", cost.mean_macs / 1e9);
    println!("state       {:.1} MB of weights, gradients and optimizer", mega(plan.state_bytes));
    if config.train.shard_optimizer {
        let each = mega(cost.parameters * 8);
        let shared = mega(plan.state_bytes) - each;
        println!("            on several ranks {each:.1} MB each and {shared:.1} MB shared out");
    }
    println!("activations {:.1} MB in the largest stage, about", mega(plan.activation_bytes));
    match epochs {
        Some(epochs) => println!("training    {steps} steps, {epochs:.1} epochs"),
        None => println!("training    {steps} steps"),
    }
    Ok(())
}

/// The latents that the config would make: files of weights are taken to be of the SD-VAE's kind,
/// 8x smaller with 4 channels.
pub fn latents(config: &Config, levels: usize, classes: usize) -> Geometry {
    let (factor, channels) = match config.autoencoder.weights {
        WeightsSource::Pixel => (1, 3),
        WeightsSource::Builtin => (4, 4),
        WeightsSource::File(_) | WeightsSource::Pair { .. } => (8, 4),
    };
    let side = config.data.ingest.size as usize / factor;
    Geometry { channels, height: side, width: side, levels, classes }
}

fn activations(config: &Config, geometry: &Geometry, flow: &dyn Flow) -> u64 {
    let tokens = |k: usize| -> u64 {
        flow.shown(k).map(|level| geometry.level_tokens(level, config.model.patch) as u64).sum()
    };
    let most = (0..flow.levels()).map(tokens).max().unwrap_or(0);
    let samples = match config.train.stages {
        Stages::Step => config.train.batch,
        Stages::Balanced => config.train.batch.div_ceil(flow.levels()),
    };
    let samples = samples.div_ceil(config.train.accumulate) as u64;
    let (width, depth) = (config.model.width() as u64, config.model.depth() as u64);
    // Blocks that run again keep their input alone, but for the one at work.
    let kept = match config.train.recompute {
        true => depth + KEPT_A_TOKEN,
        false => depth * KEPT_A_TOKEN,
    };
    samples.saturating_mul(most * width * kept * 4)
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
