//! TensorBoard event files: TFRecords of `Event` messages, written without a protobuf library.

use crate::error::{Result, TrainError};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

// Field numbers of tensorflow/core/util/event.proto and framework/summary.proto.
const EVENT_WALL_TIME: u32 = 1;
const EVENT_STEP: u32 = 2;
const EVENT_FILE_VERSION: u32 = 3;
const EVENT_SUMMARY: u32 = 5;
const EVENT_SESSION_LOG: u32 = 7;
const SESSION_LOG_STATUS: u32 = 1;
const SESSION_LOG_START: u64 = 1;
const SUMMARY_VALUE: u32 = 1;
const VALUE_TAG: u32 = 1;
const VALUE_SIMPLE: u32 = 2;
const VALUE_IMAGE: u32 = 4;
const IMAGE_HEIGHT: u32 = 1;
const IMAGE_WIDTH: u32 = 2;
const IMAGE_COLORSPACE: u32 = 3;
const IMAGE_ENCODED: u32 = 4;
const RGB: u64 = 3;

/// A picture as a PNG file's bytes.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The PNG file.
    pub png: Vec<u8>,
}

/// An event file being written; flushed after every event.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `folder` for a run that goes on after `step` steps: what other files there
    /// hold of later steps is void, and TensorBoard is told so.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn create(folder: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        // TensorBoard reads files in the order of their names.
        let (nanos, process) = (now().as_nanos(), std::process::id());
        let path = folder.join(format!("events.out.tfevents.{nanos:020}.{process}.lapflow"));
        let file = File::create_new(&path).map_err(TrainError::io(&path))?;
        let mut events = Self { file, path };
        events.write(0, Message::default().bytes(EVENT_FILE_VERSION, b"brain.Event:2"))?;
        if step > 0 {
            let start = Message::default().varint(SESSION_LOG_STATUS, SESSION_LOG_START);
            events.write(step + 1, Message::default().bytes(EVENT_SESSION_LOG, &start.0))?;
        }
        Ok(events)
    }

    /// Writes `scalars` of `step`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in scalars {
            let value = Message::default()
                .bytes(VALUE_TAG, tag.as_bytes())
                .float(VALUE_SIMPLE, *value as f32);
            summary = summary.bytes(SUMMARY_VALUE, &value.0);
        }
        self.write(step, Message::default().bytes(EVENT_SUMMARY, &summary.0))
    }

    /// Writes a picture of `step`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn image(&mut self, step: u64, tag: &str, picture: &Picture) -> Result<()> {
        let image = Message::default()
            .varint(IMAGE_HEIGHT, picture.height.into())
            .varint(IMAGE_WIDTH, picture.width.into())
            .varint(IMAGE_COLORSPACE, RGB)
            .bytes(IMAGE_ENCODED, &picture.png);
        let value =
            Message::default().bytes(VALUE_TAG, tag.as_bytes()).bytes(VALUE_IMAGE, &image.0);
        let summary = Message::default().bytes(SUMMARY_VALUE, &value.0);
        self.write(step, Message::default().bytes(EVENT_SUMMARY, &summary.0))
    }

    fn write(&mut self, step: u64, what: Message) -> Result<()> {
        let event = Message::default()
            .double(EVENT_WALL_TIME, now().as_secs_f64())
            .varint(EVENT_STEP, step);
        let event = [event.0, what.0].concat();
        self.file.write_all(&record(&event)).map_err(TrainError::io(&self.path))
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A protobuf message's fields so far.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u32, wire: u32) {
        self.number(u64::from(field << 3 | wire));
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(mut self, field: u32, value: u64) -> Self {
        self.key(field, 0);
        self.number(value);
        self
    }

    fn double(mut self, field: u32, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.key(field, 2);
        self.number(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn float(mut self, field: u32, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// A TFRecord: length, its masked checksum, data, its masked checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let (head, tail) = (masked(&length).to_le_bytes(), masked(data).to_le_bytes());
    [&length[..], &head, data, &tail].concat()
}

/// A CRC of data that itself holds CRCs is weak: TFRecords rotate it and add a constant.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !data.iter().fold(!0, |crc, &byte| TABLE[(crc as u8 ^ byte) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn long_numbers_take_several_bytes() {
        assert_eq!(Message::default().varint(1, 300).0, [0x08, 0xac, 0x02]);
    }
}
