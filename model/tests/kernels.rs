//! Kernels against their plain compositions, values and gradients, over odd and random sizes.

use candle_core::{Device, Tensor, Var};
use lapflow_model::flow::image_rng;
use lapflow_model::kernels::{
    Mask, TokenLayout, attention, gated_residual, gelu, linear, modulated_norm, plain,
};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

fn random(shape: &[usize], seed: u64) -> Var {
    let mut rng = image_rng(seed, 1);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| StandardNormal.sample(&mut rng)).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn close(name: &str, got: &Tensor, want: &Tensor) {
    let largest = |t: &Tensor| lapflow_model::kernels::largest(t).unwrap();
    let (error, size) = (largest(&(got - want).unwrap()), largest(want));
    assert!(error <= 2e-5 * size.max(1.0), "{name}: error {error} at size {size}");
}

/// Compares two ways to compute the same function, with gradients of a random projection.
fn same(name: &str, vars: &[&Var], fused: Tensor, plain: Tensor) {
    close(name, &fused, &plain);
    let weight = random(fused.dims(), 99).as_tensor().detach();
    let grads = |y: Tensor| (y * &weight).unwrap().sum_all().unwrap().backward().unwrap();
    let (fused, plain) = (grads(fused), grads(plain));
    for (i, var) in vars.iter().enumerate() {
        close(&format!("{name}, gradient {i}"), fused.get(var).unwrap(), plain.get(var).unwrap());
    }
}

fn layouts() -> Vec<TokenLayout> {
    let mut rng = image_rng(rand::random(), 0);
    let mut layouts = vec![TokenLayout::new(1, vec![1]), TokenLayout::new(3, vec![5, 16, 64])];
    for levels in 1..4 {
        let tokens = (0..levels).map(|_| rng.random_range(1..150)).collect();
        layouts.push(TokenLayout::new(rng.random_range(1..4), tokens));
    }
    layouts
}

#[test]
fn linear_equals_matmul_and_bias() {
    for (rows, inputs, outputs) in [(1, 1, 1), (7, 5, 3), (130, 33, 300)] {
        let (x, w, b) =
            (random(&[rows, inputs], 1), random(&[outputs, inputs], 2), random(&[outputs], 3));
        let plain = plain::linear(&x, &w, &b).unwrap();
        same("linear", &[&x, &w, &b], linear(&x, &w, &b).unwrap(), plain);
    }
    assert!(linear(&random(&[2, 3], 1), &random(&[4, 2], 2), &random(&[4], 3)).is_err());
}

#[test]
fn gelu_equals_the_tanh_form() {
    for size in [1, 17, 9000] {
        let x = random(&[size], size as u64);
        let x = Var::from_tensor(&(x.as_tensor() * 3.0).unwrap()).unwrap();
        same("gelu", &[&x], gelu(&x).unwrap(), x.gelu().unwrap());
    }
}

#[test]
fn modulated_norm_equals_its_composition() {
    for layout in layouts() {
        for groups in [layout.batch(), layout.batch() * layout.levels()] {
            let width = 21;
            let (x, m) = (random(&[layout.rows(), width], 4), random(&[groups, 6 * width], 5));
            let plain = plain::modulated_norm(&x, &m, &layout, 3, 4).unwrap();
            let fused = modulated_norm(&x, &m, &layout, 3, 4).unwrap();
            same("modulated_norm", &[&x, &m], fused, plain);
        }
    }
}

#[test]
fn gated_residual_equals_its_composition() {
    for layout in layouts() {
        for groups in [layout.batch(), layout.batch() * layout.levels()] {
            let width = 19;
            let (x, y) = (random(&[layout.rows(), width], 6), random(&[layout.rows(), width], 7));
            let m = random(&[groups, 6 * width], 8);
            let plain = plain::gated_residual(&x, &y, &m, &layout, 2).unwrap();
            let fused = gated_residual(&x, &y, &m, &layout, 2).unwrap();
            same("gated_residual", &[&x, &y, &m], fused, plain);
        }
    }
}

#[test]
fn attention_equals_a_masked_softmax() {
    for layout in layouts() {
        for mask in [Mask::Causal, Mask::None, Mask::Own] {
            let (heads, dim) = (3, 7);
            let qkv = random(&[layout.rows(), 3 * heads * dim], 9);
            let fused = attention(&qkv, &layout, heads, mask).unwrap();
            let plain = plain::attention(&qkv, &layout, heads, mask).unwrap();
            same(&format!("attention {mask:?} {layout:?}"), &[&qkv], fused, plain);
        }
    }
}
