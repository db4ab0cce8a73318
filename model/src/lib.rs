//! Pyramids, flow paths, networks and autoencoders.

pub mod error;
pub mod params;

pub use error::{ModelError, Result};
pub use params::{Init, Params, Scope};
