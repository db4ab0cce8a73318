//! Sampling segment by segment: coarse levels first, the flow's method saying how the next segment
//! starts from the end of the one before.
//!
//! Enters: the noise of every level and a velocity function. Leaves: a [`Sampled`] pyramid at
//! t = 1. Levels are in the dataset's order, level 0 the finest.

use crate::error::{Result, SampleError};
use crate::solver::{Query, Solver, StepSizes, Velocity};
use candle_core::Tensor;
use lapflow_model::flow::Flow;

/// One integration with a fixed set of active levels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// The finest active level; LapFlow integrates all coarser ones with it.
    pub level: usize,
    /// Where the segment starts.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
}

/// What a segment cost.
#[derive(Clone, Debug)]
pub struct SegmentCost {
    /// The segment.
    pub segment: Segment,
    /// Function evaluations of each sample.
    pub evaluations: Vec<usize>,
    /// Refused steps of each sample.
    pub rejected: Vec<usize>,
    /// Calls of the velocity function.
    pub calls: usize,
    /// Passes of the network for guidance's null half, of each sample: no function evaluations,
    /// but computed all the same.
    pub null_passes: Vec<usize>,
}

/// A sampled batch of pyramids.
#[derive(Debug)]
pub struct Sampled {
    /// Every level at t = 1, finest first: (B, C, H / 2^k, W / 2^k).
    pub levels: Vec<Tensor>,
    /// The cost of each segment, in the order of time.
    pub costs: Vec<SegmentCost>,
}

/// The segments of `flow` in the order of time.
pub fn segments(flow: &dyn Flow) -> impl Iterator<Item = Segment> + '_ {
    (0..flow.levels()).rev().map(|level| {
        let (start, end) = flow.segment(level);
        Segment { level, start, end }
    })
}

/// Integrates from `noise` (finest level first) to t = 1.
///
/// For LapFlow each segment brings in its level as sigma(S_k) times the level's noise, and
/// integrates all active levels jointly to the next level's start; other methods jump between
/// whole images of growing size.
///
/// # Errors
/// When the noise has another number of levels, or the solver fails.
pub fn sample_pyramid(
    flow: &dyn Flow,
    solver: &Solver,
    noise: &[Tensor],
    velocity: &mut Velocity,
) -> Result<Sampled> {
    sample_through(flow, solver, noise, velocity, &[], |_, _| Ok(()))
}

/// [`sample_pyramid`] that shows the active levels at each of `times` on the way.
///
/// A time inside a segment divides its integration there; a time at which a level joins shows the
/// state before it.
///
/// # Errors
/// As [`sample_pyramid`], and what `show` returns.
pub fn sample_through(
    flow: &dyn Flow,
    solver: &Solver,
    noise: &[Tensor],
    velocity: &mut Velocity,
    times: &[f64],
    mut show: impl FnMut(f64, &[Tensor]) -> Result<()>,
) -> Result<Sampled> {
    check_noise(flow, noise)?;
    let mut steps = StepSizes::default();
    let mut levels: Vec<Tensor> = Vec::new();
    let mut costs = Vec::new();
    for segment in segments(flow) {
        levels = flow.enter(segment.level, levels, noise)?;
        let rate = flow.rate(segment.level);
        let mut velocity = |query: &Query| at_rate(velocity(query)?, rate);
        let mut cost = SegmentCost::none(segment, noise[0].dim(0)?);
        let mut start = segment.start;
        for stop in segment.stops(times) {
            let part = solver.integrate(&mut velocity, levels, (start, stop), &mut steps)?;
            cost.add(&part.evaluations, &part.rejected, part.calls);
            levels = part.state;
            start = stop;
            if times.contains(&stop) {
                show(stop, &levels)?;
            }
        }
        costs.push(cost);
    }
    Ok(Sampled { levels, costs })
}

/// Refuses noise of another number of levels than the flow's.
pub(crate) fn check_noise(flow: &dyn Flow, noise: &[Tensor]) -> Result<()> {
    if noise.len() != flow.levels() {
        let reason = format!("has {} levels, not {}", noise.len(), flow.levels());
        return Err(SampleError::setting("noise", reason));
    }
    Ok(())
}

/// The network's answers as velocities in time.
fn at_rate(answers: Vec<Tensor>, rate: f64) -> lapflow_model::Result<Vec<Tensor>> {
    if rate == 1.0 {
        return Ok(answers);
    }
    answers.into_iter().map(|answer| Ok((answer * rate)?)).collect()
}

impl Segment {
    /// The given `times` inside the segment, ascending, and its end.
    fn stops(&self, times: &[f64]) -> Vec<f64> {
        let mut stops: Vec<f64> =
            times.iter().copied().filter(|t| *t > self.start && *t < self.end).collect();
        stops.sort_by(f64::total_cmp);
        stops.push(self.end);
        stops
    }
}

impl SegmentCost {
    pub(crate) fn none(segment: Segment, batch: usize) -> Self {
        let none = || vec![0; batch];
        Self { segment, evaluations: none(), rejected: none(), calls: 0, null_passes: none() }
    }

    pub(crate) fn add(&mut self, evaluations: &[usize], rejected: &[usize], calls: usize) {
        let sum = |total: &mut Vec<usize>, more: &[usize]| {
            total.iter_mut().zip(more).for_each(|(total, more)| *total += more);
        };
        sum(&mut self.evaluations, evaluations);
        sum(&mut self.rejected, rejected);
        self.calls += calls;
    }
}

impl Sampled {
    /// Function evaluations of each sample, over all segments.
    pub fn evaluations(&self) -> Vec<usize> {
        let batch = self.costs.first().map_or(0, |cost| cost.evaluations.len());
        (0..batch).map(|b| self.costs.iter().map(|cost| cost.evaluations[b]).sum()).collect()
    }
}
