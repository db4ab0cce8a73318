//! The kernels as compositions of Candle's operations.
//!
//! They run on devices that have no kernel of ours, with Candle's own gradients, and are what our
//! kernels are tested against.

use super::{Activation, Mask, TokenLayout};
use candle_core::{D, DType, Result, Tensor};

/// The variance's epsilon, as in DiT.
const EPS: f64 = 1e-6;

/// [`super::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

/// Gradients of [`linear`] with respect to `x`, `weight` and `bias`.
pub fn linear_backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
    // Sums of many bf16 values are taken in f32.
    let dbias = grad.to_dtype(DType::F32)?.sum(0)?;
    Ok([grad.matmul(weight)?, grad.t()?.matmul(x)?, dbias])
}

/// [`super::modulated_norm`].
pub fn modulated_norm(
    x: &Tensor,
    modulation: &Tensor,
    layout: &TokenLayout,
    shift: usize,
    scale: usize,
) -> Result<Tensor> {
    let width = x.dim(1)?;
    by_level(layout, |level| {
        let x = level_of(x, layout, level)?; //                                 (b, tokens, width)
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let normal = x.broadcast_div(&(variance + EPS)?.sqrt()?)?;
        let chunk = |index| chunk_of(modulation, layout, level, index, width); // (b, 1, width)
        normal.broadcast_mul(&(chunk(scale)? + 1.0)?)?.broadcast_add(&chunk(shift)?)
    })
}

/// [`super::gated_residual`].
pub fn gated_residual(
    x: &Tensor,
    y: &Tensor,
    modulation: &Tensor,
    layout: &TokenLayout,
    gate: usize,
) -> Result<Tensor> {
    let width = x.dim(1)?;
    by_level(layout, |level| {
        let gate = chunk_of(modulation, layout, level, gate, width)?; // (b, 1, width)
        let y = level_of(y, layout, level)?.broadcast_mul(&gate)?;
        level_of(x, layout, level)? + y
    })
}

/// [`super::attention`], level by level: a level's queries with the keys they may see, whose score
/// matrix is held at once.
pub fn attention(qkv: &Tensor, layout: &TokenLayout, heads: usize, mask: Mask) -> Result<Tensor> {
    let dim = qkv.dim(1)? / 3 / heads;
    let split = |level| {
        let shape = (layout.batch(), layout.tokens(level), 3, heads, dim);
        // (3, b, heads, tokens, dim)
        level_of(qkv, layout, level)?.reshape(shape)?.permute((2, 0, 3, 1, 4))?.contiguous()
    };
    let parts = (0..layout.levels()).map(split).collect::<Result<Vec<_>>>()?;
    by_level(layout, |level| {
        let seen = &parts[mask.keys(level, layout.levels())];
        let of = |index: usize| {
            let seen = seen.iter().map(|part| part.get(index)).collect::<Result<Vec<_>>>()?;
            Tensor::cat(&seen, 2)
        };
        let queries = (parts[level].get(0)? * (dim as f64).sqrt().recip())?;
        let scores = queries.matmul(&of(1)?.transpose(2, 3)?.contiguous()?)?; // (b, heads, n, m)
        let out = softmax(&scores)?.matmul(&of(2)?)?; //                        (b, heads, n, dim)
        out.transpose(1, 2)?.flatten(2, 3)
    })
}

/// Over the last dimension; Candle's own has no gradient.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// A level's rows as `(b, tokens, columns)`.
fn level_of(x: &Tensor, layout: &TokenLayout, level: usize) -> Result<Tensor> {
    let rows = layout.level_rows(level);
    let shape = (layout.batch(), layout.tokens(level), x.dim(1)?);
    x.narrow(0, rows.start, rows.len())?.reshape(shape)
}

/// Rows of all levels from what `make` gives for each, `(b, tokens, columns)`.
fn by_level(layout: &TokenLayout, make: impl Fn(usize) -> Result<Tensor>) -> Result<Tensor> {
    let levels = (0..layout.levels())
        .map(|level| make(level)?.contiguous()?.flatten(0, 1))
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&levels, 0)
}

/// Chunk `index` of the modulation of a level, `(b, 1, width)`.
fn chunk_of(
    modulation: &Tensor,
    layout: &TokenLayout,
    level: usize,
    index: usize,
    width: usize,
) -> Result<Tensor> {
    let start = layout.modulation_row(modulation.dim(0)?, level, 0);
    let rows = modulation.narrow(0, start, layout.batch())?;
    rows.narrow(1, index * width, width)?.unsqueeze(1)
}

/// [`super::group_norm()`].
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let x = x.reshape((b, h * w, groups, c / groups))?;
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?.mean_keepdim(1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?.mean_keepdim(1)?;
    let x = x.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((b, h, w, c))?;
    let y = x.broadcast_mul(weight)?.broadcast_add(bias)?;
    match activation {
        Activation::None => Ok(y),
        Activation::Silu => y.silu(),
    }
}
