//! `lapflow sample`: image sets from a checkpoint.

use super::{Context, environment};
use crate::config::{self, Config};
use crate::memory;
use crate::progress::Progress as Bar;
use anyhow::{Context as _, Result, anyhow, bail};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, Tiling, WeightsSource};
use lapflow_model::checkpoint::{Card, Checkpoint};
use lapflow_model::net::cost;
use lapflow_sample::images::Compression;
use lapflow_sample::job::Progress;
use lapflow_sample::{Generator, Job, Labels, Output, SampleConfig, SolverName};
use lapflow_store::Worker;
use lapflow_train::RunFolder;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `lapflow sample`.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint file, or a run folder for its newest one
    checkpoint: PathBuf,
    /// Images in the whole set
    #[arg(long)]
    count: u64,
    /// Folder of PNG files, or a file that ends in .npz or .parquet
    #[arg(long, value_parser = set_path)]
    out: PathBuf,
    /// Write the latents instead of decoding them, to an .npz: f32 (N, C, h, w) in the autoencoder's
    /// own units; no autoencoder is needed
    #[arg(long)]
    latents: bool,
    /// balanced, random, null, or class numbers or names in turn, e.g. cat,owl; a name that has a
    /// comma in double quotes
    #[arg(long, default_value = "balanced")]
    labels: String,
    /// Classifier-free guidance scale
    #[arg(long)]
    cfg: Option<f64>,
    /// dopri5, euler, midpoint, heun or sde (Euler-Maruyama); ddim or ddpm for flow.method = "dit"
    #[arg(long, value_parser = solver_name)]
    solver: Option<SolverName>,
    /// Steps of a fixed-step solver over the whole of time; the start of each segment that lies
    /// between two of them makes one more
    #[arg(long)]
    steps: Option<usize>,
    /// Replace one value of the sample section, e.g. rtol=1e-4 or diffusion=linear
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of the set
    #[arg(long)]
    seed: Option<u64>,
    /// Images integrated together
    #[arg(long)]
    batch: Option<usize>,
    /// Decode in pieces of so many latent pixels a side, instead of what the training config says
    #[arg(long)]
    tile: Option<usize>,
    /// Draw part i of N (0/4 .. 3/4) of the set; without it LAPFLOW_SHARD or the scheduler tells
    #[arg(long, value_name = "I/N")]
    shard: Option<Worker>,
    /// The autoencoder, where it is not found at the place the checkpoint names: builtin, pixel, or
    /// its file (or encoder and decoder)
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    autoencoder: Vec<PathBuf>,
    /// Decode even where the autoencoder is not the one that made the latents
    #[arg(long)]
    force: bool,
}

fn set_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    Output::from_path(&path, Compression::Deflate).map(|_| path).map_err(|e| e.to_string())
}

fn solver_name(text: &str) -> Result<SolverName, String> {
    serde_json::from_value(json!(text))
        .map_err(|_| "dopri5, euler, midpoint, heun, sde, ddim or ddpm".into())
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
    let config = with_values(config, &args.set)?;
    let geometry = &checkpoint.card.geometry;
    let latents = 4 * geometry.channels * geometry.height * geometry.width;
    let what = format!("sample.batch = {}", config.batch);
    memory::check(&what, (latents as u64).saturating_mul(config.batch as u64), &context.device)?;
    let share = Worker::detect(args.shard, &environment)?;
    let output = match (Output::from_path(&args.out, Compression::Deflate)?, args.latents) {
        (output, false) => output,
        (Output::Npz(path, _), true) => Output::Latents(path),
        _ => bail!("--latents: --out must be a file that ends in .npz"),
    };
    let autoencoder = match args.latents {
        true => Autoencoder::Pixel,
        false => Autoencoder::open(&args.autoencoder(&checkpoint)?, &context.device)?,
    };
    let forced = args.force || args.latents;
    let generator = Generator::new(&checkpoint, autoencoder, &config, &context.device, forced)?;
    let job = Job {
        count: args.count,
        shard: (share.worker.index, share.worker.count),
        labels: Labels::parse(&args.labels, &checkpoint.card.classes)?,
        output,
    };
    let origin = json!(std::fs::canonicalize(&args.checkpoint)?);
    let mut bar: Option<Bar> = None;
    let done = job.run(&generator, &origin, &context.stop, &mut |state| {
        let bar = bar.get_or_insert_with(|| Bar::new("sample", "images", state.found, state.total));
        let note = format!("{:.2} images/s, {:.1} NFE", rate(state), state.nfe());
        bar.update(state.found + state.drawn, &note);
    })?;
    if let Some(bar) = bar {
        bar.finish(&format!("{} of {} images", done.found + done.drawn, done.total));
    }
    print(args, &done, &checkpoint.card, context)?;
    if done.found + done.drawn < done.total {
        bail!("{}: stopped; the same command continues it", args.out.display());
    }
    Ok(())
}

