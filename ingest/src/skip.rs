//! Why one image of a source was left out.

use serde::Serialize;

use crate::decode::Format;

/// An image that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skip {
    /// Position in the sorted listing.
    pub id: u64,
    /// Relative path or member name.
    pub key: String,
    /// What was wrong.
    #[serde(flatten)]
    pub reason: SkipReason,
}

/// What was wrong with an image. Serialised as `{"reason": "truncated", ..}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum SkipReason {
    /// It was listed and is no longer there.
    #[error("it is no longer there")]
    Vanished,
    /// It cannot be read: permissions, a failing disk, an object store that gave up.
    #[error("unreadable: {detail}")]
    Unreadable {
        /// The system's or the store's words.
        detail: String,
    },
    /// It holds no bytes.
    #[error("the file is empty")]
    Empty,
    /// It is larger than `bytes_max`.
    #[error("{bytes} bytes, more than bytes_max = {bytes_max}")]
    TooManyBytes {
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// Its header announces more than `pixels_max` pixels.
    #[error("{width}x{height} pixels, more than pixels_max = {pixels_max}")]
    TooManyPixels {
        /// Width in its header.
        width: u32,
        /// Height in its header.
        height: u32,
        /// The limit.
        pixels_max: u64,
    },
    /// Its first bytes are those of no format read here.
    #[error("neither JPEG, PNG, WebP nor PPM: it starts with {start}")]
    Unrecognized {
        /// The first bytes, in hexadecimal.
        start: String,
    },
    /// Its data end before the image does.
    #[error("truncated {format}")]
    Truncated {
        /// The format of its first bytes.
        format: Format,
    },
    /// Its data contradict its format.
    #[error("corrupt {format}: {detail}")]
    Corrupt {
        /// The format of its first bytes.
        format: Format,
        /// The decoder's words.
        detail: String,
    },
    /// A variant of the format that is not decoded, such as JPEG of 12 bits a sample.
    #[error("unsupported {format}: {detail}")]
    Unsupported {
        /// The format of its first bytes.
        format: Format,
        /// The decoder's words.
        detail: String,
    },
    /// The label file does not name it.
    #[error("the label file does not name it")]
    Unlabelled,
}
