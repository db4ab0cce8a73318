//! Pyramids, flow paths, networks and autoencoders.
//!
//! Images or latents enter as Candle tensors `(b, c, h, w)`; Laplacian pyramids, noisy levels and
//! velocities leave. No I/O but weights. The principal type is [`net::Transformer`], the
//! multi-scale diffusion transformer:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use lapflow_model::flow::{Flow, FlowConfig, Path, image_rng};
//! use lapflow_model::net::{Geometry, ModelConfig, Transformer};
//! use lapflow_model::{Params, pyramid};
//!
//! # fn main() -> lapflow_model::Result<()> {
//! let device = Device::Cpu;
//! let geometry = Geometry { channels: 4, height: 16, width: 16, levels: 2, classes: 10 };
//! let config = ModelConfig { width: Some(32), depth: Some(1), heads: Some(2), ..Default::default() };
//! let (net, params) = Params::init(7, DType::F32, &device, |scope| {
//!     Transformer::new(scope, &config, &geometry)
//! })?;
//!
//! let path = Path::new(&FlowConfig::default())?;
//! let noise = path.draw_noise(&mut [image_rng(7, 0)], [4, 16, 16], &device)?;
//! let data = pyramid::split(&Tensor::zeros((1, 4, 16, 16), DType::F32, &device)?, path.levels())?;
//! let (x_t, _velocity) = path.interpolate(1, &data[1], &noise[1], &[0.25])?;
//!
//! let t = Tensor::new(&[0.25f32], &device)?;
//! let velocities = net.forward(&[x_t], &t, None)?; // the coarsest level alone, null class
//! assert_eq!(velocities[0].dims(), [1, 4, 8, 8]);
//! assert!(params.count() > 0);
//! # Ok(())
//! # }
//! ```

pub mod autoencoder;
pub mod checkpoint;
pub mod error;
pub mod flow;
pub mod kernels;
pub mod net;
pub mod normalization;
pub mod params;
mod pool;
pub mod published;
pub mod pyramid;
pub mod weights;

pub use error::{ModelError, Result};
pub use params::{Init, Params, Scope};
pub use pool::on_pool;
