//! Datasets of Laplacian latent pyramids: Parquet shards in a Delta table, and the shuffling loader.
//!
//! In: rows (an image's pyramid levels as bytes, its label and provenance), shard by shard, each
//! committed exactly once. Out: batches whose levels are contiguous buffers, in a shuffled order
//! that any number of readers can resume to the sample. The principal type is [`Dataset`];
//! `docs/dataset-format.md` is the format's specification.
//!
//! ```
//! use lapflow_store::*;
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let uri = folder.path().join("set").to_str().unwrap().to_string();
//! # futures::executor::block_on(async {
//! let levels = vec![
//!     LevelSpec { channels: 4, height: 4, width: 4 },
//!     LevelSpec { channels: 4, height: 2, width: 2 },
//! ];
//! let dataset = Dataset::create(&uri, &Metadata::new(levels, Dtype::F16, Posterior::Mean)).await?;
//! let mut shard = dataset.shard("00000").await?;
//! for id in 0..10 {
//!     let levels = vec![Dtype::F16.encode(&[0.5; 64]), Dtype::F16.encode(&[id as f32; 16])];
//!     let (source, sha256) = (format!("cats/{id}.jpg"), [0; 32]);
//!     let row = Row { id, label: 3, source, sha256, width: 512, height: 384, view: 0, levels, logvar: None };
//!     shard.push(row).await?;
//! }
//! shard.commit().await?;
//!
//! let dataset = Dataset::open(&uri).await?;
//! assert_eq!(dataset.rows(), 10);
//! assert_eq!(dataset.statistics().levels[1][0].mean, 4.5);
//! let config = LoaderConfig { batch: 4, ..LoaderConfig::default() };
//! let loader = Loader::new(&dataset, config, LoaderState::default())?;
//! let batch = loader.batches().next().unwrap()?;
//! assert_eq!((batch.ids.len(), batch.levels[1].data.len()), (4, 4 * 4 * 2 * 2 * 2));
//! assert_eq!(batch.state.position, 4);
//! # Ok::<(), StoreError>(()) }).unwrap();
//! ```

mod assembly;
mod beside;
mod buffers;
mod cache;
mod column;
mod dataset;
mod error;
mod group;
mod loader;
mod location;
mod metadata;
mod mixture;
mod order;
mod planner;
mod scan;
mod scheduler;
mod schema;
mod shard;
mod statistics;
mod strip;
mod table;
mod verify;
mod worker;
mod writer;

pub use buffers::Buffer;
pub use cache::DiskCache;
pub use dataset::Dataset;
pub use error::{Result, StoreError};
pub use loader::{Batch, Batches, LevelBatch, Loader, LoaderConfig, LoaderState};
pub use metadata::{Dtype, FORMAT_VERSION, LevelSpec, Metadata, Posterior, Row};
pub use mixture::{MixedBatch, Mixture, MixtureState};
pub use scheduler::{Assignment, Lookup, cores};
pub use shard::{RowGroupSummary, ShardSummary};
pub use statistics::{ChannelStatistics, LevelSums, Statistics};
pub use table::Commit;
pub use verify::Verification;
pub use worker::Worker;
pub use writer::{Compression, ShardOptions, ShardWriter};
