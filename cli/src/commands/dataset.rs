//! `lapflow dataset`: look at a dataset, check it, and carry it to and from other layouts.

mod layouts;
mod preview;

use super::Context;
use anyhow::{Result, bail};
use lapflow_store::{Dataset, LevelSpec};
use serde_json::json;
use std::time::Duration;

/// Arguments of `lapflow dataset`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Size, classes, statistics, identity and version
    Info {
        /// Path or s3://, gs://, az:// address
        uri: String,
    },
    /// Read everything and compare it with the log; fails if anything is wrong
    Verify {
        /// Path or s3://, gs://, az:// address
        uri: String,
    },
    /// Remove files that belong to no shard and are older than a stated age
    Vacuum {
        /// Path or s3://, gs://, az:// address
        uri: String,
        /// Age in hours by the storage's own clock; longer than any writer takes for a shard
        #[arg(long, default_value_t = 168)]
        older_than_hours: u64,
    },
    /// Write a contact sheet: decoded where weights are given, else the levels as pictures
    Preview(preview::Args),
    /// Write the latents in another project's layout
    Export(layouts::ExportArgs),
    /// Make a dataset of latents in another project's layout
    Import(layouts::ImportArgs),
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    match &args.action {
        Action::Info { uri } => info(uri, context),
        Action::Verify { uri } => verify(uri, context),
        Action::Vacuum { uri, older_than_hours } => vacuum(uri, *older_than_hours, context),
        Action::Preview(args) => preview::run(args, context),
        Action::Export(args) => layouts::export(args, context),
        Action::Import(args) => layouts::import(args, context),
    }
}

fn info(uri: &str, context: &Context) -> Result<()> {
    let dataset = context.runtime.block_on(Dataset::open(uri))?;
    let metadata = dataset.metadata();
    let statistics = dataset.statistics();
    if context.json {
        let answer = json!({
            "uri": dataset.uri(), "version": dataset.version(), "rows": dataset.rows(),
            "shards": dataset.shards().len(), "bytes": dataset.bytes(),
            "metadata": metadata, "statistics": statistics,
        });
        println!("{answer}");
        return Ok(());
    }
    println!("dataset       {}, version {}", dataset.uri(), dataset.version());
    println!("format        {}", metadata.format_version);
    println!("rows          {} in {} shards", dataset.rows(), dataset.shards().len());
    println!("size          {:.1} MB", dataset.bytes() as f64 / 1e6);
    println!("classes       {}", metadata.classes.len());
    println!("posterior     {:?}, {}", metadata.posterior, metadata.dtype.name());
    println!("autoencoder   {}", metadata.autoencoder);
    println!("preprocessing {}", metadata.preprocessing);
    for (level, (spec, channels)) in metadata.levels.iter().zip(&statistics.levels).enumerate() {
        let LevelSpec { channels: count, height, width } = spec;
        println!("level {level}       {count}x{height}x{width}");
        for (index, channel) in channels.iter().enumerate() {
            let (mean, std) = (channel.mean, channel.std);
            let (min, max) = (channel.min, channel.max);
            println!("  channel {index:<3} mean {mean:9.5}  std {std:8.5}  {min} to {max}");
        }
    }
    Ok(())
}

fn verify(uri: &str, context: &Context) -> Result<()> {
    let found = context.runtime.block_on(async { Dataset::open(uri).await?.verify().await })?;
    let problems: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
    if context.json {
        let (rows, bytes, orphans) = (found.rows, found.bytes, &found.orphans);
        println!(
            "{}",
            json!({ "rows": rows, "bytes": bytes, "problems": problems, "orphans": orphans })
        );
    } else {
        problems.iter().for_each(|problem| println!("{problem}"));
        for orphan in &found.orphans {
            println!("'{orphan}' belongs to no shard: a writer died before its commit");
        }
        println!(
            "{} rows, {:.1} MB, {} problems",
            found.rows,
            found.bytes as f64 / 1e6,
            problems.len()
        );
    }
    match problems.len() {
        0 => Ok(()),
        count => bail!("dataset '{uri}' has {count} problems"),
    }
}

fn vacuum(uri: &str, hours: u64, context: &Context) -> Result<()> {
    let age = Duration::from_secs(hours.saturating_mul(3600));
    let removed =
        context.runtime.block_on(async { Dataset::open(uri).await?.vacuum(age).await })?;
    if context.json {
        println!("{}", json!({ "removed": removed }));
    } else {
        removed.iter().for_each(|file| println!("removed '{file}'"));
        println!("{} files removed", removed.len());
    }
    Ok(())
}
