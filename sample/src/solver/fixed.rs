//! Euler, midpoint and Heun on a time grid.

use super::state::{Steps, batch};
use super::{Counter, Solution, Velocity};
use crate::error::Result;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// A one-step method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// First order, one evaluation a step.
    Euler,
    /// Second order, two evaluations: the slope half-way.
    Midpoint,
    /// Second order, two evaluations: the mean of the slopes at both ends (explicit trapezoid).
    Heun,
}

impl Method {
    /// Integrates along `times`, all samples together.
    pub(super) fn integrate(
        self,
        velocity: &mut Velocity,
        state: Vec<Tensor>,
        times: &[f64],
    ) -> Result<Solution> {
        let rows = batch(&state)?;
        let samples: Vec<usize> = (0..rows).collect();
        let mut counter = Counter::new(velocity, rows);
        let mut at = |y: &[Tensor], t: f64| counter.evaluate(y, &vec![t; rows], &samples);
        let mut y = state;
        for pair in times.windows(2) {
            let (t, h) = (pair[0], pair[1] - pair[0]);
            let step = Steps::Same(h);
            let first = at(&y, t)?;
            y = match self {
                Method::Euler => step.advance(&y, &[1.0], &[first])?,
                Method::Midpoint => {
                    let middle = step.advance(&y, &[0.5], &[first])?;
                    let slope = at(&middle, t + 0.5 * h)?;
                    step.advance(&y, &[1.0], &[slope])?
                }
                Method::Heun => {
                    let far = step.advance(&y, &[1.0], std::slice::from_ref(&first))?;
                    let last = at(&far, pair[1])?;
                    step.advance(&y, &[0.5, 0.5], &[first, last])?
                }
            };
        }
        Ok(counter.solution(y))
    }
}
