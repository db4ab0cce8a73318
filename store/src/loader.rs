//! The training loader: shuffled batches, endless epochs, exact resume on any number of ranks.

use async_stream::try_stream;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::assembly::Assembly;
use crate::buffers::Buffer;
use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::location::{AbortOnDrop, runtime};
use crate::metadata::{Dtype, LevelSpec};
use crate::planner::Planner;
use crate::shard::validate_name;

/// What a loader reads and how it mixes.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Samples a rank gets in a batch.
    pub batch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// This reader among `world`.
    pub rank: usize,
    /// Readers that share the samples.
    pub world: usize,
    /// Levels to read; `None` reads all. Other levels' bytes are not fetched.
    pub levels: Option<Vec<usize>>,
    /// Whether to read the log-variance of a dataset of posterior moments.
    pub logvar: bool,
    /// Rows mixed with each other. At most two windows are in memory at a time.
    pub window_rows: usize,
    /// Whether to permute rows at all.
    pub shuffle: bool,
    /// Epochs to read; `None` goes on for ever. The last batch of a finite run may be short.
    pub epochs: Option<u64>,
    /// Whether each epoch starts from the newest version of the dataset.
    pub follow: bool,
    /// Name under which several ranks that follow agree on each epoch's version: the same on all
    /// of them, and used by no other run on the dataset.
    pub run: Option<String>,
    /// Whether to check every segment read against its checksum.
    pub verify: bool,
    /// Row groups read and decoded at the same time, at most; of files on this machine no more than
    /// it has cores, which is faster.
    pub reads_max: usize,
    /// Bytes of decoded row groups kept from one epoch to the next, at most. The first ones read
    /// stay: each is read once an epoch, so none is worth more than another.
    pub memory_cache_bytes_max: usize,
    /// Batches made ready ahead of a blocking consumer ([`Loader::batches`]).
    pub prefetch_batches: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch: 256,
            seed: 0,
            rank: 0,
            world: 1,
            levels: None,
            logvar: false,
            window_rows: 8192,
            shuffle: true,
            epochs: None,
            follow: false,
            run: None,
            verify: true,
            reads_max: 4,
            memory_cache_bytes_max: 0,
            prefetch_batches: 4,
        }
    }
}

/// Where a run stands, over all ranks: enough to go on with the very next sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Epochs completed.
    pub epoch: u64,
    /// Samples of the current epoch that all ranks together have had.
    pub position: u64,
    /// Version of the dataset the current epoch reads; `None` takes the dataset's own.
    #[serde(default)]
    pub version: Option<u64>,
}

/// One level of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelBatch {
    /// Shape of one sample.
    pub spec: LevelSpec,
    /// Number format.
    pub dtype: Dtype,
    /// N x C x H x W values, contiguous and little-endian.
    pub data: Buffer,
}

/// Samples of one step on one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Ids of the samples.
    pub ids: Vec<i64>,
    /// Class indices, -1 where there is none.
    pub labels: Vec<i32>,
    /// Where each sample stands in the step that all ranks take together; ascending.
    pub positions: Vec<u32>,
    /// The levels asked for, in the order asked for.
    pub levels: Vec<LevelBatch>,
    /// Log-variance at full size, where asked for.
    pub logvar: Option<LevelBatch>,
    /// Where a resume continues after this batch; the same on every rank.
    pub state: LoaderState,
}

/// Reads batches of a dataset in a shuffled order.
///
/// The samples of all ranks' batches of one step are consecutive in an order that depends on
/// seed, epoch and the dataset's version only. A run may therefore stop on 8 ranks and go on
/// with 6: no sample is lost or seen twice in an epoch. Epochs follow each other without a gap:
/// a batch may hold the end of one and the beginning of the next, and nothing is dropped.
///
/// Within a step, samples are dealt to ranks by row group, so that each of several ranks reads
/// few row groups of a window. Memory: at most two windows of the levels read, and what
/// [`LoaderConfig::memory_cache_bytes_max`] allows.
pub struct Loader {
    pub(crate) dataset: Dataset,
    pub(crate) config: LoaderConfig,
    state: LoaderState,
    pub(crate) levels: Vec<usize>,
}

impl Loader {
    /// A loader that continues from `state` (the default begins at the first sample).
    ///
    /// # Errors
    /// [`StoreError::Config`] where the configuration contradicts itself or the dataset.
    pub fn new(dataset: &Dataset, config: LoaderConfig, state: LoaderState) -> Result<Self> {
        let refuse = |reason: String| Err(StoreError::Config(reason));
        let count = dataset.metadata().levels.len();
        let levels = config.levels.clone().unwrap_or_else(|| (0..count).collect());
        if let Some(level) = levels.iter().find(|&&level| level >= count) {
            return refuse(format!("level {level} was asked for, the dataset has {count}"));
        }
        if config.logvar && dataset.metadata().logvar().is_none() {
            return refuse("log-variance was asked for, the dataset has none".to_string());
        }
        if config.batch == 0 || config.window_rows == 0 || config.reads_max == 0 {
            return refuse("batch, window_rows and reads_max must be at least 1".to_string());
        }
        if config.rank >= config.world {
            return refuse(format!("rank {} of {} ranks", config.rank, config.world));
        }
        if let Some(run) = &config.run {
            validate_name(run).map_err(StoreError::Config)?;
        } else if config.follow && config.world > 1 {
            return refuse("several ranks that follow need the name of their run".to_string());
        }
        Ok(Self { dataset: dataset.clone(), config, state, levels })
    }

    /// The batches, as a stream. Dropping it cancels all reads under way.
    pub fn stream(self) -> impl Stream<Item = Result<Batch>> + Send + 'static {
        try_stream! {
            let mut planner = Planner::start(&self.dataset, &self.config, self.state).await?;
            let mut assembly = Assembly::new(&self);
            loop {
                while assembly.rows_ahead() <= self.config.window_rows / self.config.world {
                    let Some(step) = planner.next().await? else { break };
                    assembly.add(step);
                }
                let Some(batch) = assembly.next().await? else { break };
                yield batch;
            }
        }
    }

    /// The batches, for a synchronous consumer: `prefetch_batches` are made ready ahead on the
    /// store's own threads. Dropping the iterator stops them.
    pub fn batches(self) -> Batches {
        let prefetch = self.config.prefetch_batches;
        Batches::new(self.stream(), prefetch)
    }
}

/// Blocking iterator over batches; not for use within an async task.
pub struct Batches<T = Batch> {
    receiver: mpsc::Receiver<Result<T>>,
    _task: AbortOnDrop<()>,
}

impl<T: Send + 'static> Batches<T> {
    /// What `stream` yields, `prefetch` items ahead.
    pub(crate) fn new(
        stream: impl Stream<Item = Result<T>> + Send + 'static,
        prefetch: usize,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(prefetch.max(1));
        let task = runtime().spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(batch) = stream.next().await {
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
        });
        Self { receiver, _task: AbortOnDrop(task) }
    }
}

impl<T> Iterator for Batches<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.blocking_recv()
    }
}
