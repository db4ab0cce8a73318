//! Training end to end on small datasets made here.

use candle_core::{Device, Tensor};
use lapflow_model::checkpoint::{Checkpoint, WeightSet};
use lapflow_model::flow::{FlowConfig, image_rng};
use lapflow_model::net::{ModelConfig, Part};
use lapflow_model::pyramid;
use lapflow_store::{Dataset, Dtype, LevelSpec, Loader, LoaderConfig, Metadata, Posterior, Row};
use lapflow_train::{Recipe, RunFolder, Schedule, Stages, TrainConfig, Trainer, run};
use rand_distr::{Distribution, StandardNormal};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const CHANNELS: usize = 2;
const SIZE: usize = 8;

/// `rows` random images of as many classes, as a dataset of two-level pyramids.
async fn dataset(folder: &Path, rows: usize, scale: f32) -> Dataset {
    let spec = |k: usize| LevelSpec { channels: CHANNELS, height: SIZE >> k, width: SIZE >> k };
    let metadata = Metadata {
        classes: (0..rows).map(|i| format!("class {i}")).collect(),
        autoencoder: serde_json::json!({ "architecture": "pixel", "shift": 0.0, "scale": 1.0 }),
        ..Metadata::new(vec![spec(0), spec(1)], Dtype::F32, Posterior::Mean)
    };
    let dataset = Dataset::create(folder.to_str().unwrap(), &metadata).await.unwrap();
    let mut shard = dataset.shard("0").await.unwrap();
    for i in 0..rows {
        let mut rng = image_rng(17, i as u64);
        let mut draw = || -> f32 {
            scale * <StandardNormal as Distribution<f32>>::sample(&StandardNormal, &mut rng)
        };
        let values: Vec<f32> = (0..CHANNELS * SIZE * SIZE).map(|_| draw()).collect();
        let image = Tensor::from_vec(values, (1, CHANNELS, SIZE, SIZE), &Device::Cpu).unwrap();
        let bytes = |level: &Tensor| {
            Dtype::F32.encode(&level.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let levels = pyramid::split(&image, 2).unwrap().iter().map(bytes).collect();
        let (label, source) = (i as i32, format!("{i}.png"));
        let (sha256, width, height, view) = ([0; 32], SIZE as i32, SIZE as i32, 0);
        let id = i as i64;
        let row = Row { id, label, source, sha256, width, height, view, levels, logvar: None };
        shard.push(row).await.unwrap();
    }
    shard.commit().await.unwrap();
    dataset.refresh().await.unwrap()
}

fn recipe(steps: u64) -> Recipe {
    Recipe {
        model: ModelConfig {
            width: Some(64),
            depth: Some(2),
            heads: Some(4),
            untied: vec![Part::Embed, Part::Qkv, Part::Head],
            ..ModelConfig::default()
        },
        flow: FlowConfig::default(),
        train: TrainConfig {
            steps,
            batch: 8,
            lr: 3e-3,
            lr_final: 1e-4,
            schedule: Schedule::Cosine,
            warmup_steps: 5,
            clip_norm: 1.0,
            ema_decay: 0.9,
            stages: Stages::Balanced,
            label_dropout: 0.1,
            shuffle_window_rows: 16,
            log_every: 5,
            checkpoint_every: 7,
            ..TrainConfig::default()
        },
        autoencoder: serde_json::json!({ "weights": "pixel" }),
    }
}

fn train(recipe: &Recipe, dataset: &Dataset, folder: &RunFolder) -> Vec<f64> {
    let device = Device::Cpu;
    let mut trainer = match folder.newest().unwrap() {
        Some(checkpoint) => Trainer::resume(recipe, dataset, &checkpoint, &device).unwrap(),
        None => Trainer::new(recipe, dataset, &device).unwrap(),
    };
    let mut losses = Vec::new();
    run(&mut trainer, dataset, folder, &AtomicBool::new(false), |line| losses.push(line.loss))
        .unwrap();
    losses
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// Every tensor of a checkpoint, in one list of bits.
fn bits(path: &Path) -> Vec<(String, Vec<u32>)> {
    let checkpoint = Checkpoint::read(path).unwrap();
    ["model", "ema", "adam.m", "adam.v"]
        .iter()
        .flat_map(|group| checkpoint.group(group))
        .map(|(name, tensor)| {
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            (name, values.into_iter().map(f32::to_bits).collect())
        })
        .collect()
}

/// With one class a sample, the velocity follows from state, time and label: the loss can vanish.
#[test]
fn one_batch_is_overfit() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let dataset = runtime.block_on(dataset(&folder.path().join("data"), 4, 1.0));
    let mut recipe = recipe(500);
    recipe.train.label_dropout = 0.0;
    recipe.train.log_every = 50;
    recipe.train.checkpoint_every = 1000;
    let losses = train(&recipe, &dataset, &RunFolder::open(folder.path().join("run")).unwrap());
    eprintln!("losses every 50 steps: {losses:.3?}");
    assert!(losses[0] > 1.0, "the first steps cannot know the data");
    assert!(*losses.last().unwrap() < 0.2, "{losses:?}");
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped_to_the_last_bit() {
    for stages in [Stages::Step, Stages::Balanced] {
        let folder = tempfile::tempdir().unwrap();
        let dataset = runtime().block_on(dataset(&folder.path().join("data"), 21, 1.0));
        let mut recipe = recipe(24);
        recipe.train.stages = stages;
        let whole = RunFolder::open(folder.path().join("whole")).unwrap();
        train(&recipe, &dataset, &whole);

        let parts = RunFolder::open(folder.path().join("parts")).unwrap();
        let stop = AtomicBool::new(false);
        let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu).unwrap();
        // Stops at the line of step 10; steps 7 and 10 have checkpoints then.
        let outcome = run(&mut trainer, &dataset, &parts, &stop, |line| {
            stop.store(line.step == 10, Ordering::Relaxed);
        })
        .unwrap();
        assert!(!outcome.finished && outcome.step == 10);
        // As after a crash: the newest checkpoint is gone, another is cut short.
        std::fs::remove_file(&outcome.checkpoint).unwrap();
        std::fs::write(parts.checkpoint(9), b"cut short").unwrap();
        train(&recipe, &dataset, &parts);

        assert_eq!(bits(&whole.checkpoint(24)), bits(&parts.checkpoint(24)), "{stages:?}");
        let steps = |folder: &RunFolder| -> Vec<(u64, f64)> {
            let lines = folder.read_metrics().unwrap();
            lines.iter().filter(|l| l.step > 10).map(|l| (l.step, l.loss)).collect()
        };
        assert_eq!(steps(&whole), steps(&parts));
    }
}

#[test]
fn a_step_that_is_not_finite_changes_nothing_and_many_halt_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let mut trainer = Trainer::new(&recipe(50), &dataset, &Device::Cpu).unwrap();
    let config = LoaderConfig { batch: 8, window_rows: 16, ..LoaderConfig::default() };
    let mut batches = Loader::new(&dataset, config, Default::default()).unwrap().batches();
    let good = batches.next().unwrap().unwrap();
    let mut poisoned = good.clone();
    poisoned.levels[1].data[..4].copy_from_slice(&f32::NAN.to_le_bytes());

    assert!(!trainer.step(&good).unwrap().skipped);
    let snapshot = |trainer: &Trainer| -> Vec<Vec<f32>> {
        let values = |(_, var): (&str, &candle_core::Var)| var.flatten_all().unwrap().to_vec1();
        trainer.params().iter().map(|param| values(param).unwrap()).collect()
    };
    let before = snapshot(&trainer);
    assert!(trainer.step(&poisoned).unwrap().skipped);
    assert_eq!(before, snapshot(&trainer));
    assert_eq!(trainer.state().skipped, 1);
    assert!(!trainer.step(&good).unwrap().skipped);
    let error = (0..10).map(|_| trainer.step(&poisoned)).find_map(Result::err).unwrap();
    assert!(error.to_string().contains("10 times in a row"), "{error}");
}

#[test]
fn what_does_not_belong_together_is_refused_with_both_sides_named() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 4, 1.0));
    let trainer = Trainer::new(&recipe(5), &dataset, &Device::Cpu).unwrap();
    let path = folder.path().join("c.safetensors");
    trainer.save(&path).unwrap();
    let checkpoint = Checkpoint::read(&path).unwrap();
    let mut other = recipe(5);
    other.model.depth = Some(3);
    let error = Trainer::resume(&other, &dataset, &checkpoint, &Device::Cpu).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("\"depth\":2") && error.contains("\"depth\":3"), "{error}");
}

