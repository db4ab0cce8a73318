//! What a run did, and how its stages spent their time.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

/// What a run has done so far; handed to the progress callback and returned at the end.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EncodeStats {
    /// Shards that fall to this worker.
    pub shards_assigned: u64,
    /// Of those, shards found committed already, by an earlier run or another worker.
    pub shards_present: u64,
    /// Shards this run committed.
    pub shards_committed: u64,
    /// Shards of the table whose files were lost, and that this run put back.
    pub shards_restored: u64,
    /// Rows of the assigned shards that were not present at the start, if nothing is skipped.
    pub rows_assigned: u64,
    /// Rows encoded, also those of a shard that was then abandoned.
    pub rows_encoded: u64,
    /// Bytes of their levels, before compression.
    pub bytes_encoded: u64,
    /// Rows of the shards this run committed.
    pub rows_committed: u64,
    /// How long commits took: the last of a shard's upload, and the table's log.
    pub commits: Latencies,
    /// Batches that waited for the device when the last one was queued.
    pub batches_queued: u64,
    /// Batches of rows that waited for the writer when the last one was queued.
    pub rows_queued: u64,
    /// Images skipped, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Images read whose EXIF orientation asks for a turn that they were not given.
    pub images_unturned: u64,
    /// Images of a watched source that wait for their shard to be closed.
    pub images_pending: u64,
    /// Images of a watched source that belong to no known class, and so to no shard.
    pub images_unlabelled: u64,
    /// Times that a watched source was looked at.
    pub polls: u64,
    /// Those that failed, for instance because its store did not answer.
    pub polls_failed: u64,
    /// Those after which there was nothing to do.
    pub idle_polls: u64,
    /// Whether the run was asked to stop before it was done.
    pub stopped: bool,
    /// Seconds since the run began.
    pub seconds: f64,
    /// Reading, decoding and cropping, and gathering batches.
    pub read: StageTimes,
    /// Autoencoder and pyramid.
    pub encode: StageTimes,
    /// Parquet, upload and commits.
    pub write: StageTimes,
}

impl EncodeStats {
    /// Images skipped, for whatever reason.
    pub fn skips(&self) -> u64 {
        self.skipped.values().sum()
    }
}

/// Bounds between which latencies are counted.
const LATENCY_BOUNDS: usize = 8;

/// How often something took how long.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// How many took at most [`Latencies::BOUNDS`] seconds, and no less than the bound before.
    pub counts: [u64; LATENCY_BOUNDS],
    /// How many there were.
    pub count: u64,
    /// Their seconds together.
    pub seconds: f64,
}

impl Latencies {
    /// Upper bounds, in seconds.
    pub const BOUNDS: [f64; LATENCY_BOUNDS] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

    pub(crate) fn add(&mut self, seconds: f64) {
        if let Some(bucket) = Self::BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.counts[bucket] += 1;
        }
        self.count += 1;
        self.seconds += seconds;
    }
}

/// How a stage of the pipeline spent its time, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StageTimes {
    /// Working; for the reading stage, waiting for the decoding threads included.
    pub busy: f64,
    /// Waiting for the stage before.
    pub starved: f64,
    /// Waiting for room in the queue to the next stage.
    pub blocked: f64,
}

impl StageTimes {
    /// Share of its time that the stage worked; 0 before it began.
    pub fn occupancy(&self) -> f64 {
        let total = self.busy + self.starved + self.blocked;
        if total > 0.0 { self.busy / total } else { 0.0 }
    }
}

/// Splits a stage's time by what it was doing between two laps.
pub(crate) struct StageClock {
    times: StageTimes,
    last: Instant,
}

/// What a stage did since the last lap.
pub(crate) enum Lap {
    Busy,
    Starved,
    Blocked,
}

impl StageClock {
    pub(crate) fn start() -> Self {
        Self { times: StageTimes::default(), last: Instant::now() }
    }

    /// Books the time since the last lap; the times so far.
    pub(crate) fn lap(&mut self, lap: Lap) -> StageTimes {
        let elapsed = self.last.elapsed();
        self.last += elapsed;
        let seconds = match lap {
            Lap::Busy => &mut self.times.busy,
            Lap::Starved => &mut self.times.starved,
            Lap::Blocked => &mut self.times.blocked,
        };
        *seconds += elapsed.as_secs_f64();
        self.times
    }
}
