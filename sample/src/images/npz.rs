//! Image sets as ADM's evaluator reads them: `arr_0`, uint8, (N, H, W, 3), in a `.npz`.

use super::Partial;
use super::npy::{Element, Header};
use crate::error::{Result, SampleError};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// How the archive's members are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are, as `numpy.savez` does.
    #[default]
    Stored,
    /// Deflated, as `numpy.savez_compressed` does.
    Deflate,
}

/// Writes an image set one image at a time, in constant memory.
pub struct NpzWriter {
    zip: ZipWriter<Partial>,
    options: SimpleFileOptions,
    path: PathBuf,
    item_bytes: usize,
    expected: usize,
    written: usize,
}

impl NpzWriter {
    /// Starts a set of exactly `count` items of `shape`: `[height, width, 3]` in U8 of images.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(
        path: &Path,
        count: usize,
        element: Element,
        shape: &[usize],
        compression: Compression,
    ) -> Result<Self> {
        let options = options(compression);
        let mut zip = ZipWriter::new(Partial::create(path)?);
        let item_bytes = element.bytes() * shape.iter().product::<usize>();
        let header = Header { element, shape: [&[count], shape].concat() };
        zip.start_file("arr_0.npy", options).map_err(|e| SampleError::file(path, e))?;
        header.write(&mut zip).map_err(|e| SampleError::file(path, e))?;
        Ok(Self { zip, options, path: path.to_path_buf(), item_bytes, expected: count, written: 0 })
    }

    /// Appends one item: an image's RGB `pixels`, interleaved, or other elements in C order.
    ///
    /// # Errors
    /// For an image of another size or beyond the count, and when the disk is full.
    pub fn push(&mut self, pixels: &[u8]) -> Result<()> {
        if pixels.len() != self.item_bytes {
            let (actual, wanted) = (pixels.len(), self.item_bytes);
            let reason = format!("image {} has {actual} bytes, not {wanted}", self.written);
            return Err(SampleError::file(&self.path, reason));
        }
        if self.written == self.expected {
            let reason = format!("was made for {} images, there are more", self.expected);
            return Err(SampleError::file(&self.path, reason));
        }
        self.written += 1;
        self.zip.write_all(pixels).map_err(|e| SampleError::file(&self.path, e))
    }

    /// Adds `labels` as `arr_1` (int64) where given and puts the file in its place.
    ///
    /// # Errors
    /// When images or labels are missing, and when the disk is full.
    pub fn finish(mut self, labels: Option<&[i64]>) -> Result<()> {
        let wrong = |what: &str, actual: usize| {
            let reason = format!("has {actual} {what} of {}", self.expected);
            Err(SampleError::file(&self.path, reason))
        };
        if self.written != self.expected {
            return wrong("images", self.written);
        }
        if let Some(labels) = labels {
            if labels.len() != self.expected {
                return wrong("labels", labels.len());
            }
            let data: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
            let header = Header { element: Element::I64, shape: vec![labels.len()] };
            add_array(&mut self.zip, "arr_1", self.options, &header, &data)
                .map_err(|e| SampleError::file(&self.path, e))?;
        }
        self.zip.finish().map_err(|e| SampleError::file(&self.path, e))?.keep()
    }
}

/// Writes named arrays of f64 or bytes as one `.npz`, deflated.
///
/// # Errors
/// When the file cannot be written.
pub fn write_arrays(path: &Path, arrays: &[(&str, Header, &[u8])]) -> Result<()> {
    let mut zip = ZipWriter::new(Partial::create(path)?);
    for (name, header, data) in arrays {
        add_array(&mut zip, name, options(Compression::Deflate), header, data)
            .map_err(|e| SampleError::file(path, e))?;
    }
    zip.finish().map_err(|e| SampleError::file(path, e))?.keep()
}

fn options(compression: Compression) -> SimpleFileOptions {
    let method = match compression {
        Compression::Stored => CompressionMethod::Stored,
        Compression::Deflate => CompressionMethod::Deflated,
    };
    // Zip64 sizes, as numpy writes them: a set may pass 4 GiB.
    SimpleFileOptions::default().compression_method(method).large_file(true)
}

fn add_array(
    zip: &mut ZipWriter<Partial>,
    name: &str,
    options: SimpleFileOptions,
    header: &Header,
    data: &[u8],
) -> std::io::Result<()> {
    zip.start_file(format!("{name}.npy"), options)?;
    header.write(zip)?;
    zip.write_all(data)
}

