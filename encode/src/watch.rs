//! A source that grows: what appears in it is encoded and committed, shard by shard.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;
use futures::stream;
use lapflow_ingest::{IngestConfig, Pick, Skip, SkipReason, Source, Survey};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_store::{Dataset, Metadata, StoreError, Worker};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::sync::mpsc::{Sender, channel};

use crate::arrivals::{Arrivals, Pending};
use crate::config::EncodeConfig;
use crate::encoder::Encoder;
use crate::error::{EncodeError, Result};
use crate::job::{create_plan, preprocessing, read_plan, same};
use crate::ledger::{Ledger, Listed, Segment};
use crate::pipeline::{Run, Work};
use crate::plan::Plan;
use crate::skips::SkipRecord;
use crate::stats::EncodeStats;

/// How often a wait looks whether it is to end.
const NAP: Duration = Duration::from_millis(100);
/// Looks at the source before an archive that cannot be opened counts as skipped images.
const OPEN_ATTEMPTS: u32 = 3;

/// A folder or prefix that is followed into a dataset; the counterpart of [`Job`](crate::Job) for
/// a source that grows.
pub struct Watch {
    ingest: IngestConfig,
    config: EncodeConfig,
    encoder: Arc<Encoder>,
    dataset: Dataset,
    plan: Plan,
    /// Labels by class name.
    labels: HashMap<String, u32>,
}

impl Watch {
    /// Opens the dataset at `uri` to go on with it, or creates it. Its classes are those that it
    /// was created with: `data.watch.classes`, or else those of the images there at that time.
    ///
    /// # Errors
    /// [`EncodeError::Differs`] where the dataset was made with another autoencoder, preprocessing
    /// or pyramid; [`EncodeError::Config`] where no classes are known yet.
    pub async fn open(
        ingest: &IngestConfig,
        encode: &EncodeConfig,
        autoencoder: Arc<Autoencoder>,
        device: &Device,
        uri: &str,
    ) -> Result<Self> {
        encode.validate()?;
        let ingest = IngestConfig { skip_fraction_max: 1.0, ..ingest.clone() };
        let preprocessing = preprocessing(&ingest, encode, &autoencoder);
        let encoder = Encoder::new(autoencoder, device, encode, ingest.size as usize)?;
        let mut metadata = Metadata {
            autoencoder: encoder.identity(),
            preprocessing,
            ..Metadata::new(encoder.levels().to_vec(), encode.dtype, encode.posterior)
        };
        let dataset = match Dataset::open(uri).await {
            Err(StoreError::Missing { .. }) => {
                metadata.classes = classes(&ingest, encode).await?;
                match Dataset::create(uri, &metadata).await {
                    Err(StoreError::Exists { .. }) => Dataset::open(uri).await?,
                    created => created?,
                }
            }
            opened => opened?,
        };
        metadata.classes = dataset.metadata().classes.clone();
        metadata.autoencoder = encoder.identity_beside(&dataset.metadata().autoencoder);
        same(&dataset, "", dataset.metadata(), &metadata)?;
        // A dataset that is watched from its beginning has a plan of nothing, so that no job can
        // give it another one.
        let views = if ingest.flip { 2 } else { 1 };
        let plan = match read_plan(&dataset).await? {
            Some(plan) => plan,
            None => {
                let empty = Plan::new(&[], views, encode.shard_rows, encode.shuffle_seed);
                create_plan(&dataset, &empty).await?
            }
        };
        let labels = metadata.classes.iter().cloned().zip(0..).collect();
        let encoder = Arc::new(encoder);
        Ok(Self { ingest, config: encode.clone(), encoder, dataset, plan, labels })
    }

    /// The dataset as it was when it was opened.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Follows the source until `stop` is set: a file that rests is listed, a shard is closed by
    /// size or age, written down in the ledger and encoded. A run that is killed at any time is
    /// continued by the next, and any number of watchers may follow the same source; each image
    /// comes into the table once. Shards that were written down are made by the watcher whose
    /// `worker` their number falls to.
    ///
    /// Once `stop` is set the same holds as for [`Job::run`](crate::Job::run): the shard being
    /// read is abandoned, to be made by the next run with the same content, and shards read to
    /// their end are committed.
    ///
    /// `progress` is called after every batch, every commit, and every look that finds nothing to
    /// do.
    ///
    /// # Errors
    /// What the dataset or the autoencoder make of it. That the source cannot be looked at is
    /// logged and counted, and tried again.
    pub async fn run(
        &self,
        worker: Worker,
        stop: &AtomicBool,
        progress: &mut (dyn FnMut(&EncodeStats) + Send),
    ) -> Result<EncodeStats> {
        let run = Run::new(&self.dataset, &self.encoder, &self.config, stop, &|_, _| Ok(()));
        let (works, works_in) = channel(1);
        let works_in = stream::unfold(works_in, |mut works| async move {
            let work = works.recv().await?;
            Some((work, works))
        });
        let follower = Follower { watch: self, run: &run, worker, works };
        let (followed, driven) = tokio::join!(follower.follow(), run.drive(works_in, progress));
        driven?;
        followed?;
        let stats = run.stats().clone();
        Ok(stats)
    }

