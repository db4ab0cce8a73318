//! A job: a source, an autoencoder and the dataset they fill.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use futures::stream;
use lapflow_ingest::{Crop, IngestConfig, Source};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_store::{Dataset, Metadata, Posterior, StoreError, Worker};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::EncodeConfig;
use crate::encoder::Encoder;
use crate::error::{EncodeError, Result};
use crate::pipeline::{Run, Work};
use crate::plan::{Permutation, Plan};
use crate::skips::{self, SkipRecord};
use crate::stats::EncodeStats;

/// File of the plan, beside the table.
pub(crate) const PLAN_FILE: &str = "plan.json";
/// Longest part of a value that an error quotes.
const QUOTE_CHARACTERS_MAX: usize = 100;

/// A job that has been planned, without a dataset yet.
pub struct Draft {
    pub(crate) source: Arc<Source>,
    pub(crate) encoder: Arc<Encoder>,
    pub(crate) config: EncodeConfig,
    skip_fraction_max: f64,
    plan: Plan,
    metadata: Metadata,
}

impl Draft {
    /// Lists the source and plans its shards.
    ///
    /// # Errors
    /// Where the configuration cannot be carried out or the source cannot be listed.
    pub async fn open(
        ingest: &IngestConfig,
        encode: &EncodeConfig,
        autoencoder: Arc<Autoencoder>,
        device: &Device,
    ) -> Result<Self> {
        encode.validate()?;
        ingest.validate()?;
        let preprocessing = preprocessing(ingest, encode, &autoencoder);
        let encoder = Encoder::new(autoencoder, device, encode, ingest.size as usize)?;
        // The limit holds for the whole job, which a stream of one shard does not see.
        let listed = IngestConfig { skip_fraction_max: 1.0, ..ingest.clone() };
        let source = Source::open(&listed).await?;
        let views = if ingest.flip { 2 } else { 1 };
        let plan = Plan::new(source.entries(), views, encode.shard_rows, encode.shuffle_seed);
        let metadata = Metadata {
            autoencoder: encoder.identity(),
            preprocessing,
            classes: source.classes().to_vec(),
            ..Metadata::new(encoder.levels().to_vec(), encode.dtype, encode.posterior)
        };
        Ok(Self {
            source: Arc::new(source),
            encoder: Arc::new(encoder),
            config: encode.clone(),
            skip_fraction_max: ingest.skip_fraction_max,
            plan,
            metadata,
        })
    }

    /// What is encoded.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What falls to which shard.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the dataset will say of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether an empty `dataset` is of another job, and not of a watcher, which plans no images.
    async fn may_replace(&self, dataset: &Dataset) -> Result<bool> {
        let plan = read_plan(dataset).await?;
        let watched = plan.as_ref().is_some_and(|plan| plan.images == 0);
        let planned = plan.is_none_or(|plan| same(dataset, "plan.", &plan, &self.plan).is_ok());
        let ours = planned && same(dataset, "", dataset.metadata(), &self.metadata).is_ok();
        Ok(!watched && !ours)
    }

    /// Creates the dataset at `uri`, or joins the one that an equal job created.
    ///
    /// # Errors
    /// [`EncodeError::Differs`] where the dataset there was made from another listing, or with
    /// another autoencoder, preprocessing or pyramid, and holds a shard: one that holds none, which
    /// a job left that came to nothing, is made anew.
    pub async fn attach(mut self, uri: &str) -> Result<Job> {
        let dataset = match Dataset::create(uri, &self.metadata).await {
            Err(StoreError::Exists { .. }) => Dataset::open(uri).await?,
            created => created?,
        };
        let fresh = self.metadata.clone();
        self.metadata.autoencoder = self.encoder.identity_beside(&dataset.metadata().autoencoder);
        let dataset = match dataset.shards().len() == 0 && self.may_replace(&dataset).await? {
            true => {
                self.metadata = fresh;
                dataset.recreate(&self.metadata).await?
            }
            false => dataset,
        };
        same(&dataset, "", dataset.metadata(), &self.metadata)?;
        let planned = match read_plan(&dataset).await? {
            Some(plan) => plan,
            None if dataset.rows() > 0 => {
                let reason = "it has rows and no plan, so it was not made by an encode job";
                return Err(EncodeError::Plan { uri: dataset.uri().into(), reason: reason.into() });
            }
            None => create_plan(&dataset, &self.plan).await?,
        };
        same(&dataset, "plan.", &planned, &self.plan)?;
        Ok(Job {
            source: self.source,
            encoder: self.encoder,
            config: self.config,
            skip_fraction_max: self.skip_fraction_max,
            permutation: Permutation::new(&self.plan),
            plan: self.plan,
            dataset,
        })
    }
}

