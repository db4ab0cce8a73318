//! Pictures to train on: cartoon animal heads, drawn from a seed.
//!
//! In: a class and a seed. Out: an RGB picture of any size, or a set of them in class folders.
//! Principal function: [`render`]. A seed fixes a picture's bytes.
//!
//! ```
//! use lapflow_demo::{CLASSES, render, write_set};
//!
//! # fn main() -> std::io::Result<()> {
//! assert_eq!(render(0, 7, 64), render(0, 7, 64));
//! let folder = tempfile::tempdir()?;
//! let written = write_set(folder.path(), 0..2, 32)?;
//! assert_eq!(written, 2 * CLASSES.len());
//! # Ok(())
//! # }
//! ```

mod animals;
mod canvas;
mod colour;
mod features;
mod looks;
mod render;
mod set;
mod shapes;

pub use render::{CLASSES, render};
pub use set::write_set;
