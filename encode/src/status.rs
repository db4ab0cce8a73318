//! How far a job is, from the table and the plan beside it alone.

use std::collections::HashMap;

use lapflow_store::Dataset;

use crate::error::{EncodeError, Result};
use crate::job::{PLAN_FILE, read_plan};
use crate::ledger;
use crate::plan::Plan;
use crate::skips::{self, SkipRecord};

/// How far a job is.
#[derive(Debug, Clone)]
pub struct Status {
    /// The job's plan.
    pub plan: Plan,
    /// Shards not committed yet, ascending.
    pub missing: Vec<u64>,
    /// Rows committed.
    pub rows: u64,
    /// Shards of a watched source that were closed and are not committed yet, by name.
    pub open: Vec<String>,
    /// Images skipped in the committed shards: exact, from the commits alone.
    pub skips: u64,
    /// Who was skipped and why.
    pub skipped: Vec<SkipRecord>,
}

impl Status {
    /// Reads the status of the job whose dataset is at `uri`; neither its source nor its
    /// autoencoder is needed.
    ///
    /// # Errors
    /// Where there is no dataset, or it has no plan.
    pub async fn read(uri: &str) -> Result<Self> {
        let dataset = Dataset::open(uri).await?;
        let plan = read_plan(&dataset).await?.ok_or_else(|| EncodeError::Plan {
            uri: dataset.uri().to_owned(),
            reason: format!("there is no {PLAN_FILE}, so it was not made by an encode job"),
        })?;
        let rows: HashMap<&str, u64> =
            dataset.shards().map(|shard| (shard.shard.as_str(), shard.rows())).collect();
        let mut skips = plan.skips(&dataset);
        let mut open = Vec::new();
        for segment in ledger::segments(&dataset).await? {
            match rows.get(segment.shard_name().as_str()) {
                Some(rows) => skips += segment.images().saturating_sub(rows / plan.views),
                None => open.push(segment.shard_name()),
            }
        }
        Ok(Self {
            missing: plan.missing(&dataset),
            open,
            rows: dataset.rows(),
            skips,
            skipped: skips::read(&dataset).await?,
            plan,
        })
    }

    /// The missing shards as indices of a job array: `0-3,7`, empty when nothing is missing. Run
    /// with one task a shard (`--shard i/N` where N is the number of shards).
    pub fn array_expression(&self) -> String {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for &shard in &self.missing {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == shard => *last = shard,
                _ => ranges.push((shard, shard)),
            }
        }
        let words = ranges.iter().map(|&(first, last)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        });
        words.collect::<Vec<_>>().join(",")
    }
}
