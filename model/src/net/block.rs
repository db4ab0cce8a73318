//! A transformer block with adaLN-Zero over the rows of every active level.

use super::config::{Geometry, ModelConfig, Part};
use super::layers::{Gradients, Linear, PerLevel};
use super::precision::Precision;
use crate::error::Result;
use crate::kernels::{
    Mask, TokenLayout, attention, attention_backward, gated_residual, gated_residual_backward,
    gelu, gelu_backward, modulated_norm, modulated_norm_backward,
};
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

/// A block's activations between its forward and its backward pass.
pub struct Saved {
    m: Tensor,
    attn_in: Tensor,
    qkv: Tensor,
    heads: Tensor,
    attn: Tensor,
    middle: Tensor,
    mlp_in: Tensor,
    hidden: Tensor,
    active: Tensor,
    mlp: Tensor,
}

impl Saved {
    /// The values alone, without the operations they came from.
    pub fn detach(&self) -> Self {
        Self {
            m: self.m.detach(),
            attn_in: self.attn_in.detach(),
            qkv: self.qkv.detach(),
            heads: self.heads.detach(),
            attn: self.attn.detach(),
            middle: self.middle.detach(),
            mlp_in: self.mlp_in.detach(),
            hidden: self.hidden.detach(),
            active: self.active.detach(),
            mlp: self.mlp.detach(),
        }
    }
}

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
        Ok(self.forward_saved(Precision::F32, x, silu_c, layout, finest)?.0)
    }

    /// [`Block::forward`] with what [`Block::backward`] needs of it, with products in `precision`.
    pub fn forward_saved(
        &self,
        precision: Precision,
        x: &Tensor,
        silu_c: &Tensor,
        layout: &TokenLayout,
        finest: usize,
    ) -> Result<(Tensor, Saved)> {
        let m = self.modulation(silu_c, layout, finest)?; //                           (groups, 6 width)
        let narrow = |x: Tensor| precision.narrow(&x);
        let apply = |linear: &Linear, x: &Tensor| linear.forward_in(precision, x);

        let attn_in = narrow(modulated_norm(x, &m, layout, SHIFT_ATTN, SCALE_ATTN)?)?;
        let qkv = self.qkv.over_rows(&attn_in, layout, finest, apply)?; //             (rows, 3 width)
        let heads = narrow(attention(&qkv, layout, self.heads, self.mask)?)?; //       (rows, width)
        let attn = self.attn_out.over_rows(&heads, layout, finest, apply)?;
        let middle = gated_residual(x, &precision.widen(&attn)?, &m, layout, GATE_ATTN)?;

        let mlp_in = narrow(modulated_norm(&middle, &m, layout, SHIFT_MLP, SCALE_MLP)?)?;
        let hidden = self.mlp.over_rows(&mlp_in, layout, finest, |[fc1, _], y| apply(fc1, y))?;
        let active = narrow(gelu(&hidden)?)?;
        let mlp = self.mlp.over_rows(&active, layout, finest, |[_, fc2], y| apply(fc2, y))?;
        let out = gated_residual(&middle, &precision.widen(&mlp)?, &m, layout, GATE_MLP)?;
        Ok((out, Saved { m, attn_in, qkv, heads, attn, middle, mlp_in, hidden, active, mlp }))
    }

    /// dL/dx and dL/dsilu_c; the parameters' gradients go to `gradients`.
    ///
    /// By hand, and not by Candle's tape, which fills a zero tensor for every gradient and adds to
    /// it where it could move.
    pub fn backward(
        &self,
        precision: Precision,
        [x, silu_c, grad]: [&Tensor; 3],
        saved: &Saved,
        layout: &TokenLayout,
        finest: usize,
        gradients: &mut Gradients,
    ) -> Result<[Tensor; 2]> {
        let m = &saved.m;
        let grad = grad.contiguous()?;
        let (narrow, widen) = (|x: Tensor| precision.narrow(&x), |x: &Tensor| precision.widen(x));
        let (d, dm_gate) =
            gated_residual_backward(&widen(&saved.mlp)?, m, &grad, layout, GATE_MLP)?;
        let d = narrow(d)?;
        let d = self.mlp.over_rows_backward(&saved.active, &d, layout, finest, |mlp, x, d| {
            mlp[1].backward(precision, x, d, gradients)
        })?;
        let d = narrow(gelu_backward(&saved.hidden, &d)?)?;
        let d = self.mlp.over_rows_backward(&saved.mlp_in, &d, layout, finest, |mlp, x, d| {
            mlp[0].backward(precision, x, d, gradients)
        })?;
        let (d, dm_norm) =
            modulated_norm_backward(&saved.middle, m, &widen(&d)?, layout, SHIFT_MLP, SCALE_MLP)?;
        let dm = (dm_gate + dm_norm)?;

        let d_middle = (grad + d)?;
        let attn = widen(&saved.attn)?;
        let (d, dm_gate) = gated_residual_backward(&attn, m, &d_middle, layout, GATE_ATTN)?;
        let d = narrow(d)?;
        let d = self.attn_out.over_rows_backward(&saved.heads, &d, layout, finest, |l, x, d| {
            l.backward(precision, x, d, gradients)
        })?;
        let d = narrow(attention_backward(&saved.qkv, &d, layout, self.heads, self.mask)?)?;
        let d = self.qkv.over_rows_backward(&saved.attn_in, &d, layout, finest, |l, x, d| {
            l.backward(precision, x, d, gradients)
        })?;
        let (d, dm_norm) =
            modulated_norm_backward(x, m, &widen(&d)?, layout, SHIFT_ATTN, SCALE_ATTN)?;
        let dm = ((dm + dm_gate)? + dm_norm)?;
        Ok([(d_middle + d)?, self.modulation_backward(silu_c, &dm, layout, finest, gradients)?])
    }

    fn modulation_backward(
        &self,
        silu_c: &Tensor,
        grad: &Tensor,
        layout: &TokenLayout,
        finest: usize,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        if self.adaln.tied() {
            return self.adaln.level(0).backward(Precision::F32, silu_c, grad, gradients);
        }
        let batch = layout.batch();
        let mut level = |i: usize| {
            let adaln = self.adaln.level(finest + layout.levels() - 1 - i);
            adaln.backward(Precision::F32, silu_c, &grad.narrow(0, i * batch, batch)?, gradients)
        };
        let mut sum = level(0)?;
        for i in 1..layout.levels() {
            sum = (sum + level(i)?)?;
        }
        Ok(sum)
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
