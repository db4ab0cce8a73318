//! `lapflow encode`: images to a dataset of latent pyramids.

use super::ingest::{is_same_place, say_of_source, say_unturned};
use super::{Context, environment};
use crate::config::{Config, ConfigArgs};
use crate::memory;
use crate::progress::Progress;
use anyhow::{Context as _, Result, bail};
use lapflow_encode::{Draft, EncodeStats, Estimate, Monitor, Status, Watch};
use lapflow_ingest::IngestConfig;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_store::{Worker, cores};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Images that a dry run measures.
const ESTIMATE_IMAGES: u64 = 16;
/// Silence after which `/healthz` fails: a batch on a slow CPU takes less.
const STALLED_AFTER: Duration = Duration::from_secs(900);

/// Where a watcher serves its figures unless told otherwise.
const METRICS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

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
    /// Go on after what is there: follow the source and encode what appears in it
    #[arg(long, conflicts_with_all = ["dry_run", "missing"])]
    watch: bool,
    /// Serve /metrics and /healthz while encoding; with --watch at 127.0.0.1:9464 by default
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
    let monitor = match args.metrics.or(args.watch.then_some(METRICS_ADDRESS)) {
        Some(address) => Some(
            Monitor::bind(address, STALLED_AFTER)
                .with_context(|| format!("--metrics {address}"))?,
        ),
        None => None,
    };
    if let Some(monitor) = &monitor {
        eprintln!("encode: http://{}/metrics and /healthz", monitor.address());
    }
    if args.watch {
        return watch(&config, found.worker, monitor.as_ref(), context);
    }
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
        let draft = draft(config, context).await?;
        say_of_source("encode", draft.source());
        let job = draft.attach(&config.data.dataset).await?;
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
        if stats.shards_restored > 0 {
            eprintln!("encode: {} lost shards were made again", stats.shards_restored);
        }
        say_unturned("encode", stats.images_unturned, "data.exif_orientation = true");
        Ok(stats)
    })
}

/// Follows the source until it is asked to stop, which is no failure.
fn watch(
    config: &Config,
    worker: Worker,
    monitor: Option<&Monitor>,
    context: &Context,
) -> Result<()> {
    let data = &config.data;
    let stats = context.runtime.block_on(async {
        let (ingest, device) = (ingest(config), &context.device);
        let autoencoder = Arc::new(Autoencoder::open(&config.autoencoder, device)?);
        let watch = Watch::open(&ingest, &data.encode, autoencoder, device, &data.dataset).await?;
        eprintln!("encode: watching {} into {}", ingest.source, watch.dataset().uri());
        let mut shown = (0, 0);
        let mut report = |stats: &EncodeStats| {
            let done = (stats.shards_committed, stats.skips());
            if done != shown {
                shown = done;
                let (rows, pending) = (stats.rows_committed, stats.images_pending);
                let (shards, skips) = done;
                eprintln!(
                    "encode: {shards} shards, {rows} rows committed, {skips} images skipped, \
                     {pending} waiting"
                );
            }
            if let Some(monitor) = monitor {
                monitor.report(stats);
            }
        };
        Ok::<_, anyhow::Error>(watch.run(worker, &context.stop, &mut report).await?)
    })?;
    match context.json {
        true => println!("{}", serde_json::to_string(&stats)?),
        false => println!("{}", data.dataset),
    }
    eprintln!("encode: stopped; the same command goes on where it was");
    Ok(())
}

async fn draft(config: &Config, context: &Context) -> Result<Draft> {
    let dataset = &config.data.dataset;
    if is_same_place(&config.data.ingest.source, dataset.as_ref()) {
        bail!("{dataset}: data.dataset is the source itself; name another folder");
    }
    check_memory(config, context)?;
    let autoencoder = Arc::new(Autoencoder::open(&config.autoencoder, &context.device)?);
    let ingest = ingest(config);
    Ok(Draft::open(&ingest, &config.data.encode, autoencoder, &context.device).await?)
}

/// Refuses a batch whose pixels alone, in the batches that wait, do not fit into memory.
fn check_memory(config: &Config, context: &Context) -> Result<()> {
    let (size, encode) = (u64::from(config.data.ingest.size), &config.data.encode);
    let batches = encode.queue_batches_max as u64 + 2;
    let bytes = (3 * 4 * size * size).saturating_mul(encode.batch as u64).saturating_mul(batches);
    let what = format!("data.batch = {} at {size} pixels", encode.batch);
    memory::check(&what, bytes, &candle_core::Device::Cpu)?;
    memory::check(&what, bytes / batches, &context.device)
}

/// The ingest configuration with the number of threads decided.
fn ingest(config: &Config) -> IngestConfig {
    let mut ingest = config.data.ingest.clone();
    if ingest.threads == 0 {
        ingest.threads = cores(&environment);
    }
    ingest
}

fn missing(config: &Config, context: &Context) -> Result<()> {
    let status = context.runtime.block_on(Status::read(&config.data.dataset))?;
    let (array, shards) = (status.array_expression(), status.plan.shards);
    if context.json {
        let (missing, rows, skips) = (&status.missing, status.rows, status.skips);
        let open = &status.open;
        let all = json!({
            "missing": missing, "array": array, "open": open, "rows": rows, "skips": skips
        });
        println!("{all}");
        return Ok(());
    }
    println!("missing   {} of {shards} shards", status.missing.len());
    if !array.is_empty() {
        println!("array     --array={array} with --shard i/{shards}");
    }
    if !status.open.is_empty() {
        println!("watched   {} shards are closed and not committed yet", status.open.len());
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
    say_of_source("encode", draft.source());
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
