//! `lapflow sample`: image sets from a checkpoint.

use super::Context;
use crate::config::Config;
use crate::progress::Progress;
use anyhow::{Context as _, Result, bail};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_model::checkpoint::{Card, Checkpoint};
use lapflow_model::flow::{Path as FlowPath, image_rng};
use lapflow_model::net::cost;
use lapflow_sample::images::png::write_png;
use lapflow_sample::images::{Compression, NpzWriter};
use lapflow_sample::segments::SegmentCost;
use lapflow_sample::{Generator, Request, SampleConfig, SolverName};
use lapflow_store::Worker;
use lapflow_train::RunFolder;
use rand::RngExt;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Arguments of `lapflow sample`.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint file, or a run folder for its newest one
    checkpoint: PathBuf,
    /// Images in the whole set
    #[arg(long)]
    count: u64,
    /// Folder of PNG files, or a file that ends in .npz
    #[arg(long)]
    out: PathBuf,
    /// balanced, random, null, or class numbers or names in turn, e.g. cat,owl
    #[arg(long, default_value = "balanced")]
    labels: String,
    /// Classifier-free guidance scale
    #[arg(long)]
    cfg: Option<f64>,
    /// dopri5, euler, midpoint or heun
    #[arg(long, value_parser = solver_name)]
    solver: Option<SolverName>,
    /// Steps of a fixed-step solver
    #[arg(long)]
    steps: Option<usize>,
    /// Seed of the set
    #[arg(long)]
    seed: Option<u64>,
    /// Images integrated together
    #[arg(long)]
    batch: Option<usize>,
    /// Draw part i of N (0/4 .. 3/4) of the set
    #[arg(long, default_value = "0/1")]
    shard: Worker,
    /// Decode even where the autoencoder is not the one that made the latents
    #[arg(long)]
    force: bool,
}

fn solver_name(text: &str) -> Result<SolverName, String> {
    serde_json::from_value(json!(text)).map_err(|_| "dopri5, euler, midpoint or heun".into())
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (checkpoint, run_config) = find(&args.checkpoint)?;
    let base = run_config.map(|config| config.sample).unwrap_or_default();
    let config = SampleConfig {
        cfg: args.cfg.unwrap_or(base.cfg),
        solver: args.solver.unwrap_or(base.solver),
        steps: args.steps.unwrap_or(base.steps),
        seed: args.seed.unwrap_or(base.seed),
        batch: args.batch.unwrap_or(base.batch),
        ..base
    };
    let generator = generator(&checkpoint, &config, context, args.force)?;
    let labels = Labels::parse(&args.labels, &checkpoint.card.classes)?;
    let requests: Vec<Request> = (args.shard.index..args.count)
        .step_by(args.shard.count as usize)
        .map(|index| Request { index, label: labels.label(index, &config, &checkpoint.card) })
        .collect();
    let summary = match args.out.extension().is_some_and(|e| e == "npz") {
        true => to_npz(&generator, &requests, &args.out, context)?,
        false => to_folder(&generator, &requests, &args.out, context)?,
    };
    summary.print(args, &checkpoint.card, context)
}

/// The checkpoint at `path` (a file, or a run folder for its newest) and its run's config.
pub fn find(path: &Path) -> Result<(Checkpoint, Option<Config>)> {
    let (checkpoint, root) = if path.is_dir() {
        let newest = RunFolder::open(path)?.newest()?;
        let newest = newest.with_context(|| format!("{}: no checkpoint in it", path.display()))?;
        (newest, Some(path))
    } else {
        (Checkpoint::read(path)?, path.parent().and_then(Path::parent))
    };
    let config = root.map(|root| root.join("config.toml")).filter(|file| file.exists());
    Ok((checkpoint, config.map(|file| Config::read(&file)).transpose()?))
}

/// A generator with the autoencoder that the checkpoint names.
pub fn generator(
    checkpoint: &Checkpoint,
    config: &SampleConfig,
    context: &Context,
    forced: bool,
) -> Result<Generator> {
    let source = serde_json::from_value(checkpoint.card.autoencoder_config.clone())
        .context("the checkpoint's autoencoder")?;
    let autoencoder = Autoencoder::open(&source, &context.device)?;
    Ok(Generator::new(checkpoint, autoencoder, config, &context.device, forced)?)
}

/// Which class each image has.
enum Labels {
    Balanced,
    Random,
    Null,
    InTurn(Vec<u32>),
}

impl Labels {
    fn parse(text: &str, classes: &[String]) -> Result<Self> {
        match text {
            "balanced" => Ok(Self::Balanced),
            "random" => Ok(Self::Random),
            "null" => Ok(Self::Null),
            list => list
                .split(',')
                .map(|item| {
                    let named = classes.iter().position(|class| class == item);
                    let label = named.or_else(|| item.parse().ok()).filter(|&l| l < classes.len());
                    let label = label.with_context(|| format!("--labels: no class `{item}`"))?;
                    Ok(label as u32)
                })
                .collect::<Result<_>>()
                .map(Self::InTurn),
        }
    }

