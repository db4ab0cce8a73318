//! Batches of one dataset or of several, and where the run stands in them.

use crate::error::Result;
use lapflow_store::{
    Batch, Batches, Dataset, Loader, LoaderConfig, MixedBatch, Mixture, MixtureState,
};

use crate::config::TrainConfig;
use crate::trainer::State;

/// Where batches come from.
pub(crate) enum Feed {
    /// One dataset.
    One(Batches),
    /// Several.
    Mixed(Batches<MixedBatch>),
}

impl Feed {
    /// Continues where `state` stands: in `dataset`, and in `others` with their weights.
    pub fn open(
        config: &TrainConfig,
        dataset: &Dataset,
        others: &[Dataset],
        state: &State,
        follow: bool,
    ) -> Result<Self> {
        let loader = LoaderConfig {
            batch: config.batch,
            seed: config.seed,
            window_rows: config.shuffle_window_rows,
            follow,
            ..LoaderConfig::default()
        };
        if others.is_empty() {
            return Ok(Self::One(Loader::new(dataset, loader, state.loader)?.batches()));
        }
        let weights = config.mixture.iter().map(|source| source.weight);
        let weighted = others.iter().cloned().zip(weights);
        let sources = std::iter::once((dataset.clone(), 1.0)).chain(weighted).enumerate();
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

    /// The next batch, with the state of a mixture after it.
    pub fn next(&mut self) -> Result<Option<(Batch, Option<MixtureState>)>> {
        Ok(match self {
            Self::One(batches) => batches.next().transpose()?.map(|batch| (batch, None)),
            Self::Mixed(batches) => {
                batches.next().transpose()?.map(|mixed| (mixed.batch, Some(mixed.state)))
            }
        })
    }
}
