//! `lapflow convert`: PyTorch checkpoints to safetensors.

use super::Context;
use anyhow::{Context as _, Result, bail};
use lapflow_model::autoencoder::{
    Autoencoder, AutoencoderConfig, CONFIG_KEY, KlAutoencoder, KlConfig, WeightsSource,
};
use lapflow_model::checkpoint::Checkpoint;
use lapflow_model::published::{Unsaid, dit};
use lapflow_model::weights::Weights;
use std::path::PathBuf;

/// Arguments of `lapflow convert`.
#[derive(clap::Args)]
pub struct Args {
    /// A .pth, .pt, .ckpt, .bin or .safetensors file, or diffusers' folder of one
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
    /// Classes of that DiT: tells whether the last row of its label table is the null class (default)
    #[arg(long, requires = "autoencoder")]
    classes: Option<usize>,
    /// Groups of an AutoencoderKL's group normalisations, where its config.json is not beside it
    #[arg(long)]
    groups: Option<usize>,
    /// Scale of its latents: a model sees (latents - shift) * scale
    #[arg(long)]
    scale: Option<f64>,
    /// Shift of its latents
    #[arg(long, allow_hyphen_values = true)]
    shift: Option<f64>,
}

/// Runs the command: names, shapes and dtypes stay as they are unless a checkpoint is made. What an
/// autoencoder's shapes do not tell goes into the header.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let mut weights = Weights::read(&args.weights)?;
    let scalars: usize = weights.tensors.values().map(|tensor| tensor.elem_count()).sum();
    let (out, tensors) = (args.out.display().to_string(), weights.tensors.len());
    match &args.autoencoder {
        Some(autoencoder) => checkpoint(args, weights, autoencoder, context)?,
        None => {
            describe(args, &mut weights)?;
            Weights::write(&args.out, &weights.tensors, &weights.metadata)?;
        }
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

/// What the command line says of an autoencoder.
fn stated(args: &Args) -> AutoencoderConfig {
    let Args { groups, scale, shift, .. } = *args;
    AutoencoderConfig { groups, scale, shift, ..AutoencoderConfig::default() }
}

/// Writes the description of an `AutoencoderKL` into its metadata.
fn describe(args: &Args, weights: &mut Weights) -> Result<()> {
    if KlAutoencoder::recognises(weights) {
        let description = KlConfig::of(weights, &stated(args))?;
        weights.metadata.insert(CONFIG_KEY.into(), serde_json::to_string(&description)?);
    } else if args.groups.is_some() || args.scale.is_some() || args.shift.is_some() {
        bail!("{}: --groups, --scale and --shift are an AutoencoderKL's", args.weights.display());
    }
    Ok(())
}

fn checkpoint(args: &Args, weights: Weights, path: &PathBuf, context: &Context) -> Result<()> {
    let source = WeightsSource::from_paths(std::slice::from_ref(path)).context("no autoencoder")?;
    let config = AutoencoderConfig { weights: source, ..stated(args) };
    let autoencoder = Autoencoder::open(&config, &context.device)?;
    let identity = autoencoder.identity();
    let unsaid = Unsaid {
        autoencoder: serde_json::to_value(identity)?,
        autoencoder_config: serde_json::to_value(&config)?,
        normalization: identity.normalization()?,
        heads: args.heads,
        classes: args.classes,
    };
    let published = dit(&args.weights, weights, &unsaid)?;
    Checkpoint::write(&args.out, &published.card, None, &published.tensors)?;
    let classes = published.card.geometry.classes;
    eprintln!("convert: classes {classes}, and the null class behind them");
    Ok(())
}
