//! Dormand-Prince 5(4) with step sizes chosen for each sample on its own.

use super::state::{Steps, batch, difference, norms, relative, replace, select};
use super::{Counter, Solution, StepSizes, Velocity, torchdiffeq};
use crate::error::{Result, SampleError};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Settings of the Dormand-Prince solver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dopri5 {
    /// Relative tolerance.
    pub rtol: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Whose error decides on a step.
    pub control: Control,
    /// Steps after which a segment fails, refused ones included.
    pub steps_max: usize,
}

/// How steps are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// Every sample has its own time and step, so that it does not depend on its batch. The last
    /// step ends at the segment's end and the next segment starts with the step size reached.
    Sample,
    /// What torchdiffeq 0.2.5 does, evaluation for evaluation: one step size for the whole batch,
    /// chosen anew at each segment, the last step overshooting the end and interpolated back.
    Torchdiffeq,
}

impl Default for Dopri5 {
    /// Tolerances of 1e-5, the setting of LFM and the paper.
    fn default() -> Self {
        Self { rtol: 1e-5, atol: 1e-5, control: Control::Sample, steps_max: 10_000 }
    }
}

/// Stage times, as fractions of the step.
pub(super) const C: [f64; 6] = [1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0, 1.0];

/// Weights of the earlier slopes at each stage; the last row is the fifth-order solution.
pub(super) const A: [&[f64]; 6] = [
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
    &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
    &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
];

/// Fifth-order weights less those of the embedded solution (Shampine's).
const ERROR: [f64; 7] = [
    35.0 / 384.0 - 1951.0 / 21600.0,
    0.0,
    500.0 / 1113.0 - 22642.0 / 50085.0,
    125.0 / 192.0 - 451.0 / 720.0,
    -2187.0 / 6784.0 + 12231.0 / 42400.0,
    11.0 / 84.0 - 649.0 / 6300.0,
    -1.0 / 60.0,
];

/// One attempted step.
pub(super) struct Step {
    /// The fifth-order solution at the end of the step.
    pub y: Vec<Tensor>,
    /// All seven slopes; the last is the slope at `y`.
    pub slopes: Vec<Vec<Tensor>>,
}

impl Step {
    /// The error estimate relative to the tolerances, elementwise.
    pub(super) fn error(
        &self,
        y0: &[Tensor],
        steps: Steps,
        solver: &Dopri5,
    ) -> Result<Vec<Tensor>> {
        let error = steps.increment(&ERROR, &self.slopes)?;
        relative(&error, (solver.rtol, solver.atol), y0, &self.y)
    }
}

/// Tries a step from `y0` with slope `f0`; `times(i)` gives the samples' times at stage i.
pub(super) fn attempt(
    counter: &mut Counter,
    (y0, f0): (&[Tensor], &[Tensor]),
    steps: Steps,
    samples: &[usize],
    times: impl Fn(usize) -> Vec<f64>,
) -> Result<Step> {
    let mut slopes = vec![f0.to_vec()];
    let mut y = Vec::new();
    for (i, weights) in A.iter().enumerate() {
        y = steps.advance(y0, weights, &slopes)?;
        slopes.push(counter.evaluate(&y, &times(i), samples)?);
    }
    Ok(Step { y, slopes })
}

/// What the next step is multiplied by, after one whose error was `ratio` times the tolerance.
pub(super) fn step_factor(ratio: f64) -> f64 {
    let smallest = if ratio < 1.0 { 1.0 } else { 0.2 };
    if ratio == 0.0 { 10.0 } else { (0.9 * ratio.powf(-0.2)).max(smallest).min(10.0) }
}

/// The first trial step h0 of Hairer, Norsett and Wanner (Solving ODEs I, II.4), from the norms
/// of y and dy/dt relative to the tolerances.
pub(super) fn trial_step(d0: f64, d1: f64) -> f64 {
    if d0 < 1e-5 || d1 < 1e-5 { 1e-6 } else { 0.01 * d0 / d1 }
}

/// The initial step, from the trial step h0 and the norms of dy/dt and of its derivative.
pub(super) fn initial_step(h0: f64, d1: f64, d2: f64) -> f64 {
    let h1 = if d1 <= 1e-15 && d2 <= 1e-15 {
        (h0 * 1e-3).max(1e-6)
    } else {
        (0.01 / d1.max(d2)).powf(0.2)
    };
    (100.0 * h0).min(h1)
}

impl Dopri5 {
    pub(super) fn validate(&self) -> Result<()> {
        let positive = |name, value: f64| {
            let valid = value > 0.0 && value.is_finite();
            let error = || SampleError::setting(name, format!("{value} is not a positive number"));
            if valid { Ok(()) } else { Err(error()) }
        };
        positive("rtol", self.rtol)?;
        positive("atol", self.atol)
    }

    pub(super) fn integrate(
        &self,
        velocity: &mut Velocity,
        state: Vec<Tensor>,
        span: (f64, f64),
        steps: &mut StepSizes,
    ) -> Result<Solution> {
        self.validate()?;
        match self.control {
            Control::Torchdiffeq => torchdiffeq::integrate(self, velocity, state, span),
            Control::Sample => Batch::start(self, velocity, state, span, steps)?.run(steps),
        }
    }
}

