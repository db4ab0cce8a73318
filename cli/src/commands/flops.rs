//! `lapflow flops`: what a model costs, against DiT with the same backbone.

use super::{Context, plan};
use crate::config::ConfigArgs;
use anyhow::Result;
use lapflow_model::flow::FlowConfig;
use lapflow_model::net::{Cost, Geometry, ModelConfig, cost};
use serde_json::json;

/// Arguments of `lapflow flops`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Latent channels; default: those of the config's autoencoder
    #[arg(long)]
    channels: Option<usize>,
    /// Latent side, in latent pixels; default: the image side over the autoencoder's factor
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
    let made = plan::latents(&config, flow.levels(), args.classes);
    let side = args.latent.unwrap_or(made.height);
    let channels = args.channels.unwrap_or(made.channels);
    let geometry = Geometry { channels, height: side, width: side, ..made };
    config.model.validate(&geometry)?;
    let multi = cost(&config.model, &geometry, flow.as_ref());
    let single = single_scale(&config.model, &geometry)?;
    let ratio = multi.mean_macs / single.mean_macs;
    if context.json {
        println!("{}", json!({ "model": multi, "dit": single, "ratio": ratio }));
        return Ok(());
    }
    println!("latents     {channels}x{side}x{side}, {} levels", flow.levels());
    println!("parameters  {:.2} M (DiT {:.2} M)", millions(&multi), millions(&single));
    for (k, macs) in multi.segment_macs.iter().enumerate().rev() {
        let (start, end) = flow.segment(k);
        println!("t {start:.2}-{end:.2}  {:.3} GMACs an evaluation", *macs as f64 / 1e9);
    }
    println!("mean        {:.3} GMACs an evaluation", multi.mean_macs / 1e9);
    println!("DiT         {:.3} GMACs an evaluation; ratio {ratio:.3}", single.mean_macs / 1e9);
    Ok(())
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
