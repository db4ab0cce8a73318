//! `lapflow report`: one HTML page that shows a run.

mod neighbours;
pub mod scores;

use super::Context;
use super::eval::dataset::raw_levels;
use super::flops::single_scale;
use super::sample::{find, generator};
use crate::config::Config;
use crate::pictures::{from_pixels, level_picture, of_images, unit_range};
use anyhow::{Context as _, Result};
use candle_core::Tensor;
use futures::TryStreamExt;
use image::DynamicImage;
use lapflow_ingest::{Outcome, Source};
use lapflow_model::checkpoint::Card;
use lapflow_model::net::cost;
use lapflow_model::pyramid;
use lapflow_report::{
    Block, Curves, Fact, Figure, PictureRow, Report, Scale, Section, Series, Table, Zoom,
    render_html,
};
use lapflow_sample::{Generator, Request};
use lapflow_store::{Dataset, Row};
use lapflow_train::{Line, RunFolder};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images that the data section shows.
const SHOWN_IMAGES: usize = 8;
/// Samples a class, and classes, that the sample grid shows.
const SAMPLES_PER_CLASS: usize = 8;
const SHOWN_CLASSES: usize = 16;
/// Samples that stand beside their nearest training images.
const NEIGHBOURS: usize = 8;
/// Value that the trajectory shows as white: three standard deviations of normalized latents.
const TRAJECTORY_RANGE: f64 = 3.0;
/// Times at which the trajectory is shown, beside its end.
const TRAJECTORY: [f64; 7] = [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Arguments of `lapflow report`.
#[derive(clap::Args)]
pub struct Args {
    /// Run folder
    run: PathBuf,
    /// Where to write the page; default: report.html in the run folder
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    write(&args.run, &out, Vec::new(), context)?;
    println!("{}", out.display());
    Ok(())
}

/// Writes the page of the run in `run` to `out`; `first` stands before everything else.
pub fn write(run: &Path, out: &Path, first: Vec<Section>, context: &Context) -> Result<()> {
    let (checkpoint, config) = find(run)?;
    let config = config.with_context(|| format!("{}: no config.toml in it", run.display()))?;
    let generator = generator(&checkpoint, &config.sample, context)?;
    let lines = RunFolder::of(run).read_metrics()?;
    let mut sections = first;
    // The dataset may be elsewhere by now: the page then does without its parts.
    let dataset = context.runtime.block_on(Dataset::open(&config.data.dataset));
    sections.push(samples(&generator, dataset.as_ref().ok(), context)?);
    sections.push(scores::scores(run)?);
    sections.push(match &dataset {
        Ok(dataset) => data(&config, dataset, &generator, context)?,
        Err(error) => Section {
            title: "Data".into(),
            blocks: vec![Block::Text(format!("The dataset cannot be shown: {error}."))],
        },
    });
    sections.push(training(&lines));
    sections.push(costs(generator.card())?);
    let report = Report {
        title: format!("lapflow: {}", run.display()),
        subtitle: format!(
            "step {}, seed {}, lapflow {}",
            checkpoint.card.step,
            config.train.seed,
            env!("CARGO_PKG_VERSION")
        ),
        sections,
    };
    fs::write(out, render_html(&report)).with_context(|| out.display().to_string())
}

/// Samples of every class, what is nearest to them, and how one of them came to be.
fn samples(generator: &Generator, dataset: Option<&Dataset>, context: &Context) -> Result<Section> {
    let classes = &generator.card().classes;
    let shown = classes.len().clamp(1, SHOWN_CLASSES);
    let requests: Vec<Request> = (0..shown * SAMPLES_PER_CLASS)
        .map(|i| {
            let label = (!classes.is_empty()).then_some((i / SAMPLES_PER_CLASS) as u32);
            Request { index: i as u64, label }
        })
        .collect();
    let (mut rows, mut latents) = (Vec::new(), Vec::new());
    for (i, row) in requests.chunks(SAMPLES_PER_CLASS).enumerate() {
        let label = classes.get(i).cloned().unwrap_or_default();
        let drawn = generator.draw(row)?;
        rows.push(PictureRow { label, pictures: of_images(generator, &drawn.images)? });
        latents.push(drawn.latents);
    }
    let step = (requests.len() / NEIGHBOURS).max(1);
    let some: Vec<u32> = (0..requests.len() as u32).step_by(step).take(NEIGHBOURS).collect();
    let latents = Tensor::cat(&latents, 0)?;
    let some = latents.index_select(&Tensor::new(some, latents.device())?, 0)?;
    let pictures = rows.iter().flat_map(|row| &row.pictures);
    let pictures = pictures.step_by(step).take(NEIGHBOURS).cloned().collect();
    let neighbours = dataset
        .map(|dataset| neighbours::neighbours(generator, dataset, &some, pictures, context))
        .transpose()?;
    let caption = "Samples, drawn from the averaged weights, a row a class".into();
    let grid = Figure { caption, rows, zoom: Zoom::Smooth };
    let trajectory = trajectory(generator, requests[0])?;
    Ok(Section {
        title: "Samples".into(),
        blocks: [Some(grid), neighbours, Some(trajectory)]
            .into_iter()
            .flatten()
            .map(Block::Figure)
            .collect(),
    })
}

/// The levels of one sample on their way from noise to data.
fn trajectory(generator: &Generator, request: Request) -> Result<Figure> {
    // Methods that work on one level at a time show one image of growing size.
    let joint = generator.card().flow.build()?.joint();
    let levels = if joint { generator.card().geometry.levels } else { 1 };
    let mut rows: Vec<PictureRow> = (0..levels)
        .rev()
        .map(|k| PictureRow { label: format!("level {k}"), pictures: Vec::new() })
        .collect();
    let mut times: Vec<f64> = TRAJECTORY.to_vec();
    times.push(1.0);
    generator.draw_through(&[request], &times, |_, active| {
        for (i, level) in active.iter().rev().enumerate() {
            let level = level.narrow(0, 0, 1)?.squeeze(0)?;
            rows[i].pictures.push(
                level_picture(&level, TRAJECTORY_RANGE)
                    .map_err(|e| lapflow_sample::SampleError::setting("picture", e.to_string()))?,
            );
        }
        Ok(())
    })?;
    // A level that joins later has fewer pictures: empty ones keep the columns aligned.
    for row in &mut rows {
        for _ in row.pictures.len()..times.len() {
            row.pictures.insert(0, DynamicImage::new_rgba8(1, 1));
        }
    }
    let list: Vec<String> = times.iter().map(|t| format!("{t}")).collect();
    let caption = format!(
        "One sample, level by level, at t = {} (coarse levels first, finer ones join on their way)",
        list.join(", ")
    );
    Ok(Figure { caption, rows, zoom: Zoom::Pixels })
}

/// Images of the dataset beside their reconstructions and pyramid levels.
fn data(
    config: &Config,
    dataset: &Dataset,
    generator: &Generator,
    context: &Context,
) -> Result<Section> {
    let rows: Vec<Row> = context.runtime.block_on(async {
        use futures::StreamExt;
        dataset.scan().take(SHOWN_IMAGES).try_collect().await
    })?;
    let specs = &dataset.metadata().levels;
    let mut figure = Vec::new();
    if let Ok(originals) = originals(config, &rows, context) {
        figure.push(PictureRow { label: "image".into(), pictures: originals });
    }
    let mut reconstructions = Vec::new();
    let mut levels = vec![Vec::new(); specs.len()];
    for row in &rows {
        let raw = raw_levels(std::slice::from_ref(row), dataset.metadata(), context)?;
        let normalized = generator.card().normalization.apply(&raw)?;
        let image = generator.decode(&pyramid::merge(&normalized)?)?;
        reconstructions.extend(of_images(generator, &image)?);
        for (pictures, level) in levels.iter_mut().zip(&normalized) {
            let level = level.squeeze(0)?;
            pictures.push(level_picture(&level, unit_range(&level)?)?);
        }
    }
    figure.push(PictureRow { label: "decoded latents".into(), pictures: reconstructions });
    figure.extend(levels.into_iter().enumerate().map(|(k, pictures)| {
        let spec = specs[k];
        let label = format!("level {k}: {}x{}x{}", spec.channels, spec.height, spec.width);
        PictureRow { label, pictures }
    }));
    let caption = "Images, what their stored latents decode to, and the pyramid's levels \
                   (first three channels)";
    Ok(Section {
        title: "Data".into(),
        blocks: vec![
            Block::Facts(vec![
                fact("samples", dataset.rows()),
                fact("classes", dataset.metadata().classes.len()),
                fact("size", format!("{:.1} MB", dataset.bytes() as f64 / 1e6)),
            ]),
            Block::Figure(Figure { caption: caption.into(), rows: figure, zoom: Zoom::Pixels }),
        ],
    })
}

/// The source images of `rows`, cropped as they were encoded, where the source is still there.
fn originals(config: &Config, rows: &[Row], context: &Context) -> Result<Vec<DynamicImage>> {
    context.runtime.block_on(async {
        let ingest = lapflow_ingest::IngestConfig { flip: false, ..config.data.ingest.clone() };
        let source = Arc::new(Source::open(&ingest).await?);
        let order = rows.iter().map(|row| row.id as usize).collect();
        let outcomes: Vec<Outcome> = source.stream(order).try_collect().await?;
        outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Outcome::Image(item) => {
                    let (width, height) = (item.image.width as usize, item.image.height as usize);
                    from_pixels(item.image.pixels, width, height)
                }
                Outcome::Skip(skip) => anyhow::bail!("{}: {}", skip.key, skip.reason),
            })
            .collect()
    })
}

