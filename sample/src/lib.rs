//! Solvers, guidance, image sets and their scores.
//!
//! Enters: the noise of a pyramid's levels and a velocity function, usually a trained network
//! behind [`guided`]. Leaves: sampled levels with their cost ([`Sampled`]), image sets on disk
//! ([`images`]) and scores. The principal type is [`Segments`], which integrates coarse levels
//! first and lets finer ones join on the way; a [`Solver`] says how.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lapflow_sample::{Dopri5, Query, Segments, Solver, noise::image_noise};
//!
//! // Two levels; the data is the constant 0.5, to which the linear path flows straight.
//! let starts = [0.5, 0.0];
//! let mut velocity = |query: &Query| {
//!     let finest = starts.len() - query.levels.len();
//!     let to_data = |(x, start): (&Tensor, &f64)| -> candle_core::Result<Tensor> {
//!         let t = Tensor::new(query.times, x.device())?.to_dtype(x.dtype())?.reshape(((), 1, 1, 1))?;
//!         let data = (t.affine(1.0, -start)? * (0.5 / (1.0 - start)))?;
//!         let noise = x.broadcast_sub(&data)?.broadcast_div(&t.affine(-1.0, 1.0 + 1e-9)?)?;
//!         noise.affine(-1.0, 0.5 / (1.0 - start))
//!     };
//!     Ok(query.levels.iter().zip(&starts[finest..]).map(to_data).collect::<Result<_, _>>()?)
//! };
//! let fine = image_noise(7, &[0, 1], 0, (3, 4, 4), &Device::Cpu)?;
//! let coarse = image_noise(7, &[0, 1], 1, (3, 2, 2), &Device::Cpu)?;
//! let segments = Segments::new(&starts, |t| 1.0 - t)?;
//! let solver = Solver::Dopri5(Dopri5::default());
//! let sampled = segments.sample(&solver, &[fine, coarse], &mut velocity)?;
//!
//! let pixels: Vec<f32> = sampled.levels[0].flatten_all()?.to_vec1()?;
//! assert!(pixels.iter().all(|v| (v - 0.5).abs() < 1e-3));
//! println!("evaluations of each sample: {:?}", sampled.evaluations());
//! # Ok::<(), lapflow_sample::SampleError>(())
//! ```

pub mod error;
pub mod guidance;
pub mod images;
pub mod noise;
pub mod segments;
pub mod solver;

pub use error::{Result, SampleError};
pub use guidance::{Guidance, guided};
pub use segments::{Sampled, Segments};
pub use solver::{Dopri5, Query, Solver};
