//! Image sets on disk: PNG folders, ADM's `.npz` and Parquet.
//!
//! Every file appears complete under its name or not at all. Pixels are RGB, interleaved,
//! row-major.

pub mod npy;
pub mod npz;
mod partial;
mod pixels;
pub mod png;

pub use npz::{Compression, NpzImages, NpzWriter};
pub use partial::Partial;
pub use pixels::{Rounding, to_pixels};
