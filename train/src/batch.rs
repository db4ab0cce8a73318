//! From a dataset's batches to the examples of a step, in the order in which steps are taken.
//!
//! Examples hold everything random of a step, and all that does not depend on the network. They are
//! drawn on the CPU whatever the device, so that those of the next step are drawn and on their way
//! to a GPU while it works on this one.

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::loss::{Loss, Part, Samples, StageGroup};
use crate::trainer::Trainer;
use candle_core::{Device, Tensor};
use lapflow_model::flow::Flow;
use lapflow_model::kernels::Upload;
use lapflow_model::normalization::Normalization;
use lapflow_model::{on_pool, pyramid};
use lapflow_store::{
    Batch, Batches, Dataset, DiskCache, LevelBatch, Loader, LoaderConfig, LoaderState, MixedBatch,
    Mixture, MixtureState,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

/// Where batches come from.
pub(crate) enum Feed {
    /// One dataset.
    One(Batches),
    /// Several.
    Mixed(Batches<MixedBatch>),
}

impl Feed {
    /// Continues where `trainer` stands: in `dataset`, and in `others` with their weights.
    pub fn open(
        trainer: &Trainer,
        dataset: &Dataset,
        others: &[Dataset],
        follow: bool,
    ) -> Result<Self> {
        let (config, state, ranks) = (trainer.config(), trainer.state(), trainer.ranks());
        let world = ranks.size();
        if config.batch % world != 0 {
            let reason = format!("train.batch {} does not divide into {world} ranks", config.batch);
            return Err(TrainError::Config(reason));
        }
        let loader = LoaderConfig {
            batch: config.batch / world,
            rank: ranks.rank(),
            world,
            // Ranks that follow agree on each epoch's version under the name of their run.
            run: (follow && world > 1).then(|| run_name(&config.folder)),
            seed: config.seed,
            window_rows: config.shuffle_window_rows,
            follow,
            memory_cache_bytes_max: config.memory_cache_bytes_max,
            ..LoaderConfig::default()
        };
        let cache = config.disk_cache.as_ref();
        let cache = cache.map(|folder| DiskCache::new(folder, config.disk_cache_bytes_max));
        let cache = cache.transpose()?.map(Arc::new);
        let cached = |dataset: &Dataset| match &cache {
            Some(cache) => dataset.with_cache(cache.clone()),
            None => dataset.clone(),
        };
        let dataset = cached(dataset);
        if others.is_empty() {
            return Ok(Self::One(Loader::new(&dataset, loader, state.loader)?.batches()));
        }
        let weights = config.mixture.iter().map(|source| source.weight);
        let weighted = others.iter().map(cached).zip(weights);
        let sources = std::iter::once((dataset, 1.0)).chain(weighted).enumerate();
        let sources = sources
            .map(|(i, (dataset, weight))| {
                // Each source has an order of its own.
                let seed = loader.seed.wrapping_add(i as u64);
                (dataset, LoaderConfig { seed, ..loader.clone() }, weight)
            })
            .collect();
        let prefetch = loader.prefetch_batches;
        let state = state.mixture.clone().unwrap_or_default();
        Ok(Self::Mixed(Mixture::new(sources, state)?.batches(prefetch)))
    }

    /// The next batch of this rank, with the state of a mixture after it.
    pub fn next(&mut self) -> Result<Option<(Batch, Option<MixtureState>)>> {
        Ok(match self {
            Self::One(batches) => batches.next().transpose()?.map(|batch| (batch, None)),
            Self::Mixed(batches) => {
                batches.next().transpose()?.map(|mixed| (mixed.batch, Some(mixed.state)))
            }
        })
    }
}

/// The run folder as a name of letters, digits and dashes.
fn run_name(folder: &Path) -> String {
    let text = folder.to_string_lossy();
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// One step's examples, and where the loader goes on after it.
pub(crate) struct Staged {
    pub examples: Examples,
    pub state: LoaderState,
    pub mixture: Option<MixtureState>,
}

/// Where steps come from.
pub(crate) enum Staging {
    /// Drawn when they are asked for: on a CPU, whose cores have no time to spare.
    Here(Feed),
    /// Drawn by a thread that is one step ahead of the one it has sent. It ends with the receiver.
    Ahead(Receiver<Result<Option<Staged>>>),
}

impl Staging {
    /// The steps of `feed` from where `trainer` stands.
    ///
    /// # Errors
    /// When the device refuses a stream.
    pub fn start(mut feed: Feed, trainer: &Trainer) -> Result<Self> {
        if trainer.device().is_cpu() {
            return Ok(Self::Here(feed));
        }
        let (sender, receiver) = mpsc::sync_channel(0);
        let (drawing, world) = (trainer.drawing(), trainer.ranks().size());
        let (mut upload, mut step) = (Upload::new(trainer.device())?, trainer.state().step);
        let mut next = move || {
            let Some((batch, mixture)) = feed.next()? else { return Ok(None) };
            let examples = drawing.examples(&batch, step, world)?.uploaded(&mut upload)?;
            step += 1;
            Ok(Some(Staged { examples, state: batch.state, mixture }))
        };
        let spawned = thread::Builder::new().name("staging".into()).spawn(move || {
            loop {
                let staged = next();
                let more = matches!(staged, Ok(Some(_)));
                if sender.send(staged).is_err() || !more {
                    break;
                }
            }
        });
        spawned.map_err(|e| TrainError::Config(format!("a thread that stages steps: {e}")))?;
        Ok(Self::Ahead(receiver))
    }

    /// The next step of `trainer`; none after the last batch.
    pub fn next(&mut self, trainer: &Trainer) -> Result<Option<Staged>> {
        match self {
            Self::Here(feed) => {
                let Some((batch, mixture)) = feed.next()? else { return Ok(None) };
                let examples = trainer.examples(&batch)?;
                Ok(Some(Staged { examples, state: batch.state, mixture }))
            }
            // The thread ends without a word only when it has panicked.
            Self::Ahead(receiver) => receiver.recv().unwrap_or_else(|_| {
                Err(TrainError::Config("the thread that stages steps has ended".into()))
            }),
        }
    }
}

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
        on_pool(&Device::Cpu, || {
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

/// A batch as `count` normalized levels on the CPU, which may be others than the dataset's. `first` is the
/// number of the step's first sample among all that the run draws.
///
/// # Errors
/// When the latents do not divide into so many levels.
fn samples(
    batch: &Batch,
    count: usize,
    normalization: &Normalization,
    classes: usize,
    first: u64,
) -> Result<Samples> {
    let raw = batch
        .levels
        .iter()
        .map(|level| tensor(level, batch.ids.len()))
        .collect::<Result<Vec<_>>>()?;
    let levels = normalization.apply(&raw)?;
    let levels = match levels.len() == count {
        true => levels,
        false => pyramid::split(&pyramid::merge(&levels)?, count)?,
    };
    let label = |&label: &i32| u32::try_from(label).unwrap_or(classes as u32);
    let labels = batch.labels.iter().map(label).collect();
    let indices = batch.positions.iter().map(|&position| first + u64::from(position)).collect();
    Ok(Samples { levels, labels, indices })
}

fn tensor(level: &LevelBatch, batch: usize) -> Result<Tensor> {
    let shape = (batch, level.spec.channels, level.spec.height, level.spec.width);
    Ok(Tensor::from_vec(level.dtype.decode(&level.data), shape, &Device::Cpu)?)
}
