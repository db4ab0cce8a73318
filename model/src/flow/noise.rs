//! Noise that belongs to an image, not to its batch.

use crate::error::Result;
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// The generator of one image: independent streams of `seed`, one an `index`.
pub fn image_rng(seed: u64, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    rng
}

/// N(0, I) of `(rngs.len(), c, h, w)`, each image from its own generator, f32.
pub fn draw_white(rngs: &mut [ChaCha8Rng], shape: [usize; 3], device: &Device) -> Result<Tensor> {
    let [c, h, w] = shape;
    let mut values = Vec::with_capacity(rngs.len() * c * h * w);
    for rng in rngs.iter_mut() {
        values.extend((0..c * h * w).map(|_| -> f32 { StandardNormal.sample(rng) }));
    }
    Ok(Tensor::from_vec(values, (rngs.len(), c, h, w), device)?)
}

/// Independent N(0, I) for each of `levels` levels, finest first; `shape` is the finest one's.
pub(super) fn white_levels(
    rngs: &mut [ChaCha8Rng],
    [c, h, w]: [usize; 3],
    levels: usize,
    device: &Device,
) -> Result<Vec<Tensor>> {
    (0..levels).map(|k| draw_white(rngs, [c, h >> k, w >> k], device)).collect()
}
