//! What a source holds beside its images.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What was found in a source and is not among its images, counted by what it is: by its ending
/// (`.json`, `without ending`) or in words. Hidden files are not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct LeftOut(BTreeMap<String, u64>);

impl LeftOut {
    /// Whether there was nothing else.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The counts, by what it is.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.0
    }

    /// Counts one more `what`.
    pub(crate) fn add(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    /// Adds the counts of `other`.
    pub(crate) fn append(&mut self, other: Self) {
        for (what, count) in other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }
}

/// `3 .heic, 1 without ending`, the most frequent first.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: Vec<_> = self.0.iter().collect();
        counts.sort_by_key(|&(what, &count)| (std::cmp::Reverse(count), what));
        let words: Vec<String> =
            counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        f.write_str(&words.join(", "))
    }
}
