//! `lapflow eval`: scores of one image set against another.

use super::Context;
use crate::progress::Progress;
use anyhow::{Context as _, Result, bail};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use lapflow_sample::images::Partial;
use lapflow_sample::metrics::{
    EvalConfig, Evaluation, Extractor, Inception, Metric, Needs, Summary, evaluate,
};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Arguments of `lapflow eval`.
#[derive(clap::Args)]
pub struct Args {
    /// Samples: a folder, .npz, .parquet or saved statistics
    samples: PathBuf,
    /// What to compare them with, in any of these forms
    reference: PathBuf,
    /// fid, sfid, is, pr, kid, fd-latent; without it, all but kid that the features allow
    #[arg(long, value_delimiter = ',', value_parser = metric)]
    metrics: Vec<Metric>,
    /// pytorch-fid's weights, pt_inception-2015-12-05-6726825d.pth
    #[arg(long, value_name = "FILE", conflicts_with = "autoencoder")]
    inception: Option<PathBuf>,
    /// Without Inception: pixel, or an autoencoder's file (or encoder and decoder), for fd-latent
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    autoencoder: Vec<PathBuf>,
    /// Images that go through the network together
    #[arg(long, default_value_t = EvalConfig::default().batch)]
    batch: usize,
    /// Score fewer than 10,000 images all the same
    #[arg(long)]
    allow_few: bool,
    /// Save the reference's statistics, in the form of ADM's reference files
    #[arg(long, value_name = "FILE.npz")]
    save_reference: Option<PathBuf>,
    /// Write the result to this file, too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn metric(text: &str) -> Result<Metric, String> {
    let known = "expected fid, sfid, is, pr, kid or fd-latent";
    serde_json::from_value(json!(text)).map_err(|_| known.into())
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let extractor = args.extractor(context)?;
    let config = EvalConfig {
        metrics: args.metrics.clone(),
        batch: args.batch,
        allow_few: args.allow_few,
        ..EvalConfig::default()
    };
    if config.batch == 0 {
        bail!("--batch: must be positive");
    }
    let needs = config.needs(&extractor)?;
    let samples = summary(&args.samples, &extractor, needs, config.batch)?;
    let reference = summary(&args.reference, &extractor, needs, config.batch)?;
    if let Some(path) = &args.save_reference {
        reference.save(path)?;
    }
    let scores = evaluate(samples, reference, &extractor, &config)?;
    let text = serde_json::to_string_pretty(&scores)?;
    if let Some(path) = &args.out {
        let mut file = Partial::create(path)?;
        file.write_all(text.as_bytes()).with_context(|| path.display().to_string())?;
        file.keep()?;
    }
    if context.json {
        println!("{text}")
    } else {
        print(&scores)
    }
    Ok(())
}

impl Args {
    fn extractor(&self, context: &Context) -> Result<Extractor> {
        let device = &context.device;
        if let Some(path) = &self.inception {
            return Ok(Extractor::Inception(Box::new(Inception::open(path, device)?)));
        }
        let Some(weights) = WeightsSource::from_paths(&self.autoencoder) else {
            bail!(
                "--inception FILE gives FID and its kin; without its weights, --autoencoder pixel \
                 gives a Frechet distance of another kind"
            )
        };
        let config = AutoencoderConfig { weights, ..AutoencoderConfig::default() };
        Ok(Extractor::Latents(Box::new(Autoencoder::open(&config, device)?), device.clone()))
    }
}

fn summary(path: &Path, extractor: &Extractor, needs: Needs, batch: usize) -> Result<Summary> {
    let mut progress = Progress::new("eval", "images", 0, 0);
    let mut images = 0;
    let read = Summary::read(path, extractor, needs, batch, &mut |count| {
        images = count;
        progress.update(count as u64, &path.display().to_string());
    });
    progress.finish(&format!("{images} images of {}", path.display()));
    Ok(read?)
}

fn print(scores: &Evaluation) {
    let line = |name: &str, value: String| println!("{name:<16} {value}");
    let number = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            line(name, format!("{value:.4}"));
        }
    };
    number("FID", scores.fid);
    number("sFID", scores.sfid);
    number("FD-latent", scores.fd_latent);
    number("precision", scores.precision_recall.map(|pair| pair.precision));
    number("recall", scores.precision_recall.map(|pair| pair.recall));
    number("IS", scores.inception_score.map(|score| score.mean));
    number("KID x 1000", scores.kid.map(|kid| kid.mean * 1000.0));
    line("features", scores.extractor.name.clone());
    scores.warnings.iter().for_each(|warning| eprintln!("lapflow: warning: {warning}"));
}
