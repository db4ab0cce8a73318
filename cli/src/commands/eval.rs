//! `lapflow eval`: scores of one image set against another.

pub mod dataset;

use super::{Context, JsonTarget, json_target};
use crate::progress::Progress;
use anyhow::{Context as _, Result, bail};
use dataset::{DecodedDataset, is_dataset};
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
    /// Samples: a folder, .npz, .parquet, a dataset or saved statistics
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
    /// The autoencoder of a dataset that is compared, to decode it: builtin and pixel are found
    /// without
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    decoder: Vec<PathBuf>,
    /// Images that go through the network together
    #[arg(long, default_value_t = EvalConfig::default().batch)]
    batch: usize,
    /// Score fewer than 10,000 images all the same
    #[arg(long)]
    allow_few: bool,
    /// Save the reference's statistics, in the form of ADM's reference files
    #[arg(long, value_name = "FILE.npz")]
    save_reference: Option<PathBuf>,
    /// Print the result as JSON, or write it to FILE
    #[arg(
        long, id = "json", value_name = "FILE", num_args = 0..=1, value_parser = json_target,
        default_value = "false", default_missing_value = "true", hide_default_value = true
    )]
    pub json: JsonTarget,
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
    let samples = args.summary(&args.samples, &extractor, needs, context)?;
    let reference = args.summary(&args.reference, &extractor, needs, context)?;
    if let Some(path) = &args.save_reference {
        reference.save(path)?;
    }
    let scores = evaluate(samples, reference, &extractor, &config)?;
    if let JsonTarget::File(path) = &args.json {
        save(&scores, path)?;
    }
    match args.json {
        JsonTarget::Stdout => println!("{}", serde_json::to_string_pretty(&scores)?),
        _ => print(&scores),
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

    fn summary(
        &self,
        path: &Path,
        extractor: &Extractor,
        needs: Needs,
        context: &Context,
    ) -> Result<Summary> {
        let mut progress = Progress::new("eval", "images", 0, 0);
        let mut images = 0;
        let mut count = |so_far: usize| {
            images = so_far;
            progress.update(so_far as u64, &path.display().to_string());
        };
        let read = if is_dataset(path) {
            let named = WeightsSource::from_paths(&self.decoder);
            let dataset = DecodedDataset::open(&path.to_string_lossy(), named, context)?;
            needs.enough(path, dataset.images())?;
            Summary::of_batches(path, extractor, needs, &mut count, |each| {
                dataset.for_batches(self.batch, each)
            })
        } else {
            Summary::read(path, extractor, needs, self.batch, &mut count)
        };
        progress.finish(&format!("{images} images of {}", path.display()));
        Ok(read?)
    }
}

/// Writes an evaluation as JSON, whole or not at all.
pub fn save(scores: &Evaluation, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(scores)?;
    let mut file = Partial::create(path)?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())?;
    Ok(file.keep()?)
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
    line("samples", side(&scores.samples));
    line("reference", side(&scores.reference));
    let hash = scores.extractor.weights_sha256.as_deref().unwrap_or("none");
    line("features", format!("{}, weights {hash}", scores.extractor.name));
    line("resizing", scores.extractor.input.clone());
    scores.warnings.iter().for_each(|warning| eprintln!("lapflow: warning: {warning}"));
}

/// What one side is, in one line.
fn side(summary: &Summary) -> String {
    let images = summary.images.map_or("an unknown number of".into(), |count| count.to_string());
    let content = summary.content.as_ref().map_or("saved statistics".into(), |content| {
        let formats: Vec<&str> = content.formats.keys().map(String::as_str).collect();
        format!("{}x{}, {}", content.width, content.height, formats.join(" and "))
    });
    format!("{}: {images} images, {content}", summary.source.display())
}
