//! Image sets on disk: PNG folders, ADM's `.npz` and Parquet.
//!
//! Every file appears complete under its name or not at all. Pixels are RGB, interleaved,
//! row-major.

pub mod npy;
pub mod npz;
pub mod parquet;
mod partial;
mod pixels;
pub mod png;
mod set;

pub use npz::{Compression, NpzImages, NpzWriter};
pub use partial::Partial;
pub use pixels::{Rounding, to_pixels};
pub(crate) use set::RECORD;
pub use set::{ImageSet, SetContent};
