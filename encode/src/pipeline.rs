//! The three stages of a run, each on its own thread or task, with bounded queues between.
//!
//! Reading gathers decoded images into batches, encoding turns them into rows, writing commits
//! shards. A batch never holds images of two shards, so what a shard contains does not depend on
//! who runs it or when.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::StreamExt;
use lapflow_ingest::Outcome;
use lapflow_store::{Commit, Dataset, Row, ShardWriter, Worker};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::encoder::{Encoder, PixelBatch};
use crate::error::Result;
use crate::job::Job;
use crate::skips::{self, SkipRecord};
use crate::stats::{EncodeStats, Lap, StageClock};

/// What travels between stages: a part of a shard, or its end.
enum Step<T> {
    Part { shard: u64, part: T },
    End { shard: u64, skips: Vec<SkipRecord> },
}

/// A run under way.
struct Run<'a> {
    job: &'a Job,
    stop: &'a AtomicBool,
    start: Instant,
    /// Images skipped in the shards that were committed when the run began.
    skipped_before: u64,
    stats: Arc<Mutex<EncodeStats>>,
}

/// The reading stage's side of the queue to the device.
struct Output {
    batches: Sender<Step<PixelBatch>>,
    clock: StageClock,
}

pub(crate) async fn run(
    job: &Job,
    worker: Worker,
    stop: &AtomicBool,
    progress: &mut (dyn FnMut(&EncodeStats) + Send),
) -> Result<EncodeStats> {
    let dataset = job.dataset.refresh().await?;
    let skipped_before = job.skips(&dataset);
    let run = Run { job, stop, start: Instant::now(), skipped_before, stats: Arc::default() };
    let shards = run.assign(worker, &dataset);
    let (batches, batches_in) = channel(job.config.queue_batches_max);
    let (rows, rows_in) = channel(job.config.queue_batches_max);
    let (encoder, stats) = (Arc::clone(&job.encoder), Arc::clone(&run.stats));
    let device = tokio::task::spawn_blocking(move || encode(&encoder, batches_in, &rows, &stats));
    let (read, encoded, written) =
        tokio::join!(run.read(shards, batches), device, run.write(rows_in, progress));
    // The stage that failed closed its queues, and the others ended early without an error.
    encoded.expect("the encoding stage is neither cancelled nor panics")?;
    written?;
    read?;
    let dataset = job.dataset.refresh().await?;
    let skipped = job.skips(&dataset);
    if skipped > job.skips_max() {
        let last = format!("they are listed beside the table, in {}", skips::FOLDER);
        return Err(job.too_many_skips(skipped, last));
    }
    let mut stats = run.stats();
    stats.seconds = run.start.elapsed().as_secs_f64();
    Ok(stats.clone())
}

