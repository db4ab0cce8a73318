//! The trainer: a network, its optimizer and where both stand.

mod checkpoint;
mod pass;

pub use self::checkpoint::{Best, State};

use self::pass::Sums;
use crate::batch::{Drawing, Examples, Staged};
use crate::config::TrainConfig;
use crate::data::{geometry, normalization};
use crate::error::{Result, TrainError};
use crate::gradients::Arrival;
use crate::optimizer::{Optimizer, square_sum};
use crate::ranks::{Alone, Communicator};
use candle_core::{DType, Device};
use lapflow_model::Params;
use lapflow_model::checkpoint::{Card, VERSION};
use lapflow_model::flow::FlowConfig;
use lapflow_model::kernels::Upload;
use lapflow_model::net::{Gradients, ModelConfig, Transformer, cost};
use lapflow_store::{Batch, Dataset, LoaderState};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

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
    card: Card,
    drawing: Arc<Drawing>,
    net: Transformer,
    /// What a backward pass sends of each block, and then an empty list at its end.
    blocks: (Sender<Gradients>, Receiver<Gradients>),
    arrival: Arrival,
    params: Params,
    optimizer: Optimizer,
    device: Device,
    upload: Upload,
    /// Multiply-accumulates of a sample's forward pass, by stage.
    stage_macs: Vec<u64>,
    state: State,
    ranks: Rc<dyn Communicator>,
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

    fn assemble(
        recipe: &Recipe,
        card: Card,
        mut net: Transformer,
        params: Params,
        device: &Device,
    ) -> Result<Self> {
        let blocks = mpsc::channel();
        net.train_blocks(recipe.train.recompute, recipe.train.precision, blocks.0.clone());
        let flow = recipe.flow.build()?;
        let optimizer = Optimizer::new(&params, &recipe.train)?;
        let stage_macs = cost(&card.model, &card.geometry, flow.as_ref()).segment_macs;
        let (config, classes) = (recipe.train.clone(), card.classes.len());
        let normalization = card.normalization.clone();
        let drawing = Arc::new(Drawing { flow, config, classes, normalization });
        let arrival = Arrival::new(&params, 1);
        Ok(Self {
            card,
            drawing,
            net,
            blocks,
            arrival,
            params,
            optimizer,
            device: device.clone(),
            upload: Upload::new(device)?,
            stage_macs,
            state: State::default(),
            ranks: Rc::new(Alone),
        })
    }

    /// The same trainer as one of several ranks, each of which gets its share of every batch and,
    /// where `train.shard_optimizer` says so, holds its share of the optimizer's state.
    #[must_use]
    pub fn among(self, ranks: Rc<dyn Communicator>) -> Self {
        let arrival = Arrival::new(&self.params, ranks.size());
        let mut trainer = Self { arrival, ranks, ..self };
        if trainer.config().shard_optimizer {
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
        &self.drawing.config
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
        let examples = self.examples(batch)?.uploaded(&mut self.upload)?;
        self.take(Staged { examples, state: batch.state, mixture: None })
    }

    /// The examples of this rank's `batch` of the next step, on the CPU.
    pub(crate) fn examples(&self, batch: &Batch) -> Result<Examples> {
        self.drawing.examples(batch, self.state.step, self.ranks.size())
    }

    /// What draws the examples.
    pub(crate) fn drawing(&self) -> Arc<Drawing> {
        self.drawing.clone()
    }

    /// [`Trainer::step`] on examples that are on the device.
    pub(crate) fn take(&mut self, staged: Staged) -> Result<StepReport> {
        let step = self.state.step;
        let Sums { images, grads, loss, levels, macs } = self.gradients(&staged.examples)?;
        let squares = grads
            .iter()
            .map(|grad| grad.as_ref().map_or(Ok(0.0), square_sum))
            .collect::<Result<Vec<f64>>>()?;
        let grad_norm = squares.iter().sum::<f64>().sqrt();
        let not_finite = self.not_finite(loss, &levels, &squares);
        let (config, lr) = (&self.drawing.config, self.drawing.config.learning_rate(step));
        if not_finite.is_none() {
            let clip = config.clip_norm;
            let scale = if clip > 0.0 && grad_norm > clip { clip / grad_norm } else { 1.0 };
            let updates = step - self.state.skipped;
            self.optimizer.step(&self.params, &grads, config, step, updates, scale)?;
            self.optimizer.share(&self.params, self.ranks.as_ref())?;
        }
        let levels = levels.into_iter().map(|(k, (sum, count))| (k, sum / count as f64)).collect();
        let skipped = not_finite.is_some();
        self.state.mixture = staged.mixture;
        self.advance(staged.state, loss, not_finite.as_deref())?;
        Ok(StepReport { step, images, loss, levels, grad_norm, lr, macs, skipped, not_finite })
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

    fn advance(&mut self, loader: LoaderState, loss: f64, not_finite: Option<&str>) -> Result<()> {
        let step = self.state.step;
        self.state.step += 1;
        self.state.loader = loader;
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
            times if times >= self.config().skips_max => {
                Err(TrainError::NotFinite { step, what, times, checkpoint })
            }
            _ => Ok(()),
        }
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
