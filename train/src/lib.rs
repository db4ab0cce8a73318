//! The trainer: pyramids from a dataset in, checkpoints and metrics out.
//!
//! Principal type: [`Trainer`], driven by [`run()`] through a whole run folder. Every random draw
//! is keyed by the seed and the number of a step or sample, so that a run that was interrupted
//! goes on as if it never had been.
//!
//! ```no_run
//! use candle_core::Device;
//! use lapflow_model::{flow::FlowConfig, net::ModelConfig};
//! use lapflow_store::Dataset;
//! use lapflow_train::{Recipe, RunFolder, TrainConfig, Trainer, run};
//! use std::sync::atomic::AtomicBool;
//!
//! # async fn train() -> Result<(), Box<dyn std::error::Error>> {
//! let dataset = Dataset::open("datasets/faces").await?;
//! let recipe = Recipe {
//!     model: ModelConfig::default(),
//!     flow: FlowConfig::default(),
//!     train: TrainConfig::default(),
//!     autoencoder: serde_json::json!({ "weights": "pixel" }),
//! };
//! let mut trainer = Trainer::new(&recipe, &dataset, &Device::Cpu)?;
//! let folder = RunFolder::open("runs/faces")?;
//! let outcome = run(&mut trainer, &dataset, &folder, &AtomicBool::new(false), |line| {
//!     println!("step {}: loss {:?}", line.step, line.loss);
//! })?;
//! println!("{}", outcome.checkpoint.display());
//! # Ok(())
//! # }
//! ```

mod adamw;
mod batch;
mod config;
mod data;
mod error;
mod folder;
mod gradients;
mod loss;
mod metrics;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod optimizer;
mod ranks;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;
mod run;
pub mod synthetic;
mod tensorboard;
mod trainer;

pub use config::{Normalize, Schedule, Source, Stages, Times, TrainConfig};
pub use data::geometry;
pub use error::{Result, TrainError};
pub use folder::{Lock, RunFolder};
pub use loss::{GroupLoss, Loss, Part, Samples, StageGroup};
pub use metrics::Line;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use optimizer::Optimizer;
pub use ranks::{Alone, Communicator};
pub use run::{Draw, Outcome, Session, run, run_session};
pub use tensorboard::{EventFile, Picture};
pub use trainer::{Best, Recipe, State, StepReport, Trainer};
