//! Weights and images that Rust and the golden generators compute alike.
#![allow(dead_code)]

use candle_core::{Device, Tensor};
use lapflow_model::weights::Weights;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `golden/autoencoder_weights.py: uniform`.
pub fn uniform(name: &str, count: usize) -> Vec<f32> {
    let state = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    let value = |i: u64| {
        let z = state.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (1..=count as u64).map(value).collect()
}

/// `golden/autoencoder_weights.py: weight`.
pub fn weight(name: &str, shape: &[usize]) -> Tensor {
    let mut values = uniform(name, shape.iter().product());
    if shape.len() == 1 {
        let gain = if name.ends_with("weight") { 1.0 } else { 0.0 };
        values.iter_mut().for_each(|value| *value = *value * 0.2 + gain);
    } else {
        let fan_in: usize = shape[1..].iter().product();
        let scale = (1.5 / (fan_in as f64).sqrt()) as f32;
        values.iter_mut().for_each(|value| *value *= scale);
    }
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A golden file, and the weights whose names and shapes its header lists.
pub fn golden(name: &str) -> (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>) {
    let golden = Weights::read(golden_path(name)).unwrap();
    let weights = golden
        .metadata
        .iter()
        .map(|(key, shape)| {
            let shape: Vec<usize> = shape.split(',').map(|dim| dim.parse().unwrap()).collect();
            (key.clone(), weight(key, &shape))
        })
        .collect();
    (golden.tensors, weights)
}

/// A file beside the golden generators.
pub fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Largest difference relative to the largest expected value.
pub fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let largest = |x: &Tensor| lapflow_model::kernels::largest(x).unwrap();
    largest(&(actual - expected).unwrap()) / largest(expected)
}
