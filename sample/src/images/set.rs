//! Image sets as a stream of decoded images: folders, `.npz` and Parquet.

use super::NpzImages;
use super::parquet::ParquetImages;
use crate::error::{Result, SampleError};
use lapflow_ingest::{Format, LeftOut, Limits, RgbImage, decode, image_files};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that are decoded at once.
const DECODE_FILES: usize = 64;

/// The file in a folder of samples that says what they are of.
pub(crate) const RECORD: &str = "job.json";

/// The format of WebP files that lose nothing.
const LOSSLESS_WEBP: &str = "lossless WebP";

/// A set of images on disk, all of one size.
pub struct ImageSet {
    path: PathBuf,
    kind: Kind,
    left_out: LeftOut,
}

enum Kind {
    Folder(Vec<PathBuf>),
    Npz(Box<NpzImages>),
    Parquet(Box<ParquetImages>),
}

/// What a set turned out to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SetContent {
    /// Images.
    pub images: usize,
    /// Width of every image in pixels.
    pub width: u32,
    /// Height of every image in pixels.
    pub height: u32,
    /// Images in each file format.
    pub formats: BTreeMap<String, usize>,
    /// What else a folder holds.
    pub left_out: LeftOut,
}

impl ImageSet {
    /// Opens a folder (searched recursively, in the order of names), an ADM `.npz` or a Parquet
    /// file with an `image` column.
    ///
    /// # Errors
    /// When there is nothing at `path`, nothing in it, something else, or a set that its job has
    /// not finished.
    pub fn open(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let mut left_out = LeftOut::default();
        let kind = if path.is_dir() {
            let files;
            (files, left_out) = image_files(path).map_err(|e| SampleError::file(path, e))?;
            if files.is_empty() {
                let reason = match left_out.is_empty() {
                    true => "holds no images".to_string(),
                    false => format!("holds no images, but {left_out}"),
                };
                return Err(SampleError::file(path, reason));
            }
            check_finished(path, files.len())?;
            Kind::Folder(files)
        } else if !path.exists() {
            return Err(SampleError::file(path, "does not exist"));
        } else if extension == "npz" {
            Kind::Npz(Box::new(NpzImages::open(path)?))
        } else if extension == "parquet" {
            Kind::Parquet(Box::new(ParquetImages::open(path)?))
        } else {
            return Err(SampleError::file(path, "is no folder, .npz or .parquet file"));
        };
        Ok(Self { path: path.to_path_buf(), kind, left_out })
    }

    /// How many images there are, without looking at them.
    pub fn images(&self) -> usize {
        match &self.kind {
            Kind::Folder(files) => files.len(),
            Kind::Npz(npz) => npz.count,
            Kind::Parquet(parquet) => parquet.rows(),
        }
    }

    /// Hands all images to `each` in batches of `batch`, in order.
    ///
    /// # Errors
    /// For an image that cannot be decoded or is not of the first one's size, by name, and
    /// whatever `each` returns.
    pub fn for_batches(
        self,
        batch: usize,
        each: &mut dyn FnMut(&[RgbImage]) -> Result<()>,
    ) -> Result<SetContent> {
        let content = SetContent { left_out: self.left_out, ..SetContent::default() };
        let mut batches = Batches { each, batch, pending: Vec::new(), content };
        match self.kind {
            Kind::Folder(files) => {
                for files in files.chunks(DECODE_FILES) {
                    let read = |path: &PathBuf| {
                        let bytes = std::fs::read(path).map_err(|e| SampleError::file(path, e))?;
                        decoded(&bytes, || path.display().to_string())
                    };
                    let images: Vec<_> = files.par_iter().map(read).collect();
                    for (image, path) in images.into_iter().zip(files) {
                        let (image, format) = image?;
                        batches.push(image, &format, || path.display().to_string())?;
                    }
                }
            }
            Kind::Npz(mut npz) => {
                let (width, height) = (npz.width as u32, npz.height as u32);
                npz.for_each(|i, pixels| {
                    let image = RgbImage { width, height, pixels: pixels.to_vec() };
                    batches.push(image, "npz", || format!("image {i}"))
                })?;
            }
            Kind::Parquet(parquet) => parquet.for_each(|row, bytes| {
                let name = || format!("{} row {row}", self.path.display());
                let (image, format) = decoded(bytes, name)?;
                batches.push(image, &format, name)
            })?,
        }
        batches.finish(&self.path)
    }
}

/// Gathers images of one size into batches.
struct Batches<'a> {
    each: &'a mut dyn FnMut(&[RgbImage]) -> Result<()>,
    batch: usize,
    pending: Vec<RgbImage>,
    content: SetContent,
}

impl Batches<'_> {
    fn push(&mut self, image: RgbImage, format: &str, name: impl Fn() -> String) -> Result<()> {
        let content = &mut self.content;
        if content.images == 0 {
            (content.width, content.height) = (image.width, image.height);
        } else if (content.width, content.height) != (image.width, image.height) {
            let reason = format!(
                "is {}x{} where the images before it are {}x{}",
                image.width, image.height, content.width, content.height
            );
            return Err(SampleError::file(name(), reason));
        }
        content.images += 1;
        *content.formats.entry(format.to_string()).or_default() += 1;
        self.pending.push(image);
        if self.pending.len() == self.batch { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let images = std::mem::take(&mut self.pending);
        if images.is_empty() { Ok(()) } else { (self.each)(&images) }
    }

    fn finish(mut self, path: &Path) -> Result<SetContent> {
        self.flush()?;
        match self.content.images {
            0 => Err(SampleError::file(path, "holds no images")),
            _ => Ok(self.content),
        }
    }
}

fn decoded(bytes: &[u8], name: impl Fn() -> String) -> Result<(RgbImage, String)> {
    let image = decode(bytes, &Limits::default());
    let format = Format::sniff(bytes).map(|format| match (format, bytes.get(12..16)) {
        (Format::WebP, Some(b"VP8L")) => LOSSLESS_WEBP.to_string(),
        _ => format.to_string(),
    });
    image.and_then(|image| Ok((image, format?))).map_err(|e| SampleError::file(name(), e))
}

/// Refuses a folder that holds fewer images than the job that is filling it is to draw.
fn check_finished(folder: &Path, images: usize) -> Result<()> {
    let path = folder.join(RECORD);
    let Ok(bytes) = std::fs::read(&path) else { return Ok(()) };
    let record: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| SampleError::file(&path, e))?;
    match record["count"].as_u64() {
        Some(count) if count > images as u64 => {
            let reason = format!("holds {images} of the {count} images that its {RECORD} says");
            Err(SampleError::file(folder, format!("{reason}: the job has not finished")))
        }
        _ => Ok(()),
    }
}
