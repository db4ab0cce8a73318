//! Several datasets read together, in a stated proportion.

use async_stream::try_stream;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::loader::{Batch, Batches, Loader, LoaderConfig, LoaderState};

/// Where a run over several datasets stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MixtureState {
    /// Batches each dataset has given; empty at the beginning.
    pub steps: Vec<u64>,
    /// Where each dataset's loader stands.
    pub loaders: Vec<LoaderState>,
}

/// A batch and the dataset it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixedBatch {
    /// Index of the dataset.
    pub source: usize,
    /// Its samples.
    pub batch: Batch,
    /// Where a resume continues after this batch.
    pub state: MixtureState,
}

/// Reads batches of several datasets, each batch from one of them.
///
/// Every step takes the dataset that lags furthest behind its weight, so after any number of
/// steps each is within one batch of its share, on every rank and after every resume alike.
pub struct Mixture {
    loaders: Vec<Loader>,
    weights: Vec<f64>,
    state: MixtureState,
}

impl Mixture {
    /// Mixes `sources`: datasets with how to read them and their weights.
    ///
    /// # Errors
    /// [`StoreError::Config`] where a weight is not positive, a source is not endless or the
    /// state is of another number of datasets.
    pub fn new(
        sources: Vec<(Dataset, LoaderConfig, f64)>,
        mut state: MixtureState,
    ) -> Result<Self> {
        if state.steps.is_empty() {
            state.steps = vec![0; sources.len()];
            state.loaders = vec![LoaderState::default(); sources.len()];
        }
        if state.steps.len() != sources.len() || state.loaders.len() != sources.len() {
            let (found, expected) = (state.steps.len(), sources.len());
            let reason = format!("the state is of {found} datasets, {expected} are mixed");
            return Err(StoreError::Config(reason));
        }
        let (mut loaders, mut weights) = (Vec::new(), Vec::new());
        for ((dataset, config, weight), &at) in sources.into_iter().zip(&state.loaders) {
            if !(weight.is_finite() && weight > 0.0) || config.epochs.is_some() {
                let uri = dataset.uri();
                let reason = format!("'{uri}' needs a positive weight and endless epochs");
                return Err(StoreError::Config(reason));
            }
            loaders.push(Loader::new(&dataset, config, at)?);
            weights.push(weight);
        }
        Ok(Self { loaders, weights, state })
    }

    /// The batches, without end. Dropping the stream cancels all reads under way.
    pub fn stream(self) -> impl Stream<Item = Result<MixedBatch>> + Send + 'static {
        try_stream! {
            let mut state = self.state;
            let mut streams: Vec<_> =
                self.loaders.into_iter().map(|loader| Box::pin(loader.stream())).collect();
            while let Some(source) = next_source(&state.steps, &self.weights) {
                let Some(batch) = streams[source].next().await else { break };
                let batch = batch?;
                state.steps[source] += 1;
                state.loaders[source] = batch.state;
                yield MixedBatch { source, batch, state: state.clone() };
            }
        }
    }

    /// The batches, for a synchronous consumer: `prefetch` are made ready ahead on the store's own
    /// threads. Dropping the iterator stops them.
    pub fn batches(self, prefetch: usize) -> Batches<MixedBatch> {
        Batches::new(self.stream(), prefetch)
    }
}

/// The dataset furthest behind its share once the next step counts.
fn next_source(steps: &[u64], weights: &[f64]) -> Option<usize> {
    let total = steps.iter().sum::<u64>() as f64 + 1.0;
    let sum: f64 = weights.iter().sum();
    let lag = |&source: &usize| total * weights[source] / sum - steps[source] as f64;
    (0..steps.len()).max_by(|left, right| lag(left).total_cmp(&lag(right)))
}
