//! A checkpoint and its autoencoder, ready to draw images.

use crate::config::SampleConfig;
use crate::error::{Result, SampleError};
use crate::guidance::{guided, recorded};
use crate::images::to_pixels;
use crate::segments::{SegmentCost, sample_through};
use crate::solver::Query;
use candle_core::{Device, Tensor};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_model::checkpoint::{Card, Checkpoint};
use lapflow_model::flow::{Flow, Method, Path as FlowPath, image_rng};
use lapflow_model::kernels::Recorder;
use lapflow_model::net::Transformer;
use std::sync::Arc;

/// One image to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its stream of the seed: the image depends on seed, index and label, not on its batch.
    pub index: u64,
    /// Its class; `None` for the null class.
    pub label: Option<u32>,
}

/// A drawn batch.
#[derive(Debug)]
pub struct Drawn {
    /// Decoded images `(b, 3, H, W)`, nominally in [-1, 1].
    pub images: Tensor,
    /// The merged, normalized latents `(b, c, h, w)` they were decoded from.
    pub latents: Tensor,
    /// The cost of each segment, in the order of time.
    pub costs: Vec<SegmentCost>,
}

/// Draws images from a checkpoint.
pub struct Generator {
    card: Card,
    flow: Box<dyn Flow>,
    /// Of passes of the network.
    recorder: Recorder,
    net: Transformer,
    autoencoder: Arc<Autoencoder>,
    config: SampleConfig,
    device: Device,
}

impl Generator {
    /// Builds the network of `checkpoint`; `forced` lets an autoencoder decode latents that
    /// another one made.
    ///
    /// # Errors
    /// When the settings are invalid, the autoencoder is not the checkpoint's, or makes latents of
    /// another number of channels, forced or not.
    pub fn new(
        checkpoint: &Checkpoint,
        autoencoder: impl Into<Arc<Autoencoder>>,
        config: &SampleConfig,
        device: &Device,
        forced: bool,
    ) -> Result<Self> {
        config.validate()?;
        let autoencoder = autoencoder.into();
        let card = checkpoint.card.clone();
        let here = autoencoder.identity();
        if !here.made(&card.autoencoder) && !forced {
            let here = serde_json::json!(here);
            let reason =
                format!("the checkpoint's latents are of {}, this one is {here}", card.autoencoder);
            return Err(SampleError::setting("autoencoder", reason));
        }
        let (makes, has) = (here.channels, card.geometry.channels);
        if makes != has {
            let reason =
                format!("the checkpoint's latents have {has} channels, this one's {makes}");
            return Err(SampleError::setting("autoencoder", reason));
        }
        let flow = card.flow.build()?;
        config.validate_method(card.flow.method)?;
        let net = checkpoint.network(config.weights, device)?;
        let (config, device) = (config.clone(), device.clone());
        let recorder = Recorder::new(&device);
        Ok(Self { card, flow, recorder, net, autoencoder, config, device })
    }

    /// What the checkpoint is of.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// What records passes of the network; off until it is started.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The settings.
    pub fn config(&self) -> &SampleConfig {
        &self.config
    }

    /// Draws the requested images together.
    ///
    /// # Errors
    /// When the solver, the network or the decoder fails.
    pub fn draw(&self, requests: &[Request]) -> Result<Drawn> {
        self.draw_through(requests, &[], |_, _| Ok(()))
    }

    /// [`Generator::draw`] that shows the active levels at each of `times` on the way: see
    /// [`sample_through`]. The stochastic sampler shows its way without noise.
    ///
    /// # Errors
    /// As [`Generator::draw`], and what `show` returns.
    pub fn draw_through(
        &self,
        requests: &[Request],
        times: &[f64],
        show: impl FnMut(f64, &[Tensor]) -> Result<()>,
    ) -> Result<Drawn> {
        let (latents, costs) = self.integrate(requests, times, show)?;
        let images = self.decode(&latents)?;
        Ok(Drawn { images, latents, costs })
    }

    /// Merged, normalized latents `(b, c, h, w)` of the requested images, not decoded, and the
    /// cost of each segment.
    ///
    /// # Errors
    /// When the solver or the network fails.
    pub fn draw_latents(&self, requests: &[Request]) -> Result<(Tensor, Vec<SegmentCost>)> {
        self.integrate(requests, &[], |_, _| Ok(()))
    }

    fn integrate(
        &self,
        requests: &[Request],
        times: &[f64],
        show: impl FnMut(f64, &[Tensor]) -> Result<()>,
    ) -> Result<(Tensor, Vec<SegmentCost>)> {
        let geometry = &self.card.geometry;
        let null = geometry.classes as u32;
        let labels: Vec<u32> = requests.iter().map(|r| r.label.unwrap_or(null)).collect();
        if let Some(label) = labels.iter().find(|&&label| label > null) {
            let reason = format!("class {label}, the model has {null}");
            return Err(SampleError::setting("labels", reason));
        }
        let mut rngs: Vec<_> =
            requests.iter().map(|r| image_rng(self.config.seed, r.index)).collect();
        let shape = [geometry.channels, geometry.height, geometry.width];
        let noise = self.flow.draw_noise(&mut rngs, shape, &self.device)?;
        let mut guidance = self.config.guidance();
        if self.card.flow.method == Method::Dit {
            // Its network's times count down from noise.
            guidance.interval = (1.0 - guidance.interval.1, 1.0 - guidance.interval.0);
        }
        let network = |levels: &[Tensor], times: &[f64], labels: &[u32]| {
            recorded(&self.net, &self.recorder, levels, times, labels)
        };
        let mut inner = guided(network, &labels, null, guidance);
        let mut null_passes = vec![vec![0; labels.len()]; geometry.levels];
        let mut velocity = |query: &Query| {
            let finest = (geometry.height / query.levels[0].dim(2)?).max(1).ilog2() as usize;
            for (&sample, &time) in query.samples.iter().zip(query.times) {
                null_passes[finest][sample] += usize::from(guidance.applies(time));
            }
            inner(query)
        };
        let stochastic = self.config.sde().filter(|_| times.is_empty());
        let mut sampled = match (self.config.reverse(), stochastic) {
            (Some(reverse), _) => reverse.sample(&noise, &mut rngs, &mut velocity, times, show)?,
            (None, Some(sde)) => {
                let path = FlowPath::new(&self.card.flow)?;
                sde.sample(&path, &noise, &mut rngs, &mut velocity)?
            }
            (None, None) => {
                let (flow, solver) = (self.flow.as_ref(), self.config.solver());
                sample_through(flow, &solver, &noise, &mut velocity, times, show)?
            }
        };
        for cost in &mut sampled.costs {
            cost.null_passes = std::mem::take(&mut null_passes[cost.segment.level]);
        }
        Ok((self.flow.image(&sampled.levels)?, sampled.costs))
    }

    /// Images `(b, 3, H, W)` of normalized latents `(b, c, h, w)`.
    ///
    /// # Errors
    /// When the decoder refuses them.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.autoencoder.decode(&self.raw(latents)?)?)
    }

    /// Normalized latents `(b, c, h, w)` in the autoencoder's own units, as datasets store them.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn raw(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.card.normalization.invert(latents)?)
    }

    /// Pixels of decoded images, `H W 3` bytes each.
    ///
    /// # Errors
    /// When an image holds NaN.
    pub fn pixels(&self, images: &Tensor) -> Result<Vec<Vec<u8>>> {
        to_pixels(images, self.config.rounding)
    }
}
