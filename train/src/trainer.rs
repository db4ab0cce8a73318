//! The trainer: a network, its optimizer and where both stand.

use crate::config::TrainConfig;
use crate::data::{geometry, normalization, samples};
use crate::error::{Result, TrainError};
use crate::loss::Loss;
use crate::optimizer::Optimizer;
use candle_core::{DType, Device, Tensor};
use lapflow_model::Params;
use lapflow_model::checkpoint::{Card, Checkpoint, VERSION};
use lapflow_model::flow::{Flow, FlowConfig};
use lapflow_model::net::{ModelConfig, Transformer};
use lapflow_store::{Batch, Dataset, LoaderState};
use serde::{Deserialize, Serialize};
use std::path::Path as FilePath;

/// Steps in a row without a finite loss and gradient after which a run halts.
const NOT_FINITE_MAX: u32 = 10;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The `[model]` section.
    pub model: ModelConfig,
    /// The `[flow]` section.
    pub flow: FlowConfig,
    /// The `[train]` section.
    pub train: TrainConfig,
    /// The `[autoencoder]` section, kept for whoever samples.
    pub autoencoder: serde_json::Value,
}

/// A network in training.
///
/// Every random draw is keyed by the seed and the number of the step or sample, so a trainer
/// restored from a checkpoint takes the same steps as one that never stopped.
pub struct Trainer {
    recipe: Recipe,
    card: Card,
    flow: Box<dyn Flow>,
    net: Transformer,
    params: Params,
    optimizer: Optimizer,
    device: Device,
    state: State,
}

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
}

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// The step, counted from 0.
    pub step: u64,
    /// The loss that was differentiated.
    pub loss: f64,
    /// Mean squared velocity error by (stage, level).
    pub levels: Vec<((usize, usize), f64)>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Whether the step was skipped because something was not finite.
    pub skipped: bool,
}

impl Trainer {
    /// A fresh network for `dataset`.
    ///
    /// # Errors
    /// When the recipe does not fit itself or the dataset.
    pub fn new(recipe: &Recipe, dataset: &Dataset, device: &Device) -> Result<Self> {
        let card = card(recipe, dataset)?;
        let (net, params) = Params::init(recipe.train.seed, DType::F32, device, |scope| {
            Transformer::new(scope, &card.model, &card.geometry)
        })?;
        Self::assemble(recipe, card, net, params, device)
    }

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

    fn assemble(
        recipe: &Recipe,
        card: Card,
        net: Transformer,
        params: Params,
        device: &Device,
    ) -> Result<Self> {
        let flow = recipe.flow.build()?;
        let optimizer = Optimizer::new(&params, &recipe.train)?;
        let (recipe, device, state) = (recipe.clone(), device.clone(), State::default());
        Ok(Self { recipe, card, flow, net, params, optimizer, device, state })
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is being trained.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The `[train]` section.
    pub fn config(&self) -> &TrainConfig {
        &self.recipe.train
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// One optimizer step on `batch`.
    ///
    /// # Errors
    /// When the batch does not fit the network, or too many steps in a row were not finite.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let (config, step) = (&self.recipe.train, self.state.step);
        let (classes, first) = (self.card.classes.len(), step * config.batch as u64);
        let normalization = &self.card.normalization;
        let samples =
            samples(batch, self.flow.levels(), normalization, classes, first, &self.device)?;
        let loss = Loss { flow: self.flow.as_ref(), config, classes };

        let size = batch.ids.len();
        let mut grads: Vec<Option<Tensor>> = self.params.iter().map(|_| None).collect();
        let (mut total, mut levels) = (0.0, Vec::new());
        for group in loss.groups(step, size) {
            let share = group.samples.len() as f64 / size as f64;
            let part = loss.evaluate(&self.net, &samples, &group, &self.device)?;
            total += share * scalar(&part.total)?;
            for (k, error) in &part.levels {
                levels.push(((group.stage, *k), scalar(error)?));
            }
            let store = (part.total * share)?.backward()?;
            for (sum, (_, var)) in grads.iter_mut().zip(self.params.iter()) {
                *sum = match (sum.take(), store.get(var)) {
                    (Some(sum), Some(grad)) => Some((sum + grad)?),
                    (sum, grad) => sum.or_else(|| grad.cloned()),
                };
            }
        }
        let grad_norm = norm(&grads)?;
        let lr = config.learning_rate(step);
        let skipped = !(total.is_finite() && grad_norm.is_finite());
        if !skipped {
            let clip = config.clip_norm;
            let scale = if clip > 0.0 && grad_norm > clip { clip / grad_norm } else { 1.0 };
            self.optimizer.step(&self.params, &grads, config, step, scale)?;
        }
        self.advance(batch, skipped)?;
        Ok(StepReport { step, loss: total, levels, grad_norm, lr, skipped })
    }

    fn advance(&mut self, batch: &Batch, skipped: bool) -> Result<()> {
        let step = self.state.step;
        self.state.step += 1;
        self.state.loader = batch.state;
        if !skipped {
            self.state.skipped_in_a_row = 0;
            return Ok(());
        }
        self.state.skipped += 1;
        self.state.skipped_in_a_row += 1;
        tracing::warn!(step, "loss or gradient is not finite: step skipped");
        match self.state.skipped_in_a_row {
            times if times >= NOT_FINITE_MAX => Err(TrainError::NotFinite { step, times }),
            _ => Ok(()),
        }
    }

    /// Writes weights, averages, optimizer and state to `path`, atomically.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &FilePath) -> Result<()> {
        let card = Card { step: self.state.step, ..self.card.clone() };
        let state = serde_json::to_value(&self.state)
            .map_err(|e| TrainError::Config(format!("training state: {e}")))?;
        let mut tensors: Vec<(String, Tensor)> = self
            .params
            .iter()
            .map(|(name, var)| (format!("model.{name}"), var.as_tensor().clone()))
            .collect();
        tensors.extend(self.optimizer.tensors(&self.params)?);
        Ok(Checkpoint::write(path, &card, Some(&state), &tensors)?)
    }
}

fn card(recipe: &Recipe, dataset: &Dataset) -> Result<Card> {
    recipe.train.validate(recipe.flow.levels)?;
    let flow = recipe.flow.build()?;
    recipe.model.validate_method(&recipe.flow)?;
    let metadata = dataset.metadata();
    Ok(Card {
        version: VERSION,
        step: 0,
        model: recipe.model.clone(),
        flow: recipe.flow.clone(),
        geometry: geometry(metadata, flow.levels()),
        normalization: normalization(dataset, recipe.train.normalize)?,
        autoencoder: metadata.autoencoder.clone(),
        autoencoder_config: recipe.autoencoder.clone(),
        classes: metadata.classes.clone(),
    })
}

fn same<T: PartialEq + Serialize>(what: &'static str, checkpoint: &T, here: &T) -> Result<()> {
    if checkpoint == here {
        return Ok(());
    }
    let text = |value: &T| serde_json::to_string(value).unwrap_or_default();
    Err(TrainError::Mismatch { what, checkpoint: text(checkpoint), here: text(here) })
}

fn scalar(value: &Tensor) -> Result<f64> {
    Ok(f64::from(value.to_scalar::<f32>()?))
}

/// Global Euclidean norm, accumulated in f64 over the parameters.
fn norm(grads: &[Option<Tensor>]) -> Result<f64> {
    let squares = grads
        .iter()
        .flatten()
        .map(|grad| scalar(&grad.sqr()?.sum_all()?))
        .collect::<Result<Vec<_>>>()?;
    Ok(squares.iter().sum::<f64>().sqrt())
}
