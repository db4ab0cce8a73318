//! `lapflow encode`: images to a dataset of latent pyramids.

use super::Context;
use crate::config::{Config, ConfigArgs};
use crate::progress::Progress;
use anyhow::{Context as _, Result, bail};
use lapflow_encode::{Draft, EncodeStats, Estimate, Monitor, Status};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_store::{Worker, cores};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Images that a dry run measures.
const ESTIMATE_IMAGES: u64 = 16;
/// Silence after which `/healthz` fails: a batch on a slow CPU takes less.
const STALLED_AFTER: Duration = Duration::from_secs(900);

/// Arguments of `lapflow encode`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Do part i of N (0/4 .. 3/4) of the shards; without it LAPFLOW_SHARD or the scheduler tells
    #[arg(long, value_name = "I/N")]
    shard: Option<Worker>,
    /// Show the plan with its size and an estimate of the time, encode nothing
    #[arg(long)]
    dry_run: bool,
    /// Show which shards are not committed yet, encode nothing
    #[arg(long, conflicts_with = "dry_run")]
    missing: bool,
    /// Serve /metrics and /healthz while encoding, e.g. at 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let config = args.config.load()?;
    if args.dry_run {
        return dry_run(&config, context);
    }
    if args.missing {
        return missing(&config, context);
    }
    let found = Worker::detect(args.shard, &environment)?;
    eprintln!("encode: part {} of the shards ({})", found.worker, found.origin);
    let monitor = match args.metrics {
        Some(address) => Some(
            Monitor::bind(address, STALLED_AFTER)
                .with_context(|| format!("--metrics {address}"))?,
        ),
        None => None,
    };
    let stats = encode_shown(&config, found.worker, monitor.as_ref(), context)?;
    if context.json {
        println!("{}", serde_json::to_string(&stats)?);
    } else {
        println!("{}", config.data.dataset);
    }
    if stats.stopped {
        bail!("stopped; the same command goes on where it was");
    }
    Ok(())
}

/// Encodes what falls to `worker`.
pub fn encode(config: &Config, worker: Worker, context: &Context) -> Result<EncodeStats> {
    encode_shown(config, worker, None, context)
}

fn encode_shown(
    config: &Config,
    worker: Worker,
    monitor: Option<&Monitor>,
    context: &Context,
) -> Result<EncodeStats> {
    context.runtime.block_on(async {
        let job = draft(config, context).await?.attach(&config.data.dataset).await?;
        let mut progress: Option<Progress> = None;
        let stats = job
            .run(worker, &context.stop, &mut |stats: &EncodeStats| {
                let rate = stats.rows_encoded as f64 / stats.seconds.max(1e-9);
                let note = format!("{rate:.1} images/s, {} skipped", stats.skips());
                let total = stats.rows_assigned;
                progress
                    .get_or_insert_with(|| Progress::new("encode", "images", 0, total))
                    .update(stats.rows_encoded, &note);
                if let Some(monitor) = monitor {
                    monitor.report(stats);
                }
            })
            .await?;
        let reasons: String =
            stats.skipped.iter().map(|(reason, count)| format!("; {reason}: {count}")).collect();
        let progress = progress.unwrap_or_else(|| Progress::new("encode", "images", 0, 0));
        progress.finish(&format!(
            "{} of {} shards committed here, {} were there, {} rows in {:.1} s, {} skipped{reasons}",
            stats.shards_committed,
            stats.shards_assigned,
            stats.shards_present,
            stats.rows_committed,
            stats.seconds,
            stats.skips(),
        ));
        Ok(stats)
    })
}

async fn draft(config: &Config, context: &Context) -> Result<Draft> {
    let autoencoder = Arc::new(Autoencoder::open(&config.autoencoder, &context.device)?);
    let mut ingest = config.data.ingest.clone();
    if ingest.threads == 0 {
        ingest.threads = cores(&environment);
    }
    Ok(Draft::open(&ingest, &config.data.encode, autoencoder, &context.device).await?)
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn missing(config: &Config, context: &Context) -> Result<()> {
    let status = context.runtime.block_on(Status::read(&config.data.dataset))?;
    let (array, shards) = (status.array_expression(), status.plan.shards);
    if context.json {
        let (missing, rows, skips) = (&status.missing, status.rows, status.skips);
        println!("{}", json!({ "missing": missing, "array": array, "rows": rows, "skips": skips }));
        return Ok(());
    }
    println!("missing   {} of {shards} shards", status.missing.len());
    if !array.is_empty() {
        println!("array     --array={array} with --shard i/{shards}");
    }
    println!("rows      {}, {} images skipped", status.rows, status.skips);
    Ok(())
}

fn dry_run(config: &Config, context: &Context) -> Result<()> {
    let draft = context.runtime.block_on(draft(config, context))?;
    let (plan, metadata) = (draft.plan(), draft.metadata());
    let estimate = context.runtime.block_on(draft.estimate(ESTIMATE_IMAGES))?;
    if context.json {
        let plan = json!({ "plan": plan, "metadata": metadata, "estimate": estimate });
        println!("{plan}");
        return Ok(());
    }
    println!("source    {} images, {} classes", plan.images, metadata.classes.len());
    println!("rows      {} in {} shards", plan.rows(), plan.shards);
    for (k, level) in metadata.levels.iter().enumerate() {
        println!("level {k}   {}x{}x{}", level.channels, level.height, level.width);
    }
    println!("latents   {:.1} MB before compression", estimate.bytes as f64 / 1e6);
    let Estimate { images_measured, read_seconds, encode_seconds, seconds, .. } = estimate;
    println!(
        "time      {:.1} min for one worker ({images_measured} images measured: {:.1} ms to read \
         and {:.1} ms to encode one)",
        seconds / 60.0,
        1e3 * read_seconds,
        1e3 * encode_seconds
    );
    Ok(())
}