/// A planned job with its dataset; any number of workers may run it, together or one by one.
pub struct Job {
    pub(crate) source: Arc<Source>,
    pub(crate) encoder: Arc<Encoder>,
    pub(crate) config: EncodeConfig,
    pub(crate) skip_fraction_max: f64,
    pub(crate) permutation: Permutation,
    pub(crate) plan: Plan,
    pub(crate) dataset: Dataset,
}

impl Job {
    /// [`Draft::open`], then [`Draft::attach`].
    pub async fn open(
        ingest: &IngestConfig,
        encode: &EncodeConfig,
        autoencoder: Arc<Autoencoder>,
        device: &Device,
        uri: &str,
    ) -> Result<Self> {
        Draft::open(ingest, encode, autoencoder, device).await?.attach(uri).await
    }

    /// What falls to which shard.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The dataset as it was when the job was opened.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Encodes the shards that fall to `worker` and are not committed yet. Any worker may run any
    /// shard any number of times: the dataset gets it once.
    ///
    /// Once `stop` is set no more images are read: the shard being read is abandoned without a
    /// trace in the table, shards that were read to their end are still committed. That takes the
    /// time of at most `2 * queue_batches_max + 2` batches and a commit.
    ///
    /// `progress` is called after every batch and every commit.
    ///
    /// Memory, beside the source's and the autoencoder's own: `queue_batches_max + 2` batches of
    /// pixels in f32 and as many of rows, and what the writer of one shard holds.
    ///
    /// # Errors
    /// Whatever ends the job, [`EncodeError::TooManySkips`] included; committed shards stay.
    pub async fn run(
        &self,
        worker: Worker,
        stop: &AtomicBool,
        progress: &mut (dyn FnMut(&EncodeStats) + Send),
    ) -> Result<EncodeStats> {
        let dataset = self.dataset.refresh().await?;
        let skipped_before = self.skips(&dataset);
        let skip_limit = |stats: &EncodeStats, skip: &SkipRecord| {
            let skipped = skipped_before + stats.skips();
            match skipped > self.skips_max() {
                true => {
                    let last = format!("the last: {}: {}", skip.key, skip.message);
                    Err(self.too_many_skips(skipped, last))
                }
                false => Ok(()),
            }
        };
        let run = Run::new(&self.dataset, &self.encoder, &self.config, stop, &skip_limit);
        let lost = self.lost(&dataset).await?;
        let works = self.assign(worker, &dataset, &lost, &mut run.stats()).into_iter();
        let works = works.map(|shard| self.work(shard, lost.contains(&shard)));
        run.drive(stream::iter(works), progress).await?;
        let skipped = self.skips(&self.dataset.refresh().await?);
        if skipped > self.skips_max() {
            let last = format!("they are listed beside the table, in {}", skips::FOLDER);
            return Err(self.too_many_skips(skipped, last));
        }
        let stats = run.stats().clone();
        Ok(stats)
    }

    /// The shards of the plan that `dataset` names and whose files are lost, ascending.
    async fn lost(&self, dataset: &Dataset) -> Result<Vec<u64>> {
        let names = dataset.lost().await?;
        for shard in &names {
            tracing::warn!(shard, "its file is lost, and encoded once more");
        }
        let mut lost: Vec<u64> =
            names.iter().filter_map(|name| self.plan.shard_number(name)).collect();
        lost.sort_unstable();
        Ok(lost)
    }

    /// The shards that fall to `worker` and are not in `dataset`, or are `lost`.
    fn assign(
        &self,
        worker: Worker,
        dataset: &Dataset,
        lost: &[u64],
        stats: &mut EncodeStats,
    ) -> Vec<u64> {
        let plan = &self.plan;
        let mut missing = plan.missing(dataset);
        missing.extend(lost);
        missing.sort_unstable();
        let assigned: Vec<u64> = plan.shards_of(worker.index, worker.count).collect();
        let todo: Vec<u64> =
            assigned.iter().copied().filter(|shard| missing.binary_search(shard).is_ok()).collect();
        stats.shards_assigned = assigned.len() as u64;
        stats.shards_present = (assigned.len() - todo.len()) as u64;
        stats.rows_assigned = todo.iter().map(|&shard| plan.shard_images(shard) * plan.views).sum();
        todo
    }

    fn work(&self, shard: u64, lost: bool) -> Work {
        Work {
            shard: self.plan.shard_name(shard),
            source: Arc::clone(&self.source),
            order: self.permutation.shard(shard),
            skips: Vec::new(),
            lost,
        }
    }

    /// Images skipped in the shards that `dataset` holds.
    pub(crate) fn skips(&self, dataset: &Dataset) -> u64 {
        self.plan.skips(dataset)
    }

    /// Images that may be skipped in the whole job.
    pub(crate) fn skips_max(&self) -> u64 {
        (self.skip_fraction_max * self.plan.images as f64).ceil() as u64
    }

