//! The safetensors format, one tensor at a time so that a file is never held twice.

use super::{bytes_left, tensor_from_le};
use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The longest header that is read; the format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;

type Content = (BTreeMap<String, Tensor>, BTreeMap<String, String>);

/// Tensors and metadata of a file.
pub fn read(mut reader: impl Read + Seek) -> Result<Content, String> {
    let mut length = [0u8; 8];
    reader.read_exact(&mut length).map_err(|e| e.to_string())?;
    let header_bytes = u64::from_le_bytes(length);
    let available = bytes_left(&mut reader).map_err(|e| e.to_string())?;
    if header_bytes > HEADER_BYTES_MAX.min(available) {
        return Err(format!("its safetensors header claims {header_bytes} bytes"));
    }
    let mut header = vec![0u8; header_bytes as usize];
    reader.read_exact(&mut header).map_err(|e| e.to_string())?;
    let header: Metadata =
        serde_json::from_slice(&header).map_err(|e| format!("bad safetensors header: {e}"))?;
    let data_bytes = available - header_bytes;
    if header.data_len() as u64 != data_bytes {
        let claimed = header.data_len();
        return Err(format!("truncated: {claimed} bytes of tensors claimed, {data_bytes} there"));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in header.tensors() {
        let (start, end) = info.data_offsets;
        let dtype = candle_dtype(info.dtype)
            .ok_or_else(|| format!("`{name}` has the unsupported dtype {:?}", info.dtype))?;
        let mut bytes = vec![0u8; end - start];
        reader
            .seek(SeekFrom::Start(8 + header_bytes + start as u64))
            .and_then(|_| reader.read_exact(&mut bytes))
            .map_err(|e| format!("`{name}`: {e}"))?;
        let tensor =
            tensor_from_le(dtype, &info.shape, &bytes).map_err(|e| format!("`{name}`: {e}"))?;
        tensors.insert(name, tensor);
    }
    let metadata = header.metadata().iter().flatten();
    Ok((tensors, metadata.map(|(k, v)| (k.clone(), v.clone())).collect()))
}

/// Writes a file beside `path` and renames it.
pub fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), String> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = safetensors_dtype(tensor.dtype())
            .ok_or_else(|| format!("`{name}` has the unsupported dtype {:?}", tensor.dtype()))?;
        let bytes = bytes_of(tensor).map_err(|e| format!("`{name}`: {e}"))?;
        data.push((name, dtype, tensor.dims().to_vec(), bytes));
    }
    let views = data
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| e.to_string())?;
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let beside = path.with_extension("safetensors.partial");
    safetensors::serialize_to_file(views, metadata, &beside).map_err(|e| e.to_string())?;
    std::fs::rename(&beside, path).map_err(|e| e.to_string())
}

fn bytes_of(tensor: &Tensor) -> candle_core::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(tensor.elem_count() * tensor.dtype().size_in_bytes());
    tensor.write_bytes(&mut bytes)?;
    Ok(bytes)
}

fn candle_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::U8 | Dtype::BOOL => DType::U8,
        Dtype::U32 => DType::U32,
        Dtype::I16 => DType::I16,
        Dtype::I32 => DType::I32,
        Dtype::I64 => DType::I64,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => return None,
    })
}

fn safetensors_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        _ => return None,
    })
}
