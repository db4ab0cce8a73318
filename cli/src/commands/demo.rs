//! `lapflow demo`: everything on this machine, with nothing to download.
//!
//! Renders an image set, then goes through the same code as the commands: encode, train, sample,
//! score, report. Started again, it goes on where it was.

mod score;

use super::{Context, encode, eval, report, sample, train};
use crate::config::Config;
use crate::pictures::drawn;
use anyhow::{Context as _, Result, bail};
use image::DynamicImage;
use lapflow_demo::{CLASSES, write_set};
use lapflow_report::{Bar, Bars, Block, Fact, Figure, PictureRow, Section, Zoom, encode_png, grid};
use lapflow_sample::{Generator, Request};
use lapflow_store::Worker;
use lapflow_train::Alone;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// Samples of each class that are scored.
const SCORED: usize = 16;
/// Columns of the sample grid.
const COLUMNS: usize = 12;
/// Samples shown beside their nearest training picture.
const NEIGHBOURS: usize = 8;

/// Arguments of `lapflow demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder for everything that is made
    #[arg(long, default_value = "runs/demo")]
    out: PathBuf,
    /// Training pictures of each class
    #[arg(long, default_value_t = 500, value_name = "N")]
    pictures: u64,
    /// Replace one value of the demo preset, e.g. train.steps=100
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Seconds of each stage, in order.
#[derive(Default)]
struct Stages(Vec<(&'static str, f64)>);

impl Stages {
    fn time<T>(&mut self, name: &'static str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = stage().with_context(|| format!("demo, {name}"));
        self.0.push((name, begin.elapsed().as_secs_f64()));
        result
    }
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let out = &args.out;
    let images = out.join("images");
    let config = config(args, &images)?;
    let mut stages = Stages::default();

    let size = config.data.ingest.size;
    stages.time("render", || Ok(write_set(&images, 0..args.pictures, size)?))?;
    let encoded = stages.time("encode", || encode::encode(&config, Worker::ALONE, context))?;
    let trained =
        stages.time("train", || train::train(&config, true, false, context, Rc::new(Alone)))?;
    if encoded.stopped || !trained.finished {
        bail!("stopped; the same command goes on where it was");
    }
    let (checkpoint, _) = sample::find(&config.train.folder)?;
    let generator = sample::generator(&checkpoint, &config.sample, context)?;
    let samples = stages.time("sample", || draw(&generator))?;
    let score = stages.time("score", || {
        let labels: Vec<usize> = (0..samples.len()).map(|i| i / SCORED).collect();
        let distances = score::distances(&images, &samples)?;
        let folder = config.train.folder.join(report::scores::FOLDER);
        for (name, scores) in ["samples", "held-out"].iter().zip(&distances) {
            eval::save(scores, &folder.join(format!("{name}.json")))?;
        }
        score::score(&images, &samples, &labels)
    })?;
    let grid_file = out.join("samples.png");
    write_grid(&samples, &grid_file)?;

    let page = out.join("report.html");
    let begin = Instant::now();
    let images_per_second = trained.images as f64 / trained.seconds;
    let first = vec![summary(args, &stages, &score, images_per_second)];
    report::write(&config.train.folder, &page, first, context)?;
    stages.0.push(("report", begin.elapsed().as_secs_f64()));

    let seconds: f64 = stages.0.iter().map(|(_, seconds)| seconds).sum();
    if context.json {
        let times: serde_json::Map<_, _> =
            stages.0.iter().map(|(name, s)| (name.to_string(), json!(s))).collect();
        let summary = json!({
            "seconds": seconds, "stages": times, "class_agreement": score.agreement,
            "report": page, "samples": grid_file,
        });
        println!("{summary}");
        return Ok(());
    }
    for (name, seconds) in &stages.0 {
        println!("{name:8} {seconds:6.1} s");
    }
    println!("all      {seconds:6.1} s");
    println!("classes  {:.1}% of samples look most like their own class", 100.0 * score.agreement);
    println!("samples  {}", grid_file.display());
    println!("report   {}", page.display());
    Ok(())
}

/// The demo preset with its paths under `args.out`.
fn config(args: &Args, images: &Path) -> Result<Config> {
    let path = |name: &str| args.out.join(name).display().to_string();
    let mut config = Config::preset("demo", &args.set)?;
    config.data.ingest.source = images.display().to_string();
    config.data.dataset = path("dataset");
    config.train.folder = args.out.join("run");
    Ok(config)
}

/// `SCORED` samples of every class, class after class.
fn draw(generator: &Generator) -> Result<Vec<DynamicImage>> {
    let requests: Vec<Request> = (0..CLASSES.len() * SCORED)
        .map(|i| Request { index: i as u64, label: Some((i / SCORED) as u32) })
        .collect();
    drawn(generator, &requests)
}

/// A row a class.
fn write_grid(samples: &[DynamicImage], path: &Path) -> Result<()> {
    let shown: Vec<DynamicImage> =
        samples.chunks(SCORED).flat_map(|class| class[..COLUMNS].to_vec()).collect();
    fs::write(path, encode_png(&grid(&shown, COLUMNS, 2)))
        .with_context(|| path.display().to_string())
}

fn summary(args: &Args, stages: &Stages, score: &score::Score, images_per_second: f64) -> Section {
    let bars = stages.0.iter().map(|(name, seconds)| Bar {
        label: (*name).into(),
        value: *seconds,
        text: format!("{seconds:.1} s"),
    });
    let fact = |name: &str, value: String| Fact { name: name.into(), value };
    let rows = (0..score.neighbours.len())
        .step_by((score.neighbours.len() / NEIGHBOURS).max(1))
        .map(|i| &score.neighbours[i])
        .take(NEIGHBOURS);
    let (samples, nearest) = rows.cloned().unzip();
    let row = |label: &str, pictures| PictureRow { label: label.into(), pictures };
    Section {
        title: "The demo".into(),
        blocks: vec![
            Block::Text(format!(
                "{} pictures of {} cartoon animals were rendered, encoded to a dataset of pyramids, \
                 trained on, and drawn anew.",
                args.pictures as usize * CLASSES.len(),
                CLASSES.len()
            )),
            Block::Facts(vec![
                fact("samples that look most like their class", percent(score.agreement)),
                fact("the same of held-out pictures", percent(score.agreement_held_out)),
                fact("training images/s", format!("{images_per_second:.0}")),
            ]),
            Block::Bars(Bars { caption: "Seconds a stage".into(), bars: bars.collect() }),
            Block::Figure(Figure {
                caption: "Samples above the training picture nearest to them".into(),
                rows: vec![row("sample", samples), row("nearest", nearest)],
                zoom: Zoom::Smooth,
            }),
        ],
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}
