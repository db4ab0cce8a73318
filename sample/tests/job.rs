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
            let output = Output::from_path(&path, Compression::Stored);
            let state = run(&job(output, (worker, 2)), &generator(&checkpoint, 4)).unwrap();
            assert_eq!((state.complete, path.exists()), (worker == 1, worker == 1));
        }
        assert!(pixels(&path) == pixels(&whole));
        let again = Output::from_path(&path, Compression::Stored);
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
    let path = root.path().join("mine.npz");
    std::fs::write(&path, b"mine").unwrap();
    let output = Output::Npz(path, Compression::Stored);
    assert!(message(Job { output, ..begun }).contains("exists and is not of this job"));
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
