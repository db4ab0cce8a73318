//! Every option of LapFlow, and every other method, in short training runs: losses fall and no
//! parameter stays where it was.

use candle_core::{Device, Tensor};
use lapflow_model::flow::{Coupling, FlowConfig, Method, Noise, Sigma, image_rng};
use lapflow_model::kernels::Mask;
use lapflow_model::net::{ModelConfig, Part};
use lapflow_store::{
    Batch, Dataset, Dtype, LevelSpec, Loader, LoaderConfig, Metadata, Posterior, Row,
};
use lapflow_train::{Recipe, Stages, Times, TrainConfig, Trainer};
use rand_distr::{Distribution, StandardNormal};
use std::path::Path;

const CHANNELS: usize = 2;
const SIZE: usize = 16;
const BATCH: usize = 8;
const STEPS: usize = 60;

/// Four striped images of as many classes, as latents of one level.
async fn dataset(folder: &Path) -> Dataset {
    let spec = LevelSpec { channels: CHANNELS, height: SIZE, width: SIZE };
    let metadata = Metadata {
        classes: (0..4).map(|i| format!("class {i}")).collect(),
        autoencoder: serde_json::json!({ "architecture": "pixel", "shift": 0.0, "scale": 1.0 }),
        ..Metadata::new(vec![spec], Dtype::F32, Posterior::Mean)
    };
    let dataset = Dataset::create(folder.to_str().unwrap(), &metadata).await.unwrap();
    let mut shard = dataset.shard("0").await.unwrap();
    for id in 0..4i64 {
        let mut rng = image_rng(17, id as u64);
        // Stripes of every width up to the image, so that each level has something to learn.
        let mut draw = || -> f32 { StandardNormal.sample(&mut rng) };
        let heights: Vec<f32> = (0..4 * CHANNELS).map(|_| draw()).collect();
        let value = |i: usize| -> f32 {
            let (channel, x) = (i / (SIZE * SIZE), i % SIZE);
            let sign = |width: usize| if (x >> width).is_multiple_of(2) { 1.0 } else { -1.0 };
            (0..4).map(|width| sign(width) * heights[4 * channel + width]).sum()
        };
        let values: Vec<f32> = (0..CHANNELS * SIZE * SIZE).map(value).collect();
        let levels = vec![Dtype::F32.encode(&values)];
        let (label, source) = (id as i32, format!("{id}.png"));
        let (sha256, width, height, view) = ([0; 32], SIZE as i32, SIZE as i32, 0);
        let row = Row { id, label, source, sha256, width, height, view, levels, logvar: None };
        shard.push(row).await.unwrap();
    }
    shard.commit().await.unwrap();
    dataset.refresh().await.unwrap()
}

fn recipe(flow: FlowConfig, mask: Mask, untied: &[Part], stages: Stages, times: Times) -> Recipe {
    Recipe {
        model: ModelConfig {
            width: Some(32),
            depth: Some(1),
            heads: Some(2),
            mask,
            untied: untied.to_vec(),
            ..ModelConfig::default()
        },
        flow,
        train: TrainConfig {
            steps: STEPS as u64,
            batch: BATCH,
            lr: 5e-3,
            ema_decay: 0.0,
            label_dropout: 0.1,
            stages,
            times,
            ..TrainConfig::default()
        },
        autoencoder: serde_json::json!({ "weights": "pixel" }),
    }
}

fn values(trainer: &Trainer) -> Vec<(String, Vec<f32>)> {
    let of = |(name, var): (&str, &candle_core::Var)| {
        let flat: &Tensor = &var.flatten_all().unwrap();
        (name.to_string(), flat.to_vec1().unwrap())
    };
    trainer.params().iter().map(of).collect()
}

