//! Sampling a pyramid segment by segment: coarse levels first, finer ones joining on their way.
//!
//! Enters: the noise of every level and a velocity function. Leaves: a [`Sampled`] pyramid at
//! t = 1. Levels are in the dataset's order, level 0 the finest.

use crate::error::{Result, SampleError};
use crate::solver::{Solver, StepSizes, Velocity};
use candle_core::Tensor;

/// When each level joins and at what noise: the part of a flow that sampling needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Segments {
    /// Start time S_k of each level, finest first, strictly falling to 0.
    starts: Vec<f64>,
    /// Noise scale sigma(S_k) of each level at its start.
    sigmas: Vec<f64>,
}

/// One integration with a fixed set of active levels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// The finest active level; all coarser ones are active too.
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
}

/// A sampled batch of pyramids.
#[derive(Debug)]
pub struct Sampled {
    /// Every level at t = 1, finest first: (B, C, H / 2^k, W / 2^k).
    pub levels: Vec<Tensor>,
    /// The cost of each segment, in the order of time.
    pub costs: Vec<SegmentCost>,
}

impl Segments {
    /// Segments of levels that start at `starts` (finest first, the last 0) under the noise scale
    /// `sigma(t)`.
    ///
    /// # Errors
    /// When the starts do not fall strictly from below 1 to 0.
    pub fn new(starts: &[f64], sigma: impl Fn(f64) -> f64) -> Result<Self> {
        let falling = starts.windows(2).all(|pair| pair[0] > pair[1]);
        let inside = starts.first().is_some_and(|s| *s < 1.0) && starts.last() == Some(&0.0);
        if !(falling && inside) {
            return Err(SampleError::setting(
                "starts",
                format!("{starts:?} do not fall from below 1 to 0"),
            ));
        }
        Ok(Self { starts: starts.to_vec(), sigmas: starts.iter().map(|s| sigma(*s)).collect() })
    }

    /// The segments in the order of time.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        (0..self.starts.len()).rev().map(|level| Segment {
            level,
            start: self.starts[level],
            end: if level == 0 { 1.0 } else { self.starts[level - 1] },
        })
    }

    /// Integrates from `noise` (finest level first) to t = 1.
    ///
    /// Each segment brings in its level as sigma(S_k) times the level's noise, and integrates all
    /// active levels jointly to the next level's start.
    ///
    /// # Errors
    /// When the noise has another number of levels, or the solver fails.
    pub fn sample(
        &self,
        solver: &Solver,
        noise: &[Tensor],
        velocity: &mut Velocity,
    ) -> Result<Sampled> {
        self.sample_through(solver, noise, velocity, &[], |_, _| Ok(()))
    }

    /// [`Segments::sample`] that shows the active levels at each of `times` on the way.
    ///
    /// A time inside a segment divides its integration there; a time at which a level joins shows
    /// the state before it.
    pub fn sample_through(
        &self,
        solver: &Solver,
        noise: &[Tensor],
        velocity: &mut Velocity,
        times: &[f64],
        mut show: impl FnMut(f64, &[Tensor]) -> Result<()>,
    ) -> Result<Sampled> {
        if noise.len() != self.starts.len() {
            let (levels, wanted) = (noise.len(), self.starts.len());
            return Err(SampleError::setting("noise", format!("{levels} levels, not {wanted}")));
        }
        let mut steps = StepSizes::default();
        let mut levels: Vec<Tensor> = Vec::new();
        let mut costs = Vec::new();
        for segment in self.iter() {
            levels.insert(0, (&noise[segment.level] * self.sigmas[segment.level])?);
            let mut stops: Vec<f64> = times.to_vec();
            stops.retain(|t| *t > segment.start && *t <= segment.end);
            if stops.last() != Some(&segment.end) {
                stops.push(segment.end);
            }
            let mut cost = SegmentCost::none(segment, noise[0].dim(0)?);
            let mut start = segment.start;
            for stop in stops {
                let part = solver.integrate(velocity, levels, (start, stop), &mut steps)?;
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
}

impl SegmentCost {
    fn none(segment: Segment, batch: usize) -> Self {
        Self { segment, evaluations: vec![0; batch], rejected: vec![0; batch], calls: 0 }
    }

    fn add(&mut self, evaluations: &[usize], rejected: &[usize], calls: usize) {
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
