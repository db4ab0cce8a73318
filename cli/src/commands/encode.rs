//! `lapflow encode`: images to a dataset of latent pyramids.

use super::Context;
use crate::config::{Config, ConfigArgs};
use crate::progress::Progress;
use anyhow::{Result, bail};
use lapflow_encode::{Draft, EncodeStats};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_store::Worker;
use serde_json::json;
use std::sync::Arc;

/// Arguments of `lapflow encode`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Do part i of N (0/4 .. 3/4) of the shards
    #[arg(long, default_value = "0/1")]
    shard: Worker,
    /// Show the plan and encode nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let config = args.config.load()?;
    if args.dry_run {
        return dry_run(&config, context);
    }
    let stats = encode(&config, args.shard, context)?;
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
    context.runtime.block_on(async {
        let job = draft(config, context).await?.attach(&config.data.dataset).await?;
        let mut progress = Progress::new("encode", "images", 0, job.plan().rows());
        let stats = job
            .run(worker, &context.stop, &mut |stats: &EncodeStats| {
                let rate = stats.rows_encoded as f64 / stats.seconds.max(1e-9);
                let note = format!("{rate:.1} images/s, {} skipped", stats.skips());
                progress.update(stats.rows_encoded, &note);
            })
            .await?;
        let reasons: String =
            stats.skipped.iter().map(|(reason, count)| format!("; {reason}: {count}")).collect();
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
    let (ingest, encode) = (&config.data.ingest, &config.data.encode);
    Ok(Draft::open(ingest, encode, autoencoder, &context.device).await?)
}

fn dry_run(config: &Config, context: &Context) -> Result<()> {
    let draft = context.runtime.block_on(draft(config, context))?;
    let (plan, metadata) = (draft.plan(), draft.metadata());
    let bytes = plan.rows() * metadata.sample_bytes() as u64;
    if context.json {
        let plan = json!({ "plan": plan, "metadata": metadata, "bytes": bytes });
        println!("{plan}");
        return Ok(());
    }
    println!("source    {} images, {} classes", plan.images, metadata.classes.len());
    println!("rows      {} in {} shards", plan.rows(), plan.shards);
    for (k, level) in metadata.levels.iter().enumerate() {
        println!("level {k}   {}x{}x{}", level.channels, level.height, level.width);
    }
    println!("latents   {:.1} MB before compression", bytes as f64 / 1e6);
    Ok(())
}