impl Run<'_> {
    fn stats(&self) -> MutexGuard<'_, EncodeStats> {
        lock(&self.stats)
    }

    /// The shards that fall to `worker` and were not committed when the run began.
    fn assign(&self, worker: Worker, dataset: &Dataset) -> Vec<u64> {
        let plan = &self.job.plan;
        let missing = plan.missing(dataset);
        let assigned: Vec<u64> = plan.shards_of(worker.index, worker.count).collect();
        let todo: Vec<u64> =
            assigned.iter().copied().filter(|shard| missing.binary_search(shard).is_ok()).collect();
        let mut stats = self.stats();
        stats.shards_assigned = assigned.len() as u64;
        stats.shards_present = (assigned.len() - todo.len()) as u64;
        stats.rows_assigned = todo.iter().map(|&shard| plan.shard_images(shard) * plan.views).sum();
        todo
    }

    /// Reads shard after shard until there are no more, or the run is to stop.
    async fn read(&self, shards: Vec<u64>, batches: Sender<Step<PixelBatch>>) -> Result<()> {
        let mut output = Output { batches, clock: StageClock::start() };
        for shard in shards {
            if self.job.dataset.is_committed(&self.job.plan.shard_name(shard)).await? {
                self.stats().shards_present += 1;
            } else if !self.read_shard(shard, &mut output).await? {
                break;
            }
        }
        Ok(())
    }

    /// Reads one shard; whether to go on with the next.
    async fn read_shard(&self, shard: u64, output: &mut Output) -> Result<bool> {
        let mut skips = Vec::new();
        let mut batch = PixelBatch::default();
        let mut outcomes = pin!(self.job.source.stream(self.job.permutation.shard(shard)));
        while let Some(outcome) = outcomes.next().await {
            if self.stop.load(Ordering::Relaxed) {
                tracing::info!(shard, "asked to stop, shard abandoned");
                self.stats().stopped = true;
                return Ok(false);
            }
            match outcome? {
                Outcome::Image(item) => batch.push(item),
                Outcome::Skip(skip) => skips.push(self.count_skip(skip.into())?),
            }
            if batch.len() == self.job.config.batch {
                let part = std::mem::take(&mut batch);
                if !self.pass_on(Step::Part { shard, part }, output).await {
                    return Ok(false);
                }
            }
        }
        if batch.len() > 0 && !self.pass_on(Step::Part { shard, part: batch }, output).await {
            return Ok(false);
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
        let skipped = self.skipped_before + stats.skips();
        if skipped > self.job.skips_max() {
            let last = format!("the last: {}: {}", skip.key, skip.message);
            return Err(self.job.too_many_skips(skipped, last));
        }
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
        while let Some(step) = rows_in.recv().await {
            clock.lap(Lap::Starved);
            let (Step::Part { shard, .. } | Step::End { shard, .. }) = &step;
            let name = self.job.plan.shard_name(*shard);
            let mut writer = match open.take() {
                Some(writer) => writer,
                None => self.job.dataset.shard(&name).await?,
            };
            match step {
                Step::Part { part, .. } => {
                    self.count_rows(part.len() as u64);
                    for row in part {
                        writer.push(row).await?;
                    }
                    open = Some(writer);
                }
                Step::End { skips, .. } => self.commit(&name, writer, &skips).await?,
            }
            let snapshot = {
                let mut stats = self.stats();
                stats.write = clock.lap(Lap::Busy);
                stats.seconds = self.start.elapsed().as_secs_f64();
                stats.clone()
            };
            progress(&snapshot);
        }
        Ok(())
    }

    fn count_rows(&self, rows: u64) {
        let mut stats = self.stats();
        stats.rows_encoded += rows;
        stats.bytes_encoded += rows * self.job.dataset.metadata().sample_bytes() as u64;
    }

    async fn commit(&self, shard: &str, writer: ShardWriter, skips: &[SkipRecord]) -> Result<()> {
        let (rows, start) = (writer.rows(), Instant::now());
        skips::write(&self.job.dataset, shard, skips).await?;
        let commit = writer.commit().await?;
        tracing::info!(shard, rows, skipped = skips.len(), ?commit, "shard written");
        let mut stats = self.stats();
        stats.commit_seconds += start.elapsed().as_secs_f64();
        match commit {
            Commit::Done { .. } => {
                stats.shards_committed += 1;
                stats.rows_committed += rows;
            }
            Commit::AlreadyDone => stats.shards_present += 1,
        }
        Ok(())
    }
}

/// The encoding stage: batches in, rows out, until either side ends.
fn encode(
    encoder: &Encoder,
    mut batches_in: Receiver<Step<PixelBatch>>,
    rows: &Sender<Step<Vec<Row>>>,
    stats: &Mutex<EncodeStats>,
) -> Result<()> {
    let mut clock = StageClock::start();
    while let Some(step) = batches_in.blocking_recv() {
        clock.lap(Lap::Starved);
        let step = match step {
            Step::Part { shard, part } => Step::Part { shard, part: encoder.rows(part)? },
            Step::End { shard, skips } => Step::End { shard, skips },
        };
        clock.lap(Lap::Busy);
        let sent = rows.blocking_send(step).is_ok();
        let mut stats = lock(stats);
        stats.encode = clock.lap(Lap::Blocked);
        stats.rows_queued = waiting(rows);
        if !sent {
            break;
        }
    }
    Ok(())
}

/// Messages in a queue.
fn waiting<T>(queue: &Sender<T>) -> u64 {
    (queue.max_capacity() - queue.capacity()) as u64
}

fn lock(stats: &Mutex<EncodeStats>) -> MutexGuard<'_, EncodeStats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}
