//! The demo's image set: cartoon animal heads, drawn from a seed.
//!
//! [`render`](render::render) draws one picture and [`write_set`] a set of
//! them in class folders. A seed fixes a picture's bytes. [`score`] says whether samples look like
//! their class.

pub mod score;

mod dataset;
pub mod render;

mod animals;
mod canvas;
mod colour;
mod features;
mod looks;
mod shapes;

pub use dataset::write_set;
pub use render::CLASSES;
