//! Integrates a batch from a checkpoint and says what it cost: the other side of bench/sample.
//!
//!     integrate CHECKPOINT OUT.safetensors --control sample|torchdiffeq --tolerance 1e-5
//!               --batch 16 --repeats 3
//!
//! Prints one JSON object; OUT holds `noise.k`, `final.k` and `labels`.

use candle_core::{Device, Tensor};
use lapflow_model::checkpoint::{Checkpoint, WeightSet};
use lapflow_model::flow::{Flow, Path, image_rng};
use lapflow_model::net::cost;
use lapflow_sample::solver::Control;
use lapflow_sample::{
    Dopri5, Guidance, Labels, Result, SampleError, Solver, guided, network, sample_pyramid,
};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, out, options @ ..] = &arguments[..] else {
        return Err(SampleError::setting("arguments", "CHECKPOINT and OUT are missing"));
    };
    let options: BTreeMap<&str, &str> =
        options.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let number = |key: &str, default: f64| -> f64 {
        options.get(key).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let tolerance = number("--tolerance", 1e-5);
    let control = match options.get("--control") {
        Some(&"torchdiffeq") => Control::Torchdiffeq,
        _ => Control::Sample,
    };
    let solver =
        Solver::Dopri5(Dopri5 { rtol: tolerance, atol: tolerance, control, ..Dopri5::default() });

    let checkpoint = Checkpoint::read(checkpoint)?;
    let card = &checkpoint.card;
    let net = checkpoint.network(WeightSet::Ema, &Device::Cpu)?;
    let path = Path::new(&card.flow)?;
    let (geometry, batch) = (card.geometry, number("--batch", 1.0) as u64);
    let null = geometry.classes as u32;
    let label = |i| Labels::Balanced.label(0, i, geometry.classes).unwrap_or(null);
    let labels: Vec<u32> = (0..batch).map(label).collect();
    let mut rngs: Vec<_> = (0..batch).map(|i| image_rng(0, i)).collect();
    let shape = [geometry.channels, geometry.height, geometry.width];
    let noise = path.draw_noise(&mut rngs, shape, &Device::Cpu)?;

    let (mut seconds, mut processor, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..number("--repeats", 1.0) as usize {
        let mut velocity = guided(network(&net), &labels, null, Guidance::default());
        let (begin, used) = (Instant::now(), processor_seconds());
        last = Some(sample_pyramid(&path, &solver, &noise, &mut velocity)?);
        seconds.push(begin.elapsed().as_secs_f64());
        processor.push(processor_seconds() - used);
    }
    let Some(sampled) = last else { return Ok(()) };

    let segment_macs = cost(&card.model, &geometry, &path).segment_macs;
    let evaluations: Vec<usize> = sampled.evaluations();
    let macs: f64 = sampled
        .costs
        .iter()
        .map(|c| segment_macs[c.segment.level] as f64 * c.evaluations.iter().sum::<usize>() as f64)
        .sum();
    let report = json!({
        "seconds": seconds,
        "processor_seconds": processor,
        "evaluations": evaluations,
        "calls": sampled.costs.iter().map(|cost| cost.calls).sum::<usize>(),
        "rejected": sampled.costs.iter().flat_map(|cost| &cost.rejected).sum::<usize>(),
        "macs_per_image": macs / batch as f64,
    });
    println!("{report}");

    let mut tensors = HashMap::from([("labels".to_string(), Tensor::new(labels, &Device::Cpu)?)]);
    for (k, (noise, end)) in noise.iter().zip(&sampled.levels).enumerate() {
        tensors.insert(format!("noise.{k}"), noise.clone());
        tensors.insert(format!("final.{k}"), end.clone());
    }
    Ok(candle_core::safetensors::save(&tensors, out)?)
}

/// Time that this process's threads have run so far, to a hundredth (Linux; 0 elsewhere).
fn processor_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The fields after the command's closing bracket; user and system time are the 12th and 13th.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}
