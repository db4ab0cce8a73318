//! Times the writer and the loader on synthetic latents; `bench/store/run.sh` compares with peers.
//!
//! `loader_bench write URI ROWS [zstd:LEVEL|none] [ROWS_OF_A_SHARD]`, `loader_bench open URI` and
//! `loader_bench read URI [key=value]...` with keys batch, window, reads, verify (0/1), levels
//! (0,1), epochs, memory (bytes), cache (folder); each prints one JSON line.

use std::sync::Arc;
use std::time::Instant;

use lapflow_store::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SHARD_ROWS: i64 = 5000;
const BATCHES_TIMED_MIN: usize = 20;
/// Linux's unit of processor time in `/proc`.
const TICKS_PER_S: f64 = 100.0;

type Failure = Box<dyn std::error::Error>;

fn main() -> std::result::Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["write", uri, rows, options @ ..] => {
            let compression = match options.first() {
                None => Compression::Zstd(1),
                Some(&"none") => Compression::None,
                Some(codec) => {
                    let level = codec.strip_prefix("zstd:").ok_or("codec is zstd:LEVEL or none")?;
                    Compression::Zstd(level.parse()?)
                }
            };
            let shard_rows = options.get(1).map_or(Ok(SHARD_ROWS), |rows| rows.parse())?;
            write(uri, rows.parse()?, compression, shard_rows)
        }
        ["open", uri] => open(uri),
        ["read", uri, options @ ..] => read(uri, options),
        _ => Err("usage: loader_bench write URI ROWS [CODEC [SHARD_ROWS]] | open URI | read URI [key=value]...".into()),
    }
}

/// Times opening, finding a shard's transaction and the first batch.
fn open(uri: &str) -> std::result::Result<(), Failure> {
    let started = Instant::now();
    let dataset = futures::executor::block_on(Dataset::open(uri))?;
    let open_s = started.elapsed().as_secs_f64();
    let last = dataset.shards().last().ok_or("there is no shard")?.shard.clone();
    let asked = Instant::now();
    let committed = futures::executor::block_on(dataset.is_committed(&last))?;
    let asked_s = asked.elapsed().as_secs_f64();
    let (version, shards) = (dataset.version(), dataset.shards().len());
    println!(
        r#"{{"version": {version}, "shards": {shards}, "open_s": {open_s:.3}, "is_committed": {committed}, "is_committed_s": {asked_s:.3}}}"#
    );
    Ok(())
}

fn write(
    uri: &str,
    rows: i64,
    compression: Compression,
    shard_rows: i64,
) -> std::result::Result<(), Failure> {
    let levels = vec![
        LevelSpec { channels: 4, height: 32, width: 32 },
        LevelSpec { channels: 4, height: 16, width: 16 },
    ];
    let metadata = Metadata::new(levels, Dtype::F16, Posterior::Mean);
    let drawn: Vec<_> = (0..512).map(|id| levels_of(&metadata, id)).collect();
    futures::executor::block_on(async {
        let dataset = Dataset::create(uri, &metadata).await?;
        let started = Instant::now();
        for first in (0..rows).step_by(shard_rows as usize) {
            let name = format!("{:05}", first / shard_rows);
            let options = ShardOptions { compression, ..ShardOptions::default() };
            let mut shard = dataset.shard_with(&name, options).await?;
            for id in first..rows.min(first + shard_rows) {
                shard.push(row(id, drawn[id as usize % drawn.len()].clone())).await?;
            }
            shard.commit().await?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let bytes = dataset.refresh().await?.bytes();
        let rate = rows as f64 / seconds;
        println!(r#"{{"write_samples_per_s": {rate:.0}, "rows": {rows}, "bytes": {bytes}}}"#);
        Ok(())
    })
}

fn levels_of(metadata: &Metadata, id: u64) -> Vec<Vec<u8>> {
    let mut generator = ChaCha8Rng::seed_from_u64(id);
    let normal = Normal::new(0.0f32, 1.0).expect("a positive deviation");
    let level = |spec: &LevelSpec| {
        let values: Vec<f32> = (0..spec.values()).map(|_| normal.sample(&mut generator)).collect();
        metadata.dtype.encode(&values)
    };
    metadata.levels.iter().map(level).collect()
}

fn row(id: i64, levels: Vec<Vec<u8>>) -> Row {
    let (label, sha256) = ((id % 1000) as i32, [0; 32]);
    let source = format!("n{:08}/n{:08}_{id}.JPEG", label, label);
    Row { id, label, source, sha256, width: 500, height: 375, view: 0, levels, logvar: None }
}

/// Processor time of this process so far, in seconds.
fn processor_s() -> std::result::Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> =
        fields.skip(11).take(2).map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_S)
}

fn read(uri: &str, options: &[&str]) -> std::result::Result<(), Failure> {
    let mut config = LoaderConfig { epochs: Some(1), ..LoaderConfig::default() };
    let mut cache = None;
    for option in options {
        let (key, value) = option.split_once('=').ok_or("options are key=value")?;
        match key {
            "batch" => config.batch = value.parse()?,
            "window" => config.window_rows = value.parse()?,
            "reads" => config.reads_max = value.parse()?,
            "verify" => config.verify = value == "1",
            "memory" => config.memory_cache_bytes_max = value.parse()?,
            "cache" => cache = Some(Arc::new(DiskCache::new(value, u64::MAX)?)),
            "epochs" => config.epochs = Some(value.parse()?),
            "levels" => {
                let levels = value.split(',').map(str::parse);
                config.levels = Some(levels.collect::<std::result::Result<_, _>>()?);
            }
            _ => return Err(format!("unknown option '{key}'").into()),
        }
    }
    let started = Instant::now();
    let mut dataset = futures::executor::block_on(Dataset::open(uri))?;
    if let Some(cache) = cache {
        dataset = dataset.with_cache(cache);
    }
    let open_s = started.elapsed().as_secs_f64();
    let loader = Loader::new(&dataset, config.clone(), LoaderState::default())?;
    let (mut samples, mut bytes, mut first_s) = (0, 0, 0.0);
    let mut middle = LoaderState::default();
    let (reading, processor) = (Instant::now(), processor_s()?);
    for (index, batch) in loader.batches().enumerate() {
        let batch = batch?;
        if index == 0 {
            first_s = started.elapsed().as_secs_f64();
        }
        if batch.state.position * 2 <= dataset.rows() {
            middle = batch.state;
        }
        samples += batch.ids.len();
        bytes += batch.levels.iter().map(|level| level.data.len()).sum::<usize>();
    }
    let (seconds, processor) = (reading.elapsed().as_secs_f64(), processor_s()? - processor);
    if samples < BATCHES_TIMED_MIN * config.batch {
        return Err("too few samples to time".into());
    }
    let started = Instant::now();
    let dataset = futures::executor::block_on(Dataset::open(uri))?;
    let resumed = Loader::new(&dataset, config, middle)?.batches().next();
    resumed.ok_or("nothing after the middle")??;
    let resume_s = started.elapsed().as_secs_f64();
    println!(
        r#"{{"name": "lapflow", "samples_per_s": {:.0}, "samples_per_cpu_s": {:.0}, "MB_per_cpu_s": {:.0}, "open_s": {open_s:.3}, "first_batch_s": {first_s:.3}, "resume_s": {resume_s:.3}}}"#,
        samples as f64 / seconds,
        samples as f64 / processor,
        bytes as f64 / processor / 1e6,
    );
    Ok(())
}