fn training(lines: &[Line]) -> Section {
    let series = |name: String, value: &dyn Fn(&Line) -> Option<f64>| Series {
        name,
        points: lines.iter().filter_map(|l| Some((l.step as f64, value(l)?))).collect(),
    };
    let mut keys: Vec<&String> = lines.iter().flat_map(|line| line.levels.keys()).collect();
    keys.sort();
    keys.dedup();
    let by_level = keys
        .iter()
        .map(|key| {
            let (stage, level) = key.split_once('/').unwrap_or((key, ""));
            let name = format!("level {level} in stage {stage}");
            series(name, &|line| line.levels.get(*key).copied())
        })
        .collect();
    let curves = |caption: &str, y_scale, series| {
        Block::Curves(Curves {
            caption: caption.into(),
            x_label: "step".into(),
            y_label: String::new(),
            y_scale,
            smoothing: 0.05,
            series,
        })
    };
    let rate = series("images/s".into(), &|line| Some(line.images_per_second));
    let norm = series("gradient norm".into(), &|line| line.grad_norm);
    let lr = series("learning rate".into(), &|line| Some(line.lr));
    Section {
        title: "Training".into(),
        blocks: vec![
            curves("Mean squared velocity error, by level and stage", Scale::Log, by_level),
            curves("Throughput", Scale::Linear, vec![rate]),
            curves("Gradient norm", Scale::Log, vec![norm]),
            curves("Learning rate", Scale::Linear, vec![lr]),
        ],
    }
}

