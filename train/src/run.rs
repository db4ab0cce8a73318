//! The loop: batches in, metrics and checkpoints out, until the last step or a stop.

use crate::batch::{Feed, Staging};
use crate::config::TrainConfig;
use crate::data::check_mixable;
use crate::error::{Result, TrainError};
use crate::folder::{MetricsFile, RunFolder, write_whole};
use crate::metrics::{Line, Window};
use crate::ranks::sum_numbers;
use crate::tensorboard::{EventFile, Picture};
use crate::trainer::Trainer;
use lapflow_model::checkpoint::Checkpoint;
use lapflow_model::kernels::matrix_rate;
use lapflow_store::Dataset;
use std::fs;
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

/// Draws a grid of samples from a snapshot's averaged weights.
pub type Draw<'a> = dyn FnMut(&Checkpoint) -> Result<Picture> + 'a;

/// What a run reads, and what it does beside training.
#[derive(Default)]
pub struct Session<'a> {
    /// Datasets read beside the first one, in the order of `train.mixture`.
    pub others: Vec<Dataset>,
    /// Whether each epoch starts from the newest version of the dataset.
    pub follow: bool,
    /// Draws a grid of samples every `train.sample_every` steps.
    pub draw: Option<Box<Draw<'a>>>,
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
    progress: impl FnMut(&Line),
) -> Result<Outcome> {
    run_session(trainer, dataset, Session::default(), folder, stop, progress)
}

/// [`run`] with further datasets, a growing dataset, or grids of samples on the way.
///
/// # Errors
/// As [`run`]; also when a further dataset is not of the first one's latents and classes.
pub fn run_session(
    trainer: &mut Trainer,
    dataset: &Dataset,
    mut session: Session<'_>,
    folder: &RunFolder,
    stop: &AtomicBool,
    mut progress: impl FnMut(&Line),
) -> Result<Outcome> {
    let config = trainer.config().clone();
    for other in &session.others {
        check_mixable(dataset, other)?;
    }
    let feed = Feed::open(trainer, dataset, &session.others, session.follow)?;
    let mut staging = Staging::start(feed, trainer)?;
    // The first of several ranks writes for all.
    let writes = trainer.ranks().rank() == 0;
    let mut log = writes.then(|| Log::open(folder, trainer)).transpose()?;
    let mut window = Window::default();
    let (begin, mut images) = (Instant::now(), 0);
    while trainer.state().step < config.steps && !stopped(trainer, stop)? {
        let start = Instant::now();
        let Some(staged) = staging.next(trainer)? else { break };
        let wait = start.elapsed().as_secs_f64();
        let report = trainer.take(staged).map_err(|error| with_checkpoint(error, folder))?;
        images += report.images as u64;
        window.add(&report, report.images, start.elapsed().as_secs_f64(), wait);
        let (step, last) = (report.step + 1, report.step + 1 == config.steps);
        let line_due = step.is_multiple_of(config.log_every) || last;
        if let Some(log) = log.as_mut().filter(|_| line_due) {
            progress(&log.line(&window, step)?);
            window = Window::default();
        }
        let grid_due =
            config.sample_every > 0 && (step.is_multiple_of(config.sample_every) || last);
        if let Some(draw) = session.draw.as_mut().filter(|_| grid_due) {
            let snapshot = trainer.snapshot()?;
            if let Some((log, snapshot)) = log.as_mut().zip(snapshot) {
                log.picture(step, &draw(&snapshot)?)?;
            }
        }
        // A step that was skipped may be followed by a halt: the state before it is the good one.
        if step.is_multiple_of(config.checkpoint_every) && !report.skipped && !last {
            save(trainer, folder, &config, true)?;
        }
    }
    let step = trainer.state().step;
    let finished = step >= config.steps;
    let checkpoint = save(trainer, folder, &config, finished)?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Outcome { step, finished, checkpoint, seconds, images })
}

/// Whether any rank was asked to stop: they end at the same step.
fn stopped(trainer: &Trainer, stop: &AtomicBool) -> Result<bool> {
    let asked = [f64::from(u8::from(stop.load(Ordering::Relaxed)))];
    let asked = sum_numbers(trainer.ranks(), &asked)?;
    Ok(asked[0] > 0.0)
}

/// Writes a checkpoint; one that ends an interval may become the best.
fn save(
    trainer: &mut Trainer,
    folder: &RunFolder,
    config: &TrainConfig,
    ends_interval: bool,
) -> Result<PathBuf> {
    let best = ends_interval && trainer.end_interval();
    let path = folder.checkpoint(trainer.state().step);
    trainer.save(&path)?;
    if trainer.ranks().rank() > 0 {
        return Ok(path);
    }
    if best && config.checkpoint_best {
        folder.mark_best(&path)?;
    }
    folder.prune(config.checkpoints_kept, config.checkpoint_keep_every)?;
    Ok(path)
}

/// Names the newest checkpoint in the error that halts a run.
fn with_checkpoint(error: TrainError, folder: &RunFolder) -> TrainError {
    match error {
        TrainError::NotFinite { step, what, times, .. } => {
            let checkpoint = folder.newest().ok().flatten();
            let checkpoint = checkpoint.map(|checkpoint| checkpoint.path().to_path_buf());
            TrainError::NotFinite { step, what, times, checkpoint }
        }
        error => error,
    }
}

/// `metrics.jsonl`, event files and grids of samples.
struct Log<'a> {
    folder: &'a RunFolder,
    metrics: MetricsFile,
    events: EventFile,
    matrix_rate: f64,
}

impl<'a> Log<'a> {
    fn open(folder: &'a RunFolder, trainer: &Trainer) -> Result<Self> {
        let (step, matrix_rate) = (trainer.state().step, matrix_rate(trainer.device())?);
        folder.rewind_metrics(step)?;
        let metrics = folder.append_metrics()?;
        let events = EventFile::create(&folder.events(), step)?;
        Ok(Self { folder, metrics, events, matrix_rate })
    }

    fn line(&mut self, window: &Window, step: u64) -> Result<Line> {
        let line = window.line(step, self.matrix_rate);
        self.metrics.write(&line)?;
        self.events.scalars(step, &line.scalars())?;
        Ok(line)
    }

    fn picture(&mut self, step: u64, picture: &Picture) -> Result<()> {
        let path = self.folder.samples(step);
        let folder = path.parent().unwrap_or(self.folder.root());
        fs::create_dir_all(folder).map_err(TrainError::io(&path))?;
        write_whole(&path, &picture.png)?;
        self.events.image(step, "samples", picture)
    }
}
