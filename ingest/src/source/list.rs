//! Lists of image files.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::labels::{self, Written};
use super::names::is_image;
use super::{Listed, Location};
use crate::error::{IngestError, Result};

/// The lines of the list at `path`: a file path, absolute or relative to the list's folder, and
/// perhaps a label behind a tab, comma or blank. Blank lines and comments (`#`) are passed over.
///
/// Keys are the paths as written, without `.`; where one is absolute or leads up, all are relative
/// to the folder that all are in.
pub(super) fn list(path: &Path, entries_max: usize) -> Result<Vec<Listed>> {
    let shown = path.display().to_string();
    let content = fs::read(path).map_err(|error| IngestError::source(&shown, error))?;
    let text = labels::text(&shown, &content)
        .map_err(|error| IngestError::source(&shown, format!("as a list: {error}")))?;
    let root = path.parent().unwrap_or(Path::new(""));
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let is_comment = line.starts_with('#') && !root.join(line).exists();
        if line.is_empty() || is_comment {
            continue;
        }
        let (file, label) = parts(line);
        let label = Written::of_text(label).map_err(|reason| IngestError::Member {
            archive: shown.clone(),
            member: format!("line {}", number + 1),
            reason,
        })?;
        lines.push((plain(Path::new(file)), label));
        super::check_count(&path.display(), lines.len(), entries_max)?;
    }
    let leads_up = |file: &PathBuf| file.is_absolute() || file.starts_with("..");
    let top = match lines.iter().any(|(file, _)| leads_up(file)) {
        true => common_folder(lines.iter().map(|(file, _)| file.as_path())),
        false => PathBuf::new(),
    };
    let listed = lines.into_iter().map(|(file, label)| {
        let key = file.strip_prefix(&top).unwrap_or(&file).to_string_lossy().into_owned();
        let location = match top.as_os_str().is_empty() {
            true => Location::Key,
            false => Location::Path(root.join(&file).into_boxed_path()),
        };
        Listed::new(key, location).labelled(label)
    });
    Ok(listed.collect())
}

/// A line's path and the label behind it, empty if there is none.
fn parts(line: &str) -> (&str, &str) {
    if let Some(parts) = line.split_once('\t') {
        return parts;
    }
    let cut = line.rfind([',', ' ']).filter(|_| !is_image(line));
    cut.map(|at| (line[..at].trim_end(), &line[at + 1..]))
        .filter(|(file, _)| is_image(file))
        .unwrap_or((line, ""))
}

/// A path without `.`, and without `..` behind a folder.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(plain.components().next_back(), Some(Component::Normal(_))) =>
            {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// The deepest folder that all `files` are in.
fn common_folder<'a>(mut files: impl Iterator<Item = &'a Path>) -> PathBuf {
    let folder = |file: &'a Path| file.parent().unwrap_or(Path::new(""));
    let first = files.next().map(folder).unwrap_or(Path::new(""));
    files.map(folder).fold(first.to_path_buf(), |common, folder| {
        let shared = common.components().zip(folder.components()).take_while(|(a, b)| a == b);
        shared.map(|(part, _)| part).collect()
    })
}