    /// The error of `skipped` images, more than may be.
    pub(crate) fn too_many_skips(&self, skipped: u64, last: String) -> EncodeError {
        let (images, fraction_max) = (self.plan.images, self.skip_fraction_max);
        EncodeError::TooManySkips { skipped, images, fraction_max, last }
    }
}

/// The plan beside `dataset`, if there is one.
pub(crate) async fn read_plan(dataset: &Dataset) -> Result<Option<Plan>> {
    let Some(content) = dataset.read_beside(PLAN_FILE).await? else { return Ok(None) };
    serde_json::from_slice(&content).map(Some).map_err(|error| EncodeError::Plan {
        uri: dataset.uri().to_owned(),
        reason: error.to_string(),
    })
}

/// Writes `plan` unless another worker came first; the plan that counts.
pub(crate) async fn create_plan(dataset: &Dataset, plan: &Plan) -> Result<Plan> {
    let content = serde_json::to_string_pretty(plan).expect("a plan is plain data");
    if dataset.create_beside(PLAN_FILE, content).await? {
        return Ok(plan.clone());
    }
    read_plan(dataset).await?.ok_or_else(|| EncodeError::Plan {
        uri: dataset.uri().to_owned(),
        reason: "another worker wrote it and it is gone".to_owned(),
    })
}

/// All that decides the stored values, beside the autoencoder.
pub(crate) fn preprocessing(
    ingest: &IngestConfig,
    encode: &EncodeConfig,
    autoencoder: &Autoencoder,
) -> Value {
    let mut value = json!({
        "size": ingest.size,
        "crop": ingest.crop,
        "decode": ingest.decode,
        "exif_orientation": ingest.exif_orientation,
        "flip": ingest.flip,
        "range": [-1, 1],
    });
    if ingest.crop == Crop::Random {
        value["seed"] = json!(ingest.seed);
    }
    if encode.posterior == Posterior::Sample {
        value["posterior_seed"] = json!(encode.posterior_seed);
    }
    let side = ingest.size as usize / autoencoder.identity().factor;
    if let Some(tiling) = autoencoder.tiling().filter(|tiling| tiling.cuts(side, side)) {
        value["tiling"] = json!(tiling);
    }
    value
}

/// Refuses a job that is not the one that `dataset` was made by: `table` is what it says of itself,
/// `job` what the job would say, and `within` where both stand.
pub(crate) fn same<T: Serialize>(
    dataset: &Dataset,
    within: &str,
    table: &T,
    job: &T,
) -> Result<()> {
    let plain = |value| serde_json::to_value(value).expect("plans and metadata are plain data");
    match first_difference(&plain(table), &plain(job)) {
        None => Ok(()),
        Some((what, table, job)) => {
            let (uri, what) = (dataset.uri().to_owned(), format!("{within}{what}"));
            Err(EncodeError::Differs { uri, what, table, job })
        }
    }
}

/// The first place where two values differ: its path, and what each has there.
fn first_difference(table: &Value, job: &Value) -> Option<(String, String, String)> {
    let below = |key: String, table: &Value, job: &Value| {
        first_difference(table, job).map(|(path, table, job)| {
            let path = if path.is_empty() { key } else { format!("{key}.{path}") };
            (path, table, job)
        })
    };
    match (table, job) {
        (Value::Object(left), Value::Object(right)) => left
            .keys()
            .chain(right.keys().filter(|key| !left.contains_key(*key)))
            .find_map(|key| below(key.clone(), &table[key], &job[key])),
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            (0..left.len()).find_map(|index| below(index.to_string(), &left[index], &right[index]))
        }
        _ if table == job => None,
        _ => Some((String::new(), quote(table), quote(job))),
    }
}

fn quote(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".to_owned(),
        _ => value.to_string(),
    };
    match text.char_indices().nth(QUOTE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        let table = json!({"a": {"b": [1, 2]}, "c": null, "d": [1]});
        let change = |path: &str, value: Value| {
            let mut job = table.clone();
            *job.pointer_mut(path).unwrap() = value;
            first_difference(&table, &job)
        };
        let difference = |path: &str, table: &str, job: &str| {
            Some((path.to_owned(), table.to_owned(), job.to_owned()))
        };
        assert_eq!(first_difference(&table, &table), None);
        assert_eq!(change("/a/b/1", json!(3)), difference("a.b.1", "2", "3"));
        assert_eq!(change("/c", json!("x")), difference("c", "none", "\"x\""));
        assert_eq!(change("/d", json!([1, 2])), difference("d", "[1]", "[1,2]"));
        let long = change("/c", json!("é".repeat(500))).unwrap().2;
        assert!(long.ends_with("...") && long.chars().count() == QUOTE_CHARACTERS_MAX + 3);
    }
}
