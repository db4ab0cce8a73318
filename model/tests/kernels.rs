//! Kernels against their plain compositions, values and gradients, over odd and random sizes.

use candle_core::{D, DType, Device, Tensor, Var};
use lapflow_model::flow::image_rng;
use lapflow_model::kernels::{
    Mask, TokenLayout, attention, gated_residual, gelu, linear, modulated_norm,
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
    let max = |t: &Tensor| {
        t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    let (error, size) = (max(&(got - want).unwrap()), max(want));
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

/// Rows of a layout as one `(b, tokens, width)` tensor a level.
fn levels(x: &Tensor, layout: &TokenLayout) -> Vec<Tensor> {
    (0..layout.levels())
        .map(|i| {
            let rows = layout.level_rows(i);
            let part = x.narrow(0, rows.start, rows.len()).unwrap();
            part.reshape((layout.batch(), layout.tokens(i), x.dim(1).unwrap())).unwrap()
        })
        .collect()
}

fn rows(levels: &[Tensor]) -> Tensor {
    let flat: Vec<_> = levels.iter().map(|x| x.flatten(0, 1).unwrap()).collect();
    Tensor::cat(&flat, 0).unwrap()
}

/// Chunk `index` of the modulation for the i-th level, `(b, 1, width)`.
fn chunk(m: &Tensor, layout: &TokenLayout, level: usize, index: usize, width: usize) -> Tensor {
    let start = if m.dim(0).unwrap() == layout.batch() { 0 } else { level * layout.batch() };
    let m = m.narrow(0, start, layout.batch()).unwrap();
    m.narrow(1, index * width, width).unwrap().unsqueeze(1).unwrap()
}

#[test]
fn linear_equals_matmul_and_bias() {
    for (rows, inputs, outputs) in [(1, 1, 1), (7, 5, 3), (130, 33, 300)] {
        let (x, w, b) =
            (random(&[rows, inputs], 1), random(&[outputs, inputs], 2), random(&[outputs], 3));
        let plain = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
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
            let plain: Vec<Tensor> = levels(&x, &layout)
                .iter()
                .enumerate()
                .map(|(i, x)| {
                    let mean = x.mean_keepdim(D::Minus1).unwrap();
                    let centered = x.broadcast_sub(&mean).unwrap();
                    let variance = centered.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
                    let normal =
                        centered.broadcast_div(&(variance + 1e-6).unwrap().sqrt().unwrap());
                    let scale = (chunk(&m, &layout, i, 4, width) + 1.0).unwrap();
                    let shift = chunk(&m, &layout, i, 3, width);
                    let scaled = normal.unwrap().broadcast_mul(&scale).unwrap();
                    scaled.broadcast_add(&shift).unwrap()
                })
                .collect();
            let fused = modulated_norm(&x, &m, &layout, 3, 4).unwrap();
            same("modulated_norm", &[&x, &m], fused, rows(&plain));
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
            let plain: Vec<Tensor> = levels(&x, &layout)
                .iter()
                .zip(levels(&y, &layout))
                .enumerate()
                .map(|(i, (x, y))| {
                    let gate = chunk(&m, &layout, i, 2, width);
                    (x + y.broadcast_mul(&gate).unwrap()).unwrap()
                })
                .collect();
            let fused = gated_residual(&x, &y, &m, &layout, 2).unwrap();
            same("gated_residual", &[&x, &y, &m], fused, rows(&plain));
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
            let plain = plain_attention(&qkv, &layout, heads, dim, mask);
            same(&format!("attention {mask:?} {layout:?}"), &[&qkv], fused, plain);
        }
    }
}

fn plain_attention(
    qkv: &Tensor,
    layout: &TokenLayout,
    heads: usize,
    dim: usize,
    mask: Mask,
) -> Tensor {
    let count = layout.levels();
    let all = Tensor::cat(&levels(qkv, layout), 1).unwrap();
    let (b, tokens, _) = all.dims3().unwrap();
    let owner: Vec<usize> =
        (0..count).flat_map(|i| std::iter::repeat_n(i, layout.tokens(i))).collect();
    let bias: Vec<f32> = owner
        .iter()
        .flat_map(|&q| owner.iter().map(move |k| (q, *k)))
        .map(|(q, k)| if mask.keys(q, count).contains(&k) { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let bias = Tensor::from_vec(bias, (1, 1, tokens, tokens), &Device::Cpu).unwrap();
    let split = all.reshape((b, tokens, 3, heads, dim)).unwrap();
    let part = |i: usize| {
        let part = split.narrow(2, i, 1).unwrap().squeeze(2).unwrap();
        part.transpose(1, 2).unwrap().contiguous().unwrap()
    };
    let (q, k, v) = (part(0), part(1), part(2));
    let scores = (q.matmul(&k.t().unwrap()).unwrap() / (dim as f64).sqrt()).unwrap();
    let scores = scores.broadcast_add(&bias).unwrap();
    let max = scores.max_keepdim(D::Minus1).unwrap().detach();
    let e = scores.broadcast_sub(&max).unwrap().exp().unwrap();
    let p = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
    let out = p.matmul(&v).unwrap().transpose(1, 2).unwrap().flatten(2, 3).unwrap();
    let mut start = 0;
    let parts: Vec<Tensor> = (0..count)
        .map(|i| {
            let part = out.narrow(1, start, layout.tokens(i)).unwrap();
            start += layout.tokens(i);
            part.contiguous().unwrap()
        })
        .collect();
    rows(&parts).to_dtype(DType::F32).unwrap()
}
