//! The Laplacian pyramid (paper eq. 1 and 2; MATH section 1).
//!
//! Level 0 is the finest, level K-1 the coarsest. Exact up to rounding, and linear.

pub use crate::kernels::{pyramid_add_up as add_up, pyramid_down as down};
use candle_core::{Result, Tensor, bail};

/// Each pixel repeated as a 2x2 block: `(b, c, h, w)` to `(b, c, 2h, 2w)`.
pub fn up(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, 2, w, 2))?.reshape((b, c, 2 * h, 2 * w))
}

/// Splits `(b, c, h, w)` into `levels` levels, finest first: `x^(k) = Down^k x - Up Down^(k+1) x`,
/// and the coarsest `Down^(K-1) x`.
///
/// # Errors
/// When `levels` is 0, or h or w is not divisible by `2^(levels - 1)`.
pub fn split(x: &Tensor, levels: usize) -> Result<Vec<Tensor>> {
    if levels == 0 {
        bail!("pyramid: no levels")
    }
    let mut pyramid = Vec::with_capacity(levels);
    let mut rest = x.clone();
    for _ in 1..levels {
        let coarse = down(&rest)?;
        pyramid.push(add_up(&rest, &coarse, -1.0)?);
        rest = coarse;
    }
    pyramid.push(rest);
    Ok(pyramid)
}

/// Merges levels (finest first) back: `y = x^(K-1)`, then `y = x^(k) + Up y` down to level 0.
///
/// # Errors
/// When there are none, or a level is not twice the size of the next.
pub fn merge(pyramid: &[Tensor]) -> Result<Tensor> {
    let Some((coarsest, finer)) = pyramid.split_last() else { bail!("pyramid: no levels") };
    finer.iter().rev().try_fold(coarsest.clone(), |y, level| add_up(level, &y, 1.0))
}
