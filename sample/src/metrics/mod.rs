//! Scores of image sets: Frechet distances, precision and recall, KID and the Inception Score.
//!
//! Enters: two image sets or saved statistics, and an [`Extractor`]. Each side becomes a
//! [`Summary`]; [`evaluate`] turns two of them into an [`Evaluation`]. Features are rows of f32 in
//! the images' order; statistics of them are kept in f64.

mod evaluation;
mod extractor;
mod frechet;
mod inception;
mod inception_score;
mod kid;
mod linear;
mod neighbours;
mod statistics;
mod summary;

pub use evaluation::{DECODED_LATENTS, EvalConfig, Evaluation, IMAGES_MIN, Metric, evaluate};
pub use extractor::{Extractor, ExtractorIdentity};
pub use frechet::frechet_distance;
pub use inception::{Inception, InceptionFeatures};
pub use inception_score::{InceptionScore, SPLIT_IMAGES, Score};
pub use kid::{Kid, KidConfig, kid};
pub use neighbours::{NEIGHBOURS, PrecisionRecall, precision_recall};
pub use statistics::{Gaussian, Statistics};
pub use summary::{Needs, Summary};
