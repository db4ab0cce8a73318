//! What is stored of a posterior, with a small `AutoencoderKL` of random weights.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};
use common::{Fixture, rows};
use lapflow_encode::{Draft, Job};
use lapflow_model::Params;
use lapflow_model::autoencoder::{
    Autoencoder, AutoencoderConfig, KlConfig, KlNetwork, WeightsSource,
};
use lapflow_model::weights::Weights;
use lapflow_store::{Dataset, Dtype, LevelSpec, Posterior, Row, Worker};

/// An autoencoder of factor 2 with 4 latent channels, written to `folder` and read back as one of so
/// many groups.
fn autoencoder(folder: &Path, groups: usize) -> Arc<Autoencoder> {
    let config =
        KlConfig { block_out_channels: vec![32, 32], layers_per_block: 1, ..KlConfig::default() };
    let (_, params) =
        Params::init(3, DType::F32, &Device::Cpu, |scope| KlNetwork::new(scope, &config)).unwrap();
    let tensors: BTreeMap<String, Tensor> =
        params.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())).collect();
    let path = folder.join("vae.safetensors");
    Weights::write(&path, &tensors, &BTreeMap::new()).unwrap();
    let config = AutoencoderConfig {
        weights: WeightsSource::File(path),
        groups: Some(groups),
        scale: Some(0.5),
        ..Default::default()
    };
    Arc::new(Autoencoder::open(&config, &Device::Cpu).unwrap())
}

async fn encode(fixture: &Fixture, name: &str) -> Vec<Row> {
    let autoencoder = autoencoder(fixture.folder.path(), 32);
    let uri = fixture.uri(name);
    let job = Job::open(&fixture.ingest, &fixture.encode, autoencoder, &Device::Cpu, &uri);
    let stats = job.await.unwrap().run(Worker::ALONE, &AtomicBool::new(false), &mut |_| {}).await;
    assert_eq!(stats.unwrap().rows_committed, 12);
    rows(&uri).await
}

/// Level 0 plus level 1 repeated: the latent `[4][8][8]`.
fn merged(row: &Row) -> Vec<f32> {
    let [fine, coarse] = [0, 1].map(|level| Dtype::F32.decode(&row.levels[level]));
    let coarse_at = |index: usize| {
        let (c, y, x) = (index / 64, index / 8 % 8, index % 8);
        coarse[c * 16 + y / 2 * 4 + x / 2]
    };
    fine.iter().enumerate().map(|(index, &value)| value + coarse_at(index)).collect()
}

#[tokio::test]
async fn draws_follow_the_moments_and_depend_on_the_image_and_view_alone() {
    let mut fixture = Fixture::new(6, 0);
    fixture.ingest.flip = true;
    fixture.encode.dtype = Dtype::F32;
    fixture.encode.posterior = Posterior::Moments;
    let moments = encode(&fixture, "moments").await;
    fixture.encode.posterior = Posterior::Mean;
    let means = encode(&fixture, "mean").await;
    fixture.encode.posterior = Posterior::Sample;
    let samples = encode(&fixture, "sample").await;
    // Other batches, shards and order: the same draws up to rounding.
    fixture.encode = lapflow_encode::EncodeConfig { batch: 5, shard_rows: 100, ..fixture.encode };
    let regrouped = encode(&fixture, "regrouped").await;
    fixture.encode.posterior_seed = 1;
    let reseeded = encode(&fixture, "reseeded").await;

    let mut noise = Vec::new();
    for (index, row) in moments.iter().enumerate() {
        assert_eq!(row.levels, means[index].levels);
        assert!(means[index].logvar.is_none() && samples[index].logvar.is_none());
        let logvar = Dtype::F32.decode(row.logvar.as_ref().unwrap());
        let (mean, draw) = (merged(row), merged(&samples[index]));
        let (again, other) = (merged(&regrouped[index]), merged(&reseeded[index]));
        for place in 0..mean.len() {
            let std = (logvar[place] / 2.0).exp();
            noise.push((draw[place] - mean[place]) / std);
            assert!((draw[place] - again[place]).abs() < 1e-4 * (1.0 + std));
        }
        assert!(draw.iter().zip(&other).any(|(a, b)| (a - b).abs() > 1e-2));
    }
    let count = noise.len() as f32;
    let mean = noise.iter().sum::<f32>() / count;
    let variance = noise.iter().map(|value| value * value).sum::<f32>() / count;
    assert!(mean.abs() < 0.08 && (variance - 1.0).abs() < 0.08, "{mean} {variance}");
    let halves = noise.chunks_exact(LevelSpec { channels: 4, height: 8, width: 8 }.values());
    let halves: Vec<_> = halves.collect();
    for (index, row) in halves.iter().enumerate() {
        assert!(halves[..index].iter().all(|other| other != row), "two rows share their noise");
    }
}

/// Groups decide the latents and are no part of the weights: workers that differ in them are refused.
/// A dataset from before they were recorded is gone on with.
#[tokio::test]
async fn workers_of_other_groups_do_not_fill_one_dataset() {
    let fixture = Fixture::new(6, 0);
    let draft = async |groups| {
        let autoencoder = autoencoder(fixture.folder.path(), groups);
        Draft::open(&fixture.ingest, &fixture.encode, autoencoder, &Device::Cpu).await.unwrap()
    };
    let uri = fixture.uri("recorded");
    let job = draft(32).await.attach(&uri).await.unwrap();
    job.run(Worker::ALONE, &AtomicBool::new(false), &mut |_| {}).await.unwrap();
    draft(32).await.attach(&uri).await.unwrap();
    let error = draft(16).await.attach(&uri).await.err().expect("refused").to_string();
    assert!(error.contains("autoencoder.groups = 32, this job has 16"), "{error}");

    let older = fixture.uri("older");
    let mut metadata = draft(32).await.metadata().clone();
    metadata.autoencoder.as_object_mut().unwrap().remove("groups");
    Dataset::create(&older, &metadata).await.unwrap();
    draft(32).await.attach(&older).await.unwrap();
}
