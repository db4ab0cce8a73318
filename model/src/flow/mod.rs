//! Flows from noise (t = 0) to data (t = 1): LapFlow and the methods it is compared with.
//!
//! A [`Path`] is alpha, sigma and their derivatives; a [`Flow`] is what training and sampling need
//! to know of a method, [`FlowConfig::build`] makes it.

mod config;
mod diffusion;
mod edify;
mod method;
mod noise;
mod path;
mod pyramidal;

pub use config::{Coupling, FlowConfig, Method, Noise, Sigma};
pub use diffusion::{Diffusion, Reverse};
pub use edify::Edify;
pub use method::{Example, Flow};
pub use noise::{draw_white, image_rng};
pub use path::Path;
pub use pyramidal::Pyramidal;
