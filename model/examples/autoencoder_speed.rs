//! Times an autoencoder on request: `autoencoder_speed WEIGHTS SIZE BATCH`.
//!
//! Reads lines `encode` and `decode` from standard input and answers each with the seconds taken,
//! the peak resident memory of that run in MiB and the processor time of all threads, so that a
//! driver can alternate between this and its peers. The first line it writes is the resident memory before it loads the weights.

use candle_core::{DType, Device, Tensor};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use std::io::BufRead;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, weights, size, batch] = &args[..] else {
        return Err("usage: autoencoder_speed WEIGHTS SIZE BATCH".into());
    };
    println!("{}", memory_mib("VmRSS:"));
    let weights = WeightsSource::File(weights.into());
    let config = AutoencoderConfig { weights, ..Default::default() };
    let autoencoder = Autoencoder::open(&config, &Device::Cpu)?;
    let (size, batch): (usize, usize) = (size.parse()?, batch.parse()?);
    let identity = autoencoder.identity();
    let side = size / identity.factor;
    let images = Tensor::rand(-1f32, 1f32, (batch, 3, size, size), &Device::Cpu)?;
    let latents = Tensor::zeros((batch, identity.channels, side, side), DType::F32, &Device::Cpu)?;
    for line in std::io::stdin().lock().lines() {
        forget_peak();
        let (started, processor) = (Instant::now(), processor_seconds());
        match line?.as_str() {
            "encode" => drop(autoencoder.encode(&images)?),
            "decode" => drop(autoencoder.decode(&latents)?),
            other => return Err(format!("neither encode nor decode: {other}").into()),
        }
        let (taken, processor) = (started.elapsed().as_secs_f64(), processor_seconds() - processor);
        println!("{taken:.4} {} {processor:.2}", memory_mib("VmHWM:"));
    }
    Ok(())
}

/// Lets the peak begin anew, where the system can: Linux.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// User and system time of this process so far; 0 where the system does not tell.
fn processor_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// A figure of this process; 0 where the system does not tell.
fn memory_mib(figure: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(figure));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
