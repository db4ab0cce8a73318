//! Whether samples look like the class they were asked for.

use anyhow::{Context, Result};
use candle_core::Device;
use image::imageops::{FilterType, resize};
use image::{DynamicImage, RgbImage};
use lapflow_demo::{CLASSES, render};
use lapflow_ingest::RgbImage as Decoded;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_sample::images::SetContent;
use lapflow_sample::metrics::{EvalConfig, Evaluation, Extractor, Summary, evaluate};
use rayon::prelude::*;
use std::fs;
use std::path::Path;

/// Side of the thumbnails that are compared.
const THUMBNAIL: u32 = 16;
/// Held-out pictures of each class, from seeds that no training set uses.
const HELD_OUT: std::ops::Range<u64> = 500_000..500_016;

/// How samples compare with the training pictures.
pub struct Score {
    /// Share of samples whose nearest training picture is of the class they were asked for.
    pub agreement: f64,
    /// The same share of freshly rendered pictures: what a perfect model would reach.
    pub agreement_held_out: f64,
    /// Every sample with its nearest training picture.
    pub neighbours: Vec<(DynamicImage, DynamicImage)>,
}

/// A training picture.
struct Picture {
    class: usize,
    image: DynamicImage,
    thumbnail: Vec<f32>,
}

/// Compares `samples` of classes `labels` with the class folders in `images`: nearest by the
/// squared distance of 16 x 16 thumbnails.
///
/// # Errors
/// When a training picture cannot be read.
pub fn score(images: &Path, samples: &[DynamicImage], labels: &[usize]) -> Result<Score> {
    let training = training_pictures(images)?;
    let size = training.first().map_or(64, |picture| picture.image.width());
    let nearest = nearest(&training, samples);
    let agree = |nearest: &[usize], labels: &[usize]| {
        let right = nearest.iter().zip(labels).filter(|&(&n, &l)| training[n].class == l).count();
        right as f64 / labels.len().max(1) as f64
    };
    let (held_out, held_labels) = held_out(size);
    let neighbours = samples.iter().zip(&nearest);
    Ok(Score {
        agreement: agree(&nearest, labels),
        agreement_held_out: agree(&self::nearest(&training, &held_out), &held_labels),
        neighbours: neighbours.map(|(s, &n)| (s.clone(), training[n].image.clone())).collect(),
    })
}

/// Pictures that no training set holds, and their classes.
fn held_out(size: u32) -> (Vec<DynamicImage>, Vec<usize>) {
    let of_class = |class| HELD_OUT.map(move |seed| (render(class, seed, size).into(), class));
    (0..CLASSES.len()).flat_map(of_class).unzip()
}

/// Frechet distances in pixel space (16 x 16) from the training pictures in `images`: of the
/// samples, and as the measure of them, of as many held-out pictures.
///
/// So few images are far too few for a score to be compared with published ones, which the
/// evaluations say.
///
/// # Errors
/// When a training picture cannot be read.
pub fn distances(images: &Path, samples: &[DynamicImage]) -> Result<[Evaluation; 2]> {
    let extractor = Extractor::Latents(Box::new(Autoencoder::Pixel), Device::Cpu);
    let config = EvalConfig { allow_few: true, ..EvalConfig::default() };
    let needs = config.needs(&extractor)?;
    let reference = Summary::read(images, &extractor, needs, config.batch, &mut |_| ())?;
    let size = samples.first().map_or(64, |sample| sample.width());
    let distance = |name: &str, pictures: &[DynamicImage]| -> Result<Evaluation> {
        let feed = |each: &mut dyn FnMut(&[Decoded]) -> lapflow_sample::Result<()>| {
            let rgb = |picture: &DynamicImage| Decoded {
                width: picture.width(),
                height: picture.height(),
                pixels: picture.to_rgb8().into_raw(),
            };
            each(&pictures.iter().map(rgb).collect::<Vec<_>>())?;
            let formats = [("rendered".to_string(), pictures.len())].into();
            let images = pictures.len();
            Ok(SetContent { images, width: size, height: size, formats, ..SetContent::default() })
        };
        let (path, mut silent) = (Path::new(name), |_| ());
        let set = Summary::of_batches(path, &extractor, needs, &mut silent, feed)?;
        Ok(evaluate(set, reference.clone(), &extractor, &config)?)
    };
    let held_out = held_out(size).0;
    Ok([distance("the demo's samples", samples)?, distance("held-out pictures", &held_out)?])
}

/// Position of the nearest training picture of each image.
fn nearest(training: &[Picture], images: &[DynamicImage]) -> Vec<usize> {
    let distance =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    images
        .par_iter()
        .map(|image| {
            let query = thumbnail(image);
            let distances = training.iter().map(|picture| distance(&picture.thumbnail, &query));
            let best = distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
            best.map_or(0, |(index, _)| index)
        })
        .collect()
}

fn training_pictures(images: &Path) -> Result<Vec<Picture>> {
    let mut files = Vec::new();
    for (class, name) in CLASSES.iter().enumerate() {
        let folder = images.join(name);
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            files.push((class, entry?.path()));
        }
    }
    files.sort();
    files
        .into_par_iter()
        .map(|(class, path)| {
            let image = image::open(&path).with_context(|| path.display().to_string())?;
            let thumbnail = thumbnail(&image);
            Ok(Picture { class, image, thumbnail })
        })
        .collect()
}

fn thumbnail(image: &DynamicImage) -> Vec<f32> {
    let rgb: RgbImage = resize(&image.to_rgb8(), THUMBNAIL, THUMBNAIL, FilterType::Triangle);
    rgb.into_raw().into_iter().map(f32::from).collect()
}
