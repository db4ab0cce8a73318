//! Random numbers that belong to an image, whatever batch, shard or run draws it.

use crate::error::Result;
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// What random numbers are for: each purpose has its own independent streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The initial noise, of one level where levels are drawn independently, else level 0.
    Noise {
        /// The pyramid level.
        level: u8,
    },
    /// The increments of a stochastic solver.
    Diffusion,
    /// A label drawn at random.
    Label,
}

/// The generator of image `id` under the user's `seed`: ChaCha8 with the image as its stream.
pub fn image_rng(seed: u64, id: u64, purpose: Purpose) -> ChaCha8Rng {
    let purpose = match purpose {
        Purpose::Noise { level } => [0, level],
        Purpose::Diffusion => [1, 0],
        Purpose::Label => [2, 0],
    };
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..10].copy_from_slice(&purpose);
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(id);
    rng
}

/// Standard normal noise (B, C, H, W) in f32, one row drawn from each of `rngs`.
pub fn normal(
    rngs: &mut [ChaCha8Rng],
    (channels, height, width): (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let mut values: Vec<f32> = Vec::with_capacity(rngs.len() * channels * height * width);
    for rng in rngs.iter_mut() {
        values
            .extend((0..channels * height * width).map(|_| -> f32 { StandardNormal.sample(rng) }));
    }
    let shape = (rngs.len(), channels, height, width);
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?)
}

/// The initial noise of images `ids` at one level, (B, C, H, W) in f32.
pub fn image_noise(
    seed: u64,
    ids: &[u64],
    level: u8,
    shape: (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let rng = |id: &u64| image_rng(seed, *id, Purpose::Noise { level });
    normal(&mut ids.iter().map(rng).collect::<Vec<_>>(), shape, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_its_own_noise_in_any_batch() {
        let rows = |ids: &[u64]| -> Vec<Vec<f32>> {
            let noise = image_noise(7, ids, 0, (3, 4, 4), &Device::Cpu).unwrap();
            noise.flatten_from(1).unwrap().to_vec2().unwrap()
        };
        let all = rows(&[0, 1, 2, 3]);
        assert_eq!(rows(&[2])[0], all[2]);
        assert_eq!(rows(&[3, 1]), [all[3].clone(), all[1].clone()]);
        assert_ne!(all[0], all[1]);
    }

    #[test]
    fn noise_is_standard_normal() {
        let ids: Vec<u64> = (0..64).collect();
        let noise = image_noise(1, &ids, 1, (4, 16, 16), &Device::Cpu).unwrap();
        let values: Vec<f32> = noise.flatten_all().unwrap().to_vec1().unwrap();
        let count = values.len() as f64;
        let moment = |p: i32| values.iter().map(|v| f64::from(*v).powi(p)).sum::<f64>() / count;
        assert!(moment(1).abs() < 0.02, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.03, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.2, "{}", moment(4));
    }
}
