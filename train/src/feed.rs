//! Batches of one dataset or of several, and where the run stands in them.

use crate::error::{Result, TrainError};
use lapflow_store::{
    Batch, Batches, Dataset, DiskCache, Loader, LoaderConfig, MixedBatch, Mixture, MixtureState,
};

use crate::trainer::Trainer;
use std::path::Path;
use std::sync::Arc;

/// Where batches come from.
pub(crate) enum Feed {
    /// One dataset.
    One(Batches),
    /// Several.
    Mixed(Batches<MixedBatch>),
}

impl Feed {
    /// Continues where `trainer` stands: in `dataset`, and in `others` with their weights.
    pub fn open(
        trainer: &Trainer,
        dataset: &Dataset,
        others: &[Dataset],
        follow: bool,
    ) -> Result<Self> {
        let (config, state, ranks) = (trainer.config(), trainer.state(), trainer.ranks());
        let world = ranks.size();
        if config.batch % world != 0 {
            let reason = format!("train.batch {} does not divide into {world} ranks", config.batch);
            return Err(TrainError::Config(reason));
        }
        let loader = LoaderConfig {
            batch: config.batch / world,
            rank: ranks.rank(),
            world,
            // Ranks that follow agree on each epoch's version under the name of their run.
            run: (follow && world > 1).then(|| run_name(&config.folder)),
            seed: config.seed,
            window_rows: config.shuffle_window_rows,
            follow,
            memory_cache_bytes_max: config.memory_cache_bytes_max,
            ..LoaderConfig::default()
        };
        let cache = config.disk_cache.as_ref();
        let cache = cache.map(|folder| DiskCache::new(folder, config.disk_cache_bytes_max));
        let cache = cache.transpose()?.map(Arc::new);
        let cached = |dataset: &Dataset| match &cache {
            Some(cache) => dataset.with_cache(cache.clone()),
            None => dataset.clone(),
        };
        let dataset = cached(dataset);
        if others.is_empty() {
            return Ok(Self::One(Loader::new(&dataset, loader, state.loader)?.batches()));
        }
        let weights = config.mixture.iter().map(|source| source.weight);
        let weighted = others.iter().map(cached).zip(weights);
        let sources = std::iter::once((dataset, 1.0)).chain(weighted).enumerate();
        let sources = sources
            .map(|(i, (dataset, weight))| {
                // Each source has an order of its own.
                let seed = loader.seed.wrapping_add(i as u64);
                (dataset, LoaderConfig { seed, ..loader.clone() }, weight)
            })
            .collect();
        let prefetch = loader.prefetch_batches;
        let state = state.mixture.clone().unwrap_or_default();
        Ok(Self::Mixed(Mixture::new(sources, state)?.batches(prefetch)))
    }

    /// The next batch of this rank, with the state of a mixture after it.
    pub fn next(&mut self) -> Result<Option<(Batch, Option<MixtureState>)>> {
        Ok(match self {
            Self::One(batches) => batches.next().transpose()?.map(|batch| (batch, None)),
            Self::Mixed(batches) => {
                batches.next().transpose()?.map(|mixed| (mixed.batch, Some(mixed.state)))
            }
        })
    }
}

/// The run folder as a name of letters, digits and dashes.
fn run_name(folder: &Path) -> String {
    let text = folder.to_string_lossy();
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
