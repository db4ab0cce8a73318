//! What a job would cost, from a short measured sample.

use std::time::Instant;

use futures::StreamExt;
use lapflow_ingest::Outcome;
use serde::Serialize;

use crate::encoder::PixelBatch;
use crate::error::Result;
use crate::job::Draft;
use crate::plan::Permutation;

/// What a job would cost one worker on this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Images measured, the warm-up left out.
    pub images_measured: u64,
    /// Seconds to read, decode and crop an image (all threads together).
    pub read_seconds: f64,
    /// Seconds to encode an image, all its views together.
    pub encode_seconds: f64,
    /// Seconds for the whole job with one worker.
    pub seconds: f64,
    /// Bytes of the stored levels, before compression.
    pub bytes: u64,
}

impl Draft {
    /// Measures about `images` images of the first shard (a batch more to warm up), one stage at
    /// a time, and extrapolates; nothing is written. On a device of its own the job takes as long
    /// as its slower stage, on the CPU as long as both together.
    ///
    /// # Errors
    /// As a run would meet them.
    pub async fn estimate(&self, images: u64) -> Result<Estimate> {
        let permutation = Permutation::new(self.plan());
        let mut order = permutation.shard(0);
        order.truncate(images as usize + self.config.batch);
        let read_images = order.len() as f64;
        let start = Instant::now();
        let mut batches = vec![PixelBatch::default()];
        let mut outcomes = std::pin::pin!(self.source.stream(order));
        while let Some(outcome) = outcomes.next().await {
            let Outcome::Image(item) = outcome? else { continue };
            if batches.last().is_none_or(|batch| batch.len() == self.config.batch) {
                batches.push(PixelBatch::default());
            }
            batches.last_mut().expect("a batch was pushed").push(item);
        }
        let read_seconds = start.elapsed().as_secs_f64() / read_images;

        let warm_up = if batches.len() > 1 { batches.remove(0) } else { PixelBatch::default() };
        let rows: usize = batches.iter().map(PixelBatch::len).sum();
        let encoder = self.encoder.clone();
        let encode = move || -> Result<f64> {
            let mut lane = encoder.lane()?;
            if warm_up.len() > 0 {
                let started = lane.start(warm_up)?;
                lane.rows(started)?;
            }
            let start = Instant::now();
            let mut behind = None;
            for batch in batches.into_iter().filter(|batch| batch.len() > 0) {
                if let Some(started) = behind.replace(lane.start(batch)?) {
                    lane.rows(started)?;
                }
            }
            if let Some(started) = behind {
                lane.rows(started)?;
            }
            Ok(start.elapsed().as_secs_f64())
        };
        let encoding = tokio::task::spawn_blocking(encode).await;
        let encoding = encoding.expect("the measurement is neither cancelled nor panics")?;
        let views = self.plan().views;
        let encode_seconds = encoding / rows.max(1) as f64 * views as f64;
        let seconds_each = match self.encoder.on_cpu() {
            true => read_seconds + encode_seconds,
            false => read_seconds.max(encode_seconds),
        };
        Ok(Estimate {
            images_measured: rows as u64 / views,
            read_seconds,
            encode_seconds,
            seconds: seconds_each * self.plan().images as f64,
            bytes: self.plan().rows() * self.metadata().sample_bytes() as u64,
        })
    }
}
