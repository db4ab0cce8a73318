//! What `torch.save` writes: a zip of one pickle and its storages, or the legacy stream.

use super::pickle::{Id, Pickle, Value};
use super::{bytes_left, tensor_from_le};
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Seek};
use zip::{CompressionMethod, ZipArchive};

/// The most bytes a checkpoint's `data.pkl` may have.
const PICKLE_BYTES_MAX: u64 = 1 << 28;
/// The most wrappers around a state dict.
const DEPTH_MAX: usize = 8;
/// The most dictionaries that are searched for tensors, each once.
const DICTS_MAX: usize = 1024;
/// The most storages a legacy checkpoint may list.
const STORAGES_MAX: usize = 1 << 20;
/// `torch.serialization.MAGIC_NUMBER`, which begins the legacy stream.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Wrappers that trainers put around a state dict, the first that is present wins.
const WRAPPERS: [&str; 5] = ["state_dict", "model_state_dict", "model", "module", "params"];

/// A tensor as the pickle describes it: a strided view of a storage.
struct View {
    storage: String,
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// The state dict of a zip checkpoint.
pub fn read_zip(reader: impl Read + Seek) -> Result<BTreeMap<String, Tensor>, String> {
    let mut archive = ZipArchive::new(reader).map_err(|e| format!("bad zip: {e}"))?;
    let root = archive
        .file_names()
        .flatten()
        .find_map(|name| name.strip_suffix("data.pkl").map(str::to_owned))
        .ok_or("a zip without data.pkl, so no PyTorch checkpoint")?;
    if let Ok(mut entry) = archive.by_name(&format!("{root}byteorder")) {
        let mut order = String::new();
        entry.by_ref().take(16).read_to_string(&mut order).map_err(|e| e.to_string())?;
        if order != "little" {
            return Err(format!("its byte order is {order:?}, only little-endian is supported"));
        }
    }
    let pickle = {
        let entry = archive.by_name(&format!("{root}data.pkl")).map_err(|e| e.to_string())?;
        Pickle::read(&mut std::io::BufReader::new(entry.take(PICKLE_BYTES_MAX)))?
    };
    let mut storages = HashMap::new();
    let mut tensors = BTreeMap::new();
    for (name, view) in state_dict(&pickle)? {
        if !storages.contains_key(&view.storage) {
            let entry = archive
                .by_name(&format!("{root}data/{}", view.storage))
                .map_err(|e| format!("`{name}`: storage {}: {e}", view.storage))?;
            let bytes =
                storage_bytes(entry).map_err(|e| format!("storage {}: {e}", view.storage))?;
            storages.insert(view.storage.clone(), bytes);
        }
        let tensor = view.gather(&storages[&view.storage]).map_err(|e| format!("`{name}`: {e}"))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn storage_bytes<R: Read>(mut entry: zip::read::ZipFile<'_, R>) -> Result<Vec<u8>, String> {
    if entry.compression() != CompressionMethod::Stored {
        return Err("compressed, which torch.save never does".into());
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The state dict of a legacy checkpoint (before PyTorch 1.6): magic, protocol and system pickles,
/// the object, the storage keys, then each storage as its element count and bytes.
pub fn read_legacy(mut reader: impl Read + Seek) -> Result<BTreeMap<String, Tensor>, String> {
    let magic = Pickle::read(&mut reader)?;
    if !matches!(magic.value(magic.root()), Value::Long(bytes) if *bytes == LEGACY_MAGIC) {
        return Err("a pickle, but not one that torch.save wrote".into());
    }
    Pickle::read(&mut reader)?;
    Pickle::read(&mut reader)?;
    let pickle = Pickle::read(&mut reader)?;
    let views = state_dict(&pickle)?;
    let widths = storage_widths(&pickle);

    let keys = Pickle::read(&mut reader)?;
    let Value::List(ids) = keys.value(keys.root()) else {
        return Err("its list of storages is missing".into());
    };
    if ids.len() > STORAGES_MAX {
        return Err(format!("it lists {} storages", ids.len()));
    }
    let mut storages = HashMap::new();
    for &id in ids {
        let key = text(&keys, id).ok_or("a storage without a name")?;
        let width = *widths.get(key).ok_or_else(|| format!("storage {key} is never used"))?;
        let mut count = [0u8; 8];
        reader.read_exact(&mut count).map_err(|_| format!("storage {key} is truncated"))?;
        let wanted = u64::from_le_bytes(count).checked_mul(width as u64);
        let available = bytes_left(&mut reader).map_err(|e| e.to_string())?;
        let length = wanted
            .filter(|&bytes| bytes <= available)
            .ok_or_else(|| format!("storage {key} is truncated"))?;
        let mut bytes = vec![0u8; length as usize];
        reader.read_exact(&mut bytes).map_err(|e| format!("storage {key}: {e}"))?;
        storages.insert(key.to_owned(), bytes);
    }
    views
        .into_iter()
        .map(|(name, view)| {
            let bytes = storages
                .get(&view.storage)
                .ok_or_else(|| format!("`{name}`: storage {} is missing", view.storage))?;
            let tensor = view.gather(bytes).map_err(|e| format!("`{name}`: {e}"))?;
            Ok((name, tensor))
        })
        .collect()
}

impl View {
    /// The view's elements in row-major order.
    fn gather(&self, storage: &[u8]) -> Result<Tensor, String> {
        let width = self.dtype.size_in_bytes();
        let count = self
            .shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .ok_or("its shape overflows")?;
        let last = self.shape.iter().zip(&self.strides).try_fold(self.offset, |last, (&d, &s)| {
            last.checked_add(s.checked_mul(d.saturating_sub(1))?)
        });
        let held = storage.len() / width;
        if count > held || (count > 0 && last.is_none_or(|last| last >= held)) {
            return Err(format!("shape {:?} lies outside its storage of {held}", self.shape));
        }
        if self.is_contiguous() {
            let bytes = &storage[self.offset * width..][..count * width];
            return tensor_from_le(self.dtype, &self.shape, bytes);
        }
        let mut bytes = Vec::with_capacity(count * width);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let at = self.offset
                + index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum::<usize>();
            bytes.extend_from_slice(&storage[at * width..][..width]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        tensor_from_le(self.dtype, &self.shape, &bytes)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&dim, &stride)| {
            let fits = dim <= 1 || stride == expected;
            expected *= dim.max(1);
            fits
        })
    }
}

/// Finds the tensors: of the root itself, or of the wrapper that holds the state dict.
fn state_dict(pickle: &Pickle) -> Result<Vec<(String, View)>, String> {
    let mut root = pickle.root();
    let holds = |name| {
        item(pickle, root, name).is_some_and(|id| matches!(pickle.value(id), Value::Dict(_)))
    };
    // Trained weights beside their average: both, each under its name.
    let unwrapped = if holds("model") && holds("ema") { 0 } else { DEPTH_MAX };
    for _ in 0..unwrapped {
        let wrapped = WRAPPERS.iter().find_map(|name| {
            let inner = item(pickle, root, name)?;
            matches!(pickle.value(inner), Value::Dict(_)).then_some(inner)
        });
        root = wrapped.unwrap_or(root);
    }
    let mut views = Vec::new();
    collect(pickle, root, "", &mut HashSet::new(), &mut views)?;
    if views.is_empty() { Err("its pickle holds no tensors".into()) } else { Ok(views) }
}

fn collect(
    pickle: &Pickle,
    id: Id,
    prefix: &str,
    seen: &mut HashSet<Id>,
    views: &mut Vec<(String, View)>,
) -> Result<(), String> {
    let Value::Dict(items) = pickle.value(id) else { return Ok(()) };
    if !seen.insert(id) || seen.len() > DICTS_MAX {
        return Ok(());
    }
    for &(key, value) in items {
        let Some(key) = text(pickle, key) else { continue };
        let name = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
        match pickle.value(value) {
            Value::Dict(_) => collect(pickle, value, &name, seen, views)?,
            Value::Call(..) => {
                if let Some(view) = view(pickle, value).map_err(|e| format!("`{name}`: {e}"))? {
                    views.push((name, view));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Name and arguments of a call.
fn call(pickle: &Pickle, id: Id) -> Option<(&str, &[Id])> {
    let Value::Call(callee, arguments) = pickle.value(id) else { return None };
    match (pickle.value(*callee), pickle.value(*arguments)) {
        (Value::Global(function), Value::Tuple(arguments)) => Some((function, arguments)),
        _ => None,
    }
}

/// The tensor that a call would have built; `None` when it would have built something else.
fn view(pickle: &Pickle, id: Id) -> Result<Option<View>, String> {
    let parameter = match call(pickle, id) {
        Some(("torch._utils _rebuild_parameter", &[tensor, ..])) => tensor,
        _ => id,
    };
    let Some((function, arguments)) = call(pickle, parameter) else { return Ok(None) };
    match function {
        "torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor" => {
            let [storage, offset, shape, strides, ..] = arguments[..] else {
                return Err("a tensor with too few arguments".into());
            };
            let (storage, dtype) = persistent_storage(pickle, storage)?;
            let offset = size(pickle, offset).ok_or("a tensor with a bad offset")?;
            let shape = sizes(pickle, shape).ok_or("a tensor with a bad shape")?;
            let strides = sizes(pickle, strides).ok_or("a tensor with bad strides")?;
            if shape.len() != strides.len() {
                return Err("a tensor with more dimensions than strides".into());
            }
            Ok(Some(View { storage, dtype, offset, shape, strides }))
        }
        _ => Ok(None),
    }
}

/// Key and dtype of `('storage', torch.HalfStorage, '0', 'cpu', 432, ..)`.
fn persistent_storage(pickle: &Pickle, id: Id) -> Result<(String, DType), String> {
    let parts = match pickle.value(id) {
        Value::Persistent(tuple) => pickle.value(*tuple),
        _ => return Err("a tensor without a storage".into()),
    };
    let Value::Tuple(parts) = parts else { return Err("a storage without a description".into()) };
    let [_, class, key, ..] = parts[..] else {
        return Err("a storage without a description".into());
    };
    let Value::Global(class) = pickle.value(class) else {
        return Err("a storage without a class".into());
    };
    let key = text(pickle, key).ok_or("a storage without a key")?;
    let dtype = storage_dtype(class).ok_or_else(|| format!("unsupported storage {class}"))?;
    Ok((key.to_owned(), dtype))
}

/// Bytes an element of each storage has, for all storages that a legacy pickle mentions.
fn storage_widths(pickle: &Pickle) -> HashMap<String, usize> {
    (0..pickle.len())
        .filter_map(|id| persistent_storage(pickle, id).ok())
        .map(|(key, dtype)| (key, dtype.size_in_bytes()))
        .collect()
}

fn storage_dtype(class: &str) -> Option<DType> {
    Some(match class.strip_prefix("torch ")? {
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "DoubleStorage" => DType::F64,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "ByteStorage" | "BoolStorage" => DType::U8,
        _ => return None,
    })
}

fn item(pickle: &Pickle, dict: Id, name: &str) -> Option<Id> {
    let Value::Dict(items) = pickle.value(dict) else { return None };
    items.iter().find(|(key, _)| text(pickle, *key) == Some(name)).map(|&(_, value)| value)
}

fn text(pickle: &Pickle, id: Id) -> Option<&str> {
    match pickle.value(id) {
        Value::Str(text) => Some(text),
        _ => None,
    }
}

fn size(pickle: &Pickle, id: Id) -> Option<usize> {
    match pickle.value(id) {
        Value::Int(size) => usize::try_from(*size).ok(),
        _ => None,
    }
}

/// A tuple of sizes, or `torch.Size` called on one.
fn sizes(pickle: &Pickle, id: Id) -> Option<Vec<usize>> {
    match pickle.value(id) {
        Value::Tuple(items) | Value::List(items) => {
            items.iter().map(|&item| size(pickle, item)).collect()
        }
        Value::Call(_, arguments) => match pickle.value(*arguments) {
            Value::Tuple(items) => sizes(pickle, *items.first()?),
            _ => None,
        },
        _ => None,
    }
}
