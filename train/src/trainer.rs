//! The trainer: a network, its optimizer and where both stand.

use crate::config::TrainConfig;
use crate::data::{geometry, normalization, samples};
use crate::error::{Result, TrainError};
use crate::loss::{Loss, StageGroup};
use crate::optimizer::{Optimizer, square_sum};
use crate::ranks::{Alone, Communicator, sum_gradients, sum_numbers};
use candle_core::{DType, Device, Tensor};
use lapflow_model::checkpoint::{Card, Checkpoint, VERSION};
use lapflow_model::flow::{Flow, FlowConfig};
use lapflow_model::net::{ModelConfig, Transformer, cost};
use lapflow_model::{Params, on_pool};
use lapflow_store::{Batch, Dataset, LoaderState, MixtureState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path as FilePath;
use std::rc::Rc;

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
    /// Multiply-accumulates of a sample's forward pass, by stage.
    stage_macs: Vec<u64>,
    state: State,
    ranks: Rc<dyn Communicator>,
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

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// The step, counted from 0.
    pub step: u64,
    /// Samples of all ranks.
    pub images: usize,
    /// The loss that was differentiated.
    pub loss: f64,
    /// Mean squared velocity error by (stage, level).
    pub levels: Vec<((usize, usize), f64)>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Multiply-accumulates of the network: forward, and twice that backward.
    pub macs: f64,
    /// Whether the step was skipped because something was not finite.
    pub skipped: bool,
    /// What was not finite.
    pub not_finite: Option<String>,
}

