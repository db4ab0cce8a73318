//! Batch jobs: an image is the same whatever batch, shard, run and file it comes in.

use candle_core::{DType, Device, Tensor};
use lapflow_model::Params;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_model::checkpoint::{Card, Checkpoint, VERSION, WeightSet};
use lapflow_model::flow::{FlowConfig, image_rng};
use lapflow_model::net::{Geometry, ModelConfig, Transformer};
use lapflow_model::normalization::Normalization;
use lapflow_sample::images::npz::NpzFile;
use lapflow_sample::images::{Compression, ImageSet, NpzImages};
use lapflow_sample::job::Progress;
use lapflow_sample::{Generator, Job, Labels, Output, Result, SampleConfig, SolverName};
use rand_distr::{Distribution, Normal};
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const COUNT: u64 = 7;

/// A small network in pixel space, every parameter random.
fn checkpoint(folder: &Path) -> Checkpoint {
    let geometry = Geometry { channels: 3, height: 16, width: 16, levels: 2, classes: 3 };
    let model =
        ModelConfig { width: Some(48), depth: Some(2), heads: Some(4), ..Default::default() };
    let (_, params) = Params::init(1, DType::F32, &Device::Cpu, |scope| {
        Transformer::new(scope, &model, &geometry)
    })
    .unwrap();
    let mut rng = image_rng(5, 0);
    let normal = Normal::new(0f32, 0.05).unwrap();
    let random = |(name, var): (&str, &candle_core::Var)| {
        let values: Vec<f32> = (0..var.elem_count()).map(|_| normal.sample(&mut rng)).collect();
        (format!("model.{name}"), Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap())
    };
    let tensors: Vec<_> = params.iter().map(random).collect();
    let card = Card {
        version: VERSION,
        step: 0,
        model,
        flow: FlowConfig::default(),
        geometry,
        normalization: Normalization { shift: vec![0.0; 3], scale: vec![0.5; 3] },
        autoencoder: serde_json::to_value(Autoencoder::Pixel.identity()).unwrap(),
        autoencoder_config: json!({}),
        classes: ["a", "b", "c"].map(String::from).to_vec(),
    };
    let path = folder.join("checkpoint.safetensors");
    Checkpoint::write(&path, &card, None, &tensors).unwrap();
    Checkpoint::read(path).unwrap()
}

fn generator(checkpoint: &Checkpoint, batch: usize) -> Generator {
    let weights = WeightSet::Raw;
    let config = SampleConfig {
        seed: 3,
        batch,
        cfg: 1.5,
        weights,
        rtol: 1e-3,
        atol: 1e-3,
        ..Default::default()
    };
    Generator::new(checkpoint, Autoencoder::Pixel, &config, &Device::Cpu, false).unwrap()
}

fn job(output: Output, shard: (u64, u64)) -> Job {
    Job { count: COUNT, shard, labels: Labels::Balanced, output }
}

fn run(job: &Job, generator: &Generator) -> Result<Progress> {
    job.run(generator, &json!("weights"), &AtomicBool::new(false), &mut |_| ())
}

fn pixels(path: &Path) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut each = |images: &[lapflow_ingest::RgbImage]| {
        all.extend(images.iter().map(|image| image.pixels.clone()));
        Ok(())
    };
    ImageSet::open(path).unwrap().for_batches(3, &mut each).unwrap();
    all
}

#[test]
fn images_do_not_depend_on_batch_shard_or_resume() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(root.path());
    let folder = |name: &str| root.path().join(name);
    let whole = folder("whole");
    let finished =
        run(&job(Output::Folder(whole.clone()), (0, 1)), &generator(&checkpoint, 7)).unwrap();
    assert!(finished.complete && finished.drawn == COUNT && finished.nfe() > 10.0, "{finished:?}");
    let wanted = pixels(&whole);
    assert_ne!(wanted[0], wanted[3], "two images of one class are equal");

    let single = folder("single");
    run(&job(Output::Folder(single.clone()), (0, 1)), &generator(&checkpoint, 1)).unwrap();
    assert!(pixels(&single) == wanted);

    let sharded = folder("sharded");
    for worker in [2, 0, 1] {
        let part = job(Output::Folder(sharded.clone()), (worker, 3));
        let state = run(&part, &generator(&checkpoint, 2)).unwrap();
        assert_eq!(state.complete, worker == 1);
    }
    assert!(pixels(&sharded) == wanted);

    let stopped = folder("stopped");
    let part = job(Output::Folder(stopped.clone()), (0, 1));
    let stop = AtomicBool::new(false);
    let raise = &mut |_: &Progress| stop.store(true, Ordering::Relaxed);
    let state = part.run(&generator(&checkpoint, 2), &json!("weights"), &stop, raise).unwrap();
    assert!(!state.complete && state.drawn >= 2 && state.drawn < COUNT, "{state:?}");
    let rest = run(&part, &generator(&checkpoint, 3)).unwrap();
    assert_eq!((rest.found, rest.drawn + rest.found), (state.drawn, COUNT));
    assert!(pixels(&stopped) == wanted);
}

