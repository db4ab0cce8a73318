//! Images a second: `throughput SOURCE SIZE THREADS [ROUNDS [exact|fast|entropy]]`.
//!
//! `exact` and `fast` go through a source's stream. `entropy` only reads the files of a folder
//! and undoes their Huffman coding, which a decoder cannot do without: the limit of the others.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};
use lapflow_ingest::{Decode, IngestConfig, Source};
use libjpeg_turbo_rs::Decoder;
use rayon::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, size, threads, options @ ..] = arguments.as_slice() else {
        return Err("usage: throughput SOURCE SIZE THREADS [ROUNDS [exact|fast|entropy]]".into());
    };
    let (size, threads) = (size.parse()?, threads.parse()?);
    let rounds = options.first().map_or(Ok(1), |rounds| rounds.parse())?;
    let decode = match options.get(1).map_or("exact", String::as_str) {
        "exact" => Decode::Exact,
        "fast" => Decode::Fast,
        "entropy" => return entropy(Path::new(folder), threads, rounds),
        other => return Err(format!("`{other}` is none of exact, fast and entropy").into()),
    };
    let config =
        IngestConfig { source: folder.clone(), size, threads, decode, ..IngestConfig::default() };
    let source = Arc::new(Source::open(&config).await?);
    let count = source.entries().len();
    for _ in 0..rounds {
        let start = Instant::now();
        let stream = source.stream((0..count).collect());
        let yielded = stream.boxed().try_fold(0_usize, async |sum, _| Ok(sum + 1)).await?;
        println!("{:.1}", yielded as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn entropy(folder: &Path, threads: usize, rounds: usize) -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    for _ in 0..rounds {
        let start = Instant::now();
        pool.install(|| {
            files.par_iter().try_for_each(|file| undo(file).map_err(|e| e.to_string()))
        })?;
        println!("{:.1}", files.len() as f64 / start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Reads a JPEG and asks for none of its rows, so that only the first blocks are transformed.
fn undo(file: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = std::fs::read(file)?;
    let mut decoder = Decoder::new(&bytes)?;
    decoder.set_crop_y(0, 0);
    decoder.decode_image()?;
    Ok(())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