/// `config` with single values replaced.
fn with_values(config: SampleConfig, set: &[String]) -> Result<SampleConfig> {
    let mut table = toml::Table::try_from(&config)?;
    for assignment in set {
        config::set(&mut table, assignment)?;
    }
    table.try_into().map_err(|e: toml::de::Error| anyhow!("--set: {}", e.message()))
}

fn rate(state: &Progress) -> f64 {
    state.drawn as f64 / state.seconds.max(1e-9)
}

/// Multiply-accumulates a drawn image, guidance's null halves included.
fn macs(state: &Progress, card: &Card) -> Result<f64> {
    let cost = cost(&card.model, &card.geometry, card.flow.build()?.as_ref());
    let total: f64 =
        state.costs.iter().map(|c| cost.segment_macs[c.level] as f64 * c.passes as f64).sum();
    Ok(total / state.drawn.max(1) as f64)
}

fn print(args: &Args, state: &Progress, card: &Card, context: &Context) -> Result<()> {
    let (nfe, macs, rate) = (state.nfe(), macs(state, card)?, rate(state));
    if context.json {
        let summary = json!({
            "out": args.out, "drawn": state.drawn, "found": state.found,
            "complete": state.complete, "seconds": state.seconds,
            "images_per_second": rate, "nfe": nfe, "passes": state.passes(),
            "macs_per_image": macs,
        });
        println!("{summary}");
    } else if state.complete {
        println!("{}", args.out.display());
    }
    if !state.complete && state.found + state.drawn == state.total {
        eprintln!(
            "sample: this shard is done; the last one to finish makes {}",
            args.out.display()
        );
    }
    eprintln!(
        "sample: {} images in {:.1} s, {rate:.2} images/s; {nfe:.1} NFE, {:.1} passes of the network \
         and {:.2} GMACs an image",
        state.drawn,
        state.seconds,
        state.passes(),
        macs / 1e9
    );
    Ok(())
}

/// The checkpoint at `path` (a file, or a run folder for its newest) and its run's config.
pub fn find(path: &Path) -> Result<(Checkpoint, Option<Config>)> {
    let (checkpoint, root) = if path.is_dir() {
        let newest = RunFolder::of(path).newest()?;
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
) -> Result<Generator> {
    let autoencoder = Autoencoder::open(&named(checkpoint)?, &context.device)?;
    Ok(Generator::new(checkpoint, autoencoder, config, &context.device, false)?)
}

/// What the checkpoint says of its autoencoder.
fn named(checkpoint: &Checkpoint) -> Result<AutoencoderConfig> {
    let card = &checkpoint.card;
    let config: AutoencoderConfig = serde_json::from_value(card.autoencoder_config.clone())
        .context("the checkpoint's autoencoder")?;
    Ok(config.recorded(&card.autoencoder))
}

impl Args {
    /// The checkpoint's autoencoder, or the one given, and how it decodes.
    fn autoencoder(&self, checkpoint: &Checkpoint) -> Result<AutoencoderConfig> {
        let mut source = match WeightsSource::from_paths(&self.autoencoder) {
            Some(weights) => AutoencoderConfig { weights, ..AutoencoderConfig::default() }
                .recorded(&checkpoint.card.autoencoder),
            None => named(checkpoint)?,
        };
        if let Some(tile) = self.tile {
            source.tiling = Some(Tiling { tile, ..source.tiling.unwrap_or_default() });
        }
        Ok(source)
    }
}
