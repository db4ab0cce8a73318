//! Behind `lapflow autoencoder`: training one, and showing what one does to images.

mod data;
mod recipe;
mod reconstruct;
mod score;
mod train;

pub use reconstruct::{ReconstructArgs, reconstruct};
pub use train::{TrainArgs, train};
