//! Which images of a watched source fall to which shard, written down before they are encoded.
//!
//! The ledger is a numbered series of files beside the table, each claimed with a conditional put
//! and never changed: whoever watches, however often it is killed, an image is in one of them at
//! most, under one id, and the shard that a file describes always has the same content.

use std::collections::{BTreeSet, HashSet};

use futures::TryStreamExt;
use lapflow_ingest::Pick;
use lapflow_store::Dataset;
use serde::{Deserialize, Serialize};

use crate::error::{EncodeError, Result};
use crate::plan::Plan;
use crate::skips;

/// Folder of the ledger, beside the table.
const FOLDER: &str = "watch";
/// Keys of the images that a plan brought into the table before it was watched.
const PLANNED_FILE: &str = "watch/planned.json";
/// Version of the ledger's format.
const LEDGER_VERSION: u32 = 1;

/// One shard of a watched source, in the order of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Segment {
    version: u32,
    /// Position in the ledger.
    pub number: u64,
    /// Id of the first image; the others follow.
    first_id: u64,
    images: Vec<Listed>,
}

/// An image of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listed {
    pub key: String,
    pub label: Option<u32>,
}

impl Segment {
    /// The name under which the shard is committed: no plan's shard is called so.
    pub fn shard_name(&self) -> String {
        shard_name(self.number)
    }

    pub fn images(&self) -> u64 {
        self.images.len() as u64
    }

    /// The images as they are to be read.
    pub fn picks(&self) -> Vec<Pick> {
        let ids = self.first_id..;
        let pick =
            |(image, id): (&Listed, u64)| Pick { key: image.key.clone(), id, label: image.label };
        self.images.iter().zip(ids).map(pick).collect()
    }
}

fn shard_name(number: u64) -> String {
    format!("watch-{number:06}")
}

fn file_name(number: u64) -> String {
    format!("{FOLDER}/{number:06}.json")
}

/// The ledger as far as it was read.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Keys of all images that belong to a shard.
    known: HashSet<String>,
    next_number: u64,
    next_id: u64,
}

impl Ledger {
    /// Reads the ledger of `dataset`, which `plan` began; and those of its segments that are not
    /// committed yet.
    ///
    /// Where the plan holds images, they are known from then on: their keys are read from the
    /// table, once, and written beside it.
    pub async fn read(dataset: &Dataset, plan: &Plan) -> Result<(Self, Vec<Segment>)> {
        let known = planned_keys(dataset, plan).await?.into_iter().collect();
        let mut ledger = Self { known, next_number: 0, next_id: plan.images };
        let segments = ledger.catch_up(dataset).await?;
        let held: HashSet<&str> = dataset.shards().map(|shard| shard.shard.as_str()).collect();
        let open = segments.into_iter().filter(|segment| !held.contains(&*segment.shard_name()));
        Ok((ledger, open.collect()))
    }

    /// Whether the image `key` belongs to a shard already.
    pub fn knows(&self, key: &str) -> bool {
        self.known.contains(key)
    }

    /// Shards written down so far.
    pub fn len(&self) -> u64 {
        self.next_number
    }

    /// Reads what other watchers wrote since; their segments.
    pub async fn catch_up(&mut self, dataset: &Dataset) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        while let Some(segment) = read_segment(dataset, self.next_number).await? {
            self.note(&segment);
            segments.push(segment);
        }
        Ok(segments)
    }

    /// Writes `images` down as the next shard; `None` where another watcher took its number, after
    /// which the ledger must be caught up with and `images` looked through again.
    pub async fn append(
        &mut self,
        dataset: &Dataset,
        images: Vec<Listed>,
    ) -> Result<Option<Segment>> {
        let segment = Segment {
            version: LEDGER_VERSION,
            number: self.next_number,
            first_id: self.next_id,
            images,
        };
        let content = serde_json::to_vec(&segment).expect("a segment is plain data");
        if !dataset.create_beside(&file_name(segment.number), content).await? {
            return Ok(None);
        }
        self.note(&segment);
        Ok(Some(segment))
    }

    fn note(&mut self, segment: &Segment) {
        self.known.extend(segment.images.iter().map(|image| image.key.clone()));
        self.next_number = segment.number + 1;
        self.next_id = segment.first_id + segment.images();
    }
}

/// All segments of `dataset`'s ledger.
pub(crate) async fn segments(dataset: &Dataset) -> Result<Vec<Segment>> {
    Ledger::default().catch_up(dataset).await
}

async fn read_segment(dataset: &Dataset, number: u64) -> Result<Option<Segment>> {
    let name = file_name(number);
    let Some(content) = dataset.read_beside(&name).await? else { return Ok(None) };
    let segment: Segment = serde_json::from_slice(&content)
        .map_err(|error| unreadable(dataset, &name, error.to_string()))?;
    if segment.version != LEDGER_VERSION || segment.number != number {
        let found = format!("version {} and number {}", segment.version, segment.number);
        return Err(unreadable(dataset, &name, found));
    }
    Ok(Some(segment))
}

/// Keys of the images that the plan covers, skipped ones included.
async fn planned_keys(dataset: &Dataset, plan: &Plan) -> Result<Vec<String>> {
    if plan.images == 0 {
        return Ok(Vec::new());
    }
    if let Some(content) = dataset.read_beside(PLANNED_FILE).await? {
        return serde_json::from_slice(&content)
            .map_err(|error| unreadable(dataset, PLANNED_FILE, error.to_string()));
    }
    let missing = plan.missing(dataset).len();
    if missing > 0 {
        let reason = format!(
            "{missing} of its {} planned shards are missing: encode them without --watch first",
            plan.shards
        );
        return Err(EncodeError::Plan { uri: dataset.uri().to_owned(), reason });
    }
    let mut keys = BTreeSet::new();
    let mut rows = std::pin::pin!(dataset.scan());
    while let Some(row) = rows.try_next().await? {
        keys.insert(row.source);
    }
    keys.extend(skips::read(dataset).await?.into_iter().map(|skip| skip.key));
    if keys.len() as u64 != plan.images {
        let found = format!("the table and its skips name {} of {}", keys.len(), plan.images);
        return Err(unreadable(dataset, "the planned images", found));
    }
    let content = serde_json::to_vec(&keys).expect("keys are plain data");
    dataset.create_beside(PLANNED_FILE, content).await?;
    Ok(keys.into_iter().collect())
}

fn unreadable(dataset: &Dataset, name: &str, reason: String) -> EncodeError {
    EncodeError::Plan { uri: dataset.uri().to_owned(), reason: format!("{name}: {reason}") }
}
