//! The `lapflow` binary: images to latent pyramids, to a trained flow, to scored samples.

mod commands;
mod config;
mod demo;
mod device;
mod progress;
mod report;
mod signals;

use clap::Parser;
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    let filter = EnvFilter::try_from_env("LAPFLOW_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .init();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lapflow: {error:#}");
            ExitCode::FAILURE
        }
    }
}
