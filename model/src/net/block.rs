//! A transformer block with adaLN-Zero over the rows of every active level.

use super::config::{Geometry, ModelConfig, Part};
use super::layers::{Linear, PerLevel};
use crate::error::Result;
use crate::kernels::{Mask, TokenLayout, attention, gated_residual, gelu, modulated_norm};
use crate::params::{Init, Scope};
use candle_core::Tensor;

// Chunks of the modulation, in DiT's order.
const SHIFT_ATTN: usize = 0;
const SCALE_ATTN: usize = 1;
const GATE_ATTN: usize = 2;
const SHIFT_MLP: usize = 3;
const SCALE_MLP: usize = 4;
const GATE_MLP: usize = 5;

const MLP_RATIO: usize = 4;

/// Attention over all levels, then the feed-forward network, both modulated and gated.
pub struct Block {
    adaln: PerLevel<Linear>,
    qkv: PerLevel<Linear>,
    attn_out: PerLevel<Linear>,
    mlp: PerLevel<[Linear; 2]>,
    heads: usize,
    mask: Mask,
}

impl Block {
    /// Parameters under DiT's names, with `level{k}` in an untied part's name.
    pub fn new(scope: &Scope, config: &ModelConfig, geometry: &Geometry) -> Result<Self> {
        let width = config.width();
        let copies = |part| config.copies(part, geometry);
        let hidden = MLP_RATIO * width;
        let (attn, mlp) = (scope.at("attn"), scope.at("mlp"));
        Ok(Self {
            adaln: PerLevel::new(&scope.at("adaLN_modulation"), copies(Part::Adaln), |s| {
                Linear::new(&s.at(1), width, 6 * width, Init::Zeros)
            })?,
            qkv: PerLevel::new(&attn.at("qkv"), copies(Part::Qkv), |s| {
                Linear::new(s, width, 3 * width, Init::Xavier)
            })?,
            attn_out: PerLevel::new(&attn.at("proj"), copies(Part::AttnOut), |s| {
                Linear::new(s, width, width, Init::Xavier)
            })?,
            mlp: PerLevel::new(&mlp, copies(Part::Mlp), |s| {
                Ok([
                    Linear::new(&s.at("fc1"), width, hidden, Init::Xavier)?,
                    Linear::new(&s.at("fc2"), hidden, width, Init::Xavier)?,
                ])
            })?,
            heads: config.heads(),
            mask: config.mask,
        })
    }

    /// `x` `(rows, width)` with `silu(c)` `(b, width)` to `(rows, width)`; `finest` is the finest
    /// active level.
    pub fn forward(
        &self,
        x: &Tensor,
        silu_c: &Tensor,
        layout: &TokenLayout,
        finest: usize,
    ) -> Result<Tensor> {
        let m = self.modulation(silu_c, layout, finest)?; //                   (groups, 6 width)

        let y = modulated_norm(x, &m, layout, SHIFT_ATTN, SCALE_ATTN)?;
        let qkv = self.qkv.over_rows(&y, layout, finest, Linear::forward)?; // (rows, 3 width)
        let y = attention(&qkv, layout, self.heads, self.mask)?; //            (rows, width)
        let y = self.attn_out.over_rows(&y, layout, finest, Linear::forward)?;
        let x = gated_residual(x, &y, &m, layout, GATE_ATTN)?;

        let y = modulated_norm(&x, &m, layout, SHIFT_MLP, SCALE_MLP)?;
        let y = self.mlp.over_rows(&y, layout, finest, |[fc1, fc2], y| {
            fc2.forward(&gelu(&fc1.forward(y)?)?) //                           (rows, 4 width)
        })?;
        Ok(gated_residual(&x, &y, &m, layout, GATE_MLP)?)
    }

    /// One row a sample when tied, else one a level and sample.
    fn modulation(&self, silu_c: &Tensor, layout: &TokenLayout, finest: usize) -> Result<Tensor> {
        if self.adaln.tied() {
            return self.adaln.level(0).forward(silu_c);
        }
        let levels = (0..layout.levels())
            .map(|i| self.adaln.level(finest + layout.levels() - 1 - i).forward(silu_c))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&levels, 0)?)
    }
}
