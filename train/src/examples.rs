//! The examples of a step: everything random of it, and all that does not depend on the network.
//!
//! They are drawn on the CPU whatever the device, so that they can be drawn while a GPU works.

use crate::config::TrainConfig;
use crate::data::samples;
use crate::error::Result;
use crate::loss::{Loss, Part, StageGroup};
use lapflow_model::flow::Flow;
use lapflow_model::kernels::Upload;
use lapflow_model::normalization::Normalization;
use lapflow_model::on_pool;
use lapflow_store::Batch;

/// What draws examples, on any thread.
#[derive(Debug)]
pub(crate) struct Drawing {
    /// The method.
    pub flow: Box<dyn Flow>,
    /// The `[train]` section.
    pub config: TrainConfig,
    /// Label classes.
    pub classes: usize,
    /// Of the dataset's latents.
    pub normalization: Normalization,
}

/// One rank's examples of one step.
pub(crate) struct Examples {
    /// Samples of all ranks.
    pub images: usize,
    /// What goes through the network together.
    pub parts: Vec<Part>,
}

impl Drawing {
    /// What turns examples into a loss.
    pub fn loss(&self) -> Loss<'_> {
        Loss { flow: self.flow.as_ref(), config: &self.config, classes: self.classes }
    }

    /// The examples of `batch`, the share of step `step` that one of `world` ranks has.
    ///
    /// # Errors
    /// When the latents do not divide into the method's levels.
    pub fn examples(&self, batch: &Batch, step: u64, world: usize) -> Result<Examples> {
        let (config, loss) = (&self.config, self.loss());
        let first = step * config.batch as u64;
        let images = match world {
            1 => batch.ids.len(),
            _ => config.batch,
        };
        let part_max = batch.ids.len().div_ceil(config.accumulate);
        on_pool(&candle_core::Device::Cpu, || {
            let (levels, normalization) = (self.flow.levels(), &self.normalization);
            let samples = samples(batch, levels, normalization, self.classes, first)?;
            let groups = loss.groups(step, images, &batch.positions);
            let parts = groups.iter().flat_map(|group| parts(group, part_max));
            let parts = parts.map(|group| loss.draw(&samples, &group)).collect::<Result<_>>()?;
            Ok(Examples { images, parts })
        })
    }
}

impl Examples {
    /// The same on the device of `upload`.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn uploaded(self, upload: &mut Upload) -> Result<Self> {
        let parts = self.parts.into_iter().map(|part| part.uploaded(upload));
        Ok(Self { images: self.images, parts: parts.collect::<Result<_>>()? })
    }
}

/// `group` in parts of at most `part_max` samples.
fn parts(group: &StageGroup, part_max: usize) -> impl Iterator<Item = StageGroup> {
    let (stage, range) = (group.stage, group.samples.clone());
    range
        .clone()
        .step_by(part_max)
        .map(move |start| StageGroup { stage, samples: start..range.end.min(start + part_max) })
}
