//! From a complete folder of PNG files or arrays to one file.

use super::{Job, Output};
use crate::error::{Result, SampleError};
use crate::generator::Generator;
use crate::images::npy::{Element, Header};
use crate::images::parquet::{ImageRow, ParquetWriter};
use crate::images::{Compression, NpzWriter};
use lapflow_ingest::{Limits, decode};
use std::path::Path;

/// Makes the job's file if every image of every shard is in `folder`, and removes the folder.
///
/// Returns whether the set is complete. Two workers that finish together may both make the file;
/// the files are equal and each is renamed whole.
pub(super) fn if_complete(job: &Job, generator: &Generator, folder: &Path) -> Result<bool> {
    if !(0..job.count).all(|index| job.output.part(folder, index).exists()) {
        return Ok(job.output.is_finished());
    }
    let made = match &job.output {
        Output::Folder(_) => return Ok(true),
        Output::Npz(path, compression) => npz(job, generator, folder, path, *compression, pixels),
        Output::Parquet(path) => parquet(job, generator, folder, path),
        Output::Latents(path) => npz(job, generator, folder, path, Compression::Stored, array),
    };
    // Another worker may have made the file and removed the folder meanwhile.
    if made.is_err() && job.output.is_finished() {
        return Ok(true);
    }
    made?;
    match std::fs::remove_dir_all(folder) {
        Err(e) if folder.exists() => Err(SampleError::file(folder, e)),
        _ => Ok(true),
    }
}

/// Puts the arrays that `item` reads from each part's file behind each other, and the labels beside.
fn npz(
    job: &Job,
    generator: &Generator,
    folder: &Path,
    path: &Path,
    compression: Compression,
    item: impl Fn(&Path) -> Result<(Header, Vec<u8>)>,
) -> Result<()> {
    let mut writer: Option<NpzWriter> = None;
    let mut labels = Vec::new();
    for index in 0..job.count {
        let (Header { element, shape }, data) = item(&job.output.part(folder, index))?;
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let count = job.count as usize;
                writer.insert(NpzWriter::create(path, count, element, &shape, compression)?)
            }
        };
        writer.push(&data)?;
        labels.extend(job.request(generator, index).label.map(i64::from));
    }
    let labels = (labels.len() as u64 == job.count).then_some(&labels[..]);
    writer.map_or(Ok(()), |writer| writer.finish(labels))
}

fn parquet(job: &Job, generator: &Generator, folder: &Path, path: &Path) -> Result<()> {
    let mut writer = ParquetWriter::create(path)?;
    for index in 0..job.count {
        let file = job.output.part(folder, index);
        let image = std::fs::read(&file).map_err(|e| SampleError::file(&file, e))?;
        let label = job.request(generator, index).label;
        writer.push(ImageRow {
            id: index as i64,
            label: label.map_or(-1, |label| label as i32),
            seed: generator.config().seed as i64,
            image,
        })?;
    }
    writer.finish()
}

/// An image's pixels, (H, W, 3).
fn pixels(path: &Path) -> Result<(Header, Vec<u8>)> {
    let bytes = std::fs::read(path).map_err(|e| SampleError::file(path, e))?;
    let image = decode(&bytes, &Limits::default()).map_err(|e| SampleError::file(path, e))?;
    let shape = vec![image.height as usize, image.width as usize, 3];
    Ok((Header { element: Element::U8, shape }, image.pixels))
}

/// An array of its own file.
fn array(path: &Path) -> Result<(Header, Vec<u8>)> {
    let bytes = std::fs::read(path).map_err(|e| SampleError::file(path, e))?;
    let mut data = bytes.as_slice();
    let header = Header::read(&mut data).map_err(|e| SampleError::file(path, e))?;
    Ok((header, data.to_vec()))
}