/// Parameters and operations, beside the single-scale model of the same backbone.
fn costs(card: &Card) -> Result<Section> {
    let path = card.flow.build()?;
    let (multi, single) = (
        cost(&card.model, &card.geometry, path.as_ref()),
        single_scale(&card.model, &card.geometry)?,
    );
    let giga = |macs: f64| format!("{:.3}", macs / 1e9);
    let millions = |count: u64| format!("{:.2}", count as f64 / 1e6);
    let mut rows =
        vec![vec!["parameters, M".into(), millions(multi.parameters), millions(single.parameters)]];
    for (k, macs) in multi.segment_macs.iter().enumerate().rev() {
        let (start, end) = path.segment(k);
        rows.push(vec![
            format!("GMACs an evaluation, t in [{start}, {end}]"),
            giga(*macs as f64),
            giga(single.mean_macs),
        ]);
    }
    rows.push(vec![
        "GMACs an evaluation, mean over t".into(),
        giga(multi.mean_macs),
        giga(single.mean_macs),
    ]);
    let ratio = multi.mean_macs / single.mean_macs;
    Ok(Section {
        title: "Cost".into(),
        blocks: vec![Block::Table(Table {
            caption: format!("This model against one scale with the same backbone: {ratio:.3}"),
            header: vec![String::new(), "this model".into(), "single scale (DiT)".into()],
            rows,
        })],
    })
}

fn fact(name: &str, value: impl std::fmt::Display) -> Fact {
    Fact { name: name.into(), value: value.to_string() }
}
