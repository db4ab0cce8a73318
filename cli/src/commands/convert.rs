//! `lapflow convert`: PyTorch checkpoints to safetensors.

use super::Context;
use anyhow::{Context as _, Result};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use lapflow_model::checkpoint::Checkpoint;
use lapflow_model::normalization::Normalization;
use lapflow_model::published::{Unsaid, dit};
use lapflow_model::weights::Weights;
use std::path::PathBuf;

/// Arguments of `lapflow convert`.
#[derive(clap::Args)]
pub struct Args {
    /// A .pth, .pt, .ckpt, .bin or .safetensors file
    weights: PathBuf,
    /// The safetensors file to write
    out: PathBuf,
    /// Make a checkpoint to sample from of a DiT in its published layout, whose latents are of
    /// this autoencoder
    #[arg(long, value_name = "WEIGHTS")]
    autoencoder: Option<PathBuf>,
    /// Attention heads of that DiT, where its size is not a named one
    #[arg(long, requires = "autoencoder")]
    heads: Option<usize>,
}

/// Runs the command: names, shapes and dtypes stay as they are unless a checkpoint is made.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let weights = Weights::read(&args.weights)?;
    let scalars: usize = weights.tensors.values().map(|tensor| tensor.elem_count()).sum();
    let (out, tensors) = (args.out.display().to_string(), weights.tensors.len());
    match &args.autoencoder {
        Some(autoencoder) => checkpoint(args, weights, autoencoder, context)?,
        None => Weights::write(&args.out, &weights.tensors, &weights.metadata)?,
    }
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

fn checkpoint(args: &Args, weights: Weights, path: &PathBuf, context: &Context) -> Result<()> {
    let source = WeightsSource::from_paths(std::slice::from_ref(path)).context("no autoencoder")?;
    let config = AutoencoderConfig { weights: source, ..AutoencoderConfig::default() };
    let autoencoder = Autoencoder::open(&config, &context.device)?;
    let identity = autoencoder.identity();
    let channels = identity.channels;
    let unsaid = Unsaid {
        autoencoder: serde_json::to_value(identity)?,
        autoencoder_config: serde_json::to_value(&config)?,
        normalization: Normalization {
            shift: vec![identity.shift; channels],
            scale: vec![identity.scale; channels],
        },
        heads: args.heads,
    };
    let published = dit(&args.weights, weights, &unsaid)?;
    Checkpoint::write(&args.out, &published.card, None, &published.tensors)?;
    Ok(())
}
