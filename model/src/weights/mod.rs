//! Weight files: safetensors, and PyTorch's zip and legacy pickles, read without executing them.
//!
//! [`Weights::read`] finds the format out from the first bytes. Tensors come back on the host in
//! the file's own dtype, contiguous, by the names they have in the file. A folder of diffusers stands
//! for the weights in it.

mod pickle;
mod safetensors;
mod torch;

use crate::error::{ModelError, Result};
use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What diffusers calls the weights in a model's folder.
const DIFFUSERS_WEIGHTS: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"];
/// Endings of weight files.
const ENDINGS: [&str; 5] = ["safetensors", "pth", "pt", "ckpt", "bin"];
/// Bytes from which a file that holds no weights is told.
const HEAD_BYTES: u64 = 512;
/// Keys that an error quotes of weights that hold something else.
const KEYS_QUOTED: usize = 3;

/// The content of one weight file.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Tensors by name, on the host.
    pub tensors: BTreeMap<String, Tensor>,
    /// The free-form strings of a safetensors header; empty for pickles.
    pub metadata: BTreeMap<String, String>,
    /// Lower-case hex SHA-256 of the file.
    pub sha256: String,
    /// The file, or what stands for it.
    pub path: PathBuf,
}

impl Weights {
    /// Reads `.safetensors`, `.pth`, `.pt`, `.ckpt` or `.bin`, whatever the file is called, or the
    /// weights in a folder of diffusers.
    ///
    /// # Errors
    /// [`ModelError::Weights`] naming the file when it cannot be read, is of no known format, is
    /// truncated, or holds a tensor that lies outside its storage.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = &file_of(path.as_ref())?;
        let file = File::open(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound if is_hub_name(path) => {
                let reason = "a name on a hub, perhaps, and no file: download its weights first";
                ModelError::weights(path, reason)
            }
            _ => ModelError::weights(path, e),
        })?;
        read_from(path, BufReader::new(file)).map_err(|reason| ModelError::weights(path, reason))
    }

    /// Reads weights compiled into the program; `name` stands for the path in errors.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        let path = Path::new(name);
        read_from(path, Cursor::new(bytes)).map_err(|reason| ModelError::weights(name, reason))
    }

    /// The first of their keys, for an error about weights that hold something else.
    pub(crate) fn first_keys(&self) -> String {
        let keys = self.tensors.keys().take(KEYS_QUOTED);
        let keys: Vec<_> = keys.map(|key| format!("`{key}`")).collect();
        format!("its {} keys begin with {}", self.tensors.len(), keys.join(", "))
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

/// The weights that `path` names: itself, or those in a folder.
fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let inside = DIFFUSERS_WEIGHTS.iter().map(|name| path.join(name));
    inside.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        let [first, second] = DIFFUSERS_WEIGHTS;
        ModelError::weights(path, format!("a folder without {first} or {second}: name a file"))
    })
}

/// Whether `path` looks like `owner/model`.
fn is_hub_name(path: &Path) -> bool {
    let ending =
        path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
    path.is_relative() && path.components().count() == 2 && !ending
}

/// What a file that begins with `head` is, where it is a known kind of text.
fn text_kind(head: &[u8]) -> Option<String> {
    let text = str::from_utf8(head).ok()?.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    if text.starts_with("version https://git-lfs") {
        Some("a Git LFS pointer, not the weights: run `git lfs pull` in its repository".into())
    } else if lower.starts_with("<!doctype") || lower.starts_with("<html") {
        Some("a web page, not weights: the download failed".into())
    } else if text.starts_with('{') {
        Some("JSON, not weights: name the weight file that it describes".into())
    } else {
        let line = text.lines().next().filter(|line| !line.is_empty())?;
        let plain = !text.chars().any(|c| c.is_control() && !c.is_whitespace());
        let line: String = line.chars().take(60).collect();
        plain.then(|| format!("neither safetensors nor a PyTorch checkpoint, but text: {line:?}"))
    }
}

/// Up to `HEAD_BYTES` from the start, cut where a character ends.
fn head_of(reader: &mut (impl Read + Seek)) -> std::io::Result<Vec<u8>> {
    reader.rewind()?;
    let mut head = Vec::new();
    reader.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    reader.rewind()?;
    if let Err(e) = str::from_utf8(&head)
        && e.error_len().is_none()
    {
        head.truncate(e.valid_up_to());
    }
    Ok(head)
}

fn read_from(path: &Path, mut reader: impl Read + Seek) -> Result<Weights, String> {
    let sha256 = sha256(&mut reader).map_err(|e| e.to_string())?;
    let head = head_of(&mut reader).map_err(|e| e.to_string())?;
    if let Some(kind) = text_kind(&head) {
        return Err(kind);
    }
    let Some(magic) = head.first_chunk::<9>() else {
        return Err("too short to hold weights".into());
    };
    let (tensors, metadata) = match *magic {
        [b'P', b'K', 3, 4, ..] => (torch::read_zip(reader)?, BTreeMap::new()),
        [.., b'{'] => safetensors::read(reader)?,
        [0x80, 2..=5, ..] => (torch::read_legacy(reader)?, BTreeMap::new()),
        _ => return Err("neither safetensors nor a PyTorch checkpoint".into()),
    };
    Ok(Weights { tensors, metadata, sha256, path: path.to_owned() })
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
