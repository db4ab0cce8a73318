//! The commands, one module each.

mod autoencoder;
mod convert;
mod dataset;
mod demo;
mod doctor;
mod encode;
mod eval;
mod flops;
mod ingest;
pub(crate) mod plan;
mod report;
mod sample;
mod train;

use crate::device::DeviceChoice;
use crate::signals::stop_flag;
use anyhow::Result;
use clap::{ArgAction, Parser, Subcommand};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::runtime::Runtime;

/// From images to Laplacian latent pyramids, to a trained flow, to scored samples.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// auto, cpu or cuda:N
    #[arg(long, global = true, default_value = "auto")]
    device: DeviceChoice,
    /// Print the result as JSON (eval --json FILE: write it there)
    #[arg(long, global = true, action = ArgAction::SetTrue, value_parser = json_target)]
    json: JsonTarget,
}

/// Where a result goes as JSON. `eval` has its own `--json` of this type and the same id, which
/// may name a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonTarget {
    /// Nowhere: the result is for people.
    None,
    /// To stdout.
    Stdout,
    /// To a file, beside the words on stdout.
    File(PathBuf),
}

/// A flag's `true` or `false`, or a file's name.
pub fn json_target(text: &str) -> Result<JsonTarget, std::convert::Infallible> {
    Ok(match text {
        "false" => JsonTarget::None,
        "true" => JsonTarget::Stdout,
        file => JsonTarget::File(file.into()),
    })
}

#[derive(Subcommand)]
enum Command {
    /// Render images, encode, train, sample and report: everything, in minutes
    Demo(demo::Args),
    /// Write a source of images as cropped PNGs
    Ingest(ingest::Args),
    /// Encode a source of images into a dataset of latent pyramids
    Encode(encode::Args),
    /// Look at a dataset, check it, export and import it
    Dataset(dataset::Args),
    /// Train a flow on a dataset
    Train(train::Args),
    /// Draw images from a checkpoint
    Sample(sample::Args),
    /// Score samples against a reference
    Eval(eval::Args),
    /// Train an autoencoder, or show what one does to images
    Autoencoder(autoencoder::Args),
    /// Convert PyTorch weights to safetensors, without executing them
    Convert(convert::Args),
    /// Parameters and multiply-accumulates, per level and segment, against DiT
    Flops(flops::Args),
    /// Write a self-contained HTML report of a run
    Report(report::Args),
    /// Check and measure the device: every kernel against the CPU, and a minute of training
    Doctor(doctor::Args),
}

/// What every command is given.
pub struct Context {
    /// Runs asynchronous work.
    pub runtime: Runtime,
    /// The device to compute on.
    pub device: candle_core::Device,
    /// Whether to print JSON.
    pub json: bool,
    /// Raised by SIGINT and SIGTERM.
    pub stop: Arc<AtomicBool>,
}

/// An environment variable, where schedulers leave what a process is to do.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<()> {
    let runtime = Runtime::new()?;
    let stop = runtime.block_on(async { stop_flag() })?;
    let json = cli.json == JsonTarget::Stdout;
    let context = Context { runtime, device: cli.device.open()?, json, stop };
    match cli.command {
        Command::Demo(args) => demo::run(&args, &context),
        Command::Ingest(args) => ingest::run(&args, &context),
        Command::Encode(args) => encode::run(&args, &context),
        Command::Dataset(args) => dataset::run(&args, &context),
        Command::Train(args) => train::run(&args, &context),
        Command::Sample(args) => sample::run(&args, &context),
        Command::Eval(args) => eval::run(&args, &context),
        Command::Autoencoder(args) => autoencoder::run(&args, &context),
        Command::Convert(args) => convert::run(&args, &context),
        Command::Flops(args) => flops::run(&args, &context),
        Command::Report(args) => report::run(&args, &context),
        Command::Doctor(args) => doctor::run(&args, &context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn json(arguments: &str) -> (JsonTarget, Option<JsonTarget>) {
        let cli = Cli::try_parse_from(arguments.split(' ')).unwrap();
        let eval = match &cli.command {
            Command::Eval(args) => Some(args.json.clone()),
            _ => None,
        };
        (cli.json, eval)
    }

    #[test]
    fn arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_is_a_switch_and_eval_s_may_name_a_file() {
        let stdout = || JsonTarget::Stdout;
        assert_eq!(json("lapflow flops"), (JsonTarget::None, None));
        assert_eq!(json("lapflow flops --json"), (stdout(), None));
        assert_eq!(json("lapflow --json flops"), (stdout(), None));
        assert_eq!(json("lapflow eval a b").1, Some(JsonTarget::None));
        assert_eq!(json("lapflow eval a b --json"), (stdout(), Some(stdout())));
        let file = JsonTarget::File("scores.json".into());
        assert_eq!(json("lapflow eval a b --json scores.json").1, Some(file));
    }
}
