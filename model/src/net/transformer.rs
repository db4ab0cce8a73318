//! The network: active pyramid levels in, a velocity for each of them out.

use super::block::Block;
use super::config::{Geometry, ModelConfig, Part};
use super::embed::{Condition, patchify, positions, unpatchify};
use super::layers::{Gradients, Linear, PerLevel};
use super::precision::Precision;
use super::tape::Tape;
use crate::error::{ModelError, Result};
use crate::kernels::{TokenLayout, modulated_norm};
use crate::params::{Init, Scope};
use candle_core::Tensor;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// The multi-scale DiT with a mixture of transformers.
///
/// With one level and no condition tokens it is DiT (learn-sigma off).
pub struct Transformer {
    embed: PerLevel<Linear>,
    positions: Vec<Tensor>,
    condition: Condition,
    blocks: Vec<Arc<Block>>,
    tape: Option<Tape>,
    head: PerLevel<Head>,
    geometry: Geometry,
    patch: usize,
    outputs: usize,
}

impl Transformer {
    /// Asks `scope` for every parameter, under DiT's names.
    ///
    /// # Errors
    /// When `config` does not fit `geometry`, or a loaded parameter is absent or misshapen.
    pub fn new(scope: &Scope, config: &ModelConfig, geometry: &Geometry) -> Result<Self> {
        config.validate(geometry)?;
        let (width, patch) = (config.width(), config.patch);
        let pixels = geometry.channels * patch * patch;
        let outputs = config.outputs(geometry);
        let embed =
            PerLevel::new(&scope.at("x_embedder"), config.copies(Part::Embed, geometry), |s| {
                Linear::new(&s.at("proj"), pixels, width, Init::Xavier)
            })?;
        let condition = Condition::new(scope, config, geometry)?;
        let blocks = (0..config.depth())
            .map(|i| Ok(Arc::new(Block::new(&scope.at("blocks").at(i), config, geometry)?)))
            .collect::<Result<Vec<_>>>()?;
        let head =
            PerLevel::new(&scope.at("final_layer"), config.copies(Part::Head, geometry), |s| {
                Head::new(s, width, outputs * patch * patch)
            })?;
        let positions = (0..geometry.levels)
            .map(|k| {
                let (h, w) = geometry.level_size(k);
                let grid = positions(h / patch, w / patch, width, &scope.device())?;
                Ok(grid.to_dtype(scope.dtype())?)
            })
            .collect::<Result<Vec<_>>>()?;
        let (geometry, tape) = (*geometry, None);
        Ok(Self { embed, positions, condition, blocks, tape, head, geometry, patch, outputs })
    }

    /// From now on blocks have backward passes written by hand, whose gradients go to `gradients`
    /// and not to Candle's: those of one block's parameters at a time, the last block first.
    ///
    /// With `recompute`, a block keeps its input alone and runs again in the backward pass: a third
    /// more arithmetic for a small part of the memory. Their products are computed in `precision`.
    pub fn train_blocks(
        &mut self,
        recompute: bool,
        precision: Precision,
        gradients: Sender<Gradients>,
    ) {
        self.tape = Some(Tape::new(recompute, precision, gradients));
    }

    /// Velocities of the active levels.
    ///
    /// `levels` are `x_t` of consecutive pyramid levels (s..K-1, or one alone for the methods that
    /// work so), finest first, each `(b, c, h_k, w_k)`: its size says which level it is. `t` is
    /// `(b)` f32 in [0, 1]; `labels` `(b)` u32 below `classes`, or `classes` for the null class,
    /// which is also what their absence means. The result has the shapes of `levels`, with twice
    /// the channels under `learn_sigma`.
    ///
    /// # Errors
    /// When the levels do not fit the geometry.
    pub fn forward(
        &self,
        levels: &[Tensor],
        t: &Tensor,
        labels: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let finest = self.check(levels)?;
        let batch = levels[0].dim(0)?;
        let (c, cond) = self.condition.forward(t, labels)?; // (b, width), (b, n, width)
        let cond_tokens = cond.as_ref().map_or(0, |cond| cond.dims()[1]);
        let layout = self.layout(batch, finest, levels.len(), cond_tokens);
        let mut x = self.tokens(levels, finest, cond.as_ref())?; // (rows, width)
        let silu_c = c.silu()?;
        for block in &self.blocks {
            x = match &self.tape {
                Some(tape) => tape.forward(block, &x, &silu_c, &layout, finest)?,
                None => block.forward(&x, &silu_c, &layout, finest)?,
            };
        }
        let coarsest = finest + levels.len() - 1;
        (finest..=coarsest)
            .map(|k| {
                let place = coarsest - k;
                let skip = if place == 0 { cond_tokens } else { 0 };
                let rows = level_tokens(&x, &layout, place, skip)?; // (b * tokens, width)
                let own = TokenLayout::new(batch, vec![layout.tokens(place) - skip]);
                let y = self.head.level(k).forward(&rows, &silu_c, &own)?; // (b * tokens, p p c)
                let size = self.geometry.level_size(k);
                unpatchify(&y, self.patch, size, self.outputs)
            })
            .collect()
    }

