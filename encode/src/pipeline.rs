//! The three stages of a run, each on its own thread or task, with bounded queues between.
//!
//! Reading gathers decoded images into batches, encoding turns them into rows, writing commits
//! shards. A batch never holds images of two shards, so what a shard contains does not depend on
//! who runs it or when.

use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use lapflow_ingest::{Outcome, Source};
use lapflow_store::{Commit, Dataset, Row, ShardWriter};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;

use crate::config::EncodeConfig;
use crate::encoder::{Encoder, PixelBatch};
use crate::error::Result;
use crate::skips::{self, SkipRecord};
use crate::stats::{EncodeStats, Lap, StageClock};

/// How long the writing stage waits for rows before it looks whether there is something to report.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A shard to be made.
pub(crate) struct Work {
    /// The name under which it is committed.
    pub shard: String,
    pub source: Arc<Source>,
    /// Positions in the source's listing.
    pub order: Vec<usize>,
    /// Images of the shard that are known not to be there.
    pub skips: Vec<SkipRecord>,
    /// Whether the table has it already and its file is lost.
    pub lost: bool,
}

/// What travels between stages: a part of a shard, or its end.
enum Step<T> {
    Part { shard: Arc<str>, part: T },
    End { shard: Arc<str>, skips: Vec<SkipRecord> },
}

impl<T> Step<T> {
    fn try_map<U>(self, f: impl FnOnce(T) -> Result<U>) -> Result<Step<U>> {
        Ok(match self {
            Self::Part { shard, part } => Step::Part { shard, part: f(part)? },
            Self::End { shard, skips } => Step::End { shard, skips },
        })
    }
}

/// Whether a skip was one too many, judged from the figures so far.
pub(crate) type SkipLimit<'a> = &'a (dyn Fn(&EncodeStats, &SkipRecord) -> Result<()> + Sync);

/// A run under way.
pub(crate) struct Run<'a> {
    dataset: &'a Dataset,
    encoder: &'a Arc<Encoder>,
    config: &'a EncodeConfig,
    pub stop: &'a AtomicBool,
    skip_limit: SkipLimit<'a>,
    start: Instant,
    stats: Arc<Mutex<EncodeStats>>,
}

