//! Checkpoints of a run: what they carry beside weights, how a trainer is read from one and written
//! to one.

use super::{Recipe, Trainer, card};
use crate::error::{Result, TrainError};
use candle_core::{DType, Device, Tensor};
use lapflow_model::Params;
use lapflow_model::checkpoint::{Card, Checkpoint};
use lapflow_model::net::Transformer;
use lapflow_store::{Dataset, LoaderState, MixtureState};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a checkpoint carries beside weights and optimizer tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps taken, skipped ones included.
    pub step: u64,
    /// Where the loader goes on.
    pub loader: LoaderState,
    /// Steps skipped because loss or gradient was not finite.
    pub skipped: u64,
    /// The latest of them in a row.
    pub skipped_in_a_row: u32,
    /// Where the loaders go on when several datasets are mixed.
    #[serde(default)]
    pub mixture: Option<MixtureState>,
    /// Sum of the losses since the last checkpoint, and of how many steps.
    #[serde(default)]
    pub interval: (f64, u64),
    /// The checkpoint with the lowest mean loss of its interval.
    #[serde(default)]
    pub best: Option<Best>,
}

/// A checkpoint and its loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// Mean loss of the steps since the checkpoint before it.
    pub loss: f64,
}

impl Trainer {
    /// The trainer that wrote `checkpoint`, to go on with `dataset`.
    ///
    /// # Errors
    /// When the checkpoint's network, paths or autoencoder are not the recipe's and dataset's, or
    /// it carries no training state.
    pub fn resume(
        recipe: &Recipe,
        dataset: &Dataset,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> Result<Self> {
        let fresh = card(recipe, dataset)?;
        let old = &checkpoint.card;
        same("the model", &old.model, &fresh.model)?;
        same("the flow", &old.flow, &fresh.flow)?;
        same("the autoencoder", &old.autoencoder, &fresh.autoencoder)?;
        same("the latents' geometry", &old.geometry, &fresh.geometry)?;
        same("the list of classes", &old.classes, &fresh.classes)?;
        let weights = checkpoint.group("model");
        let (net, params) = Params::load(weights, DType::F32, device, |scope| {
            Transformer::new(scope, &old.model, &old.geometry)
        })?;
        let mut trainer = Self::assemble(recipe, old.clone(), net, params, device)?;
        trainer.optimizer.restore(&trainer.params, |prefix| checkpoint.group(prefix))?;
        let state = checkpoint.training.clone().unwrap_or_default();
        trainer.state = serde_json::from_value(state)
            .map_err(|e| TrainError::Config(format!("the checkpoint's training state: {e}")))?;
        Ok(trainer)
    }

    /// Ends the interval whose mean loss judges a checkpoint; whether it is the best so far.
    pub(crate) fn end_interval(&mut self) -> bool {
        let (sum, count) = std::mem::take(&mut self.state.interval);
        let (step, loss) = (self.state.step, sum / count as f64);
        let better = count > 0 && self.state.best.is_none_or(|best| loss < best.loss);
        if better {
            self.state.best = Some(Best { step, loss });
        }
        better
    }

    /// The weights and their averages, as a checkpoint to sample from. All ranks must ask for it;
    /// the first gets it.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn snapshot(&self) -> Result<Option<Checkpoint>> {
        let weights = self
            .params
            .iter()
            .map(|(name, var)| (format!("model.{name}"), var.as_tensor().detach()));
        let averages = self.optimizer.tensors(&self.params, self.ranks.as_ref(), "ema")?;
        if self.ranks.rank() > 0 {
            return Ok(None);
        }
        let card = Card { step: self.state.step, ..self.card.clone() };
        Ok(Some(Checkpoint::in_memory(card, weights.chain(averages).collect())))
    }

    /// Writes weights, averages, optimizer and state to `path`, atomically. All ranks must call it;
    /// the first writes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let optimizer = self.optimizer.tensors(&self.params, self.ranks.as_ref(), "")?;
        if self.ranks.rank() > 0 {
            return Ok(());
        }
        let card = Card { step: self.state.step, ..self.card.clone() };
        let state = serde_json::to_value(&self.state)
            .map_err(|e| TrainError::Config(format!("training state: {e}")))?;
        let mut tensors: Vec<(String, Tensor)> = self
            .params
            .iter()
            .map(|(name, var)| (format!("model.{name}"), var.as_tensor().clone()))
            .collect();
        tensors.extend(optimizer);
        Ok(Checkpoint::write(path, &card, Some(&state), &tensors)?)
    }
}

fn same<T: PartialEq + Serialize>(what: &'static str, checkpoint: &T, here: &T) -> Result<()> {
    if checkpoint == here {
        return Ok(());
    }
    let text = |value: &T| serde_json::to_string(value).unwrap_or_default();
    Err(TrainError::Mismatch { what, checkpoint: text(checkpoint), here: text(here) })
}