/// Mean squared errors of the last quarter of a run.
fn late_error(trainer: &mut Trainer, batches: &[Batch]) -> f64 {
    let error = |batch: &Batch| {
        let levels = trainer.step(batch).unwrap().levels;
        levels.iter().map(|(_, error)| error).sum::<f64>() / levels.len() as f64
    };
    let errors: Vec<f64> = batches.iter().map(error).collect();
    errors[errors.len() * 3 / 4..].iter().sum()
}

/// Against a twin that stays at zero: draws are keyed by step, so both see the same ones.
fn trains(recipe: &Recipe, dataset: &Dataset, batches: &[Batch]) {
    let what = format!("{:?}, {:?}, {:?}", recipe.flow, recipe.model.mask, recipe.model.untied);
    let new = |recipe| Trainer::new(recipe, dataset, &Device::Cpu).expect(&what);
    let mut trainer = new(recipe);
    let before = values(&trainer);
    let trained = late_error(&mut trainer, batches);
    let mut still = recipe.clone();
    (still.train.lr, still.train.lr_final) = (1e-30, 1e-30);
    let untrained = late_error(&mut new(&still), batches);
    eprintln!("{:.3} of its error: {what}", trained / untrained);
    assert!(trained < 0.9 * untrained, "{what}: {untrained:.3} to {trained:.3}");
    for ((name, old), (_, new)) in before.iter().zip(values(&trainer)) {
        assert!(*old != new, "{what}: `{name}` was never trained");
    }
}

#[test]
fn every_option_and_method_trains() {
    use Part::{Adaln, AttnOut, Embed, Head, Mlp, Qkv};
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dataset = runtime.block_on(dataset(&folder.path().join("data")));
    let config = LoaderConfig { batch: BATCH, window_rows: 16, ..LoaderConfig::default() };
    let loader = Loader::new(&dataset, config, Default::default()).unwrap();
    let batches: Vec<Batch> = loader.batches().take(STEPS).map(|batch| batch.unwrap()).collect();

    let masks = [Mask::Causal, Mask::None, Mask::Own];
    let ties: [&[Part]; 5] = [
        &[Embed, Qkv, Head],
        &[],
        &[Embed, Qkv, AttnOut, Mlp, Adaln, Head],
        &[Mlp, Adaln],
        &[AttnOut, Head],
    ];
    let sigmas = [Sigma::Linear, Sigma::Gvp, Sigma::Quadratic, Sigma::Cubic];
    let mut turn = 0;
    for levels in 1..=4 {
        for mask in masks {
            for noise in [Noise::Laplacian, Noise::White] {
                // The other options go round, each with a period of its own.
                let pick = |n: usize| turn % n;
                let coupling = [Coupling::Linear, Coupling::Gvp][pick(2)];
                let sigma = sigmas[pick(4)];
                let flow = FlowConfig { levels, coupling, sigma, noise, ..FlowConfig::default() };
                let stages = [Stages::Balanced, Stages::Balanced, Stages::Step][pick(3)];
                let times = [Times::Uniform, Times::LogitNormal][turn / 2 % 2];
                let recipe = recipe(flow, mask, ties[pick(5)], stages, times);
                trains(&recipe, &dataset, &batches);
                turn += 1;
            }
        }
    }
    for (method, levels) in [(Method::Pyramidal, 3), (Method::Edify, 3), (Method::Dit, 1)] {
        let flow = FlowConfig { method, levels, ..FlowConfig::default() };
        let mut recipe = recipe(flow, Mask::Causal, &[], Stages::Balanced, Times::Uniform);
        recipe.model.learn_sigma = method == Method::Dit;
        trains(&recipe, &dataset, &batches);
    }
}

#[test]
fn a_network_that_a_method_cannot_train_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dataset = runtime.block_on(dataset(&folder.path().join("data")));
    let flow = FlowConfig { method: Method::Pyramidal, ..FlowConfig::default() };
    let recipe = recipe(flow, Mask::Causal, &[Part::Qkv], Stages::Step, Times::Uniform);
    let error = Trainer::new(&recipe, &dataset, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("untied = []"), "{error}");
}
