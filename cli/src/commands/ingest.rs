//! `lapflow ingest`: cropped PNGs of a source, and a report of what was skipped.

use super::Context;
use crate::progress::Progress;
use anyhow::{Result, bail};
use lapflow_ingest::{Crop, Decode, Exported, IngestConfig, LeftOut, Source, export};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Arguments of `lapflow ingest`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder, .txt list, .tar, .zip, .parquet or .mdb file; local, s3://, gs:// or az://
    source: String,
    /// Side of the square images, in pixels
    #[arg(long)]
    size: u32,
    /// Folder for the PNGs, skipped.jsonl and ingest.json
    #[arg(long)]
    out: PathBuf,
    /// adm, resize, center or random
    #[arg(long, default_value = "adm", value_parser = named::<Crop>)]
    crop: Crop,
    /// exact, or fast: JPEGs much larger than the target are not decoded in full
    #[arg(long, default_value = "exact", value_parser = named::<Decode>)]
    decode: Decode,
    /// Seed of random crops
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write each image mirrored as well
    #[arg(long)]
    flip: bool,
    /// Turn images as their EXIF orientation asks
    #[arg(long)]
    exif_orientation: bool,
    /// Fail when more than this fraction of the images is skipped
    #[arg(long, default_value_t = IngestConfig::default().skip_fraction_max)]
    skip_fraction_max: f64,
    /// Decoding threads; 0 takes one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let config = IngestConfig {
        source: args.source.clone(),
        size: args.size,
        crop: args.crop,
        decode: args.decode,
        seed: args.seed,
        flip: args.flip,
        exif_orientation: args.exif_orientation,
        skip_fraction_max: args.skip_fraction_max,
        threads: args.threads,
        ..IngestConfig::default()
    };
    if is_same_place(&args.source, &args.out) {
        bail!("{}: --out is the source itself; name another folder", args.out.display());
    }
    let (exported, left_out) =
        context.runtime.block_on(ingest(&config, &args.out, &context.stop))?;
    if context.json {
        let Exported { written, present, skips, unturned, .. } = &exported;
        let result = json!({
            "written": written, "present": present, "skips": skips, "unturned": unturned,
            "left_out": left_out,
        });
        println!("{result}");
    } else {
        for skip in &exported.skips {
            println!("{}: {}", skip.key, skip.reason);
        }
        println!("{}", args.out.display());
    }
    if exported.stopped {
        bail!("stopped; the same command goes on where it was");
    }
    Ok(())
}

/// Whether a source is what is to be written; addresses that are no paths here never are.
pub fn is_same_place(source: &str, out: &Path) -> bool {
    let place = |path: &Path| std::fs::canonicalize(path).ok();
    place(out).is_some_and(|out| place(source.as_ref()) == Some(out))
}

/// Says on stderr how `source` was understood, and what it holds beside its images.
pub fn say_of_source(command: &str, source: &Source) {
    for note in source.notes() {
        eprintln!("{command}: {note}");
    }
    if !source.left_out().is_empty() {
        eprintln!("{command}: left out of the source: {}", source.left_out());
    }
}

/// Says on stderr that `count` images were not turned, and what would turn them.
pub fn say_unturned(command: &str, count: u64, remedy: &str) {
    if count > 0 {
        eprintln!(
            "{command}: {count} images carry an EXIF orientation and were not turned ({remedy} turns them)"
        );
    }
}

async fn ingest(
    config: &IngestConfig,
    out: &Path,
    stop: &AtomicBool,
) -> Result<(Exported, LeftOut)> {
    let source = Arc::new(Source::open(config).await?);
    say_of_source("ingest", &source);
    let total = source.entries().len() as u64;
    let mut progress = Progress::new("ingest", "images", 0, total);
    let (start, mut present) = (Instant::now(), None);
    let exported = export(&source, out, |done, _| {
        // The first call tells what an earlier run left.
        let done_now = done - *present.get_or_insert(done);
        let rate = done_now as f64 / start.elapsed().as_secs_f64().max(1e-9);
        progress.update(done as u64, &format!("{rate:.1} images/s"));
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .await?;
    let Exported { written, present, ref skips, unturned, .. } = exported;
    progress.finish(&format!("{written} written, {present} were there, {} skipped", skips.len()));
    say_unturned("ingest", unturned as u64, "--exif-orientation");
    Ok((exported, source.left_out().clone()))
}

/// A crop or decode mode by its name in config files.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(name.to_owned())).map_err(|error| error.to_string())
}
