//! The `[data]` section of a config file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{IngestError, Result};

/// What to read and how to bring it to size: the `[data]` section of a config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// A folder, a `.txt` list of paths, or an archive; see [`Source`](crate::Source).
    pub source: String,
    /// Side of the square images that leave, in pixels.
    pub size: u32,
    /// How an image becomes a square of `size`.
    pub crop: Crop,
    /// How faithfully JPEGs are decoded.
    pub decode: Decode,
    /// Turn images as their EXIF orientation asks. Off for parity with published datasets.
    pub exif_orientation: bool,
    /// Emit each image a second time, mirrored, as view 1.
    pub flip: bool,
    /// Take labels from the top-level folders. Off for trees whose folders mean nothing.
    pub class_folders: bool,
    /// A JSON or CSV file of labels, which then replaces the folders' labels.
    pub labels: Option<PathBuf>,
    /// Seed of [`Crop::Random`]; each image's crop depends on it and the image's id alone.
    pub seed: u64,
    /// A stream fails once more than this fraction of its images (rounded up) were skipped.
    pub skip_fraction_max: f64,
    /// Decoding threads; 0 takes one a core.
    pub threads: usize,
    /// Images with more pixels are skipped before anything is allocated for them.
    pub pixels_max: u64,
    /// Files with more bytes are skipped before they are read.
    pub bytes_max: u64,
    /// Images read ahead of the consumer.
    pub queue_images_max: usize,
    /// Memory that the images being decoded may take together, in bytes. An image that needs
    /// more by itself is decoded alone.
    pub decode_bytes_max: u64,
    /// Bytes of files from an object store that may wait for decoding.
    pub fetch_bytes_max: u64,
    /// A request to an object store that is not answered in full for so long is made again.
    pub request_seconds_max: u64,
    /// How long a request to an object store is made again, with growing pauses, before the
    /// image that it was for is given up.
    pub retry_seconds_max: u64,
    /// Sources with more entries are refused.
    pub entries_max: usize,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            source: String::new(),
            size: 256,
            crop: Crop::default(),
            decode: Decode::default(),
            exif_orientation: false,
            flip: false,
            class_folders: true,
            labels: None,
            seed: 0,
            skip_fraction_max: 0.01,
            threads: 0,
            pixels_max: 100_000_000,
            bytes_max: 64 << 20,
            queue_images_max: 64,
            decode_bytes_max: 1 << 30,
            fetch_bytes_max: 256 << 20,
            request_seconds_max: 30,
            retry_seconds_max: 120,
            entries_max: 50_000_000,
        }
    }
}

/// How an image becomes a square.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// ADM's centre crop, as PIL does it: halvings with a box filter, bicubic to size, centre.
    #[default]
    Adm,
    /// The whole image resized to the square, bilinear with antialiasing (LFM's CelebA-HQ).
    Resize,
    /// The largest centred square, bicubic to size.
    Center,
    /// ADM's random crop: the short side at 1 to 1.25 times the size, then a random square.
    Random,
}

/// How faithfully JPEGs are decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decode {
    /// Every pixel.
    #[default]
    Exact,
    /// JPEGs of at least twice the target are decoded at a half, a quarter or an eighth of
    /// their sides, whichever still covers the target: some pixels differ by a few levels.
    Fast,
}

impl Crop {
    /// Pixels that the short side of an image should have for squares of `size`.
    pub(crate) fn short_side(self, size: u32) -> u32 {
        match self {
            Self::Adm | Self::Resize | Self::Center => size,
            Self::Random => (u64::from(size) * 5).div_ceil(4) as u32,
        }
    }
}

impl IngestConfig {
    /// Largest side that leaves; beyond it no pyramid trained here has a use for pixels.
    pub const SIZE_MAX: u32 = 8192;

    /// Checks what the types do not, but for the source, which only who reads it needs.
    ///
    /// # Errors
    /// [`IngestError::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if !(1..=Self::SIZE_MAX).contains(&self.size) {
            let reason = format!("{} is outside 1..={}", self.size, Self::SIZE_MAX);
            return Err(IngestError::config("size", reason));
        }
        if !(0.0..=1.0).contains(&self.skip_fraction_max) {
            let reason = format!("{} is outside 0..=1", self.skip_fraction_max);
            return Err(IngestError::config("skip_fraction_max", reason));
        }
        let at_least_one = [
            ("pixels_max", self.pixels_max),
            ("bytes_max", self.bytes_max),
            ("queue_images_max", self.queue_images_max as u64),
            ("decode_bytes_max", self.decode_bytes_max),
            ("fetch_bytes_max", self.fetch_bytes_max),
            ("request_seconds_max", self.request_seconds_max),
            ("entries_max", self.entries_max as u64),
        ];
        match at_least_one.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(IngestError::config(key, "0 leaves nothing to read")),
            None => Ok(()),
        }
    }

    /// Refuses a configuration that names no source.
    pub(crate) fn require_source(&self) -> Result<()> {
        match self.source.is_empty() {
            true => Err(IngestError::config("source", "no source is given")),
            false => Ok(()),
        }
    }
}
