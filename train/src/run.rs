//! The loop: batches in, metrics and checkpoints out, until the last step or a stop.

use crate::error::Result;
use crate::folder::RunFolder;
use crate::metrics::{Line, Window};
use crate::trainer::Trainer;
use lapflow_store::{Dataset, Loader, LoaderConfig};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps taken in all.
    pub step: u64,
    /// Whether that was the last.
    pub finished: bool,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    /// Seconds this call trained for.
    pub seconds: f64,
    /// Images this call trained on.
    pub images: u64,
}

/// Trains to the configured number of steps, or until `stop` is set.
///
/// A step under way is finished, then a checkpoint is written: nothing is lost either way.
/// `progress` sees every line of `metrics.jsonl` as it is written.
///
/// # Errors
/// When the dataset, a step or the run folder fails; checkpoints written before stay good.
pub fn run(
    trainer: &mut Trainer,
    dataset: &Dataset,
    folder: &RunFolder,
    stop: &AtomicBool,
    mut progress: impl FnMut(&Line),
) -> Result<Outcome> {
    let config = trainer.config().clone();
    let loader = LoaderConfig {
        batch: config.batch,
        seed: config.seed,
        window_rows: config.shuffle_window_rows,
        ..LoaderConfig::default()
    };
    folder.rewind_metrics(trainer.state().step)?;
    let mut metrics = folder.append_metrics()?;
    let mut batches = Loader::new(dataset, loader, trainer.state().loader)?.batches();
    let mut window = Window::default();
    let (begin, mut images) = (Instant::now(), 0);
    while trainer.state().step < config.steps && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let Some(batch) = batches.next().transpose()? else { break };
        let wait = start.elapsed().as_secs_f64();
        let report = trainer.step(&batch)?;
        images += batch.ids.len() as u64;
        window.add(&report, batch.ids.len(), start.elapsed().as_secs_f64(), wait);
        let step = trainer.state().step;
        if step.is_multiple_of(config.log_every) || step == config.steps {
            let line = window.line(step);
            metrics.write(&line)?;
            progress(&line);
            window = Window::default();
        }
        if step.is_multiple_of(config.checkpoint_every) && step < config.steps {
            trainer.save(&folder.checkpoint(step))?;
            folder.prune(config.checkpoints_kept)?;
        }
    }
    let step = trainer.state().step;
    let checkpoint = folder.checkpoint(step);
    trainer.save(&checkpoint)?;
    folder.prune(config.checkpoints_kept)?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Outcome { step, finished: step >= config.steps, checkpoint, seconds, images })
}
