//! The loss of a stage: the squared error of the network against its method's target (paper eq. 7;
//! MATH sections 3 and 6).

use crate::config::{Stages, Times, TrainConfig};
use crate::error::Result;
use candle_core::{Device, Tensor};
use lapflow_model::flow::{Example, Flow, image_rng};
use lapflow_model::kernels::Upload;
use lapflow_model::net::Transformer;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::ops::Range;

// Purposes of random draws: each has generators of its own, so that none shifts another's.
const NOISE: u64 = 0x6e6f_6973;
const TIME: u64 = 0x7469_6d65;
const STAGE: u64 = 0x7374_6167;

/// A batch ready for the network: normalized levels, finest first, and labels.
pub struct Samples {
    /// Each `(b, c, h_k, w_k)`.
    pub levels: Vec<Tensor>,
    /// Class of each sample; `classes` for none. Empty for an unconditional model.
    pub labels: Vec<u32>,
    /// Number of each sample among all that the run draws, ascending: keys every random draw, so
    /// that nothing depends on how samples are cut into batches or dealt to ranks.
    pub indices: Vec<u64>,
}

/// Part of a batch that goes through the network together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageGroup {
    /// The finest level trained.
    pub stage: usize,
    /// The samples of the batch.
    pub samples: Range<usize>,
}

/// Examples of one group, all that is random of them drawn.
pub struct Part {
    /// The finest level trained.
    pub stage: usize,
    /// What the network sees and is to answer, `times` among it.
    pub example: Example,
    /// The same times as a tensor, `(b)`.
    times: Tensor,
    /// Labels `(b)`, those dropped as the null class; none of an unconditional model.
    labels: Option<Tensor>,
}

impl Part {
    /// How many examples.
    pub fn count(&self) -> usize {
        self.example.times.len()
    }

    /// The same on the device of `upload`.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn uploaded(self, upload: &mut Upload) -> Result<Self> {
        let Example { states, targets, times } = &self.example;
        let mut all = |tensors: &[Tensor]| -> Result<Vec<Tensor>> {
            Ok(tensors.iter().map(|x| upload.upload(x)).collect::<lapflow_model::Result<_>>()?)
        };
        let (states, targets) = (all(states)?, all(targets)?);
        let example = Example { states, targets, times: times.clone() };
        let labels = self.labels.map(|labels| upload.upload(&labels)).transpose()?;
        Ok(Self { stage: self.stage, example, times: upload.upload(&self.times)?, labels })
    }
}

/// The loss of one group.
pub struct GroupLoss {
    /// Weighted sum over levels of the mean squared error: what is differentiated.
    pub total: Tensor,
    /// Mean squared error of each level shown, unweighted: (level, value).
    pub levels: Vec<(usize, Tensor)>,
}

/// Draws everything random of a training step and evaluates the loss.
pub struct Loss<'a> {
    /// The method.
    pub flow: &'a dyn Flow,
    /// The `[train]` section.
    pub config: &'a TrainConfig,
    /// Label classes.
    pub classes: usize,
}

impl Loss<'_> {
    /// The stages of step `step` and the samples that go to each: those at `positions`,
    /// ascending, of a batch of `batch`.
    pub fn groups(&self, step: u64, batch: usize, positions: &[u32]) -> Vec<StageGroup> {
        let levels = self.flow.levels();
        match self.config.stages {
            Stages::Step => {
                let mut rng = image_rng(self.config.seed ^ STAGE, step);
                let samples = 0..positions.len();
                vec![StageGroup { stage: rng.random_range(0..levels), samples }]
            }
            Stages::Balanced => (0..levels)
                .map(|stage| {
                    let before = |end: usize| positions.partition_point(|&p| (p as usize) < end);
                    let cut = |i: usize| before(i * batch / levels);
                    StageGroup { stage, samples: cut(stage)..cut(stage + 1) }
                })
                .filter(|group| !group.samples.is_empty())
                .collect(),
        }
    }

    /// The examples of `group` of `samples`, on the CPU as these.
    ///
    /// # Errors
    /// When the samples do not fit the method.
    pub fn draw(&self, samples: &Samples, group: &StageGroup) -> Result<Part> {
        let indices = || samples.indices[group.samples.clone()].iter().copied();
        let part = |x: &Tensor| x.narrow(0, group.samples.start, group.samples.len());
        let (_, c, h, w) = samples.levels[0].dims4()?;
        let mut rngs: Vec<ChaCha8Rng> =
            indices().map(|i| image_rng(self.config.seed ^ NOISE, i)).collect();
        let noise = self.flow.draw_noise(&mut rngs, [c, h, w], &Device::Cpu)?;
        let (times, dropped): (Vec<f64>, Vec<bool>) =
            indices().map(|i| self.draw_time(group.stage, i)).unzip();

        let data = samples.levels.iter().map(part).collect::<candle_core::Result<Vec<_>>>()?;
        let example = self.flow.example(group.stage, &data, &noise, &times)?;
        let labels = self.labels(samples, group, &dropped)?;
        let times: Vec<f32> = example.times.iter().map(|&t| t as f32).collect();
        let times = Tensor::new(times, &Device::Cpu)?;
        Ok(Part { stage: group.stage, example, times, labels })
    }

    /// The loss of `part`, which is on the network's device.
    ///
    /// # Errors
    /// When the examples do not fit the network.
    pub fn evaluate(&self, net: &Transformer, part: &Part) -> Result<GroupLoss> {
        let Part { stage, example, times, labels } = part;
        let answers = net.forward(&example.states, times, labels.as_ref())?;
        self.sum(&answers, example, *stage)
    }

    fn sum(&self, answers: &[Tensor], example: &Example, stage: usize) -> Result<GroupLoss> {
        let mut levels = Vec::new();
        let mut total = self.flow.penalty(answers, example)?;
        for ((answer, target), k) in answers.iter().zip(&example.targets).zip(stage..) {
            let answer = answer.narrow(1, 0, target.dim(1)?)?;
            let error = (answer - target)?.sqr()?.mean_all()?;
            let weight = self.config.level_weights.get(k).copied().unwrap_or(1.0);
            let weighted = (&error * weight)?;
            total = Some(match total {
                Some(sum) => (sum + weighted)?,
                None => weighted,
            });
            levels.push((k, error.detach()));
        }
        let total = total.ok_or_else(|| {
            crate::error::TrainError::Config("a stage without levels cannot be trained".into())
        })?;
        Ok(GroupLoss { total, levels })
    }

    /// The time of sample `index` in `stage`, and whether it loses its label.
    fn draw_time(&self, stage: usize, index: u64) -> (f64, bool) {
        let mut rng = image_rng(self.config.seed ^ TIME, index);
        let (start, end) = self.flow.trained(stage);
        let unit: f64 = match self.config.times {
            Times::Uniform => rng.random(),
            Times::LogitNormal => {
                let z: f64 = StandardNormal.sample(&mut rng);
                1.0 / (1.0 + (-z).exp())
            }
        };
        let dropped = rng.random::<f64>() < self.config.label_dropout;
        (start + (end - start) * unit, dropped)
    }

    fn labels(
        &self,
        samples: &Samples,
        group: &StageGroup,
        dropped: &[bool],
    ) -> Result<Option<Tensor>> {
        if self.classes == 0 {
            return Ok(None);
        }
        let labels: Vec<u32> = samples.labels[group.samples.clone()]
            .iter()
            .zip(dropped)
            .map(|(&label, &dropped)| if dropped { self.classes as u32 } else { label })
            .collect();
        Ok(Some(Tensor::new(labels, &Device::Cpu)?))
    }
}
