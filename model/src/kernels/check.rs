//! Every operation on a device against Candle's own on the CPU, forward and backward: what
//! `lapflow doctor` runs.

use super::conv2d::conv2d_candle;
use super::pyramid::{add_up_candle, down_candle};
use super::upsample::upsample_candle;
use super::{
    Activation, AdamW, ConvGeometry, Mask, Moved, TokenLayout, attention, conv2d, gated_residual,
    gelu, group_norm, linear, modulated_norm, plain, pyramid_add_up, pyramid_down, upsample,
};
use crate::flow::image_rng;
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

/// What an operation's largest error was, relative to its largest value.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The operation.
    pub name: String,
    /// The type of values on the device; the reference is computed in f32 with the same values.
    pub dtype: DType,
    /// Of the result and of all gradients.
    pub error: f64,
    /// What is still rounding.
    pub bound: f64,
}

impl Checked {
    /// Whether the error is rounding. Not a number is not.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

type Operation = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An operation and the shapes of its inputs, all of which have gradients.
struct Case {
    name: String,
    shapes: Vec<Vec<usize>>,
    run: Operation,
    /// The same as a composition of Candle's operations.
    plain: Operation,
    /// Whether it runs in bf16 too.
    bf16: bool,
}

/// Runs every operation of the network and the autoencoders on `device`, and as Candle has it on the
/// CPU, over layouts and values drawn from `seed`.
///
/// # Errors
/// When an operation cannot run. What is wrong with its values is in the result.
pub fn check(device: &Device, seed: u64) -> Result<Vec<Checked>> {
    let mut checked = Vec::new();
    for (i, case) in cases(seed).into_iter().enumerate() {
        let types = [(DType::F32, 2e-5), (DType::BF16, 2e-2)];
        for (dtype, bound) in types.into_iter().take(1 + usize::from(case.bf16 && !device.is_cpu()))
        {
            let seed = seed + i as u64;
            let want = outcome(&case, &case.plain, &Device::Cpu, [dtype, DType::F32], seed)?;
            let got = outcome(&case, &case.run, device, [dtype, dtype], seed)?;
            let errors = want.iter().zip(&got).map(|(want, got)| relative_error(want, got));
            let error = errors.fold(0.0, |a: f64, b| if b.is_nan() || b > a { b } else { a });
            checked.push(Checked { name: case.name.clone(), dtype, error, bound });
        }
    }
    if let Some(error) = adamw_error(device, seed)? {
        checked.push(Checked { name: "adamw".into(), dtype: DType::F32, error, bound: 2e-5 });
    }
    Ok(checked)
}

/// The largest error of one update of parameters of drawn sizes, one of them without a gradient, and of
/// two averages, against f64; none where the device has no kernel for it.
fn adamw_error(device: &Device, seed: u64) -> Result<Option<f64>> {
    let mut rng = image_rng(seed, 2);
    let sizes: Vec<usize> = (0..6).map(|_| rng.random_range(1..10_000)).collect();
    let mut draw = |count: usize| -> Vec<f32> {
        (0..count).map(|_| StandardNormal.sample(&mut rng)).collect()
    };
    // Parameter, gradient, first and second moment, two averages.
    let drawn: Vec<[Vec<f32>; 6]> =
        sizes.iter().map(|&size| std::array::from_fn(|_| draw(size))).collect();
    let positive = |values: &[f32]| values.iter().map(|x| x * x).collect::<Vec<_>>();
    let up = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
    let tensors = drawn.iter().map(|[p, g, m, v, a, b]| {
        Ok(([up(p)?, up(m)?, up(&positive(v))?], up(g)?, [up(a)?, up(b)?]))
    });
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    let rates = AdamW {
        beta1: 0.9,
        beta2: 0.99,
        step: 0.03,
        second: 1.7,
        eps: 1e-6,
        keep: 0.95,
        grad_scale: 0.7,
    };
    let shares = [0.5, 0.01];
    let moved = tensors.iter().enumerate().map(|(i, ([p, m, v], g, averages))| Moved {
        param: p,
        grad: (i != 2).then(|| g.clone()),
        moments: [m, v],
        averages,
    });
    if !rates.update(&moved.collect::<Vec<_>>(), &shares)? {
        return Ok(None);
    }
    let mut error = 0f64;
    for (i, ([p, m, v], _, [a, b])) in tensors.iter().enumerate() {
        let got =
            [p, m, v, a, b].map(Tensor::to_vec1::<f32>).into_iter().collect::<Result<Vec<_>>>()?;
        for j in 0..sizes[i] {
            let [p, g, m, v, a, b] = std::array::from_fn(|k| f64::from(drawn[i][k][j]));
            let want =
                adamw_step(&rates, shares, [p, if i == 2 { 0.0 } else { g }, m, v * v, a, b]);
            for (want, got) in want.into_iter().zip(&got) {
                let off = (f64::from(got[j]) - want).abs() / want.abs().max(1.0);
                error = if off.is_nan() { f64::INFINITY } else { error.max(off) };
            }
        }
    }
    Ok(Some(error))
}

/// A parameter, its moments and two averages after an update; `before` has the gradient second.
fn adamw_step(rates: &AdamW, shares: [f32; 2], before: [f64; 6]) -> [f64; 5] {
    let [p, g, m, v, a, b] = before;
    let AdamW { beta1, beta2, step, second, eps, keep, grad_scale } = *rates;
    let [beta1, beta2, step, second] = [beta1, beta2, step, second].map(f64::from);
    let [eps, keep, grad_scale] = [eps, keep, grad_scale].map(f64::from);
    let g = g * grad_scale;
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let p = p * keep - step * m / (v.sqrt() * second + eps);
    let [a, b] = [(a, shares[0]), (b, shares[1])].map(|(a, share)| a + f64::from(share) * (p - a));
    [p, m, v, a, b]
}

fn cases(seed: u64) -> Vec<Case> {
    let mut rng = image_rng(seed, 0);
    let tokens = (0..rng.random_range(1..4)).map(|_| rng.random_range(1..80)).collect();
    let layout = TokenLayout::new(rng.random_range(1..4), tokens);
    // Norms of a few values can be of nearly equal ones, and then say nothing to f32's precision.
    let (rows, width) = (layout.rows(), rng.random_range(16..100));
    let mut cases = vec![
        case(
            "linear",
            &[&[rows, width], &[37, width], &[37]],
            |t| linear(&t[0], &t[1], &t[2]),
            |t| plain::linear(&t[0], &t[1], &t[2]),
        ),
        case("gelu", &[&[rows, width]], |t| gelu(&t[0]), |t| t[0].gelu()),
    ];
    for groups in [layout.batch(), layout.batch() * layout.levels()] {
        let (x, m) = ([rows, width], [groups, 6 * width]);
        let (l, k) = (layout.clone(), layout.clone());
        cases.push(case(
            "modulated norm",
            &[&x, &m],
            move |t| modulated_norm(&t[0], &t[1], &l, 3, 4),
            move |t| plain::modulated_norm(&t[0], &t[1], &k, 3, 4),
        ));
        let (l, k) = (layout.clone(), layout.clone());
        cases.push(case(
            "gated residual",
            &[&x, &x, &m],
            move |t| gated_residual(&t[0], &t[1], &t[2], &l, 2),
            move |t| plain::gated_residual(&t[0], &t[1], &t[2], &k, 2),
        ));
    }
    for (mask, dim) in [(Mask::Causal, 64), (Mask::None, 72), (Mask::Own, 20), (Mask::Causal, 128)]
    {
        let (l, k, heads) = (layout.clone(), layout.clone(), 2);
        cases.push(case(
            &format!("attention {mask:?}, heads of {dim}"),
            &[&[rows, 3 * heads * dim]],
            move |t| attention(&t[0], &l, heads, mask),
            move |t| plain::attention(&t[0], &k, heads, mask),
        ));
    }
    let (h, w) = (rng.random_range(1..9), rng.random_range(1..40));
    let (level, coarse): ([usize; 4], [usize; 4]) = ([2, 3, 2 * h, 2 * w], [2, 3, h, w]);
    cases.push(case("pyramid down", &[&level], |t| pyramid_down(&t[0]), |t| down_candle(&t[0])));
    cases.push(case(
        "pyramid up and add",
        &[&level, &coarse],
        |t| pyramid_add_up(&t[0], &t[1], -1.0),
        |t| add_up_candle(&t[0], &t[1], -1.0),
    ));
    let image: &[usize] = &[2, 7, 9, 8];
    let geometry = ConvGeometry::same([3, 3]);
    let f32_only = [
        case(
            "convolution",
            &[image, &[6, 8, 3, 3], &[6]],
            move |t| conv2d(&t[0], &t[1], Some(&t[2]), geometry),
            move |t| conv2d_candle(&t[0], &t[1], Some(&t[2]), geometry),
        ),
        case(
            "group norm",
            &[image, &[8], &[8]],
            |t| group_norm(&t[0], &t[1], &t[2], 4, 1e-6, Activation::Silu),
            |t| plain::group_norm(&t[0], &t[1], &t[2], 4, 1e-6, Activation::Silu),
        ),
        case("upsampling", &[image], |t| upsample(&t[0]), |t| upsample_candle(&t[0])),
    ];
    cases.extend(f32_only.into_iter().map(|case| Case { bf16: false, ..case }));
    cases
}

fn case(
    name: &str,
    shapes: &[&[usize]],
    run: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    plain: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Case {
    let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
    Case { name: name.into(), shapes, run: Box::new(run), plain: Box::new(plain), bf16: true }
}

/// The result and the gradients of a random projection of it, in f32 on the CPU. Values are those
/// that the first type has, computed with in the second.
fn outcome(
    case: &Case,
    run: &Operation,
    device: &Device,
    [dtype, compute]: [DType; 2],
    seed: u64,
) -> Result<Vec<Tensor>> {
    let mut rng = image_rng(seed, 1);
    let mut random = |shape: &[usize]| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| StandardNormal.sample(&mut rng)).collect();
        let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
        values.to_dtype(dtype)?.to_dtype(DType::F32)?.to_device(device)?.to_dtype(compute)
    };
    let inputs = case.shapes.iter().map(|shape| Var::from_tensor(&random(shape)?));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
    let result = run(&tensors)?;
    let grads = (&result * random(result.dims())?)?.sum_all()?.backward()?;
    let home = |t: &Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu);
    let mut all = vec![home(&result)?];
    for input in &inputs {
        let zeros = || Tensor::zeros(input.shape(), DType::F32, &Device::Cpu);
        all.push(grads.get(input).map_or_else(zeros, home)?);
    }
    Ok(all)
}

