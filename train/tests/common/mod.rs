//! Small datasets, recipes and runs.
#![allow(dead_code)]

use candle_core::{Device, Tensor};
use lapflow_model::checkpoint::Checkpoint;
use lapflow_model::flow::{FlowConfig, image_rng};
use lapflow_model::net::{ModelConfig, Part};
use lapflow_model::pyramid;
use lapflow_store::{Dataset, Dtype, LevelSpec, Metadata, Posterior, Row};
use lapflow_train::{Recipe, RunFolder, Schedule, Stages, TrainConfig, Trainer, run};
use rand_distr::{Distribution, StandardNormal};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub const CHANNELS: usize = 2;
pub const SIZE: usize = 8;

/// `rows` random images of as many classes, as a dataset of two-level pyramids.
pub async fn dataset(folder: &Path, rows: usize, scale: f32) -> Dataset {
    let spec = |k: usize| LevelSpec { channels: CHANNELS, height: SIZE >> k, width: SIZE >> k };
    let metadata = Metadata {
        classes: (0..rows).map(|i| format!("class {i}")).collect(),
        autoencoder: serde_json::json!({ "architecture": "pixel", "shift": 0.0, "scale": 1.0 }),
        ..Metadata::new(vec![spec(0), spec(1)], Dtype::F32, Posterior::Mean)
    };
    let dataset = Dataset::create(folder.to_str().unwrap(), &metadata).await.unwrap();
    add_shard(&dataset, "0", 0..rows, scale).await;
    dataset.refresh().await.unwrap()
}

/// Commits a shard of the rows `ids`.
pub async fn add_shard(dataset: &Dataset, name: &str, ids: Range<usize>, scale: f32) {
    let classes = dataset.metadata().classes.len();
    let mut shard = dataset.shard(name).await.unwrap();
    for i in ids {
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
        let (label, source) = ((i % classes) as i32, format!("{i}.png"));
        let (sha256, width, height, view) = ([0; 32], SIZE as i32, SIZE as i32, 0);
        let id = i as i64;
        let row = Row { id, label, source, sha256, width, height, view, levels, logvar: None };
        shard.push(row).await.unwrap();
    }
    shard.commit().await.unwrap();
}

pub fn recipe(steps: u64) -> Recipe {
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

/// A trainer that stands where `folder` does: at its newest checkpoint, or at the beginning.
pub fn trainer(recipe: &Recipe, dataset: &Dataset, folder: &RunFolder) -> Trainer {
    let device = Device::Cpu;
    match folder.newest().unwrap() {
        Some(checkpoint) => Trainer::resume(recipe, dataset, &checkpoint, &device).unwrap(),
        None => Trainer::new(recipe, dataset, &device).unwrap(),
    }
}

pub fn train(recipe: &Recipe, dataset: &Dataset, folder: &RunFolder) -> Vec<f64> {
    let mut trainer = trainer(recipe, dataset, folder);
    let mut losses = Vec::new();
    run(&mut trainer, dataset, folder, &AtomicBool::new(false), |line| {
        losses.push(line.loss.unwrap())
    })
    .unwrap();
    losses
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

/// Every tensor of a checkpoint, in one list of bits.
pub fn bits(path: &Path) -> Vec<(String, Vec<u32>)> {
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
