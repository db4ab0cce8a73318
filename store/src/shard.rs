//! What a shard's commit says of its file: row groups, checksums and sums for the statistics.
//!
//! It travels as `lapflow` within the Add action's `stats`, so opening a dataset reads the log
//! and no data file.

use serde::{Deserialize, Serialize};

use crate::metadata::Metadata;
use crate::schema::payload_columns;
use crate::statistics::LevelSums;

/// Characters a shard's name may have, since file and transaction are named after it.
const NAME_CHARACTERS_MAX: usize = 64;

/// One row group: a head segment (all small columns), then one segment a level.
///
/// Segments follow each other without a gap from the first byte of the file, so their checksums
/// and the footer's cover all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowGroupSummary {
    /// Rows in the group.
    pub rows: u64,
    /// Offset in the file at which each segment ends.
    pub ends: Vec<u64>,
    /// CRC-32 (IEEE) of each segment.
    pub crcs: Vec<u32>,
}

/// What the commit of a shard carries beside the file's name and size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardSummary {
    /// The shard's name.
    pub shard: String,
    /// The file's row groups in order.
    pub row_groups: Vec<RowGroupSummary>,
    /// CRC-32 of everything after the last segment: page index and footer.
    pub footer_crc: u32,
    /// Sums of every level over the shard, for the statistics.
    pub levels: Vec<LevelSums>,
}

impl ShardSummary {
    /// Rows of the shard.
    pub fn rows(&self) -> u64 {
        self.row_groups.iter().map(|group| group.rows).sum()
    }

    /// Byte range of segment `segment` of row group `group`.
    pub(crate) fn segment(&self, group: usize, segment: usize) -> std::ops::Range<u64> {
        let end = self.row_groups[group].ends[segment];
        let start = match (group, segment) {
            (0, 0) => 0,
            (_, 0) => self.row_groups[group - 1].ends.last().copied().unwrap_or(0),
            _ => self.row_groups[group].ends[segment - 1],
        };
        start..end
    }

    /// Offset at which page index and footer begin.
    pub(crate) fn footer_start(&self) -> u64 {
        self.row_groups.last().and_then(|group| group.ends.last().copied()).unwrap_or(0)
    }

    /// Says what does not fit the dataset or a file of `size` bytes, if anything.
    pub(crate) fn validate(&self, metadata: &Metadata, size: u64) -> Result<(), String> {
        let segments = 1 + payload_columns(metadata).len();
        let mut offset = 0;
        for (index, group) in self.row_groups.iter().enumerate() {
            if group.ends.len() != segments || group.crcs.len() != segments {
                return Err(format!("row group {index} does not have {segments} segments"));
            }
            for &end in &group.ends {
                if end < offset {
                    return Err(format!("the segments of row group {index} are out of order"));
                }
                offset = end;
            }
        }
        if offset > size {
            return Err(format!("its segments end at {offset}, after the file's {size} bytes"));
        }
        let fit = self.levels.len() == metadata.levels.len()
            && self
                .levels
                .iter()
                .zip(&metadata.levels)
                .all(|(sums, spec)| sums.fits(spec.channels));
        if !fit {
            return Err("its sums do not match the dataset's levels".to_string());
        }
        Ok(())
    }
}

/// Checks that `name` may name files, transactions and runs.
pub(crate) fn validate_name(name: &str) -> Result<(), String> {
    let fits = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if name.is_empty()
        || name.len() > NAME_CHARACTERS_MAX
        || name.starts_with('.')
        || !name.chars().all(fits)
    {
        return Err(format!(
            "name '{name}' is not 1 to {NAME_CHARACTERS_MAX} letters, digits, '-', '_', '.'"
        ));
    }
    Ok(())
}

/// The transaction id that makes a shard's commit happen once.
pub(crate) fn transaction_id(shard: &str) -> String {
    format!("lapflow/shard/{shard}")
}
