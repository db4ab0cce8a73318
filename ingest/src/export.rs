//! Cropped images as PNG files.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use serde_json::{Value, json};

use crate::error::{IngestError, Result};
use crate::skip::Skip;
use crate::source::Source;
use crate::stream::{Item, Outcome};

/// The file in an output folder that says how its images were made.
const SETTINGS_FILE: &str = "ingest.json";
/// The file in an output folder that lists the skips, a JSON object a line.
const SKIPPED_FILE: &str = "skipped.jsonl";

/// What an export did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// PNG files written now.
    pub written: usize,
    /// Images that an earlier run had already written.
    pub present: usize,
    /// Images left out, also listed in `skipped.jsonl`.
    pub skips: Vec<Skip>,
    /// Images written now whose EXIF orientation asks for a turn that they were not given.
    pub unturned: usize,
    /// Whether `progress` ended it early.
    pub stopped: bool,
}

/// Writes every image of `source` as a PNG into `out`, in the source's layout: `a/b.jpg` becomes
/// `a/b.png` (`a/b.jpg.png` where that would meet another image), its mirrored view
/// `a/b.png.flipped.png`. Files that an earlier run left are kept, so an interrupted export is
/// continued by the same call. `progress` is told of every image done and of their total, and may
/// end the export, which keeps what was written.
///
/// # Errors
/// [`IngestError::Output`] if a file cannot be written or `out` holds an export with other
/// settings, and what a stream ends with.
pub async fn export(
    source: &Arc<Source>,
    out: &Path,
    mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Exported> {
    claim(source, out)?;
    let targets = targets(source, out)?;
    let total = targets.len();
    let flip = source.config.flip;
    let is_missing = |path: &PathBuf| !path.exists() || (flip && !mirrored(path).exists());
    let order: Vec<usize> = (0..total).filter(|&index| is_missing(&targets[index])).collect();
    let present = total - order.len();
    let mut exported = Exported {
        written: 0,
        present,
        skips: Vec::new(),
        unturned: 0,
        stopped: progress(present, total).is_break(),
    };
    let mut done = present;
    let writers = source.pool.current_num_threads();
    let stream = source.stream(order);
    let mut saved =
        std::pin::pin!(stream.map_ok(|outcome| save(outcome, &targets)).try_buffered(writers));
    while !exported.stopped {
        let Some(saved) = saved.try_next().await? else { break };
        match saved {
            Saved::View { first, unturned } => {
                exported.written += 1;
                exported.unturned += usize::from(first && unturned);
                done += usize::from(first);
            }
            Saved::Skip(skip) => {
                exported.skips.push(skip);
                done += 1;
            }
        }
        exported.stopped = progress(done, total).is_break();
    }
    write_skips(&out.join(SKIPPED_FILE), &exported.skips)?;
    Ok(exported)
}

enum Saved {
    View { first: bool, unturned: bool },
    Skip(Skip),
}

async fn save(outcome: Outcome, targets: &[PathBuf]) -> Result<Saved> {
    let item = match outcome {
        Outcome::Skip(skip) => return Ok(Saved::Skip(skip)),
        Outcome::Image(item) => item,
    };
    let target = &targets[item.id as usize];
    let target = if item.view == 0 { target.clone() } else { mirrored(target) };
    tokio::task::spawn_blocking(move || {
        replace(&target, |file| encode(&item, file))
            .map(|()| Saved::View { first: item.view == 0, unturned: item.unturned })
    })
    .await
    .expect("writing a file neither panics nor is cancelled")
}

fn encode(item: &Item, file: &mut dyn Write) -> io::Result<()> {
    PngEncoder::new_with_quality(file, CompressionType::Fast, FilterType::Adaptive)
        .write_image(
            &item.image.pixels,
            item.image.width,
            item.image.height,
            ExtendedColorType::Rgb8,
        )
        .map_err(io::Error::other)
}

/// Writes the settings into `out`, or checks that they are those of the export begun there.
fn claim(source: &Source, out: &Path) -> Result<()> {
    let config = &source.config;
    let settings = json!({
        "format_version": 1,
        "source": config.source,
        "size": config.size,
        "crop": config.crop,
        "decode": config.decode,
        "exif_orientation": config.exif_orientation,
        "flip": config.flip,
        "seed": config.seed,
    });
    let path = out.join(SETTINGS_FILE);
    match fs::read(&path) {
        Ok(content) => {
            let earlier: Value = serde_json::from_slice(&content)
                .map_err(|error| IngestError::output(&path, error))?;
            if earlier == settings {
                return Ok(());
            }
            Err(IngestError::output(&path, format!("it was made with {earlier}, now {settings}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(&path, |file| writeln!(file, "{settings:#}"))
        }
        Err(error) => Err(IngestError::output(&path, error)),
    }
}

/// The file for each entry.
fn targets(source: &Source, out: &Path) -> Result<Vec<PathBuf>> {
    let with_png = |key: &str| {
        let name_start = key.rfind('/').map_or(0, |slash| slash + 1);
        let stem_end = key[name_start..].rfind('.').map_or(key.len(), |dot| name_start + dot);
        format!("{}.png", &key[..stem_end])
    };
    let mut uses = HashMap::new();
    for entry in source.entries() {
        *uses.entry(with_png(&entry.key)).or_insert(0_usize) += 1;
    }
    // A key of its own short name may be called like the long name of another.
    let long = |key: &str| format!("{key}.png");
    let is_long = |key: &str| uses[&with_png(key)] > 1;
    let keys = || source.entries().iter().map(|entry| entry.key.as_str());
    let mut taken: HashSet<String> = keys().filter(|key| is_long(key)).map(long).collect();
    let mut target = |key: &str| {
        let leads_out = key.starts_with('/') || key.split('/').any(|part| part == "..");
        if leads_out {
            let reason = format!("the key `{key}` leads out of the output folder");
            return Err(IngestError::output(out, reason));
        }
        if is_long(key) {
            return Ok(out.join(long(key)));
        }
        let mut name = with_png(key);
        while !taken.insert(name.clone()) {
            name = long(&name);
        }
        Ok(out.join(name))
    };
    keys().map(&mut target).collect()
}

fn mirrored(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".flipped.png");
    name.into()
}

fn write_skips(path: &Path, skips: &[Skip]) -> Result<()> {
    replace(path, |file| {
        for skip in skips {
            serde_json::to_writer(&mut *file, skip)?;
            writeln!(file)?;
        }
        Ok(())
    })
}

/// Writes a file beside its place and renames it, so that it is there whole or not at all.
fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let attempt = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = BufWriter::new(fs::File::create(&partial)?);
        write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::rename(&partial, path)
    };
    attempt().map_err(|error| IngestError::output(path, error))
}
