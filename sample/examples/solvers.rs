//! How many evaluations each solver needs for which error, on a checkpoint.
//!
//!     cargo run --release -p lapflow-sample --example solvers -- CHECKPOINT [IMAGES]
//!
//! Errors are root mean squares of the latents' difference from dopri5 at a tolerance of 1e-7,
//! relative to the latents' own root mean square.

use candle_core::{DType, Device, Tensor};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_model::checkpoint::Checkpoint;
use lapflow_sample::solver::Control;
use lapflow_sample::{Generator, Labels, Request, Result, SampleConfig, SampleError, SolverName};
use std::time::Instant;

/// Tolerance of the solution that the others are compared with.
const REFERENCE: f64 = 1e-7;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| SampleError::setting("CHECKPOINT", "is missing"))?;
    let count = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(16);
    let checkpoint = Checkpoint::read(path)?;
    let classes = checkpoint.card.geometry.classes;
    let request = |index| Request { index, label: Labels::Balanced.label(0, index, classes) };
    let requests: Vec<Request> = (0..count).map(request).collect();

    let draw = |config: SampleConfig| -> Result<(Tensor, f64, f64)> {
        let generator =
            Generator::new(&checkpoint, Autoencoder::Pixel, &config, &Device::Cpu, true)?;
        let begin = Instant::now();
        let (latents, costs) = generator.draw_latents(&requests)?;
        let sum: usize = costs.iter().flat_map(|cost| &cost.evaluations).sum();
        Ok((latents, sum as f64 / count as f64, begin.elapsed().as_secs_f64()))
    };
    let dopri5 = |control, tolerance| SampleConfig {
        control,
        rtol: tolerance,
        atol: tolerance,
        ..SampleConfig::default()
    };
    let (reference, nfe, _) = draw(dopri5(Control::Sample, REFERENCE))?;
    println!("reference: dopri5 at {REFERENCE:e}, {nfe:.1} evaluations, {count} images");
    let compare = |name: &str, config: SampleConfig| -> Result<()> {
        let (latents, nfe, seconds) = draw(config)?;
        let error = rms(&(latents - &reference)?)? / rms(&reference)?;
        println!("{name:<24} {nfe:>8.1} evaluations  error {error:.2e}  {seconds:>7.2} s");
        Ok(())
    };
    for tolerance in [1e-2, 1e-3, 1e-4, 1e-5] {
        compare(&format!("torchdiffeq {tolerance:e}"), dopri5(Control::Torchdiffeq, tolerance))?;
        compare(&format!("default {tolerance:e}"), dopri5(Control::Sample, tolerance))?;
    }
    for steps in [25, 50, 100] {
        let config = SampleConfig { solver: SolverName::Heun, steps, ..SampleConfig::default() };
        compare(&format!("Heun, {steps} steps"), config)?;
    }
    Ok(())
}

fn rms(x: &Tensor) -> Result<f64> {
    Ok(x.to_dtype(DType::F64)?.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt())
}
