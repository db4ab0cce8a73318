//! `lapflow train`: a flow from a dataset, resumable at any step.

use super::{Context, plan};
use crate::config::{Config, ConfigArgs};
use crate::pictures::drawn;
use crate::progress::Progress;
use crate::ranks::join;
use anyhow::{Result, bail};
use candle_core::Device;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_model::checkpoint::Checkpoint;
use lapflow_report::{encode_png, grid};
use lapflow_sample::{Generator, Request};
use lapflow_store::Dataset;
use lapflow_train::{
    Communicator, Outcome, Picture, Recipe, RunFolder, Session, TrainError, Trainer, run_session,
};
use serde_json::json;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two looks at a dataset that holds nothing yet.
const FOLLOW_PAUSE: Duration = Duration::from_secs(2);

/// Arguments of `lapflow train`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on from the newest checkpoint of the run folder
    #[arg(long)]
    resume: bool,
    /// Read a dataset that is still growing: wait for its first shard, and start every epoch from
    /// the shards committed by then
    #[arg(long)]
    follow: bool,
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
    let ranks = join(&config, &context.device)?;
    let outcome = match train(&config, args.resume, args.follow, context, ranks.clone()) {
        Err(error) if ranks.size() > 1 => {
            eprintln!("lapflow: rank {} of {}: {error:#}", ranks.rank(), ranks.size());
            ranks.abort()
        }
        outcome => outcome?,
    };
    if ranks.rank() > 0 {
        return Ok(());
    }
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
pub fn train(
    config: &Config,
    resume: bool,
    follow: bool,
    context: &Context,
    ranks: Rc<dyn Communicator>,
) -> Result<Outcome> {
    let mut dataset = context.runtime.block_on(Dataset::open(&config.data.dataset))?;
    while follow && dataset.rows() == 0 && !context.stop.load(Ordering::Relaxed) {
        std::thread::sleep(FOLLOW_PAUSE);
        dataset = context.runtime.block_on(dataset.refresh())?;
    }
    let others = config.train.mixture.iter();
    let others = others
        .map(|source| context.runtime.block_on(Dataset::open(&source.dataset)))
        .collect::<Result<Vec<_>, _>>()?;
    let first = ranks.rank() == 0;
    let draws = first && config.train.sample_every > 0;
    let mut autoencoder = autoencoder_of(config, &dataset, draws, context)?;
    let plan = plan::plan(config, Some(&dataset), 0)?;
    plan.check_memory(config, ranks.size(), &context.device)?;
    let folder = RunFolder::open(&config.train.folder)?;
    // The first of several ranks writes for all.
    let _lock = first.then(|| folder.lock()).transpose()?;
    let newest = folder.newest()?;
    if newest.is_some() && !resume {
        bail!(
            "{} holds a run already: pass --resume to go on with it, or set another train.folder",
            folder.root().display()
        );
    }
    if first {
        config.write(folder.root())?;
    }
    let recipe = Recipe {
        model: config.model.clone(),
        flow: config.flow.clone(),
        train: config.train.clone(),
        autoencoder: serde_json::to_value(&config.autoencoder)?,
    };
    let trainer = match &newest {
        Some(checkpoint) => Trainer::resume(&recipe, &dataset, checkpoint, &context.device)?,
        None => Trainer::new(&recipe, &dataset, &context.device)?,
    };
    let mut trainer = trainer.among(ranks);
    let start = trainer.state().step;
    // The first of several ranks speaks for all.
    let mut progress = first.then(|| Progress::new("train", "steps", start, config.train.steps));
    let draw = Box::new(|snapshot: &Checkpoint| {
        draw(snapshot, &mut autoencoder, config, context)
            .map_err(|e| TrainError::Samples(format!("{e:#}")))
    });
    let session = Session { others, follow, draw: Some(draw) };
    let outcome = run_session(&mut trainer, &dataset, session, &folder, &context.stop, |line| {
        let loss = match line.loss {
            Some(loss) => format!("loss {loss:.4}"),
            None => format!("{} steps skipped", line.skipped),
        };
        let note = format!("{loss}, {:.1} images/s", line.images_per_second);
        if let Some(progress) = &mut progress {
            progress.update(line.step, &note);
        }
    })?;
    let rate = outcome.images as f64 / outcome.seconds.max(1e-9);
    let how = match outcome.finished {
        true => "finished",
        false => "stopped",
    };
    if let Some(progress) = progress {
        progress.finish(&format!(
            "{how} at step {} after {:.0} s, {rate:.1} images/s",
            outcome.step, outcome.seconds
        ));
    }
    Ok(outcome)
}

/// Refuses latents that `sample` would not decode with the config's autoencoder, which is given back
/// where this process `draws` grids. Where training runs its weights may be missing; the first grid or
/// `sample` needs them.
fn autoencoder_of(
    config: &Config,
    dataset: &Dataset,
    draws: bool,
    context: &Context,
) -> Result<Option<Arc<Autoencoder>>> {
    let device = if draws { &context.device } else { &Device::Cpu };
    let wanted = &dataset.metadata().autoencoder;
    if wanted.is_null() {
        bail!(
            "{}: it does not state the autoencoder of its latents: import it with --autoencoder",
            dataset.uri()
        );
    }
    let stated = config.autoencoder.clone().recorded(wanted);
    let autoencoder = match Autoencoder::open(&stated, device) {
        Ok(autoencoder) => autoencoder,
        Err(error) => {
            tracing::warn!("without its autoencoder a run cannot be sampled: {error}");
            return Ok(None);
        }
    };
    if !autoencoder.identity().made(wanted) {
        let here = json!(autoencoder.identity());
        bail!("{}: its latents are of {wanted}, [autoencoder] is {here}", dataset.uri());
    }
    Ok(draws.then(|| Arc::new(autoencoder)))
}

/// A grid of samples with the weights that sampling would take, always from the same noise; the
/// classes come in turn. The autoencoder is opened for the first grid and serves all.
fn draw(
    snapshot: &Checkpoint,
    opened: &mut Option<Arc<Autoencoder>>,
    config: &Config,
    context: &Context,
) -> Result<Picture> {
    let device = &context.device;
    let autoencoder = match opened {
        Some(autoencoder) => autoencoder,
        None => {
            let stated = config.autoencoder.clone().recorded(&snapshot.card.autoencoder);
            opened.insert(Arc::new(Autoencoder::open(&stated, device)?))
        }
    };
    let autoencoder = Arc::clone(autoencoder);
    let generator = Generator::new(snapshot, autoencoder, &config.sample, device, false)?;
    let (count, classes) = (config.train.sample_images, snapshot.card.classes.len());
    let label = |i: usize| (classes > 0).then(|| (i % classes) as u32);
    let requests: Vec<_> =
        (0..count).map(|i| Request { index: i as u64, label: label(i) }).collect();
    let images = drawn(&generator, &requests)?;
    let sheet = grid(&images, (count as f64).sqrt().ceil() as usize, 2);
    let (width, height) = (sheet.width(), sheet.height());
    Ok(Picture { width, height, png: encode_png(&sheet) })
}
