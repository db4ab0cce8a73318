//! What training and sampling need to know of a method.

use super::noise::white_levels;
use crate::error::Result;
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use std::fmt::Debug;
use std::ops::Range;

/// A way from noise to images in stages, one a pyramid level, coarse ones first.
///
/// Stage k ends with level k as its finest. A state is a list of tensors, finest first: all levels
/// from k on where they are [`Flow::joint`], one tensor of level k's size otherwise.
pub trait Flow: Debug + Send + Sync {
    /// Stages, as many as pyramid levels.
    fn levels(&self) -> usize;

    /// The times in which stage `k` is sampled.
    fn segment(&self, k: usize) -> (f64, f64);

    /// The times in which stage `k` is trained.
    fn trained(&self, k: usize) -> (f64, f64) {
        self.segment(k)
    }

    /// Whether all levels k.. enter the network together; level k alone otherwise.
    fn joint(&self) -> bool {
        false
    }

    /// The levels that the network sees in stage `k`.
    fn shown(&self, k: usize) -> Range<usize> {
        k..if self.joint() { self.levels() } else { k + 1 }
    }

    /// An image's noise for every stage, finest first; `shape` is `[c, h, w]` of level 0.
    ///
    /// Unit white noise of every level's size unless a method says otherwise, f32; level 0 is
    /// `(rngs.len(), c, h, w)`. One generator an image, so that an image's noise does not depend on
    /// its batch.
    ///
    /// # Errors
    /// When the shape does not divide into the levels.
    fn draw_noise(
        &self,
        rngs: &mut [ChaCha8Rng],
        shape: [usize; 3],
        device: &Device,
    ) -> Result<Vec<Tensor>> {
        white_levels(rngs, shape, self.levels(), device)
    }

    /// What the network is shown and asked in stage `k`: `data` is the whole Laplacian pyramid and
    /// `noise` of [`Flow::draw_noise`], finest first; `t` in [`Flow::trained`], one a sample.
    ///
    /// # Errors
    /// When shapes differ.
    fn example(&self, k: usize, data: &[Tensor], noise: &[Tensor], t: &[f64]) -> Result<Example>;

    /// The state in which stage `k` starts, from the one in which stage `k + 1` ended (empty for
    /// the first stage) and the noise.
    ///
    /// # Errors
    /// When shapes differ.
    fn enter(&self, k: usize, state: Vec<Tensor>, noise: &[Tensor]) -> Result<Vec<Tensor>>;

    /// What the network's answer in stage `k` is multiplied by to be the state's velocity in t.
    fn rate(&self, _k: usize) -> f64 {
        1.0
    }

    /// The image `(b, c, h, w)` of the state in which stage 0 ends.
    ///
    /// # Errors
    /// When the state is empty.
    fn image(&self, state: &[Tensor]) -> Result<Tensor> {
        state.first().cloned().ok_or_else(|| {
            crate::error::ModelError::config("flow", "a state without levels is no image")
        })
    }

    /// What the loss holds beside the squared error, of the network's raw answers.
    ///
    /// # Errors
    /// When shapes differ.
    fn penalty(&self, _answers: &[Tensor], _example: &Example) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// One batch of a stage as the network is trained on it.
#[derive(Clone, Debug, Default)]
pub struct Example {
    /// What the network sees, finest level first.
    pub states: Vec<Tensor>,
    /// What it is to answer, shaped as the states.
    pub targets: Vec<Tensor>,
    /// The time it is told, one a sample.
    pub times: Vec<f64>,
}
