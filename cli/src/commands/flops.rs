//! `lapflow flops`: what a model costs, against DiT with the same backbone.

use super::Context;
use crate::config::{Config, ConfigArgs};
use anyhow::Result;
use lapflow_model::flow::FlowConfig;
use lapflow_model::net::{Cost, Geometry, ModelConfig, cost};
use serde_json::json;

/// Arguments of `lapflow flops`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Latent channels
    #[arg(long, default_value_t = 4)]
    channels: usize,
    /// Latent side, in latent pixels; default: the image side over 8
    #[arg(long)]
    latent: Option<usize>,
    /// Label classes
    #[arg(long, default_value_t = 0)]
    classes: usize,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let config = args.config.load()?;
    let flow = config.flow.build()?;
    let geometry = geometry(&config, args.channels, args.latent, args.classes)?;
    let side = geometry.height;
    config.model.validate(&geometry)?;
    let multi = cost(&config.model, &geometry, flow.as_ref());
    let single = single_scale(&config.model, &geometry)?;
    let ratio = multi.mean_macs / single.mean_macs;
    if context.json {
        println!("{}", json!({ "model": multi, "dit": single, "ratio": ratio }));
        return Ok(());
    }
    println!("latents     {}x{side}x{side}, {} levels", args.channels, flow.levels());
    println!("parameters  {:.2} M (DiT {:.2} M)", millions(&multi), millions(&single));
    for (k, macs) in multi.segment_macs.iter().enumerate().rev() {
        let (start, end) = flow.segment(k);
        println!("t {start:.2}-{end:.2}  {:.3} GMACs an evaluation", *macs as f64 / 1e9);
    }
    println!("mean        {:.3} GMACs an evaluation", multi.mean_macs / 1e9);
    println!("DiT         {:.3} GMACs an evaluation; ratio {ratio:.3}", single.mean_macs / 1e9);
    Ok(())
}

/// What a config's network would work on; `latent` is the side, by default the image's over 8.
pub fn geometry(
    config: &Config,
    channels: usize,
    latent: Option<usize>,
    classes: usize,
) -> Result<Geometry> {
    let side = latent.unwrap_or(config.data.ingest.size as usize / 8);
    let levels = config.flow.build()?.levels();
    Ok(Geometry { channels, height: side, width: side, levels, classes })
}

/// The cost of the same backbone on one level, without condition tokens: DiT.
pub fn single_scale(model: &ModelConfig, geometry: &Geometry) -> Result<Cost> {
    let flow = FlowConfig { levels: 1, ..FlowConfig::default() }.build()?;
    let model = ModelConfig { cond_tokens: false, ..model.clone() };
    Ok(cost(&model, &Geometry { levels: 1, ..*geometry }, flow.as_ref()))
}

fn millions(cost: &Cost) -> f64 {
    cost.parameters as f64 / 1e6
}