    fn check(&self, levels: &[Tensor]) -> Result<usize> {
        let is = |x: &Tensor, k: usize| {
            let (h, w) = self.geometry.level_size(k);
            x.dims().len() == 4 && x.dims()[1..] == [self.geometry.channels, h, w]
        };
        let last = self.geometry.levels.saturating_sub(levels.len());
        let fits = |finest: &usize| levels.iter().zip(*finest..).all(|(x, k)| is(x, k));
        (0..=last).find(fits).filter(|_| !levels.is_empty()).ok_or_else(|| {
            let shapes: Vec<_> = levels.iter().map(Tensor::dims).collect();
            ModelError::config("model", format!("levels {shapes:?} do not fit {:?}", self.geometry))
        })
    }

    fn layout(
        &self,
        batch: usize,
        finest: usize,
        levels: usize,
        cond_tokens: usize,
    ) -> TokenLayout {
        let mut tokens: Vec<usize> = (finest..finest + levels)
            .rev()
            .map(|k| self.geometry.level_tokens(k, self.patch))
            .collect();
        tokens[0] += cond_tokens;
        TokenLayout::new(batch, tokens)
    }

    /// Embedded patches of every level, coarsest first, condition tokens in front of the coarsest.
    fn tokens(&self, levels: &[Tensor], finest: usize, cond: Option<&Tensor>) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(levels.len());
        for (x, k) in levels.iter().enumerate().map(|(i, x)| (x, finest + i)).rev() {
            let patches = patchify(x, self.patch)?; //                    (b * tokens, c p p)
            let rows = self.embed.level(k).forward(&patches)?; //         (b * tokens, width)
            let (tokens, width) = self.positions[k].dims2()?;
            let rows = rows.reshape((x.dim(0)?, tokens, width))?;
            let rows = rows.broadcast_add(&self.positions[k])?; //        (b, tokens, width)
            let rows = match cond.filter(|_| parts.is_empty()) {
                Some(cond) => Tensor::cat(&[cond, &rows], 1)?,
                None => rows,
            };
            parts.push(rows.flatten(0, 1)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// Rows of the layout's `place`-th level without the first `skip` tokens of each sample.
fn level_tokens(x: &Tensor, layout: &TokenLayout, place: usize, skip: usize) -> Result<Tensor> {
    let range = layout.level_rows(place);
    let rows = x.narrow(0, range.start, range.len())?;
    if skip == 0 {
        return Ok(rows);
    }
    let (tokens, width) = (layout.tokens(place), x.dim(1)?);
    let rows = rows.reshape((layout.batch(), tokens, width))?.narrow(1, skip, tokens - skip)?;
    Ok(rows.contiguous()?.flatten(0, 1)?)
}

/// Final adaLN and linear layer, both zero at the start.
struct Head {
    adaln: Linear,
    linear: Linear,
}

impl Head {
    fn new(scope: &Scope, width: usize, pixels: usize) -> Result<Self> {
        let adaln = scope.at("adaLN_modulation").at(1);
        Ok(Self {
            adaln: Linear::new(&adaln, width, 2 * width, Init::Zeros)?,
            linear: Linear::new(&scope.at("linear"), width, pixels, Init::Zeros)?,
        })
    }

    fn forward(&self, x: &Tensor, silu_c: &Tensor, layout: &TokenLayout) -> Result<Tensor> {
        let m = self.adaln.forward(silu_c)?; // (b, 2 width): shift, scale
        self.linear.forward(&modulated_norm(x, &m, layout, 0, 1)?)
    }
}
