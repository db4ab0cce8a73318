//! `lapflow convert`: PyTorch checkpoints to safetensors.

use super::Context;
use anyhow::Result;
use lapflow_model::weights::Weights;
use std::path::PathBuf;

/// Arguments of `lapflow convert`.
#[derive(clap::Args)]
pub struct Args {
    /// A .pth, .pt, .ckpt, .bin or .safetensors file
    weights: PathBuf,
    /// The safetensors file to write
    out: PathBuf,
}

/// Runs the command: names, shapes and dtypes stay as they are.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let weights = Weights::read(&args.weights)?;
    Weights::write(&args.out, &weights.tensors, &weights.metadata)?;
    let scalars: usize = weights.tensors.values().map(|tensor| tensor.elem_count()).sum();
    let (out, tensors) = (args.out.display().to_string(), weights.tensors.len());
    if context.json {
        let sha256 = Weights::read(&args.out)?.sha256;
        let line = serde_json::json!({
            "out": out, "tensors": tensors, "scalars": scalars, "sha256": sha256
        });
        println!("{line}");
    } else {
        println!("{out}: {tensors} tensors, {scalars} values");
    }
    Ok(())
}
