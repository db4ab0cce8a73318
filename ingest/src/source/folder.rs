//! Folders of image files.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::archive::ArchiveFormat;
use super::names::{ending, is_hidden, is_image, is_unclear, text};
use super::zip::DATASET_JSON;
use super::{Listed, Location};
use crate::decode::{Format, HEAD_BYTES};
use crate::error::{IngestError, Result};
use crate::left_out::LeftOut;

/// Names that tell a folder made by lapflow: a dataset's table, an ingest output's settings, a
/// run's metrics, a sample set's job. Such a folder below a source is not part of it.
pub(super) const MADE_HERE: [&str; 4] = ["_delta_log", "ingest.json", "metrics.jsonl", "job.json"];
/// What a folder of those is called where it is counted.
pub(super) const MADE_HERE_WORDS: &str = "folders made by lapflow";

/// What a folder holds.
#[derive(Default)]
pub(super) struct FolderListing {
    pub(super) images: Vec<Listed>,
    /// Keys of archives, and where they are.
    pub(super) archives: Vec<(String, PathBuf)>,
    /// What else there is.
    pub(super) left_out: LeftOut,
}

/// All image files and archives under `root`, in no particular order. Links are followed; names
/// that start with a dot are passed over, and folders below `root` that lapflow made. A file whose
/// name does not tell is an image if its first bytes are those of one.
pub(super) fn list(root: &Path, entries_max: usize) -> Result<FolderListing> {
    let mut listing = FolderListing::default();
    let mut folders = vec![(root.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let failed = |error: io::Error| IngestError::source(folder.display(), error);
        let entries = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(failed)?;
        let is_made_here = |entry: &fs::DirEntry| MADE_HERE.iter().any(|&m| entry.file_name() == m);
        if !prefix.is_empty() && entries.iter().any(is_made_here) {
            listing.left_out.add(MADE_HERE_WORDS);
            continue;
        }
        for entry in entries {
            let name = text(entry.file_name().as_encoded_bytes());
            let (key, path) = (format!("{prefix}{name}"), entry.path());
            if is_hidden(&name) {
                continue;
            }
            if is_folder(&entry, &folder).map_err(failed)? {
                folders.push((path, format!("{key}/")));
            } else if is_image(&name) || (is_unclear(&name) && starts_like_an_image(&path)) {
                let leads_there = path.strip_prefix(root).is_ok_and(|own| own == Path::new(&key));
                let location = match leads_there {
                    true => Location::Key,
                    false => Location::Path(path.into_boxed_path()),
                };
                listing.images.push(Listed::new(key, location));
            } else if ArchiveFormat::of(&name).is_some() {
                listing.archives.push((key, path));
            } else if key != DATASET_JSON {
                listing.left_out.add(ending(&name));
            }
            let count = listing.images.len() + listing.archives.len();
            super::check_count(&root.display(), count, entries_max)?;
        }
    }
    Ok(listing)
}

/// Whether the first bytes of the file at `path` are those of an image read here. What cannot be
/// read is none.
fn starts_like_an_image(path: &Path) -> bool {
    // Not of a pipe or device, which might never answer.
    let mut head = Vec::with_capacity(HEAD_BYTES);
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && fs::File::open(path)
            .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
            .is_ok_and(|_| Format::sniff(&head).is_ok())
}

/// Whether to descend into `entry`: not into a link to a folder that holds it, and a broken
/// link counts as a file, to be reported when it is read.
fn is_folder(entry: &fs::DirEntry, parent: &Path) -> io::Result<bool> {
    let kind = entry.file_type()?;
    if !kind.is_symlink() {
        return Ok(kind.is_dir());
    }
    let Ok(target) = fs::canonicalize(entry.path()) else { return Ok(false) };
    Ok(target.is_dir() && !fs::canonicalize(parent)?.starts_with(&target))
}