    fn label(&self, index: u64, config: &SampleConfig, card: &Card) -> Option<u32> {
        /// Keeps the draw of random labels apart from the noise of the same seed.
        const PURPOSE: u64 = 0x6c61_6265;
        let classes = card.classes.len() as u64;
        match self {
            _ if classes == 0 => None,
            Self::Null => None,
            Self::Balanced => Some((index % classes) as u32),
            Self::Random => {
                let mut rng = image_rng(config.seed ^ PURPOSE, index);
                Some(rng.random_range(0..classes) as u32)
            }
            Self::InTurn(labels) => Some(labels[index as usize % labels.len()]),
        }
    }
}

/// What a job did.
#[derive(Default)]
struct Summary {
    drawn: usize,
    seconds: f64,
    /// Evaluations a sample, by the finest active level, summed over samples.
    evaluations: Vec<(usize, usize)>,
}

impl Summary {
    fn add(&mut self, count: usize, costs: &[SegmentCost]) {
        self.drawn += count;
        for cost in costs {
            let level = cost.segment.level;
            let sum: usize = cost.evaluations.iter().sum();
            match self.evaluations.iter_mut().find(|(known, _)| *known == level) {
                Some((_, total)) => *total += sum,
                None => self.evaluations.push((level, sum)),
            }
        }
    }

    fn nfe(&self) -> f64 {
        let total: usize = self.evaluations.iter().map(|(_, sum)| sum).sum();
        total as f64 / self.drawn.max(1) as f64
    }

    /// Multiply-accumulates an image, guidance not counted twice.
    fn macs(&self, card: &Card) -> Result<f64> {
        let cost = cost(&card.model, &card.geometry, &FlowPath::new(&card.flow)?);
        let total: f64 = self
            .evaluations
            .iter()
            .map(|(level, sum)| cost.segment_macs[*level] as f64 * *sum as f64)
            .sum();
        Ok(total / self.drawn.max(1) as f64)
    }

    fn print(&self, args: &Args, card: &Card, context: &Context) -> Result<()> {
        let (nfe, macs) = (self.nfe(), self.macs(card)?);
        let rate = self.drawn as f64 / self.seconds.max(1e-9);
        if context.json {
            let summary = json!({
                "out": args.out, "drawn": self.drawn, "seconds": self.seconds,
                "images_per_second": rate, "nfe": nfe, "macs_per_image": macs,
            });
            println!("{summary}");
        } else {
            println!("{}", args.out.display());
        }
        eprintln!(
            "sample: {} images in {:.1} s, {rate:.2} images/s, {nfe:.1} NFE and {:.2} GMACs an image",
            self.drawn,
            self.seconds,
            macs / 1e9
        );
        Ok(())
    }
}

/// PNG files by index; those that are there already are kept.
fn to_folder(
    generator: &Generator,
    requests: &[Request],
    out: &Path,
    context: &Context,
) -> Result<Summary> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let path = |request: &Request| out.join(format!("{:06}.png", request.index));
    let missing: Vec<Request> = requests.iter().filter(|r| !path(r).exists()).copied().collect();
    draw_all(generator, &missing, context, |request, size, pixels| {
        Ok(write_png(&path(request), size, pixels)?)
    })
}

/// ADM's layout: `arr_0` uint8 (n, H, W, 3), with labels in `arr_1` where there are classes.
fn to_npz(
    generator: &Generator,
    requests: &[Request],
    out: &Path,
    context: &Context,
) -> Result<Summary> {
    let mut writer: Option<NpzWriter> = None;
    let count = requests.len();
    let summary = draw_all(generator, requests, context, |_, size, pixels| {
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let size = (size.1 as usize, size.0 as usize);
                writer.insert(NpzWriter::create(out, count, size, Compression::Deflate)?)
            }
        };
        Ok(writer.push(pixels)?)
    })?;
    if summary.drawn < count {
        bail!(
            "{}: stopped after {} of {count} images, nothing written",
            out.display(),
            summary.drawn
        );
    }
    let labels: Option<Vec<i64>> = requests.iter().map(|r| r.label.map(i64::from)).collect();
    if let Some(writer) = writer {
        writer.finish(labels.as_deref())?;
    }
    Ok(summary)
}

fn draw_all(
    generator: &Generator,
    requests: &[Request],
    context: &Context,
    mut each: impl FnMut(&Request, (u32, u32), &[u8]) -> Result<()>,
) -> Result<Summary> {
    let begin = Instant::now();
    let mut summary = Summary::default();
    let mut progress = Progress::new("sample", "images", 0, requests.len() as u64);
    for batch in requests.chunks(generator.config().batch) {
        if context.stop.load(Ordering::Relaxed) {
            break;
        }
        let drawn = generator.draw(batch)?;
        let (_, _, height, width) = drawn.images.dims4()?;
        for (request, pixels) in batch.iter().zip(generator.pixels(&drawn.images)?) {
            each(request, (width as u32, height as u32), &pixels)?;
        }
        summary.add(batch.len(), &drawn.costs);
        summary.seconds = begin.elapsed().as_secs_f64();
        let rate = summary.drawn as f64 / summary.seconds;
        let note = format!("{rate:.2} images/s, {:.1} NFE", summary.nfe());
        progress.update(summary.drawn as u64, &note);
    }
    progress.finish(&format!("{} of {} images", summary.drawn, requests.len()));
    Ok(summary)
}
