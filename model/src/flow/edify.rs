//! EdifyImage (Atzmon et al. 2024; paper appendix E, MATH section 6): residuals that fade in.
//!
//! With `a_k(t) = max(0, tau_k(t))` and sigma = 1 - t, the state of stage j is
//! `sum over k >= j of Up^(k-j)(a_k x^(k)) + sigma Down^j(eps)`. `Down^j` of white noise is white
//! with standard deviation 2^-j: the state is kept multiplied by 2^j, so that the network, one for
//! all stages, always sees noise of unit variance.

use super::FlowConfig;
use super::method::{Example, Flow};
use super::path::{Path, per_sample};
use crate::error::Result;
use crate::pyramid;
use candle_core::Tensor;

/// The start times, with LapFlow's linear path for every residual.
#[derive(Clone, Debug)]
pub struct Edify {
    path: Path,
}

impl Edify {
    /// The stages between the configured start times.
    ///
    /// # Errors
    /// When the start times do not fall to 0.
    pub fn new(config: &FlowConfig) -> Result<Self> {
        let levels = FlowConfig { levels: config.levels, ..FlowConfig::default() };
        let path = Path::new(&FlowConfig { starts: config.starts()?, ..levels })?;
        Ok(Self { path })
    }
}

impl Flow for Edify {
    fn levels(&self) -> usize {
        self.path.levels()
    }

    fn segment(&self, k: usize) -> (f64, f64) {
        self.path.segment(k)
    }

    fn example(&self, k: usize, data: &[Tensor], noise: &[Tensor], t: &[f64]) -> Result<Example> {
        let faded = |factor: &dyn Fn(usize, f64) -> f64| -> Result<Tensor> {
            let parts = data
                .iter()
                .enumerate()
                .skip(k)
                .map(|(level, x)| Ok(x.broadcast_mul(&per_sample(t, &|t| factor(level, t), x)?)?))
                .collect::<Result<Vec<_>>>()?;
            Ok((pyramid::merge(&parts)? * f64::from(1u32 << k))?)
        };
        let noise = &noise[k];
        let sigma = noise.broadcast_mul(&per_sample(t, &|t| self.path.sigma(t), noise)?)?;
        let state = (faded(&|level, t| self.path.alpha(level, t))? + sigma)?;
        let velocity = (faded(&|level, t| self.path.alpha_dot(level, t))? - noise)?;
        Ok(Example { states: vec![state], targets: vec![velocity], times: t.to_vec() })
    }

    /// The upsampled noise is constant over 2x2 blocks; what it lacks of white noise of the finer
    /// size is added.
    fn enter(&self, k: usize, state: Vec<Tensor>, noise: &[Tensor]) -> Result<Vec<Tensor>> {
        let Some(coarse) = state.first() else { return Ok(vec![noise[k].clone()]) };
        let white = &noise[k];
        let fresh = pyramid::add_up(white, &pyramid::down(white)?, -1.0)?;
        let fresh = (fresh * self.path.sigma(self.segment(k).0))?;
        Ok(vec![pyramid::add_up(&fresh, coarse, 0.5)?])
    }
}
