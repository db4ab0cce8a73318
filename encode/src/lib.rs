//! The dataset job: images in, committed shards out.
//!
//! In: a source of images ([`IngestConfig`](lapflow_ingest::IngestConfig)), an autoencoder and an
//! [`EncodeConfig`]. Out: a dataset of Laplacian latent pyramids, shard by shard, each exactly
//! once however many workers run and however often they are killed. Principal type: [`Job`].
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::AtomicBool;
//!
//! use candle_core::Device;
//! use lapflow_encode::{EncodeConfig, Job, Status};
//! use lapflow_ingest::IngestConfig;
//! use lapflow_model::autoencoder::Autoencoder;
//! use lapflow_store::Worker;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # std::fs::create_dir_all(folder.path().join("images/tabby"))?;
//! # for index in 0..5 {
//! #     image::RgbImage::new(40, 32).save(folder.path().join(format!("images/tabby/{index}.png")))?;
//! # }
//! # let images = folder.path().join("images").display().to_string();
//! # let uri = folder.path().join("latents").display().to_string();
//! let ingest = IngestConfig { source: images, size: 16, flip: true, ..Default::default() };
//! let encode = EncodeConfig { levels: 2, shard_rows: 4, ..Default::default() };
//! let autoencoder = Arc::new(Autoencoder::Pixel);
//! let job = Job::open(&ingest, &encode, autoencoder, &Device::Cpu, &uri).await?;
//! assert_eq!((job.plan().images, job.plan().shards), (5, 3));
//!
//! let stop = AtomicBool::new(false);
//! let stats = job.run(Worker::ALONE, &stop, &mut |_progress| {}).await?;
//! assert_eq!((stats.shards_committed, stats.rows_committed), (3, 10));
//!
//! let again = job.run(Worker::ALONE, &stop, &mut |_progress| {}).await?;
//! assert_eq!((again.shards_present, again.shards_committed), (3, 0));
//! assert!(Status::read(&uri).await?.missing.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! A [`Draft`] is a job before it touches its dataset: what a dry run shows. A [`Watch`] follows a
//! source that grows. A [`Monitor`] shows a run to Prometheus; its progress callback reports to it.

mod arrivals;
mod config;
mod encoder;
mod error;
mod estimate;
mod job;
mod ledger;
mod monitor;
mod pipeline;
mod plan;
mod skips;
mod stats;
mod status;
mod watch;

pub use config::{EncodeConfig, WatchConfig};
pub use error::{EncodeError, Result};
pub use estimate::Estimate;
pub use job::{Draft, Job};
pub use monitor::Monitor;
pub use plan::{Permutation, Plan};
pub use skips::SkipRecord;
pub use stats::{EncodeStats, Latencies, StageTimes};
pub use status::Status;
pub use watch::Watch;
