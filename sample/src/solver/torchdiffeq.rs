//! Dormand-Prince 5(4) exactly as torchdiffeq 0.2.5 runs it, for parity.

use super::dopri5::{C, Dopri5, Step, attempt, initial_step, step_factor, trial_step};
use super::state::{Steps, batch, batch_norm, difference, relative};
use super::{Counter, Solution, Velocity};
use crate::error::{Result, SampleError};
use candle_core::{DType, Tensor};

/// Weights of the slopes for the solution half-way through a step (Shampine's).
const MIDDLE: [f64; 7] = [
    6025192743.0 / 30085553152.0 / 2.0,
    0.0,
    51252292925.0 / 65400821598.0 / 2.0,
    -2691868925.0 / 45128329728.0 / 2.0,
    187940372067.0 / 1594534317056.0 / 2.0,
    -1776094331.0 / 19743644256.0 / 2.0,
    11237099.0 / 235043384.0 / 2.0,
];

/// The last accepted step, from which the end is interpolated.
struct Accepted {
    start: f64,
    end: f64,
    y0: Vec<Tensor>,
    step: Step,
}

/// Integrates from `start` past `end` and interpolates back, one step size for all samples.
///
/// Norms are root mean squares over a level and the whole batch, the largest level's counting, as
/// torchdiffeq takes them over a tuple.
pub(super) fn integrate(
    solver: &Dopri5,
    velocity: &mut Velocity,
    state: Vec<Tensor>,
    (start, end): (f64, f64),
) -> Result<Solution> {
    let rows = batch(&state)?;
    let samples: Vec<usize> = (0..rows).collect();
    let single = state[0].dtype() == DType::F32;
    let mut counter = Counter::new(velocity, rows);
    let mut y = state;
    let mut f = counter.evaluate(&y, &vec![rounded(start, single); rows], &samples)?;
    let mut h = first_step(solver, &mut counter, (&y, &f), start, single)?;
    let mut t = start;
    let mut last = None;
    for _ in 0..solver.steps_max {
        if t >= end {
            break;
        }
        let t1 = t + h;
        if !h.is_finite() || t1 <= t {
            return Err(SampleError::NotFinite { sample: 0, time: t });
        }
        let times = |i: usize| vec![stage_time(C[i], t, h, t1, single); rows];
        let size = Steps::Same(h);
        let step = attempt(&mut counter, (&y, &f), size, &samples, times)?;
        let ratio = rounded(batch_norm(&step.error(&y, size, solver)?)?, single);
        if ratio <= 1.0 {
            let y0 = std::mem::replace(&mut y, step.y.clone());
            f = step.slopes[6].clone();
            last = Some(Accepted { start: t, end: t1, y0, step });
            t = t1;
        } else {
            counter.rejected.iter_mut().for_each(|count| *count += 1);
        }
        h *= step_factor(ratio);
    }
    match last {
        Some(last) if t >= end => Ok(counter.solution(last.interpolate(end, single)?)),
        _ => Err(SampleError::StepLimit { limit: solver.steps_max, sample: 0, time: t }),
    }
}

fn first_step(
    solver: &Dopri5,
    counter: &mut Counter,
    (y, f): (&[Tensor], &[Tensor]),
    start: f64,
    single: bool,
) -> Result<f64> {
    let norm = |value: &[Tensor]| -> Result<f64> {
        let norm = batch_norm(&relative(value, (solver.rtol, solver.atol), y, y)?)?;
        Ok(rounded(norm, single))
    };
    let d1 = norm(f)?;
    let h0 = rounded(trial_step(norm(y)?, d1), single);
    let rows = batch(y)?;
    let samples: Vec<usize> = (0..rows).collect();
    let y1 = Steps::Same(h0).advance(y, &[1.0], &[f.to_vec()])?;
    let f1 = counter.evaluate(&y1, &vec![rounded(start + h0, single); rows], &samples)?;
    let change = difference(&f1, f)?;
    let d2 = norm(&change)? / h0;
    Ok(rounded(initial_step(h0, d1, d2), single))
}

/// The time at which a stage is evaluated, in the state's precision; a stage at the step's end
/// one ulp before it.
fn stage_time(c: f64, t0: f64, h: f64, t1: f64, single: bool) -> f64 {
    match (c == 1.0, single) {
        (true, true) => f64::from((t1 as f32).next_down()),
        (true, false) => t1.next_down(),
        (false, true) => f64::from(t0 as f32 + c as f32 * h as f32),
        (false, false) => t0 + c * h,
    }
}

fn rounded(value: f64, single: bool) -> f64 {
    if single { f64::from(value as f32) } else { value }
}

impl Accepted {
    /// The quartic through the step's ends, their slopes and its middle, at time `t`.
    fn interpolate(&self, t: f64, single: bool) -> Result<Vec<Tensor>> {
        let x = rounded((t - self.start) / (self.end - self.start), single);
        let h = rounded(self.end - self.start, single);
        let middle = Steps::Same(h).advance(&self.y0, &MIDDLE, &self.step.slopes)?;
        let (first, last) = (&self.step.slopes[0], &self.step.slopes[6]);
        let level = |i: usize| -> Result<Tensor> {
            let (y0, y1) = (&self.y0[i], &self.step.y[i]);
            let (f0, f1) = ((&first[i] * h)?, (&last[i] * h)?);
            let combine = |weights: [f64; 5]| -> Result<Tensor> {
                let mut sum = (y0 * weights[0])?;
                for (term, weight) in [y1, &middle[i], &f0, &f1].into_iter().zip(&weights[1..]) {
                    sum = (sum + (term * *weight)?)?;
                }
                Ok(sum)
            };
            let quartic = combine([-8.0, -8.0, 16.0, -2.0, 2.0])?;
            let cubic = combine([18.0, 14.0, -32.0, 5.0, -3.0])?;
            let square = combine([-11.0, -5.0, 16.0, -4.0, 1.0])?;
            let mut value = (y0 + (f0 * x)?)?;
            for (power, term) in [(2, square), (3, cubic), (4, quartic)] {
                value = (value + (term * x.powi(power))?)?;
            }
            Ok(value)
        };
        (0..self.y0.len()).map(level).collect()
    }
}
