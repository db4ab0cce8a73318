//! The `[flow]` section.

use super::{Diffusion, Edify, Flow, Path, Pyramidal};
use crate::error::{ModelError, Result};
use serde::{Deserialize, Serialize};

/// The `[flow]` section: how many levels, when each starts, and along which path it moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// Whose training target and sampling.
    pub method: Method,
    /// Pyramid levels K; 1 is single-scale latent flow matching (LFM).
    pub levels: usize,
    /// Start times S_k, finest first, the last one 0; empty for the paper's defaults.
    pub starts: Vec<f64>,
    /// Data coefficient alpha; lapflow only, as are sigma and noise.
    pub coupling: Coupling,
    /// Noise coefficient sigma.
    pub sigma: Sigma,
    /// How the levels' noise is drawn.
    pub noise: Noise,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            method: Method::default(),
            levels: 2,
            starts: Vec::new(),
            coupling: Coupling::default(),
            sigma: Sigma::default(),
            noise: Noise::default(),
        }
    }
}

/// The data coefficient alpha_k as a function of tau.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coupling {
    /// tau
    #[default]
    Linear,
    /// sin(pi tau / 2)
    Gvp,
}

/// The noise coefficient sigma as a function of t.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sigma {
    /// 1 - t
    #[default]
    Linear,
    /// cos(pi t / 2)
    Gvp,
    /// (1 - t)^2
    Quadratic,
    /// (1 - t)^3
    Cubic,
}

/// The joint distribution of the levels' noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Noise {
    /// The pyramid of one full-size N(0, I) draw, so that the merged noise is white.
    #[default]
    Laplacian,
    /// Independent N(0, I) for every level.
    White,
}

/// The methods, by whom the network is trained and sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// LapFlow; with one level latent flow matching (LFM).
    #[default]
    Lapflow,
    /// Pyramidal Flow: one network, a flow a resolution, jumps with added noise between them.
    Pyramidal,
    /// EdifyImage: one network, residuals of the pyramid that fade in as their level starts.
    Edify,
    /// DiT's own: the noise is predicted over 1000 steps of a linear diffusion schedule.
    Dit,
}

impl FlowConfig {
    /// The method ready to train and to sample with.
    ///
    /// # Errors
    /// Names the key that does not fit.
    pub fn build(&self) -> Result<Box<dyn Flow>> {
        let wrong = |reason: &str| Err(ModelError::config("flow", reason));
        let own = Self { method: self.method, levels: self.levels, ..Self::default() };
        let plain = Self { starts: Vec::new(), ..self.clone() } == own;
        if self.method != Method::Lapflow && !plain {
            return wrong("coupling, sigma and noise are for method = \"lapflow\"");
        }
        Ok(match self.method {
            Method::Lapflow => Box::new(Path::new(self)?),
            Method::Pyramidal => Box::new(Pyramidal::new(self)?),
            Method::Edify => Box::new(Edify::new(self)?),
            Method::Dit if self.levels != 1 => return wrong("method = \"dit\" has levels = 1"),
            Method::Dit => Box::new(Diffusion::new()),
        })
    }

    /// The start times S_k, finest level first, with the paper's defaults filled in.
    ///
    /// # Errors
    /// For no or more than 4 levels without starts, and starts that do not fall strictly to 0.
    pub fn starts(&self) -> Result<Vec<f64>> {
        let wrong = |reason: String| ModelError::config("flow", reason);
        let starts = match (self.starts.as_slice(), self.levels) {
            ([], 1) => vec![0.0],
            ([], 2) => vec![0.5, 0.0],
            ([], 3) => vec![0.67, 0.33, 0.0],
            ([], 4) => vec![0.75, 0.5, 0.25, 0.0],
            ([], k) => return Err(wrong(format!("levels = {k} needs explicit starts"))),
            (starts, k) if starts.len() != k => {
                return Err(wrong(format!("{} starts for levels = {k}", starts.len())));
            }
            (starts, _) => starts.to_vec(),
        };
        let falling = starts.windows(2).all(|pair| pair[0] > pair[1]);
        if !falling || starts.last() != Some(&0.0) || starts[0] >= 1.0 {
            return Err(wrong(format!("starts must fall from below 1 to 0, got {starts:?}")));
        }
        Ok(starts)
    }
}
