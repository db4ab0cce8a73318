//! The `[sample]` section.

use crate::error::{Result, SampleError};
use crate::guidance::Guidance;
use crate::images::Rounding;
use crate::reverse::{Kind, ReverseSampler};
use crate::sde::{Diffusion, Sde};
use crate::solver::{Control, Dopri5, Grid, Method, Solver};
use lapflow_model::checkpoint::WeightSet;
use serde::{Deserialize, Serialize};

/// How images are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Seed of all images; each has a stream of its own in it.
    pub seed: u64,
    /// Images integrated together; the result does not depend on it.
    pub batch: usize,
    /// Which weights of the checkpoint.
    pub weights: WeightSet,
    /// Classifier-free guidance scale; 1 for none.
    pub cfg: f64,
    /// Times [from, to] in which the scale applies.
    pub cfg_interval: [f64; 2],
    /// How to integrate.
    pub solver: SolverName,
    /// Steps over [0, 1] of a fixed-step solver.
    pub steps: usize,
    /// Above 1, spends more of those steps near the noise.
    pub shift: f64,
    /// Times of a fixed-step solver, instead of `steps` and `shift`.
    pub times: Vec<f64>,
    /// Relative tolerance of dopri5.
    pub rtol: f64,
    /// Absolute tolerance of dopri5.
    pub atol: f64,
    /// How dopri5 chooses its steps.
    pub control: Control,
    /// Diffusion coefficient of the stochastic sampler.
    pub diffusion: Diffusion,
    /// Factor of that coefficient; 0 is Euler's method.
    pub diffusion_norm: f64,
    /// Length of the stochastic sampler's last step, which adds no noise.
    pub last_step: f64,
    /// How values become bytes.
    pub rounding: Rounding,
}

/// The solvers by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverName {
    /// Dormand-Prince 5(4) with error control.
    Dopri5,
    /// Euler.
    Euler,
    /// Midpoint.
    Midpoint,
    /// Heun.
    Heun,
    /// Euler-Maruyama on the reverse stochastic equation.
    Sde,
    /// DDIM without noise of its own, for DiT's own objective.
    Ddim,
    /// DDPM's ancestral steps, for DiT's own objective.
    Ddpm,
}

impl Default for SampleConfig {
    fn default() -> Self {
        let Dopri5 { rtol, atol, control, .. } = Dopri5::default();
        let Sde { diffusion, norm: diffusion_norm, last_step, .. } = Sde::default();
        Self {
            seed: 0,
            batch: 64,
            weights: WeightSet::Ema,
            cfg: 1.0,
            cfg_interval: [0.0, 1.0],
            solver: SolverName::Dopri5,
            steps: 50,
            shift: 1.0,
            times: Vec::new(),
            rtol,
            atol,
            control,
            diffusion,
            diffusion_norm,
            last_step,
            rounding: Rounding::Nearest,
        }
    }
}

impl SampleConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first that cannot be.
    pub fn validate(&self) -> Result<()> {
        if self.batch == 0 {
            return Err(SampleError::setting("sample.batch", "must be positive"));
        }
        if !self.cfg.is_finite() {
            return Err(SampleError::setting("sample.cfg", "must be finite"));
        }
        let [from, to] = self.cfg_interval;
        if !(0.0 <= from && from <= to && to <= 1.0) {
            let reason = format!("[{from}, {to}] is not an interval within [0, 1]");
            return Err(SampleError::setting("sample.cfg_interval", reason));
        }
        self.sde().map_or(Ok(()), |sde| sde.validate())?;
        self.solver().validate()
    }

    fn grid(&self) -> Grid {
        match self.times.as_slice() {
            [] => Grid::Shifted { steps: self.steps, shift: self.shift },
            times => Grid::Given(times.to_vec()),
        }
    }

    /// The stochastic sampler, where it was chosen.
    pub fn sde(&self) -> Option<Sde> {
        let (diffusion, norm) = (self.diffusion, self.diffusion_norm);
        let chosen = self.solver == SolverName::Sde;
        chosen.then(|| Sde { grid: self.grid(), diffusion, norm, last_step: self.last_step })
    }

    /// The solver of the ordinary equation with its settings; Euler's beside the stochastic
    /// sampler, whose way without noise it is.
    pub fn solver(&self) -> Solver {
        let fixed = |method| Solver::Fixed(method, self.grid());
        match self.solver {
            SolverName::Euler | SolverName::Sde => fixed(Method::Euler),
            SolverName::Midpoint => fixed(Method::Midpoint),
            SolverName::Heun => fixed(Method::Heun),
            // Steps of a diffusion are Euler's as far as a grid is concerned.
            SolverName::Ddim | SolverName::Ddpm => fixed(Method::Euler),
            SolverName::Dopri5 => Solver::Dopri5(Dopri5 {
                rtol: self.rtol,
                atol: self.atol,
                control: self.control,
                ..Dopri5::default()
            }),
        }
    }

    /// DDIM or DDPM where one is chosen.
    pub fn reverse(&self) -> Option<ReverseSampler> {
        let kind = match self.solver {
            SolverName::Ddim => Kind::Ddim,
            SolverName::Ddpm => Kind::Ddpm,
            _ => return None,
        };
        Some(ReverseSampler { kind, steps: self.steps })
    }

    /// Whether the solver can sample `method`: DDIM and DDPM are of diffusion steps, the others
    /// of flows, and the stochastic equation is LapFlow's.
    ///
    /// # Errors
    /// When it cannot.
    pub fn validate_method(&self, method: lapflow_model::flow::Method) -> Result<()> {
        let diffusion = method == lapflow_model::flow::Method::Dit;
        let stochastic = self.solver == SolverName::Sde;
        let joint = method == lapflow_model::flow::Method::Lapflow;
        if diffusion == self.reverse().is_some() && (joint || !stochastic) {
            return Ok(());
        }
        let reason = format!("{:?} does not sample flow.method {method:?}", self.solver);
        let hint = if diffusion { "ddim or ddpm" } else { "dopri5, euler, midpoint or heun" };
        Err(SampleError::setting("sample.solver", format!("{reason}; choose {hint}")))
    }

    /// The guidance.
    pub fn guidance(&self) -> Guidance {
        Guidance { scale: self.cfg, interval: (self.cfg_interval[0], self.cfg_interval[1]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_named() {
        type Spoil = fn(&mut SampleConfig);
        let broken: [(&str, Spoil); 9] = [
            ("cfg", |c| c.cfg = f64::NAN),
            ("cfg_interval", |c| c.cfg_interval = [0.6, 0.4]),
            ("batch", |c| c.batch = 0),
            ("rtol", |c| c.rtol = 0.0),
            ("steps", |c| (c.solver, c.steps) = (SolverName::Heun, 0)),
            ("shift", |c| (c.solver, c.shift) = (SolverName::Euler, -1.0)),
            ("grid", |c| (c.solver, c.times) = (SolverName::Euler, vec![0.5, 0.2])),
            ("diffusion", |c| (c.solver, c.diffusion) = (SolverName::Sde, Diffusion::Sbdm)),
            ("last_step", |c| (c.solver, c.last_step) = (SolverName::Sde, 1.0)),
        ];
        assert!(SampleConfig::default().validate().is_ok());
        for (name, breaks) in broken {
            let mut config = SampleConfig::default();
            breaks(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
