//! Time grids of the fixed-step methods.

use crate::error::{Result, SampleError};
use serde::{Deserialize, Serialize};

/// Two times nearer than this are one.
const TIME_EPS: f64 = 1e-9;

/// A grid over [0, 1]; a segment uses the part of it that lies inside, plus its own two ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Grid {
    /// Equal steps.
    Uniform {
        /// How many over [0, 1].
        steps: usize,
    },
    /// Equal steps of u, with 1 - t = shift (1 - u) / (1 + (shift - 1)(1 - u)): a shift above 1
    /// spends more of them near the noise (Stable Diffusion 3, equation 23).
    Shifted {
        /// How many over [0, 1].
        steps: usize,
        /// The shift, above 0; 1 is uniform.
        shift: f64,
    },
    /// The times themselves.
    Given(
        /// Strictly increasing, within [0, 1].
        Vec<f64>,
    ),
}

impl Grid {
    /// The times from `start` to `end`, both included.
    ///
    /// # Errors
    /// For no steps, a shift that is not positive, or given times that do not increase in [0, 1].
    pub fn times(&self, start: f64, end: f64) -> Result<Vec<f64>> {
        if start >= end {
            return Err(SampleError::setting("grid", format!("{start} is not before {end}")));
        }
        let inside =
            self.points()?.into_iter().filter(|t| *t > start + TIME_EPS && *t < end - TIME_EPS);
        Ok(std::iter::once(start).chain(inside).chain([end]).collect())
    }

    fn points(&self) -> Result<Vec<f64>> {
        match self {
            Grid::Uniform { steps } => shifted(*steps, 1.0),
            Grid::Shifted { steps, shift } => shifted(*steps, *shift),
            Grid::Given(times) => {
                let increasing = times.windows(2).all(|pair| pair[0] < pair[1]);
                let inside = times.iter().all(|t| (0.0..=1.0).contains(t));
                if increasing && inside {
                    Ok(times.clone())
                } else {
                    Err(SampleError::setting("grid", "times must increase within [0, 1]"))
                }
            }
        }
    }
}

fn shifted(steps: usize, shift: f64) -> Result<Vec<f64>> {
    if steps == 0 {
        return Err(SampleError::setting("steps", "must be at least 1"));
    }
    if !(shift > 0.0 && shift.is_finite()) {
        return Err(SampleError::setting("shift", format!("{shift} is not a positive number")));
    }
    let time = |i: usize| {
        let noise = 1.0 - i as f64 / steps as f64;
        1.0 - shift * noise / (1.0 + (shift - 1.0) * noise)
    };
    Ok((0..=steps).map(time).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_share_one_grid() {
        let grid = Grid::Uniform { steps: 4 };
        assert_eq!(grid.times(0.0, 0.5).unwrap(), [0.0, 0.25, 0.5]);
        assert_eq!(grid.times(0.3, 1.0).unwrap(), [0.3, 0.5, 0.75, 1.0]);
        assert_eq!(grid.times(0.8, 0.9).unwrap(), [0.8, 0.9]);
    }

    #[test]
    fn a_shift_moves_times_towards_the_noise() {
        let times = Grid::Shifted { steps: 2, shift: 3.0 }.times(0.0, 1.0).unwrap();
        assert_eq!(times, [0.0, 0.25, 1.0]);
    }

    #[test]
    fn bad_grids_are_named() {
        for (grid, word) in [
            (Grid::Uniform { steps: 0 }, "steps"),
            (Grid::Shifted { steps: 3, shift: 0.0 }, "shift"),
            (Grid::Given(vec![0.5, 0.5]), "increase"),
            (Grid::Given(vec![0.5, 1.5]), "increase"),
        ] {
            let message = grid.times(0.0, 1.0).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
