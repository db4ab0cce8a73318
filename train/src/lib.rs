//! The trainer: pyramids from a dataset in, checkpoints and metrics out.
//!
//! Principal type: [`Trainer`], driven by [`run()`] through a whole run folder.

mod config;
mod data;
mod error;
mod folder;
mod loss;
mod metrics;
mod optimizer;
mod run;
mod trainer;

pub use config::{Normalize, Schedule, Stages, Times, TrainConfig};
pub use data::geometry;
pub use error::{Result, TrainError};
pub use folder::RunFolder;
pub use loss::{GroupLoss, Loss, Samples, StageGroup};
pub use metrics::Line;
pub use run::{Outcome, run};
pub use trainer::{Recipe, State, StepReport, Trainer};
