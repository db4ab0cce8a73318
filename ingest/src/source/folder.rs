//! Folders of image files.

use std::fs;
use std::io;
use std::path::Path;

use super::archive::ArchiveFormat;
use super::{Listed, Location};
use crate::error::{IngestError, Result};

/// Extensions under which images are kept. What a file really is, its first bytes tell; a file
/// of a format not read here is listed, and then skipped with a reason.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"];

/// Whether `name` ends like an image file.
pub(super) fn is_image_name(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| {
        EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
    })
}

/// What a folder holds.
#[derive(Default)]
pub(super) struct FolderListing {
    pub(super) images: Vec<Listed>,
    /// Keys of archives.
    pub(super) archives: Vec<String>,
}

/// All image files and archives under `root`, in no particular order. Links are followed; names
/// that start with a dot are passed over.
pub(super) fn list(root: &Path, entries_max: usize) -> Result<FolderListing> {
    let mut listing = FolderListing::default();
    let mut folders = vec![(root.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let failed = |error: io::Error| IngestError::source(folder.display(), error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let (text, path) = (name.to_string_lossy(), entry.path());
            if text.starts_with('.') {
                continue;
            }
            if is_folder(&entry, &folder).map_err(failed)? {
                folders.push((path, format!("{prefix}{text}/")));
            } else if is_image_name(&text) {
                let location = match name.to_str() {
                    Some(_) => Location::Key,
                    None => Location::Path(path.into_boxed_path()),
                };
                listing.images.push(Listed::new(format!("{prefix}{text}"), location));
            } else if ArchiveFormat::of(&text).is_some() {
                listing.archives.push(format!("{prefix}{text}"));
            }
            super::check_count(&root.display(), listing.images.len(), entries_max)?;
        }
    }
    Ok(listing)
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