/// The largest difference over the largest value; infinite where it cannot be said.
fn relative_error(want: &Tensor, got: &Tensor) -> f64 {
    match ((want - got).and_then(|difference| largest(&difference)), largest(want)) {
        (Ok(difference), Ok(scale)) if scale > 0.0 => difference / scale,
        (Ok(0.0), Ok(_)) => 0.0,
        _ => f64::INFINITY,
    }
}

/// The largest absolute value of a tensor; NaN where any value is NaN, which Candle's `max` passes over.
///
/// # Errors
/// When the values cannot be had.
pub fn largest(x: &Tensor) -> Result<f64> {
    let values = x.to_dtype(DType::F64)?.abs()?.flatten_all()?.to_vec1::<f64>()?;
    Ok(values.into_iter().max_by(f64::total_cmp).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_a_number_is_an_error_wherever_it_is() {
        let want = Tensor::new(&[1f32, -4.0, 2.0], &Device::Cpu).unwrap();
        assert_eq!(largest(&want).unwrap(), 4.0);
        for place in 0..3 {
            let mut got = [1f32, -4.0, 2.0];
            got[place] = f32::NAN;
            let got = Tensor::new(&got, &Device::Cpu).unwrap();
            assert!(largest(&got).unwrap().is_nan());
            let wrong = |error: f64| error.is_nan() || error > 1.0;
            assert!(wrong(relative_error(&want, &got)) && wrong(relative_error(&got, &want)));
        }
    }
}