/// The samples of a batch on their ways from one start to one end.
struct Batch<'a, 'v> {
    solver: &'a Dopri5,
    counter: Counter<'a, 'v>,
    end: f64,
    /// State and slope of every sample at its own time.
    y: Vec<Tensor>,
    f: Vec<Tensor>,
    times: Vec<f64>,
    steps: Vec<f64>,
    attempts: Vec<usize>,
}

impl<'a, 'v> Batch<'a, 'v> {
    fn start(
        solver: &'a Dopri5,
        velocity: &'a mut Velocity<'v>,
        y: Vec<Tensor>,
        (start, end): (f64, f64),
        carried: &StepSizes,
    ) -> Result<Self> {
        let rows = batch(&y)?;
        let samples: Vec<usize> = (0..rows).collect();
        let mut counter = Counter::new(velocity, rows);
        let times = vec![start; rows];
        let f = counter.evaluate(&y, &times, &samples)?;
        let mut this = Self {
            solver,
            counter,
            end,
            y,
            f,
            times,
            steps: carried.0.clone(),
            attempts: vec![0; rows],
        };
        if this.steps.len() != rows {
            this.steps = this.first_steps(&samples)?;
        }
        Ok(this)
    }

    /// The initial steps, by one more evaluation that stays before the end.
    fn first_steps(&mut self, samples: &[usize]) -> Result<Vec<f64>> {
        let tolerances = (self.solver.rtol, self.solver.atol);
        let relative_to_y =
            |value: &[Tensor]| norms(&relative(value, tolerances, &self.y, &self.y)?);
        let d0 = relative_to_y(&self.y)?;
        let d1 = relative_to_y(&self.f)?;
        let room = |t: f64| self.end - t;
        let trial: Vec<f64> =
            (0..d0.len()).map(|b| trial_step(d0[b], d1[b]).min(room(self.times[b]))).collect();
        let y1 = Steps::Each(&trial).advance(&self.y, &[1.0], std::slice::from_ref(&self.f))?;
        let times: Vec<f64> = self.times.iter().zip(&trial).map(|(t, h)| t + h).collect();
        let f1 = self.counter.evaluate(&y1, &times, samples)?;
        let change = difference(&f1, &self.f)?;
        let d2 = norms(&relative(&change, tolerances, &self.y, &self.y)?)?;
        Ok((0..d0.len()).map(|b| initial_step(trial[b], d1[b], d2[b] / trial[b])).collect())
    }

    fn run(mut self, carried: &mut StepSizes) -> Result<Solution> {
        loop {
            let active: Vec<usize> =
                (0..self.times.len()).filter(|b| self.times[*b] < self.end).collect();
            if active.is_empty() {
                break;
            }
            self.step(&active)?;
        }
        carried.0 = self.steps;
        Ok(self.counter.solution(self.y))
    }

    /// One attempt for each of the `active` samples; the others are not evaluated.
    fn step(&mut self, active: &[usize]) -> Result<()> {
        let ends: Vec<f64> = active.iter().map(|&b| self.step_end(b)).collect();
        let starts: Vec<f64> = active.iter().map(|&b| self.times[b]).collect();
        let steps: Vec<f64> = ends.iter().zip(&starts).map(|(end, start)| end - start).collect();
        let y0 = select(&self.y, active)?;
        let f0 = select(&self.f, active)?;
        let stage_times = |i: usize| match C[i] {
            1.0 => ends.clone(),
            c => starts.iter().zip(&steps).map(|(t, h)| t + c * h).collect(),
        };
        let sizes = Steps::Each(&steps);
        let step = attempt(&mut self.counter, (&y0, &f0), sizes, active, stage_times)?;
        let ratios = norms(&step.error(&y0, sizes, self.solver)?)?;
        let accepted: Vec<bool> = ratios.iter().map(|ratio| *ratio <= 1.0).collect();
        self.y = replace(&self.y, &step.y, active, &accepted)?;
        self.f = replace(&self.f, &step.slopes[6], active, &accepted)?;
        for (i, &sample) in active.iter().enumerate() {
            self.settle(sample, ends[i], steps[i], ratios[i])?;
        }
        Ok(())
    }

    /// Where the sample's next step ends: at its own step size, or at the segment's end where that
    /// is nearer or less than a hundredth of a step further.
    fn step_end(&self, sample: usize) -> f64 {
        let (t, h) = (self.times[sample], self.steps[sample]);
        if t + 1.01 * h >= self.end { self.end } else { t + h }
    }

    /// Moves the sample's clock, chooses its next step, and gives up where that cannot help.
    fn settle(&mut self, sample: usize, step_end: f64, step: f64, ratio: f64) -> Result<()> {
        let time = self.times[sample];
        if !ratio.is_finite() {
            return Err(SampleError::NotFinite { sample, time });
        }
        let limit = self.solver.steps_max;
        self.attempts[sample] += 1;
        let next = step * step_factor(ratio);
        if ratio <= 1.0 {
            // A step cut short by the end says nothing against the longer one it was cut from.
            self.steps[sample] =
                if step < self.steps[sample] { next.max(self.steps[sample]) } else { next };
            self.times[sample] = step_end;
        } else {
            self.steps[sample] = next;
            self.counter.rejected[sample] += 1;
        }
        let stuck = self.times[sample] < self.end && time + next <= time;
        if stuck || self.attempts[sample] >= limit && self.times[sample] < self.end {
            return Err(SampleError::StepLimit { limit, sample, time });
        }
        Ok(())
    }
}