#[test]
fn the_last_worker_makes_the_file() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(root.path());
    let whole = root.path().join("whole");
    run(&job(Output::Folder(whole.clone()), (0, 1)), &generator(&checkpoint, 4)).unwrap();
    for name in ["set.npz", "set.parquet"] {
        let path = root.path().join(name);
        for worker in 0..2 {
            let output = Output::from_path(&path, Compression::Stored).unwrap();
            let state = run(&job(output, (worker, 2)), &generator(&checkpoint, 4)).unwrap();
            assert_eq!((state.complete, path.exists()), (worker == 1, worker == 1));
        }
        assert!(pixels(&path) == pixels(&whole));
        let again = Output::from_path(&path, Compression::Stored).unwrap();
        let state = run(&job(again, (0, 1)), &generator(&checkpoint, 4)).unwrap();
        assert!(state.complete && state.drawn == 0);
    }
    let npz = root.path().join("set.npz");
    assert_eq!(NpzImages::open(&npz).unwrap().count as u64, COUNT);
    let (_, labels) = NpzFile::open(&npz).unwrap().floats("arr_1", 10).unwrap();
    assert_eq!(labels, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]);
    let mut left: Vec<_> = std::fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let wanted = [
        "checkpoint.safetensors",
        "set.npz",
        "set.npz.json",
        "set.parquet",
        "set.parquet.json",
        "whole",
    ];
    assert_eq!(left, wanted);
}

#[test]
fn another_job_in_the_same_place_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(root.path());
    let generator = generator(&checkpoint, 4);
    let begun = job(Output::Folder(root.path().join("set")), (0, 4));
    run(&begun, &generator).unwrap();
    let message = |job: Job| run(&job, &generator).err().unwrap().to_string();
    let other = message(Job { labels: Labels::Null, ..begun.clone() });
    assert!(other.contains("job.json") && other.contains("labels = \"balanced\""), "{other}");
    assert!(message(Job { count: 9, ..begun.clone() }).contains("count = 7, not 9"));
    assert!(message(Job { shard: (4, 4), ..begun.clone() }).contains("4 is not below 4"));
    // What others left is never counted as a sample.
    for name in ["000000.png", "holiday.jpg"] {
        let strange = root.path().join(name).with_extension("");
        std::fs::create_dir(&strange).unwrap();
        std::fs::write(strange.join(name), b"a stranger's").unwrap();
        let refused = message(Job { output: Output::Folder(strange.clone()), ..begun.clone() });
        let told = format!("holds 1 files that are not of this job ({name}, ..) and no job.json");
        assert!(refused.contains(&told), "{refused}");
        assert_eq!(std::fs::read_dir(&strange).unwrap().count(), 1);
    }
    let path = root.path().join("mine.npz");
    std::fs::write(&path, b"mine").unwrap();
    let output = Output::Npz(path, Compression::Stored);
    assert!(message(Job { output, ..begun }).contains("exists and is not of this job"));
}

#[test]
fn sets_are_named_by_their_ending_in_any_case() {
    let named = |name: &str| Output::from_path(Path::new(name), Compression::Stored);
    assert!(matches!(named("a.NPZ"), Ok(Output::Npz(..))));
    assert!(matches!(named("a.Parquet"), Ok(Output::Parquet(_))));
    for folder in ["a", "run.v2", "step-1.5"] {
        assert!(matches!(named(folder), Ok(Output::Folder(_))), "{folder}");
    }
    for file in ["a.zip", "a.PNG", "a.npy"] {
        let error = named(file).unwrap_err().to_string();
        assert_eq!(error, format!("{file}: sets are folders, .npz or .parquet files"));
    }
}

#[test]
fn latents_are_what_the_images_are_decoded_from() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(root.path());
    let generator = generator(&checkpoint, 3);
    let path = root.path().join("latents.npz");
    for worker in 0..2 {
        let state = run(&job(Output::Latents(path.clone()), (worker, 2)), &generator).unwrap();
        assert_eq!(state.complete, worker == 1);
    }
    let (shape, values) = NpzFile::open(&path).unwrap().floats("arr_0", 1 << 20).unwrap();
    assert_eq!(shape, [COUNT as usize, 3, 16, 16]);
    let (_, labels) = NpzFile::open(&path).unwrap().floats("arr_1", 10).unwrap();
    assert_eq!(labels[..3], [0.0, 1.0, 2.0]);
    // Here the autoencoder is none: latents are the images, in [-1, 1] before they are clamped.
    let folder = root.path().join("images");
    run(&job(Output::Folder(folder.clone()), (0, 1)), &generator).unwrap();
    for (image, latent) in pixels(&folder).iter().zip(values.chunks(3 * 256)) {
        for (at, &byte) in image.iter().enumerate() {
            let value = latent[at % 3 * 256 + at / 3].clamp(-1.0, 1.0);
            assert!(((value + 1.0) * 127.5 - f64::from(byte)).abs() < 0.51);
        }
    }
    assert!(!root.path().join("latents.npz.parts").exists());
}