/// A `.npz` file's arrays.
pub struct NpzFile {
    zip: ZipArchive<BufReader<File>>,
    path: PathBuf,
}

impl NpzFile {
    /// Opens the archive.
    ///
    /// # Errors
    /// When it cannot be read or is not a zip archive.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| SampleError::file(path, e))?;
        let zip = ZipArchive::new(BufReader::with_capacity(1 << 18, file))
            .map_err(|e| SampleError::file(path, format!("is not an .npz archive: {e}")))?;
        Ok(Self { zip, path: path.to_path_buf() })
    }

    /// Whether it holds an array called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.zip.index_for_name(&format!("{name}.npy")).is_some()
    }

    /// The header of array `name` and its data, as a reader.
    ///
    /// # Errors
    /// When the array is absent or of an unknown type.
    pub fn array(&mut self, name: &str) -> Result<(Header, impl Read + '_)> {
        let path = self.path.clone();
        let error = |e: &dyn std::fmt::Display| SampleError::file(&path, format!("{name} {e}"));
        let mut member = self
            .zip
            .by_name(&format!("{name}.npy"))
            .map_err(|e| SampleError::file(&path, format!("has no array {name}: {e}")))?;
        let header = Header::read(&mut member).map_err(|e| error(&e))?;
        Ok((header, member))
    }

    /// Array `name` as f64, from f32, f64 or integers, of at most `elements_max` elements.
    ///
    /// # Errors
    /// When it is absent, larger, or ends early.
    pub fn floats(&mut self, name: &str, elements_max: usize) -> Result<(Vec<usize>, Vec<f64>)> {
        let path = self.path.clone();
        let (header, mut data) = self.array(name)?;
        if header.elements() > elements_max {
            let reason = format!("{name} has shape {:?}, too large to read", header.shape);
            return Err(SampleError::file(path, reason));
        }
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes)
            .map_err(|e| SampleError::file(&path, format!("{name}: {e}")))?;
        let values: Vec<f64> = match header.element {
            Element::U8 => bytes.iter().map(|b| f64::from(*b)).collect(),
            Element::I64 => chunks(&bytes).map(|b| i64::from_le_bytes(b) as f64).collect(),
            Element::F32 => chunks(&bytes).map(|b| f64::from(f32::from_le_bytes(b))).collect(),
            Element::F64 => chunks(&bytes).map(f64::from_le_bytes).collect(),
        };
        if values.len() != header.elements() {
            let reason =
                format!("{name} ends after {} of {} values", values.len(), header.elements());
            return Err(SampleError::file(path, reason));
        }
        Ok((header.shape, values))
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// An image set in a `.npz`, read one image at a time.
pub struct NpzImages {
    file: NpzFile,
    /// How many images there are.
    pub count: usize,
    /// Their height in pixels.
    pub height: usize,
    /// Their width in pixels.
    pub width: usize,
}

impl NpzImages {
    /// Opens the set.
    ///
    /// # Errors
    /// When `arr_0` is absent, not uint8 or not (N, H, W, 3).
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = NpzFile::open(path)?;
        if !file.contains("arr_0") {
            return Err(SampleError::file(path, "holds no images (arr_0)"));
        }
        let (header, _) = file.array("arr_0")?;
        match (header.element, header.shape.as_slice()) {
            (Element::U8, &[count, height, width, 3]) => Ok(Self { file, count, height, width }),
            (Element::U8, shape) => {
                Err(SampleError::file(path, format!("arr_0 has shape {shape:?}, not (N, H, W, 3)")))
            }
            (element, _) => {
                Err(SampleError::file(path, format!("arr_0 holds {element:?} elements, not U8")))
            }
        }
    }

    /// Hands every image's RGB pixels to `each`, in order.
    ///
    /// # Errors
    /// When the file ends early or is damaged, and whatever `each` returns.
    pub fn for_each(&mut self, mut each: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let path = self.file.path.clone();
        let mut pixels = vec![0; self.height * self.width * 3];
        let count = self.count;
        let (_, mut data) = self.file.array("arr_0")?;
        for i in 0..count {
            data.read_exact(&mut pixels)
                .map_err(|e| SampleError::file(&path, format!("image {i} of {count}: {e}")))?;
            each(i, &pixels)?;
        }
        Ok(())
    }
}
