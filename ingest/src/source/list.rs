//! Lists of image files.

use std::fs;
use std::path::Path;

use super::{Listed, Location};
use crate::error::{IngestError, Result};

/// The lines of the list at `path`: a file path, absolute or relative to the list's folder,
/// optionally a tab and a label. Blank lines are passed over.
pub(super) fn list(path: &Path, entries_max: usize) -> Result<Vec<Listed>> {
    let text =
        fs::read_to_string(path).map_err(|error| IngestError::source(path.display(), error))?;
    let mut listed = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (key, label) = match line.split_once('\t') {
            None => (line, None),
            Some((key, label)) => {
                let label = label.trim().parse().map_err(|_| IngestError::Member {
                    archive: path.display().to_string(),
                    member: format!("line {}", number + 1),
                    reason: format!("label `{}` is not a whole number", label.trim()),
                })?;
                (key, Some(label))
            }
        };
        listed.push(Listed { label, ..Listed::new(key.to_owned(), Location::Key) });
        super::check_count(&path.display(), listed.len(), entries_max)?;
    }
    Ok(listed)
}
