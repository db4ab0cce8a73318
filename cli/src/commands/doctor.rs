//! `lapflow doctor`: what this machine is, whether it computes rightly, and how fast it trains.

use super::{Context, plan};
use crate::config::{Config, ConfigArgs};
use anyhow::{Result, bail};
use candle_core::Device;
use lapflow_model::kernels::{Checked, check, matrix_rate};
use lapflow_model::net::Geometry;
use lapflow_store::LevelSpec;
use lapflow_train::{Recipe, Trainer, synthetic};
use serde_json::json;
use std::time::Instant;

/// Whose network the benchmark trains where neither a config nor a preset is given.
const DEFAULT_PRESET: &str = "demo";

/// Arguments of `lapflow doctor`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Latent channels of the network that the benchmark trains; default: those of the config's
    /// autoencoder
    #[arg(long)]
    channels: Option<usize>,
    /// Seconds of training; 0: none
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What the checks draw their sizes and values from
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let say = |line: String| {
        if !context.json {
            println!("{line}");
        }
    };
    let machine = machine(&context.device)?;
    say(machine.clone());
    let checks = check(&context.device, args.seed)?;
    for line in &checks {
        say(words(line));
    }
    let failed = checks.iter().filter(|line| !line.passed()).count();
    let rate = matrix_rate(&context.device)?;
    say(format!("matrix product (f32): {:.1} GMACs/s", rate / 1e9));
    let (mut images, mut share) = (0.0, 0.0);
    if args.seconds > 0 {
        let macs;
        (images, macs) = training(args, context)?;
        share = macs / rate;
        say(format!(
            "training: {images:.1} images/s, {:.0} % of the matrix product",
            share * 100.0
        ));
    }
    if context.json {
        let checks: Vec<_> = checks
            .iter()
            .map(|c| json!({ "name": c.name, "dtype": c.dtype.as_str(), "error": c.error, "passed": c.passed() }))
            .collect();
        let result = json!({
            "machine": machine, "checks": checks, "matrix_macs_per_second": rate,
            "images_per_second": images, "matrix_share": share,
        });
        println!("{result}");
    }
    match failed {
        0 => Ok(()),
        n => {
            bail!("{n} of {} operations differ from the CPU's by more than rounding", checks.len())
        }
    }
}

fn words(line: &Checked) -> String {
    let verdict = if line.passed() { "ok" } else { "WRONG" };
    let (name, dtype) = (&line.name, line.dtype.as_str());
    format!("{name}, {dtype}: error {:.1e}, bound {:.0e}: {verdict}", line.error, line.bound)
}

/// The device in words.
fn machine(device: &Device) -> Result<String> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        use candle_core::cuda_backend::WrapErr;
        let stream = cuda.cuda_stream();
        let context = stream.context();
        let (major, minor) = context.compute_capability().w()?;
        let (free, total) = context.mem_get_info().w()?;
        let (name, free, total) = (context.name().w()?, free >> 20, total >> 20);
        return Ok(format!(
            "{name}, compute capability {major}.{minor}, {free} of {total} MiB free"
        ));
    }
    Ok(format!("{device:?}, {} threads", std::thread::available_parallelism()?))
}

/// Images and multiply-accumulates a second of training steps on made-up latents.
fn training(args: &Args, context: &Context) -> Result<(f64, f64)> {
    let given = &args.config;
    let config = match (&given.config, &given.preset) {
        (None, None) => Config::preset(DEFAULT_PRESET, &given.set)?,
        _ => given.load()?,
    };
    let made = plan::latents(&config, config.flow.build()?.levels(), 0);
    let geometry = Geometry { channels: args.channels.unwrap_or(made.channels), ..made };
    let specs: Vec<LevelSpec> = (0..geometry.levels)
        .map(|k| {
            let (height, width) = geometry.level_size(k);
            LevelSpec { channels: geometry.channels, height, width }
        })
        .collect();
    let folder = std::env::temp_dir().join(format!("lapflow-doctor-{}", std::process::id()));
    let uri = folder.to_string_lossy();
    let dataset = context.runtime.block_on(synthetic::dataset(&uri, &specs, 0));
    std::fs::remove_dir_all(&folder)?;
    let (model, flow, train) = (config.model, config.flow, config.train);
    let batch = synthetic::batch(&specs, train.batch, 0);
    let recipe = Recipe { model, flow, train, autoencoder: json!({}) };
    let mut trainer = Trainer::new(&recipe, &dataset?, &context.device)?;
    trainer.step(&batch)?;
    context.device.synchronize()?;
    let (start, mut images, mut macs) = (Instant::now(), 0, 0.0);
    while start.elapsed().as_secs() < args.seconds {
        let report = trainer.step(&batch)?;
        images += report.images;
        macs += report.macs;
    }
    context.device.synchronize()?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((images as f64 / seconds, macs / seconds))
}