/// The reading stage's side of the queue to the device.
struct Output {
    batches: Sender<Step<PixelBatch>>,
    clock: StageClock,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        dataset: &'a Dataset,
        encoder: &'a Arc<Encoder>,
        config: &'a EncodeConfig,
        stop: &'a AtomicBool,
        skip_limit: SkipLimit<'a>,
    ) -> Self {
        let (start, stats) = (Instant::now(), Arc::default());
        Self { dataset, encoder, config, stop, skip_limit, start, stats }
    }

    /// Makes the shards that `works` yields, in turn, until it ends or the run is to stop.
    pub(crate) async fn drive(
        &self,
        works: impl Stream<Item = Work> + Send,
        progress: &mut (dyn FnMut(&EncodeStats) + Send),
    ) -> Result<()> {
        let (batches, batches_in) = channel(self.config.queue_batches_max);
        let (rows, rows_in) = channel(self.config.queue_batches_max);
        let (encoder, stats) = (Arc::clone(self.encoder), Arc::clone(&self.stats));
        let device =
            tokio::task::spawn_blocking(move || encode(&encoder, batches_in, &rows, &stats));
        let (read, encoded, written) =
            tokio::join!(self.read(works, batches), device, self.write(rows_in, progress));
        // The stage that failed closed its queues, and the others ended early without an error.
        encoded.expect("the encoding stage is neither cancelled nor panics")?;
        written?;
        read?;
        self.stats().seconds = self.start.elapsed().as_secs_f64();
        Ok(())
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, EncodeStats> {
        lock(&self.stats)
    }

    /// Reads shard after shard until there are no more, or the run is to stop.
    async fn read(
        &self,
        works: impl Stream<Item = Work> + Send,
        batches: Sender<Step<PixelBatch>>,
    ) -> Result<()> {
        let mut output = Output { batches, clock: StageClock::start() };
        let mut works = pin!(works);
        while let Some(work) = works.next().await {
            self.stats().read = output.clock.lap(Lap::Starved);
            if !work.lost && self.dataset.is_committed(&work.shard).await? {
                self.stats().shards_present += 1;
            } else if !self.read_shard(work, &mut output).await? {
                break;
            }
        }
        Ok(())
    }

    /// Reads one shard; whether to go on with the next.
    async fn read_shard(&self, work: Work, output: &mut Output) -> Result<bool> {
        let shard: Arc<str> = work.shard.into();
        let mut skips = Vec::new();
        for skip in work.skips {
            skips.push(self.count_skip(skip)?);
        }
        let mut batch = PixelBatch::default();
        let mut outcomes = pin!(work.source.stream(work.order));
        while let Some(outcome) = outcomes.next().await {
            if self.stop.load(Ordering::Relaxed) {
                tracing::info!(%shard, "asked to stop, shard abandoned");
                self.stats().stopped = true;
                return Ok(false);
            }
            match outcome? {
                Outcome::Image(item) => {
                    if item.unturned && item.view == 0 {
                        self.stats().images_unturned += 1;
                    }
                    batch.push(item);
                }
                Outcome::Skip(skip) => skips.push(self.count_skip(skip.into())?),
            }
            if batch.len() == self.config.batch {
                let (shard, part) = (Arc::clone(&shard), std::mem::take(&mut batch));
                if !self.pass_on(Step::Part { shard, part }, output).await {
                    return Ok(false);
                }
            }
        }
        if batch.len() > 0 {
            let step = Step::Part { shard: Arc::clone(&shard), part: batch };
            if !self.pass_on(step, output).await {
                return Ok(false);
            }
        }
        Ok(self.pass_on(Step::End { shard, skips }, output).await)
    }

    /// Sends `step` to the device; whether anybody listens there.
    async fn pass_on(&self, step: Step<PixelBatch>, output: &mut Output) -> bool {
        output.clock.lap(Lap::Busy);
        let sent = output.batches.send(step).await.is_ok();
        let mut stats = self.stats();
        stats.read = output.clock.lap(Lap::Blocked);
        stats.batches_queued = waiting(&output.batches);
        sent
    }

    fn count_skip(&self, skip: SkipRecord) -> Result<SkipRecord> {
        let mut stats = self.stats();
        *stats.skipped.entry(skip.reason.clone()).or_default() += 1;
        (self.skip_limit)(&stats, &skip)?;
        Ok(skip)
    }

    /// Writes rows as they come and commits each shard at its end.
    async fn write(
        &self,
        mut rows_in: Receiver<Step<Vec<Row>>>,
        progress: &mut (dyn FnMut(&EncodeStats) + Send),
    ) -> Result<()> {
        let mut clock = StageClock::start();
        let mut open: Option<ShardWriter> = None;
        let mut idle_polls = 0;
        loop {
            let received = timeout(REPORT_EVERY, rows_in.recv()).await;
            clock.lap(Lap::Starved);
            match received {
                Ok(None) => return Ok(()),
                Ok(Some(step)) => self.write_step(step, &mut open).await?,
                // Silence, unless the source was looked at meanwhile and there was nothing to do.
                Err(_) if self.stats().idle_polls == idle_polls => continue,
                Err(_) => {}
            }
            let snapshot = {
                let mut stats = self.stats();
                stats.write = clock.lap(Lap::Busy);
                stats.seconds = self.start.elapsed().as_secs_f64();
                idle_polls = stats.idle_polls;
                stats.clone()
            };
            progress(&snapshot);
        }
    }

    async fn write_step(&self, step: Step<Vec<Row>>, open: &mut Option<ShardWriter>) -> Result<()> {
        let (Step::Part { shard, .. } | Step::End { shard, .. }) = &step;
        let shard = Arc::clone(shard);
        let mut writer = match open.take() {
            Some(writer) => writer,
            None => self.dataset.shard(&shard).await?,
        };
        match step {
            Step::Part { part, .. } => {
                self.count_rows(part.len() as u64);
                for row in part {
                    writer.push(row).await?;
                }
                *open = Some(writer);
                Ok(())
            }
            Step::End { skips, .. } => self.commit(&shard, writer, &skips).await,
        }
    }

    fn count_rows(&self, rows: u64) {
        let mut stats = self.stats();
        stats.rows_encoded += rows;
        stats.bytes_encoded += rows * self.dataset.metadata().sample_bytes() as u64;
    }

    async fn commit(&self, shard: &str, writer: ShardWriter, skips: &[SkipRecord]) -> Result<()> {
        let (rows, start) = (writer.rows(), Instant::now());
        skips::write(self.dataset, shard, skips).await?;
        let commit = writer.commit().await?;
        tracing::info!(shard, rows, skipped = skips.len(), ?commit, "shard written");
        let mut stats = self.stats();
        stats.commits.add(start.elapsed().as_secs_f64());
        match commit {
            Commit::Done { .. } => {
                stats.shards_committed += 1;
                stats.rows_committed += rows;
            }
            Commit::AlreadyDone => stats.shards_present += 1,
            Commit::Restored => stats.shards_restored += 1,
        }
        Ok(())
    }
}

/// The encoding stage: batches in, rows out, until either side ends. A GPU computes a batch while the one
/// before it is copied back, and turned into rows, here.
fn encode(
    encoder: &Encoder,
    mut batches_in: Receiver<Step<PixelBatch>>,
    rows: &Sender<Step<Vec<Row>>>,
    stats: &Mutex<EncodeStats>,
) -> Result<()> {
    let mut lane = encoder.lane()?;
    let mut clock = StageClock::start();
    let mut behind = None;
    loop {
        // What is on the device does not wait for a batch that may be long in coming.
        let step = match batches_in.try_recv() {
            Ok(step) => Some(step),
            Err(_) if behind.is_some() => None,
            Err(_) => match batches_in.blocking_recv() {
                Some(step) => Some(step),
                None => return Ok(()),
            },
        };
        clock.lap(Lap::Starved);
        let started = step.map(|step| step.try_map(|batch| lane.start(batch))).transpose()?;
        let on_cpu = encoder.on_cpu();
        let ready = if on_cpu { started } else { mem::replace(&mut behind, started) };
        let Some(ready) = ready else { continue };
        let ready = ready.try_map(|encoding| lane.rows(encoding))?;
        clock.lap(Lap::Busy);
        let sent = rows.blocking_send(ready).is_ok();
        let mut stats = lock(stats);
        stats.encode = clock.lap(Lap::Blocked);
        stats.rows_queued = waiting(rows);
        if !sent {
            return Ok(());
        }
    }
}

/// Messages in a queue.
fn waiting<T>(queue: &Sender<T>) -> u64 {
    (queue.max_capacity() - queue.capacity()) as u64
}

fn lock(stats: &Mutex<EncodeStats>) -> MutexGuard<'_, EncodeStats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}
