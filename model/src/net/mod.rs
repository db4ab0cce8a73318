//! The multi-scale diffusion transformer (MATH section 4): DiT blocks over the tokens of every
//! active pyramid level, with level-specific parts (mixture of transformers) and attention from
//! coarse to fine.

mod block;
mod config;
mod embed;
mod flops;
mod layers;
mod precision;
mod tape;
mod transformer;

pub use config::{Geometry, ModelConfig, Part, Preset};
pub(crate) use embed::positions;
pub use flops::{Cost, cost};
pub use layers::Gradients;
pub use precision::Precision;
pub use transformer::Transformer;
