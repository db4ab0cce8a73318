//! Solvers of dx/dt = v(x, t) for a batch whose samples each have their own time.
//!
//! Enters: a [`Velocity`] and the state at the start. Leaves: a [`Solution`], the state at the
//! end and what it cost. The state is a list of tensors, one a pyramid level, whose first axis is
//! the batch; f32 and f64 are integrated in their own precision, times are always f64.

mod dopri5;
mod fixed;
mod grid;
mod state;
mod torchdiffeq;

pub use dopri5::{Control, Dopri5};
pub use fixed::Method;
pub use grid::Grid;

use crate::error::Result;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// What a velocity function is asked: some samples of the batch, each at its own time.
///
/// Every tensor of `levels` has as many rows as there are `times` and `samples`.
pub struct Query<'a> {
    /// The active levels of the asked samples, finest first: (N, C, H, W) each.
    pub levels: &'a [Tensor],
    /// Time of each asked sample.
    pub times: &'a [f64],
    /// Position in the full batch of each asked sample, ascending; its key to labels and the like.
    pub samples: &'a [usize],
}

/// A velocity function: dx/dt of the asked samples, one tensor for each of `levels`.
pub type Velocity<'a> = dyn FnMut(&Query) -> lapflow_model::Result<Vec<Tensor>> + 'a;

/// How to integrate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Solver {
    /// A one-step method on a fixed time grid.
    Fixed(Method, Grid),
    /// Dormand-Prince 5(4) with error control.
    Dopri5(Dopri5),
}

/// The end of an integration and its cost.
#[derive(Debug)]
pub struct Solution {
    /// The state at the end, shaped as it came.
    pub state: Vec<Tensor>,
    /// Function evaluations that each sample took part in.
    pub evaluations: Vec<usize>,
    /// Calls of the velocity function, each for one or more samples.
    pub calls: usize,
    /// Steps that each sample was refused.
    pub rejected: Vec<usize>,
}

/// Step sizes that an adaptive solver hands from one segment to the next, one a sample.
///
/// Start with the default and pass the same value to the following segments of the same batch.
#[derive(Clone, Debug, Default)]
pub struct StepSizes(Vec<f64>);

impl Solver {
    /// Integrates `state` from time `start` to `end > start`.
    ///
    /// # Errors
    /// When the settings are invalid, the velocity fails, a state is no longer finite or the step
    /// limit is reached.
    pub fn integrate(
        &self,
        velocity: &mut Velocity,
        state: Vec<Tensor>,
        (start, end): (f64, f64),
        steps: &mut StepSizes,
    ) -> Result<Solution> {
        match self {
            Solver::Fixed(method, grid) => {
                method.integrate(velocity, state, &grid.times(start, end)?)
            }
            Solver::Dopri5(dopri5) => dopri5.integrate(velocity, state, (start, end), steps),
        }
    }

    /// Checks the settings.
    pub fn validate(&self) -> Result<()> {
        match self {
            Solver::Fixed(_, grid) => grid.times(0.0, 1.0).map(drop),
            Solver::Dopri5(dopri5) => dopri5.validate(),
        }
    }
}

/// Counts the evaluations of a velocity function.
struct Counter<'a, 'v> {
    velocity: &'a mut Velocity<'v>,
    evaluations: Vec<usize>,
    rejected: Vec<usize>,
    calls: usize,
}

impl<'a, 'v> Counter<'a, 'v> {
    fn new(velocity: &'a mut Velocity<'v>, batch: usize) -> Self {
        Self { velocity, evaluations: vec![0; batch], rejected: vec![0; batch], calls: 0 }
    }

    fn evaluate(
        &mut self,
        levels: &[Tensor],
        times: &[f64],
        samples: &[usize],
    ) -> Result<Vec<Tensor>> {
        self.calls += 1;
        for &sample in samples {
            self.evaluations[sample] += 1;
        }
        let slopes = (self.velocity)(&Query { levels, times, samples })?;
        // A network's parameters are variables: a solution must not keep the graph of all steps.
        Ok(slopes.iter().map(Tensor::detach).collect())
    }

    fn solution(self, state: Vec<Tensor>) -> Solution {
        Solution {
            state,
            evaluations: self.evaluations,
            calls: self.calls,
            rejected: self.rejected,
        }
    }
}
