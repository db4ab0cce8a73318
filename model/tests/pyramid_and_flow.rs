//! Properties of the pyramid and the paths.

use candle_core::{Device, Tensor};
use lapflow_model::flow::{Coupling, Flow, FlowConfig, Noise, Path, Sigma, image_rng};
use lapflow_model::pyramid::{down, merge, split, up};
use rand_distr::{Distribution, StandardNormal};

fn random(shape: &[usize]) -> Tensor {
    let mut rng = image_rng(rand::random(), 0);
    let values: Vec<f64> =
        (0..shape.iter().product()).map(|_| StandardNormal.sample(&mut rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn max_abs(t: &Tensor) -> f64 {
    lapflow_model::kernels::largest(t).unwrap()
}

#[test]
fn splitting_and_merging_are_inverse() {
    for (levels, h, w) in [(1, 3, 5), (2, 6, 10), (3, 8, 12), (4, 16, 8)] {
        let x = random(&[2, 3, h, w]);
        let pyramid = split(&x, levels).unwrap();
        let sizes: Vec<_> = pyramid.iter().map(|l| (l.dims()[2], l.dims()[3])).collect();
        let want: Vec<_> = (0..levels).map(|k| (h >> k, w >> k)).collect();
        assert_eq!(sizes, want);
        assert!(max_abs(&(merge(&pyramid).unwrap() - &x).unwrap()) < 1e-14);
    }
    assert!(split(&random(&[1, 1, 6, 8]), 3).is_err());
    assert!(split(&random(&[1, 1, 4, 4]), 0).is_err());
}

#[test]
fn residuals_carry_no_coarse_part() {
    let pyramid = split(&random(&[2, 4, 16, 16]), 3).unwrap();
    for residual in &pyramid[..2] {
        assert!(max_abs(&down(residual).unwrap()) < 1e-15);
    }
    let x = random(&[1, 2, 4, 6]);
    assert!(max_abs(&(down(&up(&x).unwrap()).unwrap() - &x).unwrap()) < 1e-15);
}

#[test]
fn velocities_are_the_paths_derivatives() {
    for coupling in [Coupling::Linear, Coupling::Gvp] {
        for sigma in [Sigma::Linear, Sigma::Gvp, Sigma::Quadratic, Sigma::Cubic] {
            let config = FlowConfig { levels: 3, coupling, sigma, ..FlowConfig::default() };
            let path = Path::new(&config).unwrap();
            let h = 1e-6;
            for k in 0..3 {
                let (start, end) = path.trained(k);
                for i in 1..10 {
                    let t = start + (end - start) * f64::from(i) / 10.0;
                    let slope = |f: &dyn Fn(f64) -> f64| (f(t + h) - f(t - h)) / (2.0 * h);
                    assert!((slope(&|t| path.alpha(k, t)) - path.alpha_dot(k, t)).abs() < 1e-6);
                    assert!((slope(&|t| path.sigma(t)) - path.sigma_dot(t)).abs() < 1e-6);
                }
                assert!(path.alpha(k, start).abs() < 1e-12, "a level starts as noise alone");
                assert!((path.alpha(k, 1.0) - 1.0).abs() < 1e-12);
                assert!(path.sigma(1.0).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn interpolation_is_per_sample() {
    let path = Path::new(&FlowConfig::default()).unwrap();
    let (data, noise) = (random(&[2, 1, 2, 2]), random(&[2, 1, 2, 2]));
    let (x, v) = path.interpolate(0, &data, &noise, &[0.5, 1.0]).unwrap();
    let row = |t: &Tensor, i: usize| t.narrow(0, i, 1).unwrap();
    assert!(max_abs(&(row(&x, 0) - (row(&noise, 0) * 0.5).unwrap()).unwrap()) < 1e-7);
    assert!(max_abs(&(row(&x, 1) - row(&data, 1)).unwrap()) < 1e-7);
    assert!(max_abs(&(v - ((data * 2.0).unwrap() - noise).unwrap()).unwrap()) < 1e-6);
}

#[test]
fn laplacian_noise_merges_to_white_and_ignores_the_batch() {
    let path = Path::new(&FlowConfig { levels: 3, ..FlowConfig::default() }).unwrap();
    let draw = |images: &[u64]| {
        let mut rngs: Vec<_> = images.iter().map(|&i| image_rng(5, i)).collect();
        path.draw_noise(&mut rngs, [2, 16, 16], &Device::Cpu).unwrap()
    };
    let batch = draw(&(0..64).collect::<Vec<_>>());
    let merged = merge(&batch).unwrap();
    let variance = merged.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((variance - 1.0).abs() < 0.03, "{variance}");
    let coarse = batch[2].sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((coarse - 1.0 / 16.0).abs() < 0.005, "{coarse}");
    for (alone, level) in draw(&[9]).iter().zip(&batch) {
        assert_eq!(max_abs(&(alone - level.narrow(0, 9, 1).unwrap()).unwrap()), 0.0);
    }
    let white = Path::new(&FlowConfig { noise: Noise::White, ..FlowConfig::default() }).unwrap();
    let levels = white.draw_noise(&mut [image_rng(1, 2)], [8, 32, 32], &Device::Cpu).unwrap();
    let coarse = levels[1].sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((coarse - 1.0).abs() < 0.15, "{coarse}");
}

#[test]
fn unusable_start_times_are_refused() {
    for (levels, starts) in [
        (5, vec![]),
        (2, vec![0.5]),
        (2, vec![0.0, 0.5]),
        (2, vec![0.5, 0.1]),
        (2, vec![1.0, 0.0]),
        (0, vec![]),
    ] {
        let config = FlowConfig { levels, starts, ..FlowConfig::default() };
        assert!(Path::new(&config).is_err(), "{config:?}");
    }
}
