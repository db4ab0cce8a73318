//! Labels and classifier-free guidance around a network, as a velocity function.

use crate::solver::Query;
use candle_core::Tensor;
use lapflow_model::kernels::Recorder;
use lapflow_model::net::Transformer;
use lapflow_model::{Result, on_pool};
use serde::{Deserialize, Serialize};

/// Classifier-free guidance: v = v_null + scale (v_label - v_null).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guidance {
    /// The scale w; 1 is no guidance, and costs none.
    pub scale: f64,
    /// Times [from, to] in which it applies; outside, the label's velocity is used as it is.
    pub interval: (f64, f64),
}

impl Default for Guidance {
    fn default() -> Self {
        Self { scale: 1.0, interval: (0.0, 1.0) }
    }
}

impl Guidance {
    /// Whether the null half is computed at `time`.
    pub fn applies(&self, time: f64) -> bool {
        self.scale != 1.0 && self.interval.0 <= time && time <= self.interval.1
    }
}

/// A velocity function from a network that takes (levels, times, labels).
///
/// `labels` are those of the full batch; `null` is the label trained as "no class". Where guidance
/// applies, the null halves of those samples follow the labelled ones in the same batch.
pub fn guided<'a>(
    mut network: impl FnMut(&[Tensor], &[f64], &[u32]) -> Result<Vec<Tensor>> + 'a,
    labels: &'a [u32],
    null: u32,
    guidance: Guidance,
) -> impl FnMut(&Query) -> Result<Vec<Tensor>> + 'a {
    move |query| {
        let mut asked: Vec<u32> = query.samples.iter().map(|&sample| labels[sample]).collect();
        let rows = asked.len();
        let guided: Vec<usize> =
            (0..rows).filter(|row| guidance.applies(query.times[*row])).collect();
        if guided.is_empty() {
            return network(query.levels, query.times, &asked);
        }
        let mut times = query.times.to_vec();
        times.extend(guided.iter().map(|row| query.times[*row]));
        asked.resize(rows + guided.len(), null);
        let levels = query.levels.iter().map(|level| append(level, &guided));
        let velocity = network(&levels.collect::<Result<Vec<_>>>()?, &times, &asked)?;
        let all = velocity.iter().zip(query.levels).map(|(answer, level)| {
            let channels = level.dim(1)?;
            let velocity = answer.narrow(1, 0, channels)?;
            let velocity = combine(&velocity, rows, &guided, guidance.scale)?;
            // A learned variance behind the velocity is the labelled one's.
            match answer.dim(1)? - channels {
                0 => Ok(velocity),
                more => {
                    let rest = answer.narrow(0, 0, rows)?.narrow(1, channels, more)?;
                    Ok(Tensor::cat(&[&velocity, &rest], 1)?)
                }
            }
        });
        all.collect()
    }
}

/// A network's velocity as [`guided`] takes it: f32 levels, times and labels of the same rows.
pub fn network<'a>(
    net: &'a Transformer,
) -> impl FnMut(&[Tensor], &[f64], &[u32]) -> Result<Vec<Tensor>> + 'a {
    let recorder = Recorder::default();
    move |levels, times, labels| recorded(net, &recorder, levels, times, labels)
}

/// The same through a recorder.
pub(crate) fn recorded(
    net: &Transformer,
    recorder: &Recorder,
    levels: &[Tensor],
    times: &[f64],
    labels: &[u32],
) -> Result<Vec<Tensor>> {
    let device = levels[0].device();
    let times: Vec<f32> = times.iter().map(|t| *t as f32).collect();
    let mut inputs = levels.to_vec();
    inputs.extend([Tensor::new(times, device)?, Tensor::new(labels, device)?]);
    let pass = |inputs: &[Tensor]| match inputs {
        [levels @ .., times, labels] => net.forward(levels, times, Some(labels)),
        _ => unreachable!("times and labels are behind the levels"),
    };
    on_pool(device, || recorder.run(&inputs, pass))
}

/// `level` followed by its given rows.
fn append(level: &Tensor, rows: &[usize]) -> Result<Tensor> {
    if rows.len() == level.dim(0)? {
        return Ok(Tensor::cat(&[level, level], 0)?);
    }
    let index: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
    let index = Tensor::new(index, level.device())?;
    Ok(Tensor::cat(&[level, &level.index_select(&index, 0)?], 0)?)
}

/// Guides the given rows of the labelled half by the null half behind it.
fn combine(velocity: &Tensor, rows: usize, guided: &[usize], scale: f64) -> Result<Tensor> {
    let labelled = velocity.narrow(0, 0, rows)?;
    let null = velocity.narrow(0, rows, guided.len())?;
    if guided.len() == rows {
        return Ok((&null + ((labelled - &null)? * scale)?)?);
    }
    let index = |rows: Vec<usize>| {
        let rows: Vec<u32> = rows.into_iter().map(|row| row as u32).collect();
        Tensor::new(rows, velocity.device())
    };
    let selected = labelled.index_select(&index(guided.to_vec())?, 0)?;
    let both = Tensor::cat(&[&labelled, &(&null + ((selected - &null)? * scale)?)?], 0)?;
    let mut source: Vec<usize> = (0..rows).collect();
    guided.iter().enumerate().for_each(|(i, row)| source[*row] = rows + i);
    Ok(both.index_select(&index(source)?, 0)?)
}
