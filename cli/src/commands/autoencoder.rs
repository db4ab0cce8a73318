//! `lapflow autoencoder`: trains one, and shows what one does to images.

use super::Context;
use crate::autoencoder::{ReconstructArgs, TrainArgs, reconstruct, train};
use anyhow::Result;

/// Arguments of `lapflow autoencoder`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Train or fine-tune an AutoencoderKL, with or without EQ-VAE's equivariance
    Train(TrainArgs),
    /// Images beside their reconstructions, with PSNR and SSIM
    Reconstruct(ReconstructArgs),
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    match &args.action {
        Action::Train(args) => train(args, context),
        Action::Reconstruct(args) => reconstruct(args, context),
    }
}