    /// The label of class `name` in the dataset: none in a dataset without classes.
    fn label(&self, name: &str) -> Result<Option<u32>, ()> {
        if self.labels.is_empty() {
            return Ok(None);
        }
        self.labels.get(name).map(|&label| Some(label)).ok_or(())
    }
}

/// The classes of a new dataset.
async fn classes(ingest: &IngestConfig, encode: &EncodeConfig) -> Result<Vec<String>> {
    if !encode.watch.classes.is_empty() {
        return Ok(encode.watch.classes.clone());
    }
    let survey = Survey::take(ingest).await?;
    let names: Vec<String> = survey.pieces().map(|piece| piece.name.clone()).collect();
    if names.is_empty() && ingest.class_folders {
        let reason = "the source holds no images that would tell the classes: name them here, \
                      or set data.class_folders = false";
        return Err(EncodeError::config("watch.classes", reason));
    }
    Ok(survey.open(names).await?.source.classes().to_vec())
}

/// Finds work in the source and hands it to a run.
struct Follower<'a> {
    watch: &'a Watch,
    run: &'a Run<'a>,
    worker: Worker,
    works: Sender<Work>,
}

impl Follower<'_> {
    async fn follow(self) -> Result<()> {
        let Watch { ingest, config, dataset, plan, .. } = self.watch;
        let settle = Duration::from_secs_f64(config.watch.settle_seconds);
        let dataset = dataset.refresh().await?;
        let (mut ledger, open) = Ledger::read(&dataset, plan).await?;
        let (mut arrivals, mut pending) = (Arrivals::default(), Pending::default());
        let mut todo = open;
        while !self.stopping() {
            self.run.stats().polls += 1;
            match Survey::take(ingest).await {
                Ok(survey) => {
                    self.make(std::mem::take(&mut todo), &survey).await?;
                    let settled = arrivals.settled(&survey, settle);
                    self.list(&survey, settled, &ledger, &mut arrivals, &mut pending).await;
                    self.close_shards(&survey, &mut ledger, &mut pending).await?;
                    todo = ledger.catch_up(&dataset).await?;
                    pending.retain(|key| !ledger.knows(key));
                }
                Err(error) => self.failed(&error.to_string()),
            }
            self.look_idle(pending.len());
            if todo.is_empty() {
                self.nap().await;
            }
        }
        self.run.stats().stopped |= self.run.stop.load(Ordering::Relaxed);
        Ok(())
    }

    /// Whether the run is to end or has ended.
    fn stopping(&self) -> bool {
        self.run.stop.load(Ordering::Relaxed) || self.works.is_closed()
    }

    async fn nap(&self) {
        let until = Instant::now() + Duration::from_secs_f64(self.watch.config.watch.poll_seconds);
        while !self.stopping() && Instant::now() < until {
            tokio::time::sleep(NAP.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    fn failed(&self, error: &str) {
        tracing::warn!(error, "the source could not be looked at, will try again");
        self.run.stats().polls_failed += 1;
    }

    /// Counts a look, as an idle one where every shard handed over is done.
    fn look_idle(&self, pending: usize) {
        let mut stats = self.run.stats();
        stats.images_pending = pending as u64;
        if stats.shards_committed + stats.shards_present == stats.shards_assigned {
            stats.idle_polls += 1;
        }
    }

    /// Opens the files called `names` and has their unknown images wait.
    async fn list(
        &self,
        survey: &Survey,
        names: Vec<String>,
        ledger: &Ledger,
        arrivals: &mut Arrivals,
        pending: &mut Pending,
    ) {
        // A file that is an image that is known needs no second look.
        let names: Vec<String> = names.into_iter().filter(|name| !ledger.knows(name)).collect();
        if names.is_empty() {
            return;
        }
        let opened = match survey.open(names.clone()).await {
            Ok(opened) => opened,
            Err(error) => {
                names.iter().for_each(|name| arrivals.offer_again(name));
                return self.failed(&error.to_string());
            }
        };
        for (archive, error) in &opened.failed {
            tracing::warn!(archive, %error, "archive passed over until it changes");
        }
        let mut found = self.unknown(&opened.source, ledger);
        // Mixes what appeared together; the ledger then holds the order.
        let seed = self.watch.config.shuffle_seed;
        found.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ ledger.len()));
        found.into_iter().for_each(|image| pending.push(image));
    }

    /// The images of `source` that belong to no shard yet, with the dataset's labels.
    fn unknown(&self, source: &Source, ledger: &Ledger) -> Vec<Listed> {
        let (mut found, mut strange) = (Vec::new(), BTreeSet::new());
        let mut unlabelled = 0;
        for entry in source.entries().iter().filter(|entry| !ledger.knows(&entry.key)) {
            let class = entry.label.map(|label| match source.classes().get(label as usize) {
                Some(name) => name.clone(),
                None => label.to_string(),
            });
            let label = match class.as_deref() {
                None if source.requires_labels() => Err(()),
                None => Ok(None),
                Some(name) => self.watch.label(name),
            };
            match label {
                Ok(label) => found.push(Listed { key: entry.key.clone(), label }),
                Err(()) => {
                    unlabelled += 1;
                    strange.insert(class.unwrap_or_else(|| "none".to_owned()));
                }
            }
        }
        if unlabelled > 0 {
            let classes = strange.into_iter().collect::<Vec<_>>().join(", ");
            tracing::warn!(unlabelled, classes, "images of unknown classes left out");
            self.run.stats().images_unlabelled += unlabelled;
        }
        found
    }

    /// Writes down the shards that are full or old enough, and hands over those that fall here.
    async fn close_shards(
        &self,
        survey: &Survey,
        ledger: &mut Ledger,
        pending: &mut Pending,
    ) -> Result<()> {
        let config = &self.watch.config;
        let images_max = (config.shard_rows / self.watch.plan.views as usize).max(1);
        let age = Duration::from_secs_f64(config.watch.age_seconds);
        while let Some(images) = pending.closed(images_max, age) {
            if self.stopping() {
                return Ok(());
            }
            let segments = match ledger.append(&self.watch.dataset, images).await? {
                Some(segment) => vec![segment],
                None => ledger.catch_up(&self.watch.dataset).await?,
            };
            pending.retain(|key| !ledger.knows(key));
            self.run.stats().images_pending = pending.len() as u64;
            self.make(segments, survey).await?;
        }
        Ok(())
    }

    /// Hands over those of `segments` that fall to this worker.
    async fn make(&self, segments: Vec<Segment>, survey: &Survey) -> Result<()> {
        for segment in segments {
            if segment.number % self.worker.count != self.worker.index {
                continue;
            }
            let work = self.open(&segment, survey).await?;
            {
                let mut stats = self.run.stats();
                stats.shards_assigned += 1;
                stats.rows_assigned += segment.images() * self.watch.plan.views;
            }
            if self.works.send(work).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The images of `segment`, found again in the source.
    async fn open(&self, segment: &Segment, survey: &Survey) -> Result<Work> {
        let picks = segment.picks();
        let names = |survey: &Survey| -> Vec<String> {
            let names: BTreeSet<&str> =
                picks.iter().filter_map(|pick| survey.piece_of(&pick.key)).collect();
            names.into_iter().map(str::to_owned).collect()
        };
        let mut opened = survey.open(names(survey)).await?;
        for _ in 1..OPEN_ATTEMPTS {
            if opened.failed.is_empty() || self.stopping() {
                break;
            }
            self.nap().await;
            if let Ok(survey) = Survey::take(&self.watch.ingest).await {
                opened = survey.open(names(&survey)).await?;
            }
        }
        let (source, missing) = opened.source.select(picks);
        let vanished = |pick: Pick| {
            SkipRecord::from(Skip { id: pick.id, key: pick.key, reason: SkipReason::Vanished })
        };
        Ok(Work {
            shard: segment.shard_name(),
            order: (0..source.entries().len()).collect(),
            source: Arc::new(source),
            skips: missing.into_iter().map(vanished).collect(),
            lost: false,
        })
    }
}
