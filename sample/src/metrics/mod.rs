//! Scores of image sets: Frechet distances, precision and recall, KID and the Inception Score.
//!
//! Features are rows of f32, in the images' order; statistics of them are kept in f64.

mod eigen;
mod frechet;
mod inception;
mod inception_score;
mod kid;
mod linear;
mod neighbours;
mod statistics;

pub use frechet::frechet_distance;
pub use inception::{Inception, InceptionFeatures};
pub use inception_score::{InceptionScore, SPLIT_IMAGES, Score};
pub use kid::{Kid, KidConfig, kid};
pub use neighbours::{NEIGHBOURS, PrecisionRecall, precision_recall};
pub use statistics::{Gaussian, Statistics};
