//! The Inception Score (Salimans et al. 2016).

use crate::error::{Result, SampleError};
use serde::Serialize;

/// Images in a split, as in ADM's evaluator.
pub const SPLIT_IMAGES: usize = 5000;

/// exp of the mean KL divergence of p(class | image) from p(class), gathered split by split.
#[derive(Clone, Debug)]
pub struct InceptionScore {
    split_images: usize,
    classes: usize,
    scores: Vec<f64>,
    count: usize,
    sum: Vec<f64>,
    sum_plogp: f64,
}

/// The score of a set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Mean over the splits; ADM reports this.
    pub mean: f64,
    /// Standard deviation over the splits (N in the denominator).
    pub std: f64,
    /// How many splits there were, an incomplete last one included.
    pub splits: usize,
}

impl InceptionScore {
    /// No images yet, of `classes` logits; [`SPLIT_IMAGES`] is the usual split.
    pub fn new(classes: usize, split_images: usize) -> Self {
        let sum = vec![0.0; classes];
        Self { split_images, classes, scores: Vec::new(), count: 0, sum, sum_plogp: 0.0 }
    }

    /// Adds rows of logits in the images' order.
    pub fn push(&mut self, logits: &[f32]) {
        for row in logits.chunks(self.classes) {
            let top = row.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
            let shifted = row.iter().map(|v| f64::from(v - top));
            let log_total = shifted.clone().map(f64::exp).sum::<f64>().ln();
            for (sum, logit) in self.sum.iter_mut().zip(shifted) {
                let log_p = logit - log_total;
                let p = log_p.exp();
                *sum += p;
                self.sum_plogp += p * log_p;
            }
            self.count += 1;
            if self.count == self.split_images {
                self.close_split();
            }
        }
    }

    /// The score of what was pushed.
    ///
    /// # Errors
    /// When nothing was.
    pub fn score(&self) -> Result<Score> {
        let mut all = self.clone();
        all.close_split();
        let splits = all.scores.len();
        if splits == 0 {
            return Err(SampleError::setting("inception score", "there are no images"));
        }
        let mean = all.scores.iter().sum::<f64>() / splits as f64;
        let spread: f64 = all.scores.iter().map(|score| (score - mean).powi(2)).sum();
        Ok(Score { mean, std: (spread / splits as f64).sqrt(), splits })
    }

    fn close_split(&mut self) {
        if self.count == 0 {
            return;
        }
        let count = self.count as f64;
        let entropy = |sum: &f64| if *sum > 0.0 { sum / count * (sum / count).ln() } else { 0.0 };
        let marginal: f64 = self.sum.iter().map(entropy).sum();
        self.scores.push((self.sum_plogp / count - marginal).exp());
        self.count = 0;
        self.sum.fill(0.0);
        self.sum_plogp = 0.0;
    }
}
