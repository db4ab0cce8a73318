//! The images that were left out, listed beside the table.
//!
//! A shard's list is written just before its commit and replaces what a killed attempt may have
//! left. How many images were skipped follows from the commits alone (planned rows minus rows).

use lapflow_ingest::Skip;
use lapflow_store::Dataset;
use serde::{Deserialize, Serialize};

use crate::error::{EncodeError, Result};

/// Folder of the lists, beside the table.
pub(crate) const FOLDER: &str = "skipped";

/// An image that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkipRecord {
    /// Position in the sorted listing of the source.
    pub id: u64,
    /// Relative path or member name.
    pub key: String,
    /// The kind of reason, such as `truncated`.
    pub reason: String,
    /// The reason as a sentence.
    pub message: String,
}

impl From<Skip> for SkipRecord {
    fn from(skip: Skip) -> Self {
        let kind = serde_json::to_value(&skip.reason).expect("a reason is plain data");
        let reason = kind["reason"].as_str().unwrap_or("other").to_owned();
        Self { id: skip.id, key: skip.key, reason, message: skip.reason.to_string() }
    }
}

/// Writes the list of `shard`, one JSON object a line; none if nothing was skipped.
pub(crate) async fn write(dataset: &Dataset, shard: &str, skips: &[SkipRecord]) -> Result<()> {
    let name = format!("{FOLDER}/{shard}.jsonl");
    if skips.is_empty() && dataset.read_beside(&name).await?.is_none() {
        return Ok(());
    }
    let lines = skips.iter().map(|skip| {
        let line = serde_json::to_string(skip).expect("a record is plain data");
        line + "\n"
    });
    Ok(dataset.write_beside(&name, lines.collect::<String>()).await?)
}

/// All skips of committed shards, in the order of their ids.
pub(crate) async fn read(dataset: &Dataset) -> Result<Vec<SkipRecord>> {
    let mut skips = Vec::new();
    for shard in dataset.shards() {
        let name = format!("{FOLDER}/{}.jsonl", shard.shard);
        let Some(content) = dataset.read_beside(&name).await? else { continue };
        for line in content.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let skip = serde_json::from_slice(line).map_err(|error| EncodeError::Plan {
                uri: dataset.uri().to_owned(),
                reason: format!("{name}: {error}"),
            })?;
            skips.push(skip);
        }
    }
    skips.sort_unstable_by_key(|skip: &SkipRecord| skip.id);
    Ok(skips)
}
