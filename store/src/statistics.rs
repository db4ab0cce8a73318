//! Mean, standard deviation and range of every channel of every level.
//!
//! Each shard carries sums; merging adds them in shard order, so the result is the same whoever
//! committed first.

use serde::{Deserialize, Serialize};

use crate::metadata::LevelSpec;

/// Sums over one level of some samples, one entry a channel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LevelSums {
    /// Values summed in each channel.
    pub count: u64,
    /// Sum of values.
    pub sum: Vec<f64>,
    /// Sum of squares.
    pub sum_squares: Vec<f64>,
    /// Smallest value.
    pub min: Vec<f32>,
    /// Largest value.
    pub max: Vec<f32>,
}

impl LevelSums {
    /// Sums over no samples; the extremes are those of f32, since JSON has no infinity.
    pub fn new(channels: usize) -> Self {
        Self {
            count: 0,
            sum: vec![0.0; channels],
            sum_squares: vec![0.0; channels],
            min: vec![f32::MAX; channels],
            max: vec![f32::MIN; channels],
        }
    }

    /// Adds one sample's level: `values` in C, H, W order, as many of each channel.
    pub fn add(&mut self, values: &[f32]) {
        let area = values.len() / self.sum.len();
        for (channel, values) in values.chunks_exact(area).enumerate() {
            let (mut sum, mut sum_squares) = (0.0, 0.0);
            let (mut min, mut max) = (self.min[channel], self.max[channel]);
            for &value in values {
                sum += f64::from(value);
                sum_squares += f64::from(value) * f64::from(value);
                min = min.min(value);
                max = max.max(value);
            }
            self.sum[channel] += sum;
            self.sum_squares[channel] += sum_squares;
            (self.min[channel], self.max[channel]) = (min, max);
        }
        self.count += area as u64;
    }

    /// Adds another shard's sums.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        for channel in 0..self.sum.len() {
            self.sum[channel] += other.sum[channel];
            self.sum_squares[channel] += other.sum_squares[channel];
            self.min[channel] = self.min[channel].min(other.min[channel]);
            self.max[channel] = self.max[channel].max(other.max[channel]);
        }
    }

    /// Whether every list has one entry a channel.
    pub(crate) fn fits(&self, channels: usize) -> bool {
        [self.sum.len(), self.sum_squares.len(), self.min.len(), self.max.len()]
            .iter()
            .all(|&length| length == channels)
    }

    fn statistics(&self) -> Vec<ChannelStatistics> {
        let count = self.count as f64;
        (0..self.sum.len())
            .map(|channel| {
                let mean = self.sum[channel] / count;
                let variance = (self.sum_squares[channel] / count - mean * mean).max(0.0);
                ChannelStatistics {
                    mean,
                    std: variance.sqrt(),
                    min: self.min[channel],
                    max: self.max[channel],
                    count: self.count,
                }
            })
            .collect()
    }
}

/// One channel over the whole set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ChannelStatistics {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the population (divided by N).
    pub std: f64,
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Values seen.
    pub count: u64,
}

/// Statistics of a dataset's raw latents; `levels[k][c]` is channel `c` of level `k`.
///
/// An empty dataset has NaN means and a count of 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Per level, per channel.
    pub levels: Vec<Vec<ChannelStatistics>>,
}

impl Statistics {
    /// Merges shards' sums, in the order given; `specs` are the dataset's levels.
    pub(crate) fn merge<'a>(
        specs: &[LevelSpec],
        shards: impl Iterator<Item = &'a [LevelSums]>,
    ) -> Self {
        let mut totals: Vec<_> = specs.iter().map(|spec| LevelSums::new(spec.channels)).collect();
        for shard in shards {
            for (total, sums) in totals.iter_mut().zip(shard) {
                total.merge(sums);
            }
        }
        Self { levels: totals.iter().map(LevelSums::statistics).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_shards_equals_summing_once() {
        let spec = LevelSpec { channels: 2, height: 1, width: 2 };
        let samples = [[1.0, 3.0, -1.0, 0.0], [5.0, 7.0, 2.0, -4.0], [0.5, 0.5, 0.25, 8.0]];
        let sums = |samples: &[[f32; 4]]| {
            let mut sums = LevelSums::new(2);
            for sample in samples {
                sums.add(sample);
            }
            sums
        };
        let (first, second) = (sums(&samples[..1]), sums(&samples[1..]));
        let parts = [first, second];
        let merged = Statistics::merge(&[spec], parts.iter().map(std::slice::from_ref));
        let whole = [sums(&samples)];
        assert_eq!(merged, Statistics::merge(&[spec], [&whole[..]].into_iter()));
        let channel = merged.levels[0][0];
        let values = [1.0, 3.0, 5.0, 7.0, 0.5, 0.5];
        let mean = values.iter().sum::<f64>() / 6.0;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 6.0;
        assert!((channel.mean - mean).abs() < 1e-12);
        assert!((channel.std - variance.sqrt()).abs() < 1e-12);
        assert_eq!((channel.min, channel.max, channel.count), (0.5, 7.0, 6));
    }
}
