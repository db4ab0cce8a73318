//! `lapflow train`: a flow from a dataset, resumable at any step.

use super::{Context, plan};
use crate::config::{Config, ConfigArgs};
use crate::progress::Progress;
use anyhow::{Result, bail};
use lapflow_store::Dataset;
use lapflow_train::{Outcome, Recipe, RunFolder, Trainer};
use serde_json::json;

/// Arguments of `lapflow train`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on from the newest checkpoint of the run folder
    #[arg(long)]
    resume: bool,
    /// Show parameters, operations, memory and steps, and train nothing; the dataset need not be
    /// there yet
    #[arg(long)]
    dry_run: bool,
    /// Label classes that --dry-run assumes for a dataset that is not there yet
    #[arg(long, default_value_t = 0, requires = "dry_run")]
    classes: usize,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let config = args.config.load()?;
    if args.dry_run {
        return plan::print(&config, args.classes, context);
    }
    let outcome = train(&config, args.resume, context)?;
    if context.json {
        let rate = outcome.images as f64 / outcome.seconds.max(1e-9);
        let summary = json!({
            "step": outcome.step, "finished": outcome.finished, "checkpoint": outcome.checkpoint,
            "seconds": outcome.seconds, "images": outcome.images, "images_per_second": rate,
        });
        println!("{summary}");
    } else {
        println!("{}", outcome.checkpoint.display());
    }
    if !outcome.finished {
        bail!("stopped after step {}; the same command with --resume goes on", outcome.step);
    }
    Ok(())
}

/// Trains as `config` says, from the newest checkpoint where `resume` is set and there is one.
pub fn train(config: &Config, resume: bool, context: &Context) -> Result<Outcome> {
    let dataset = context.runtime.block_on(Dataset::open(&config.data.dataset))?;
    let folder = RunFolder::open(&config.train.folder)?;
    let newest = folder.newest()?;
    if newest.is_some() && !resume {
        bail!(
            "{} holds a run already: pass --resume to go on with it, or set another train.folder",
            folder.root().display()
        );
    }
    config.write(folder.root())?;
    let recipe = Recipe {
        model: config.model.clone(),
        flow: config.flow.clone(),
        train: config.train.clone(),
        autoencoder: serde_json::to_value(&config.autoencoder)?,
    };
    let mut trainer = match &newest {
        Some(checkpoint) => Trainer::resume(&recipe, &dataset, checkpoint, &context.device)?,
        None => Trainer::new(&recipe, &dataset, &context.device)?,
    };
    let start = trainer.state().step;
    let mut progress = Progress::new("train", "steps", start, config.train.steps);
    let outcome = lapflow_train::run(&mut trainer, &dataset, &folder, &context.stop, |line| {
        let note = format!("loss {:.4}, {:.1} images/s", line.loss, line.images_per_second);
        progress.update(line.step, &note);
    })?;
    let rate = outcome.images as f64 / outcome.seconds.max(1e-9);
    let how = match outcome.finished {
        true => "finished",
        false => "stopped",
    };
    progress.finish(&format!(
        "{how} at step {} after {:.0} s, {rate:.1} images/s",
        outcome.step, outcome.seconds
    ));
    Ok(outcome)
}
