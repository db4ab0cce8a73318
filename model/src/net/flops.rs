//! Parameters and multiply-accumulates, counted from the configuration.
//!
//! The convention is the one behind DiT's published figures: linear layers and attention products
//! (and, as fvcore counts them, one operation an element for layer norms).

use super::config::{Geometry, ModelConfig, Part};
use crate::flow::Flow;
use serde::Serialize;
use std::ops::Range;

/// What a network costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Scalars in all parameters.
    pub parameters: u64,
    /// Multiply-accumulates of one evaluation while level k is the finest active one, finest first.
    pub segment_macs: Vec<u64>,
    /// Multiply-accumulates of one evaluation, averaged over t in [0, 1].
    pub mean_macs: f64,
}

/// Counts `config` on `geometry` along `flow`.
pub fn cost(config: &ModelConfig, geometry: &Geometry, flow: &dyn Flow) -> Cost {
    let segment_macs: Vec<u64> =
        (0..geometry.levels).map(|k| macs(config, geometry, flow.shown(k)) as u64).collect();
    let mean_macs = segment_macs
        .iter()
        .enumerate()
        .map(|(k, &macs)| {
            let (start, end) = flow.segment(k);
            macs as f64 * (end - start)
        })
        .sum();
    Cost { parameters: parameters(config, geometry) as u64, segment_macs, mean_macs }
}

fn parameters(config: &ModelConfig, geometry: &Geometry) -> usize {
    let (width, pixels) = (config.width(), patch_values(config, geometry));
    let outputs = config.outputs(geometry) * config.patch * config.patch;
    let linear = |inputs: usize, outputs: usize| outputs * (inputs + 1);
    let copies = |part, count: usize| config.copies(part, geometry) * count;
    let block = copies(Part::Adaln, linear(width, 6 * width))
        + copies(Part::Qkv, linear(width, 3 * width))
        + copies(Part::AttnOut, linear(width, width))
        + copies(Part::Mlp, linear(width, 4 * width) + linear(4 * width, width));
    let labels = if geometry.classes > 0 { (geometry.classes + 1) * width } else { 0 };
    config.depth() * block
        + copies(Part::Embed, linear(pixels, width))
        + copies(Part::Head, linear(width, 2 * width) + linear(width, outputs))
        + linear(256, width)
        + linear(width, width)
        + labels
        + config.cond_token_count(geometry) * linear(width, width)
}

/// Multiply-accumulates of one evaluation for one sample with the levels `shown`.
fn macs(config: &ModelConfig, geometry: &Geometry, shown: Range<usize>) -> usize {
    let (width, pixels) = (config.width(), patch_values(config, geometry));
    let outputs = config.outputs(geometry) * config.patch * config.patch;
    let cond = config.cond_token_count(geometry);
    let latent: Vec<usize> = shown.rev().map(|k| geometry.level_tokens(k, config.patch)).collect();
    let mut tokens = latent.clone();
    tokens[0] += cond;
    let (patches, all): (usize, usize) = (latent.iter().sum(), tokens.iter().sum());
    let levels = tokens.len();
    let scores: usize = (0..levels)
        .map(|i| tokens[i] * tokens[config.mask.keys(i, levels)].iter().sum::<usize>())
        .sum();
    let adaln_copies = config.copies(Part::Adaln, geometry).min(levels);
    let head_copies = config.copies(Part::Head, geometry).min(levels);
    let block = 12 * all * width * width // qkv, output and feed-forward projections
        + 2 * scores * width
        + adaln_copies * 6 * width * width
        + 2 * all * width; // layer norms
    config.depth() * block
        + patches * (pixels + outputs) * width
        + head_copies * 2 * width * width
        + patches * width
        + (256 + width) * width
        + cond * width * width
}

fn patch_values(config: &ModelConfig, geometry: &Geometry) -> usize {
    geometry.channels * config.patch * config.patch
}
