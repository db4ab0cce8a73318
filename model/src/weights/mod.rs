//! Weight files: safetensors, and PyTorch's zip and legacy pickles, read without executing them.
//!
//! [`Weights::read`] finds the format out from the first bytes. Tensors come back on the host in
//! the file's own dtype, contiguous, by the names they have in the file.

mod pickle;
mod safetensors;
mod torch;

use crate::error::{ModelError, Result};
use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

/// The content of one weight file.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Tensors by name, on the host.
    pub tensors: BTreeMap<String, Tensor>,
    /// The free-form strings of a safetensors header; empty for pickles.
    pub metadata: BTreeMap<String, String>,
    /// Lower-case hex SHA-256 of the file.
    pub sha256: String,
}

impl Weights {
    /// Reads `.safetensors`, `.pth`, `.pt`, `.ckpt` or `.bin`, whatever the file is called.
    ///
    /// # Errors
    /// [`ModelError::Weights`] naming the file when it cannot be read, is of no known format, is
    /// truncated, or holds a tensor that lies outside its storage.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| ModelError::weights(path, e))?;
        read_from(BufReader::new(file)).map_err(|reason| ModelError::weights(path, reason))
    }

    /// Reads weights compiled into the program; `name` stands for the path in errors.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        read_from(Cursor::new(bytes)).map_err(|reason| ModelError::weights(name, reason))
    }

    /// Writes `tensors` as safetensors, beside `path` first and then renamed.
    ///
    /// # Errors
    /// [`ModelError::Weights`] naming the file when it cannot be written.
    pub fn write(
        path: impl AsRef<Path>,
        tensors: &BTreeMap<String, Tensor>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let path = path.as_ref();
        safetensors::write(path, tensors, metadata)
            .map_err(|reason| ModelError::weights(path, reason))
    }
}

fn read_from(mut reader: impl Read + Seek) -> Result<Weights, String> {
    let sha256 = sha256(&mut reader).map_err(|e| e.to_string())?;
    let mut magic = [0u8; 9];
    reader.rewind().map_err(|e| e.to_string())?;
    let known = reader.read_exact(&mut magic).is_ok();
    reader.rewind().map_err(|e| e.to_string())?;
    let (tensors, metadata) = match magic {
        _ if !known => return Err("too short to hold weights".into()),
        [b'P', b'K', 3, 4, ..] => (torch::read_zip(reader)?, BTreeMap::new()),
        [.., b'{'] => safetensors::read(reader)?,
        [0x80, 2..=5, ..] => (torch::read_legacy(reader)?, BTreeMap::new()),
        _ => return Err("neither safetensors nor a PyTorch checkpoint".into()),
    };
    Ok(Weights { tensors, metadata, sha256 })
}

fn sha256(reader: &mut impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(reader, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A host tensor of `dtype` from its little-endian bytes.
fn tensor_from_le(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    if cfg!(target_endian = "big") {
        return Err("weights can be read on little-endian machines only".into());
    }
    Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu).map_err(|e| e.to_string())
}

/// How many bytes there are from here to the end.
fn bytes_left(reader: &mut impl Seek) -> std::io::Result<u64> {
    let here = reader.stream_position()?;
    let end = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(here))?;
    Ok(end - here)
}