#[cfg(unix)]
#[test]
fn a_set_is_its_images_once_and_whole() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(root.path());
    let set = root.path().join("set");
    let half = job(Output::Folder(set.clone()), (0, 2));
    run(&half, &generator(&checkpoint, 4)).unwrap();
    let error = ImageSet::open(&set).err().unwrap().to_string();
    let told = "holds 4 of the 7 images that its job.json says: the job has not finished";
    assert!(error.ends_with(told), "{error}");
    run(&job(Output::Folder(set.clone()), (1, 2)), &generator(&checkpoint, 4)).unwrap();
    // A link to the folder itself, hidden files and other files are no images; the last are told.
    std::os::unix::fs::symlink(&set, set.join("latest")).unwrap();
    std::fs::write(set.join("._000000.png"), b"resource fork").unwrap();
    std::fs::write(set.join("notes.txt"), b"words").unwrap();
    let content = ImageSet::open(&set).unwrap().for_batches(3, &mut |_| Ok(())).unwrap();
    let left_out = "1 .txt, 1 links to a folder that they are in";
    assert_eq!((content.images as u64, content.left_out.to_string()), (COUNT, left_out.into()));
    // Formats that are not read are refused by name, as ingest skips them.
    std::fs::write(set.join("a.bmp"), b"BM6\0\0\0\0\0").unwrap();
    let error = ImageSet::open(&set).unwrap().for_batches(3, &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().ends_with("it starts with 424d360000000000, as BMP does"), "{error}");
}

#[test]
fn lossless_webp_is_told_from_lossy() {
    let root = tempfile::tempdir().unwrap();
    let picture = image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([x as u8, y as u8, 3]));
    picture.save(root.path().join("a.webp")).unwrap();
    let content = ImageSet::open(root.path()).unwrap().for_batches(1, &mut |_| Ok(())).unwrap();
    assert_eq!(content.formats.keys().collect::<Vec<_>>(), ["lossless WebP"]);
}

#[test]
fn guidance_s_second_half_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(root.path());
    let drawn = |cfg: f64, interval: [f64; 2]| {
        let config = SampleConfig {
            batch: 3,
            cfg,
            cfg_interval: interval,
            solver: SolverName::Heun,
            steps: 4,
            ..Default::default()
        };
        let pixel = Autoencoder::Pixel;
        let generator = Generator::new(&checkpoint, pixel, &config, &Device::Cpu, false).unwrap();
        let folder = root.path().join(format!("{cfg}-{interval:?}"));
        run(&job(Output::Folder(folder), (0, 1)), &generator).unwrap()
    };
    // Two steps of two evaluations in each of the two segments.
    let plain = drawn(1.0, [0.0, 1.0]);
    assert_eq!((plain.nfe(), plain.passes()), (8.0, 8.0));
    let guided = drawn(2.0, [0.0, 1.0]);
    assert_eq!((guided.nfe(), guided.passes()), (8.0, 16.0));
    // Of the evaluations at 0, .25, .25, .5 and .5, .75, .75, 1 all but the first lie inside.
    let late = drawn(2.0, [0.25, 1.0]);
    assert_eq!((late.nfe(), late.passes()), (8.0, 15.0));
    let passes: Vec<_> = late.costs.iter().map(|cost| (cost.level, cost.passes)).collect();
    assert_eq!(passes, [(1, 7 * COUNT as usize), (0, 8 * COUNT as usize)]);
}

#[test]
fn the_stochastic_sampler_keeps_the_promises_of_a_job() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(root.path());
    let generator = |batch: usize, diffusion_norm: f64| {
        let solver = SolverName::Sde;
        let config = SampleConfig { solver, steps: 6, diffusion_norm, batch, ..Default::default() };
        Generator::new(&checkpoint, Autoencoder::Pixel, &config, &Device::Cpu, false).unwrap()
    };
    let drawn = |name: &str, generator: &Generator, workers: u64| {
        let folder = root.path().join(name);
        for worker in 0..workers {
            run(&job(Output::Folder(folder.clone()), (worker, workers)), generator).unwrap();
        }
        pixels(&folder)
    };
    let whole = drawn("whole", &generator(7, 1.0), 1);
    assert!(whole == drawn("sharded", &generator(2, 1.0), 2));
    assert!(whole != drawn("quiet", &generator(7, 0.0), 1));
}

#[test]
fn another_autoencoder_than_the_checkpoint_s_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut checkpoint = checkpoint(root.path());
    let builtin = || Autoencoder::open(&Default::default(), &Device::Cpu).unwrap();
    let config = SampleConfig::default();
    let refused = Generator::new(&checkpoint, builtin(), &config, &Device::Cpu, false);
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("pixel") && message.contains("kl"), "{message}");
    let forced = Generator::new(&checkpoint, builtin(), &config, &Device::Cpu, true);
    let message = forced.err().unwrap().to_string();
    assert!(message.contains("latents have 3 channels, this one's 4"), "{message}");
    checkpoint.card.autoencoder = serde_json::json!({ "architecture": "pixel", "sha256": "0" });
    for forced in [false, true] {
        let pixel = Autoencoder::Pixel;
        let made = Generator::new(&checkpoint, pixel, &config, &Device::Cpu, forced);
        assert_eq!(made.is_ok(), forced);
    }
}
