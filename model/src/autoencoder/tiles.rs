//! Encoding and decoding piece by piece, for images whose activations would not fit in memory.

use crate::error::Result;
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// How an image is cut, in latent pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tiling {
    /// Side of a piece's own part, the part that is kept. Default 64.
    pub tile: usize,
    /// What a piece sees beyond its own part on each side. Default 16.
    pub margin: usize,
}

impl Default for Tiling {
    fn default() -> Self {
        Self { tile: 64, margin: 16 }
    }
}

impl Tiling {
    /// Whether an image of `height x width` latents is cut at all.
    pub fn cuts(&self, height: usize, width: usize) -> bool {
        self.tile > 0 && (height > self.tile || width > self.tile)
    }

    /// Runs `f` on pieces of `x` `[B, C, H, W]` and puts the kept parts together.
    ///
    /// `scale_in` and `scale_out` are the pixels a latent pixel has in `x` and in what `f` returns.
    /// The result equals that of one run where `f` looks no further than `margin`; what it draws
    /// from the whole image, as normalisation and attention do, differs from piece to piece.
    pub(super) fn run(
        &self,
        x: &Tensor,
        scale_in: usize,
        scale_out: usize,
        f: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let (height, width) = (height / scale_in, width / scale_in);
        let mut rows = Vec::new();
        for top in (0..height).step_by(self.tile) {
            let vertical = self.piece(top, height);
            let mut row = Vec::new();
            for left in (0..width).step_by(self.tile) {
                let horizontal = self.piece(left, width);
                let seen = narrow(x, &vertical, &horizontal, scale_in, Piece::seen)?;
                let made = f(&seen.contiguous()?)?;
                row.push(narrow(&made, &vertical, &horizontal, scale_out, Piece::kept)?);
            }
            rows.push(Tensor::cat(&row, 3)?);
        }
        Ok(Tensor::cat(&rows, 2)?)
    }

    fn piece(&self, start: usize, length: usize) -> Piece {
        let end = length.min(start + self.tile);
        let seen_start = start.saturating_sub(self.margin);
        let seen_end = length.min(end + self.margin);
        Piece { start, end, seen_start, seen_end }
    }
}

/// A piece along one axis, in latent pixels.
struct Piece {
    start: usize,
    end: usize,
    seen_start: usize,
    seen_end: usize,
}

impl Piece {
    /// Offset and length of what the piece sees, in the image.
    fn seen(&self) -> (usize, usize) {
        (self.seen_start, self.seen_end - self.seen_start)
    }

    /// Offset and length of what is kept of it, in the piece.
    fn kept(&self) -> (usize, usize) {
        (self.start - self.seen_start, self.end - self.start)
    }
}

fn narrow(
    x: &Tensor,
    vertical: &Piece,
    horizontal: &Piece,
    scale: usize,
    part: fn(&Piece) -> (usize, usize),
) -> TensorResult<Tensor> {
    let ((top, height), (left, width)) = (part(vertical), part(horizontal));
    x.narrow(2, top * scale, height * scale)?.narrow(3, left * scale, width * scale)
}
