//! The group norm against its composition of Candle operations, values and gradients.

use candle_core::{Device, Result, Tensor, Var};
use lapflow_model::kernels::{Activation, group_norm, largest, plain};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(rng: &mut ChaCha8Rng, shape: &[usize], offset: f32) -> Var {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0) + offset).collect();
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn assert_close(what: &str, actual: &Tensor, expected: &Tensor) {
    let largest = |x: &Tensor| largest(x).unwrap();
    let error = largest(&(actual - expected).unwrap()) / largest(expected).max(1e-3);
    assert!(error < 2e-5, "{what}: {error}");
}

/// Forward and all gradients against Candle's operations, on drawn sizes.
#[test]
fn agrees_with_candle() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for case in 0..30 {
        let groups = [1, 2, 4, 8][case % 4];
        let [b, h, w, width] = [1..4, 1..40, 1..40, 1..12].map(|r| rng.random_range(r));
        let channels = groups * width;
        let offset = rng.random_range(-2.0..2.0);
        let x = random(&mut rng, &[b, h, w, channels], offset);
        let weight = random(&mut rng, &[channels], 1.0);
        let bias = random(&mut rng, &[channels], 0.0);
        let seed = random(&mut rng, &[b, h, w, channels], 0.0);
        let activation = [Activation::None, Activation::Silu][case / 4 % 2];
        let run = |f: fn(&Tensor, &Tensor, &Tensor, usize, f64, Activation) -> Result<Tensor>| {
            let y = f(&x, &weight, &bias, groups, 1e-3, activation).unwrap();
            let grads = (&y * seed.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
            [&x, &weight, &bias].map(|var| grads.get(var).unwrap().clone()).into_iter().chain([y])
        };
        let what = format!("{:?} in {groups} groups, {activation:?}", x.dims());
        for (name, (actual, expected)) in
            ["x", "weight", "bias", "y"].iter().zip(run(group_norm).zip(run(plain::group_norm)))
        {
            assert_close(&format!("{name} of {what}"), &actual, &expected);
        }
    }
}

/// A mean a thousand times the deviation must not drown the variance.
#[test]
fn survives_a_large_mean() {
    let values: Vec<f32> = (0..4096).map(|i| 1000.0 + (i % 7) as f32 - 3.0).collect();
    let x = Tensor::from_vec(values, (1, 32, 32, 4), &Device::Cpu).unwrap();
    let weight = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu).unwrap();
    let bias = weight.zeros_like().unwrap();
    let y = group_norm(&x, &weight, &bias, 2, 1e-6, Activation::None).unwrap();
    let square = y.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((square - 1.0).abs() < 1e-3, "{square}");
}
