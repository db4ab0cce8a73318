//! Folders of image files.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::archive::ArchiveFormat;
use super::names::{
    LINKED_WORDS, MADE_HERE_WORDS, ending, is_hidden, is_image, is_made_here, is_unclear, mark,
    text,
};
use super::zip::DATASET_JSON;
use super::{Listed, Location};
use crate::decode::{Format, HEAD_BYTES};
use crate::error::{IngestError, Result};
use crate::left_out::LeftOut;

/// Files of lapflow's own beside images, which are not counted.
const OUR_FILES: [&str; 3] = ["ingest.json", "skipped.jsonl", "job.json"];

/// What a folder holds.
#[derive(Default)]
pub(super) struct FolderListing {
    pub(super) images: Vec<Listed>,
    /// Keys of archives, and where they are.
    pub(super) archives: Vec<(String, PathBuf)>,
    /// What else there is.
    pub(super) left_out: LeftOut,
}

/// The image files under `folder`, sorted, and what else there is. Links are followed, but not to
/// a folder that they are in; hidden files are passed over; a file whose name does not tell is an
/// image if its first bytes are those of one.
///
/// # Errors
/// [`IngestError::Source`] if a folder cannot be listed.
pub fn image_files(folder: &Path) -> Result<(Vec<PathBuf>, LeftOut)> {
    let FolderListing { images, archives, mut left_out } = walk(folder, usize::MAX, |_| true)?;
    archives.iter().for_each(|(key, _)| left_out.add(ending(key)));
    let path = |image: Listed| match image.location {
        Location::Path(path) => path.into_path_buf(),
        _ => folder.join(image.key),
    };
    let mut files: Vec<PathBuf> = images.into_iter().map(path).collect();
    files.sort();
    Ok((files, left_out))
}

/// All image files and archives under `root`, in no particular order, as [`image_files`] finds them,
/// but for folders below `root` that lapflow made.
pub(super) fn list(root: &Path, entries_max: usize) -> Result<FolderListing> {
    walk(root, entries_max, |entries| {
        let marks = entries.iter().map(|entry| mark(&entry.file_name().to_string_lossy()));
        !is_made_here(marks.fold(0, |all, mark| all | mark))
    })
}

/// The files under `root`, in the folders below it that `belongs` lets in by their entries.
fn walk(
    root: &Path,
    entries_max: usize,
    belongs: impl Fn(&[fs::DirEntry]) -> bool,
) -> Result<FolderListing> {
    let mut listing = FolderListing::default();
    let mut linked = HashSet::new();
    let mut folders = vec![(root.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let failed = |error: io::Error| IngestError::source(folder.display(), error);
        let entries = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(failed)?;
        if !prefix.is_empty() && !belongs(&entries) {
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
            } else if path.is_dir() {
                listing.left_out.add("links to a folder that they are in");
            } else if is_image(&name) || (is_unclear(&name) && starts_like_an_image(&path)) {
                if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                    linked.extend(fs::canonicalize(&path));
                }
                let leads_there = path.strip_prefix(root).is_ok_and(|own| own == Path::new(&key));
                let location = match leads_there {
                    true => Location::Key,
                    false => Location::Path(path.into_boxed_path()),
                };
                listing.images.push(Listed::new(key, location));
            } else if ArchiveFormat::of(&name).is_some() {
                listing.archives.push((key, path));
            } else if key != DATASET_JSON && !OUR_FILES.contains(&name.as_str()) {
                listing.left_out.add(ending(&name));
            }
            let count = listing.images.len() + listing.archives.len();
            super::check_count(&root.display(), count, entries_max)?;
        }
    }
    listing.without_targets(root, &linked);
    Ok(listing)
}

impl FolderListing {
    /// Takes the files out that only their bytes tell and that links among the images lead to, as
    /// the blobs of a Hugging Face cache: each would be there twice.
    fn without_targets(&mut self, root: &Path, linked: &HashSet<PathBuf>) {
        let is_target = |image: &Listed| {
            let path = match &image.location {
                Location::Path(path) => path.to_path_buf(),
                _ => root.join(&image.key),
            };
            is_unclear(&image.key)
                && !path.is_symlink()
                && fs::canonicalize(path).is_ok_and(|path| linked.contains(&path))
        };
        if !linked.is_empty() {
            let found = self.images.len();
            self.images.retain(|image| !is_target(image));
            (self.images.len()..found).for_each(|_| self.left_out.add(LINKED_WORDS));
        }
    }
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
