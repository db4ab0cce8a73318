//! Sources of images to a bounded stream of cropped RGB images.
//!
//! In: an [`IngestConfig`], the `[data]` section of a config file. Out: a stream of
//! [`Outcome`]s, each a square [`RgbImage`] with its label and identity, or a [`Skip`] with its
//! reason. Principal type: [`Source`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use futures::StreamExt;
//! use lapflow_ingest::{IngestConfig, Outcome, Source};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # std::fs::create_dir(folder.path().join("tabby"))?;
//! # image::RgbImage::new(90, 70).save(folder.path().join("tabby/one.png"))?;
//! # std::fs::write(folder.path().join("tabby/two.png"), b"")?;
//! let config = IngestConfig {
//!     source: folder.path().display().to_string(),
//!     size: 64,
//!     skip_fraction_max: 0.5,
//!     ..IngestConfig::default()
//! };
//! let source = Arc::new(Source::open(&config).await?);
//! assert_eq!(source.classes(), ["tabby"]);
//!
//! let order = (0..source.entries().len()).collect();
//! let mut stream = std::pin::pin!(source.stream(order));
//! while let Some(outcome) = stream.next().await {
//!     match outcome? {
//!         Outcome::Image(item) => assert_eq!((item.image.width, item.label), (64, Some(0))),
//!         Outcome::Skip(skip) => assert_eq!(skip.reason.to_string(), "the file is empty"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`decode`] (or [`decode_to_cover`]) and [`crop`] are the pure functions beneath; [`export`]
//! writes the images as PNGs.

mod budget;
mod config;
mod crop;
mod decode;
mod error;
mod export;
mod halve;
mod image;
mod left_out;
mod resize;
mod skip;
mod source;
mod stream;

pub use config::{Crop, Decode, IngestConfig};
pub use crop::crop;
pub use decode::{Format, Limits, decode, decode_to_cover};
pub use error::{IngestError, Result};
pub use export::{Exported, export};
pub use image::RgbImage;
pub use left_out::LeftOut;
pub use skip::{Skip, SkipReason};
pub use source::{Entry, Opened, Pick, Piece, Source, Survey, image_files};
pub use stream::{Item, Outcome};
