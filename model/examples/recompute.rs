//! Peak memory and time of a forward and a backward pass, activations kept or recomputed.
//!
//! Arguments: S, B, L or XL; the latents' side; levels; `kept` or `recomputed`. One sample of four
//! channels, weights and gradients in memory, no optimizer. Prints one JSON object with a checksum
//! of the gradients.

use candle_core::{DType, Device, Tensor};
use lapflow_model::Params;
use lapflow_model::net::{Geometry, ModelConfig, Precision, Preset, Transformer};
use std::time::Instant;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [size, side, levels, mode] = args.as_slice() else {
        return Err("which model, side, levels, kept or recomputed?".into());
    };
    let preset = match size.as_str() {
        "S" => Preset::S,
        "B" => Preset::B,
        "L" => Preset::L,
        "XL" => Preset::XL,
        _ => return Err("the model is S, B, L or XL".into()),
    };
    let (side, levels): (usize, usize) = (side.parse()?, levels.parse()?);
    let config = ModelConfig { preset, ..ModelConfig::default() };
    let geometry = Geometry { channels: 4, height: side, width: side, levels, classes: 0 };
    let (mut net, params) = Params::init(0, DType::F32, &Device::Cpu, |scope| {
        Transformer::new(scope, &config, &geometry)
    })?;
    // A fresh network's gates and heads are zero, and with them most gradients.
    for (_, var) in
        params.iter().filter(|(name, _)| name.contains("adaLN") || name.contains("final"))
    {
        var.set(&var.affine(0.0, 0.01)?)?;
    }
    let (sender, blocks) = std::sync::mpsc::channel();
    net.train_blocks(mode == "recomputed", Precision::F32, sender);
    let x: Vec<Tensor> = (0..levels)
        .map(|k| {
            let count = 4 * (side >> k) * (side >> k);
            let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
            Tensor::from_vec(values, (1, 4, side >> k, side >> k), &Device::Cpu)
        })
        .collect::<Result<_, _>>()?;
    let before = status("VmRSS:")?;
    let start = Instant::now();
    let out = net.forward(&x, &Tensor::new(&[0.75f32], &Device::Cpu)?, None)?;
    let parts: Vec<Tensor> = out.iter().map(|v| v.sqr()?.mean_all()).collect::<Result<_, _>>()?;
    let gradients = Tensor::stack(&parts, 0)?.sum_all()?.backward()?;
    let blocks: Vec<_> = blocks.try_iter().flatten().collect();
    let seconds = start.elapsed().as_secs_f64();
    let mut sum = 0f64;
    for (_, var) in params.iter() {
        let block = || blocks.iter().find(|(id, _)| *id == var.id()).map(|(_, grad)| grad);
        let grad = gradients.get(var).or_else(block).ok_or("a parameter without gradient")?;
        sum += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    println!(
        "{{\"mode\": \"{mode}\", \"seconds\": {seconds:.1}, \"before_mb\": {}, \"peak_mb\": {}, \
         \"gradient_norm\": {:.9e}}}",
        before / 1024,
        status("VmHWM:")? / 1024,
        sum.sqrt()
    );
    Ok(())
}

/// A value of /proc/self/status, in KB.
fn status(key: &str) -> Result<u64, Error> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