#[test]
fn unreadable_checkpoints_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 4, 1.0));
    let trainer = Trainer::new(&recipe(5), &dataset, &Device::Cpu).unwrap();
    let path = folder.path().join("c.safetensors");
    trainer.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&bytes[..0], &bytes[..100], &bytes[..bytes.len() - 1]] {
        std::fs::write(&path, damaged).unwrap();
        let error = Checkpoint::read(&path).unwrap_err().to_string();
        assert!(error.contains("c.safetensors"), "{error}");
    }
    std::fs::write(&path, &bytes).unwrap();
    // The header holds the card as a JSON string, its quotes escaped.
    let version = b"\\\"version\\\":1";
    let at = bytes.windows(version.len()).position(|window| window == version).unwrap();
    let mut later = bytes;
    later[at + version.len() - 1] = b'9';
    std::fs::write(&path, &later).unwrap();
    let error = Checkpoint::read(&path).unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
}

/// Averaged weights are what sampling gets: after training they differ from the raw ones.
#[test]
fn checkpoints_give_averaged_and_raw_networks() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = runtime().block_on(dataset(&folder.path().join("data"), 8, 1.0));
    let run_folder = RunFolder::open(folder.path().join("run")).unwrap();
    train(&recipe(20), &dataset, &run_folder);
    let checkpoint = run_folder.newest().unwrap().unwrap();
    let x = Tensor::ones((2, CHANNELS, SIZE / 2, SIZE / 2), candle_core::DType::F32, &Device::Cpu);
    let t = Tensor::new(&[0.2f32, 0.6], &Device::Cpu).unwrap();
    let out = |set| {
        let net = checkpoint.network(set, &Device::Cpu).unwrap();
        let v = net.forward(&[x.as_ref().unwrap().clone()], &t, None).unwrap().remove(0);
        v.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_ne!(out(WeightSet::Ema), out(WeightSet::Raw));
    assert_eq!(checkpoint.card.step, 20);
    assert_eq!(run_folder.list().unwrap().len(), 2);
}
