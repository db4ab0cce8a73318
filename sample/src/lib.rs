//! Solvers, guidance, image sets and their scores.
//!
//! Enters: a flow path, the noise of a pyramid's levels and a velocity function, usually a trained
//! network behind [`guided`]. Leaves: sampled levels with their cost, image sets on disk
//! ([`images`]) and scores. The principal type is [`Solver`]; [`sample_pyramid`] runs it segment by
//! segment, coarse levels first, and returns a [`Sampled`].
//!
//! ```
//! use candle_core::{DType, Device};
//! use lapflow_model::flow::{Flow, FlowConfig, Path, image_rng};
//! use lapflow_model::net::{Geometry, ModelConfig, Transformer};
//! use lapflow_model::{Params, pyramid};
//! use lapflow_sample::{Dopri5, Guidance, Solver, guided, network, sample_pyramid};
//!
//! let geometry = Geometry { channels: 3, height: 8, width: 8, levels: 2, classes: 10 };
//! let config = ModelConfig { width: Some(32), depth: Some(1), heads: Some(2), ..Default::default() };
//! let (net, _) = Params::init(7, DType::F32, &Device::Cpu, |scope| {
//!     Transformer::new(scope, &config, &geometry)
//! })?;
//!
//! let path = Path::new(&FlowConfig::default())?;
//! let mut rngs = [image_rng(7, 0), image_rng(7, 1)];
//! let noise = path.draw_noise(&mut rngs, [3, 8, 8], &Device::Cpu)?;
//! let labels = [4, 9];
//! let guidance = Guidance { scale: 1.5, ..Default::default() };
//! let mut velocity = guided(network(&net), &labels, 10, guidance);
//!
//! let solver = Solver::Dopri5(Dopri5::default());
//! let sampled = sample_pyramid(&path, &solver, &noise, &mut velocity)?;
//! let images = pyramid::merge(&sampled.levels)?;
//! assert_eq!(images.dims(), [2, 3, 8, 8]);
//! println!("evaluations of each image: {:?}", sampled.evaluations());
//! # Ok::<(), lapflow_sample::SampleError>(())
//! ```

mod config;
pub mod error;
mod generator;
pub mod guidance;
pub mod images;
pub mod job;
pub mod metrics;
mod reverse;
pub mod sde;
pub mod segments;
pub mod solver;

pub use config::{SampleConfig, SolverName};
pub use error::{Result, SampleError};
pub use generator::{Drawn, Generator, Request};
pub use guidance::{Guidance, guided, network};
pub use job::{Job, Labels, Output};
pub use reverse::{Kind, ReverseSampler};
pub use segments::{Sampled, sample_pyramid};
pub use solver::{Dopri5, Query, Solver};