/// What the parts of a batch add up to.
struct Sums {
    /// Samples of all ranks.
    images: usize,
    grads: Vec<Option<Tensor>>,
    loss: f64,
    levels: BTreeMap<(usize, usize), (f64, usize)>,
    macs: f64,
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
        mut net: Transformer,
        params: Params,
        device: &Device,
    ) -> Result<Self> {
        net.train_blocks(recipe.train.recompute, recipe.train.precision);
        let flow = recipe.flow.build()?;
        let optimizer = Optimizer::new(&params, &recipe.train)?;
        let stage_macs = cost(&card.model, &card.geometry, flow.as_ref()).segment_macs;
        let (recipe, device, state) = (recipe.clone(), device.clone(), State::default());
        let ranks = Rc::new(Alone);
        Ok(Self { recipe, card, flow, net, params, optimizer, device, stage_macs, state, ranks })
    }

    /// The same trainer as one of several ranks, each of which gets its share of every batch and,
    /// where `train.shard_optimizer` says so, holds its share of the optimizer's state.
    #[must_use]
    pub fn among(self, ranks: Rc<dyn Communicator>) -> Self {
        let mut trainer = Self { ranks, ..self };
        if trainer.recipe.train.shard_optimizer {
            trainer.optimizer.shard(&trainer.params, trainer.ranks.as_ref());
        }
        trainer
    }

    /// The processes that train together.
    pub fn ranks(&self) -> &dyn Communicator {
        self.ranks.as_ref()
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

    /// Where it trains.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One optimizer step on `batch`.
    ///
    /// # Errors
    /// When the batch does not fit the network, or too many steps in a row were not finite.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let step = self.state.step;
        let Sums { images, grads, loss, levels, macs } = self.gradients(batch)?;
        let squares = grads
            .iter()
            .map(|grad| grad.as_ref().map_or(Ok(0.0), square_sum))
            .collect::<Result<Vec<f64>>>()?;
        let grad_norm = squares.iter().sum::<f64>().sqrt();
        let not_finite = self.not_finite(loss, &levels, &squares);
        let (config, lr) = (&self.recipe.train, self.recipe.train.learning_rate(step));
        if not_finite.is_none() {
            let clip = config.clip_norm;
            let scale = if clip > 0.0 && grad_norm > clip { clip / grad_norm } else { 1.0 };
            let updates = step - self.state.skipped;
            self.optimizer.step(&self.params, &grads, config, step, updates, scale)?;
            self.optimizer.share(&self.params, self.ranks.as_ref())?;
        }
        let levels = levels.into_iter().map(|(k, (sum, count))| (k, sum / count as f64)).collect();
        let skipped = not_finite.is_some();
        self.advance(batch, loss, not_finite.as_deref())?;
        Ok(StepReport { step, images, loss, levels, grad_norm, lr, macs, skipped, not_finite })
    }

    /// Loss and gradients of all ranks' samples, here part after part of this rank's.
    fn gradients(&self, batch: &Batch) -> Result<Sums> {
        let (config, step) = (&self.recipe.train, self.state.step);
        let (classes, first) = (self.card.classes.len(), step * config.batch as u64);
        let normalization = &self.card.normalization;
        let samples =
            samples(batch, self.flow.levels(), normalization, classes, first, &self.device)?;
        let loss = Loss { flow: self.flow.as_ref(), config, classes };

        let size = match self.ranks.size() {
            1 => batch.ids.len(),
            _ => config.batch,
        };
        let part_max = batch.ids.len().div_ceil(config.accumulate);
        let grads = self.params.iter().map(|_| None).collect();
        let mut sums = Sums { images: size, grads, loss: 0.0, levels: BTreeMap::new(), macs: 0.0 };
        let groups = loss.groups(step, size, &batch.positions);
        for group in groups.iter().flat_map(|group| parts(group, part_max)) {
            let count = group.samples.len();
            let share = count as f64 / size as f64;
            let (net, device) = (&self.net, &self.device);
            let (part, mut store) = on_pool(device, || {
                let part = loss.evaluate(net, &samples, &group, device)?;
                let store = (&part.total * share)?.backward()?;
                Ok::<_, TrainError>((part, store))
            })?;
            sums.loss += share * scalar(&part.total)?;
            sums.macs += 3.0 * (count as u64 * self.stage_macs[group.stage]) as f64;
            for (k, error) in &part.levels {
                let entry = sums.levels.entry((group.stage, *k)).or_default();
                entry.0 += count as f64 * scalar(error)?;
                entry.1 += count;
            }
            let mut blocks: HashMap<_, _> = self.net.block_gradients().into_iter().collect();
            for (sum, (_, var)) in sums.grads.iter_mut().zip(self.params.iter()) {
                let grad = store.remove(var).or_else(|| blocks.remove(&var.id()));
                *sum = match (sum.take(), grad) {
                    (Some(sum), Some(grad)) => Some((sum + grad)?),
                    (sum, grad) => sum.or(grad),
                };
            }
        }
        self.sum_over_ranks(&mut sums)?;
        Ok(sums)
    }

    fn sum_over_ranks(&self, sums: &mut Sums) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        sum_gradients(self.ranks.as_ref(), &self.params, &mut sums.grads)?;
        // Ranks may have seen other stages: a place for every (stage, level).
        let count = self.flow.levels();
        let mut flat = vec![0.0; 2 * count * count];
        for ((stage, level), (sum, samples)) in &sums.levels {
            let place = 2 * (stage * count + level);
            (flat[place], flat[place + 1]) = (*sum, *samples as f64);
        }
        flat.extend([sums.loss, sums.macs]);
        let flat = sum_numbers(self.ranks.as_ref(), &flat)?;
        (sums.loss, sums.macs) = (flat[flat.len() - 2], flat[flat.len() - 1]);
        sums.levels = flat[..2 * count * count]
            .chunks_exact(2)
            .enumerate()
            .filter(|(_, pair)| pair[1] > 0.0)
            .map(|(i, pair)| ((i / count, i % count), (pair[0], pair[1] as usize)))
            .collect();
        Ok(())
    }

    /// The name of the first thing that is not finite.
    fn not_finite(
        &self,
        loss: f64,
        levels: &BTreeMap<(usize, usize), (f64, usize)>,
        squares: &[f64],
    ) -> Option<String> {
        if let Some((stage, level)) = levels.iter().find(|(_, v)| !v.0.is_finite()).map(|(k, _)| k)
        {
            return Some(format!("loss of level {level} in stage {stage}"));
        }
        if !loss.is_finite() {
            return Some("loss".into());
        }
        let mut grads = self.params.iter().zip(squares);
        let (name, _) = grads.find(|(_, square)| !square.is_finite())?.0;
        Some(format!("gradient of {name}"))
    }

    fn advance(&mut self, batch: &Batch, loss: f64, not_finite: Option<&str>) -> Result<()> {
        let step = self.state.step;
        self.state.step += 1;
        self.state.loader = batch.state;
        let Some(what) = not_finite else {
            self.state.skipped_in_a_row = 0;
            self.state.interval.0 += loss;
            self.state.interval.1 += 1;
            return Ok(());
        };
        self.state.skipped += 1;
        self.state.skipped_in_a_row += 1;
        tracing::warn!(step, "the {what} is not finite: step skipped");
        let (what, checkpoint) = (what.to_string(), None);
        match self.state.skipped_in_a_row {
            times if times >= self.recipe.train.skips_max => {
                Err(TrainError::NotFinite { step, what, times, checkpoint })
            }
            _ => Ok(()),
        }
    }

    /// Where a mixture of datasets stands after the latest step.
    pub(crate) fn set_mixture(&mut self, state: Option<MixtureState>) {
        self.state.mixture = state;
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
    pub fn save(&self, path: &FilePath) -> Result<()> {
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

/// `group` in parts of at most `part_max` samples.
fn parts(group: &StageGroup, part_max: usize) -> impl Iterator<Item = StageGroup> {
    let (stage, range) = (group.stage, group.samples.clone());
    range
        .clone()
        .step_by(part_max)
        .map(move |start| StageGroup { stage, samples: start..range.end.min(start + part_max) })
}
