//! Check values and identities of the methods that LapFlow is compared with (MATH section 6).

use candle_core::{DType, Device, Tensor};
use lapflow_model::flow::{Diffusion, Flow, FlowConfig, Method, Pyramidal, image_rng};
use lapflow_model::pyramid;
use rand_distr::{Distribution, StandardNormal};

fn flow(method: Method, levels: usize, starts: &[f64]) -> Box<dyn Flow> {
    FlowConfig { method, levels, starts: starts.to_vec(), ..FlowConfig::default() }.build().unwrap()
}

fn pyramidal(starts: &[f64]) -> Pyramidal {
    let config = FlowConfig { levels: starts.len(), starts: starts.to_vec(), ..Default::default() };
    Pyramidal::new(&config).unwrap()
}

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = image_rng(seed, 0);
    let values: Vec<f64> =
        (0..shape.iter().product()).map(|_| StandardNormal.sample(&mut rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn max_abs(x: &Tensor) -> f64 {
    lapflow_model::kernels::largest(x).unwrap()
}

fn close(value: f64, expected: f64, tolerance: f64) {
    assert!((value - expected).abs() < tolerance, "{value}, expected {expected}");
}

#[test]
fn pyramidal_flow_has_its_published_stages() {
    let two = pyramidal(&[0.5, 0.0]);
    let [fine, coarse] = two.stages() else { panic!() };
    for (value, expected) in [
        (coarse.noise_start, 1.0),
        (coarse.noise_end, 0.5),
        (fine.noise_start, 2.0 / 3.0),
        (fine.noise_end, 0.0),
        (fine.alpha, 2.0 / 3.0),
        (fine.beta, 0.57735),
    ] {
        close(value, expected, 5e-6);
    }
    // Time in the proportion of s - e: 1/2 to 2/3.
    close(coarse.segment.1, 3.0 / 7.0, 1e-12);
    assert_eq!((coarse.segment.0, fine.segment.1), (0.0, 1.0));

    // The published thirds on a grid of 1000.
    let three = pyramidal(&[0.666, 0.333, 0.0]);
    let [fine, middle, coarse] = three.stages() else { panic!() };
    for (value, expected) in [
        (coarse.noise_start, 1.0),
        (middle.noise_start, 0.80024),
        (fine.noise_start, 0.50075),
        (middle.alpha, 0.59988),
        (fine.alpha, 0.74963),
        (middle.beta, 0.69303),
        (fine.beta, 0.43366),
    ] {
        close(value, expected, 6e-6);
    }
}

/// The jump's noise is linear in the white noise: its matrix over one block, times its transpose,
/// is the covariance, without any sampling.
#[test]
fn the_jumps_noise_has_the_blocks_covariance_and_restores_white_noise() {
    let unit = Tensor::eye(4, DType::F64, &Device::Cpu).unwrap().reshape((4, 1, 2, 2)).unwrap();
    let matrix = Pyramidal::jump_noise(&unit).unwrap().reshape((4, 4)).unwrap();
    let covariance = matrix.t().unwrap().matmul(&matrix).unwrap().to_vec2::<f64>().unwrap();
    let gamma = 1.0 / 3.0;
    for (i, row) in covariance.iter().enumerate() {
        for (j, value) in row.iter().enumerate() {
            close(*value, if i == j { 1.0 } else { -gamma }, 1e-14);
        }
    }
    for starts in [vec![0.5, 0.0], vec![0.7, 0.2, 0.0], vec![0.75, 0.5, 0.25, 0.0]] {
        let flow = pyramidal(&starts);
        for k in 0..starts.len() - 1 {
            let (stage, before) = (&flow.stages()[k], &flow.stages()[k + 1]);
            // Upsampled noise has 1 within a block; the sum must be s^2 on the diagonal, 0 off it.
            let kept = (stage.alpha * before.noise_end).powi(2);
            close(kept + stage.beta.powi(2), stage.noise_start.powi(2), 1e-12);
            close(kept - gamma * stage.beta.powi(2), 0.0, 1e-12);
            // And the upsampled image keeps its factor.
            close(stage.alpha * (1.0 - before.noise_end), 1.0 - stage.noise_start, 1e-12);
        }
    }
}

/// For every method and stage, the target times the rate is the derivative of the state in time.
#[test]
fn targets_are_the_states_derivatives() {
    for (method, levels) in
        [(Method::Lapflow, 3), (Method::Pyramidal, 3), (Method::Edify, 3), (Method::Edify, 1)]
    {
        let flow = flow(method, levels, &[]);
        let data = pyramid::split(&random(1, &[2, 3, 8, 8]), levels).unwrap();
        let noise: Vec<Tensor> =
            (0..levels).map(|k| random(2 + k as u64, &[2, 3, 8 >> k, 8 >> k])).collect();
        for k in 0..levels {
            let (start, end) = flow.segment(k);
            let t = start + 0.4 * (end - start);
            let h = 0.05;
            let at = |t: f64| flow.example(k, &data, &noise, &[t, t]).unwrap();
            let (before, after, here) = (at(t - h), at(t + h), at(t));
            assert_eq!(here.states.len(), flow.shown(k).len());
            for (i, target) in here.targets.iter().enumerate() {
                let slope = ((&after.states[i] - &before.states[i]).unwrap() / (2.0 * h)).unwrap();
                let gap = (slope - (target * flow.rate(k)).unwrap()).unwrap();
                assert!(max_abs(&gap) < 1e-4, "{method:?}, stage {k}: {}", max_abs(&gap));
            }
        }
    }
}

/// The state in which a stage is trained to start is the one in which sampling starts it, up to
/// the noise; where the methods end, the image is clean.
#[test]
fn stages_start_where_the_one_before_ended_and_end_in_the_image() {
    let image = random(1, &[1, 2, 8, 8]);
    for method in [Method::Pyramidal, Method::Edify] {
        let flow = flow(method, 3, &[]);
        let data = pyramid::split(&image, 3).unwrap();
        let silent: Vec<Tensor> = (0..3).map(|k| random(0, &[1, 2, 8 >> k, 8 >> k])).collect();
        let silent: Vec<Tensor> = silent.iter().map(|x| x.zeros_like().unwrap()).collect();
        for k in [1, 0] {
            let before = flow.example(k + 1, &data, &silent, &[flow.segment(k + 1).1]).unwrap();
            let after = flow.example(k, &data, &silent, &[flow.segment(k).0]).unwrap();
            let entered = flow.enter(k, before.states, &silent).unwrap();
            assert!(max_abs(&(&entered[0] - &after.states[0]).unwrap()) < 1e-5, "{method:?} {k}");
        }
        let noise: Vec<Tensor> = (0..3).map(|k| random(7, &[1, 2, 8 >> k, 8 >> k])).collect();
        let end = flow.example(0, &data, &noise, &[1.0]).unwrap();
        let end = flow.image(&end.states).unwrap();
        assert!(max_abs(&(end - &image).unwrap()) < 1e-5, "{method:?}");
    }
}

#[test]
fn the_network_of_edify_sees_noise_of_unit_variance_at_the_start() {
    let flow = flow(Method::Edify, 2, &[]);
    let data = pyramid::split(&random(1, &[1, 1, 4, 4]), 2).unwrap();
    let noise = [random(2, &[1, 1, 4, 4]), random(3, &[1, 1, 2, 2])];
    let start = flow.example(1, &data, &noise, &[0.0]).unwrap();
    assert!(max_abs(&(&start.states[0] - &noise[1]).unwrap()) < 1e-12);
    let enough = flow.enter(0, vec![noise[1].clone()], &noise).unwrap();
    // Its block means are the coarse noise at half the size: the 2x2 mean of white noise.
    let means = pyramid::down(&enough[0]).unwrap();
    assert!(max_abs(&(means - (&noise[1] * 0.5).unwrap()).unwrap()) < 1e-12);
}

#[test]
fn the_diffusion_schedule_is_ddpms() {
    let diffusion = Diffusion::new();
    close(diffusion.alpha_bar(0), 0.9999, 1e-12);
    close(diffusion.alpha_bar(999), 4.0358e-5, 1e-9);
    let steps: Vec<usize> = diffusion.reverse(250).unwrap().iter().map(|r| r.step).collect();
    assert_eq!((steps.len(), steps[0], steps[249]), (250, 999, 0));
    assert!(steps.windows(2).all(|pair| (4..=5).contains(&(pair[0] - pair[1]))));
    assert!(diffusion.reverse(1).is_err() && diffusion.reverse(1001).is_err());
}

/// Data of N(0, spread^2) has a known best noise prediction; both samplers must give it back.
#[test]
fn reverse_steps_with_the_best_prediction_give_the_data_back() {
    let spread = 0.6f64;
    let diffusion = Diffusion::new();
    let std = |x: &Tensor| x.sqr().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    for (ancestral, count, tolerance) in [(false, 100, 0.02), (true, 100, 0.05), (true, 1000, 0.02)]
    {
        let mut x = random(5, &[1, 1, 100, 100]);
        for (i, step) in diffusion.reverse(count).unwrap().into_iter().enumerate() {
            let bar = diffusion.alpha_bar(step.step);
            let factor = (1.0 - bar).sqrt() / (bar * spread * spread + 1.0 - bar);
            let eps = (&x * factor).unwrap();
            x = match ancestral {
                true => step.ddpm(&x, &eps, &random(100 + i as u64, &[1, 1, 100, 100])).unwrap(),
                false => step.ddim(&x, &eps).unwrap(),
            };
        }
        close(std(&x), spread, tolerance);
    }
}

/// At the posterior's variance (v = -1) and a perfect prediction the bound is 0; elsewhere it is
/// the divergence between two normal distributions, integrated here by the plain formula.
#[test]
fn the_variance_bound_is_the_divergence_of_two_normals() {
    let diffusion = Diffusion::new();
    let (data, noise) = (random(1, &[1, 1, 2, 2]), random(2, &[1, 1, 2, 2]));
    let step = 400usize;
    let t = [(step as f64 + 0.5) / 1000.0];
    let example = diffusion.example(0, &[data], std::slice::from_ref(&noise), &t).unwrap();
    assert_eq!(example.times, [0.4]);
    let answer = |miss: f64, v: f64| {
        let eps = (&noise + miss).unwrap();
        let v = (noise.zeros_like().unwrap() + v).unwrap();
        [Tensor::cat(&[&eps, &v], 1).unwrap()]
    };
    let bound = |miss: f64, v: f64| -> f64 {
        diffusion.penalty(&answer(miss, v), &example).unwrap().unwrap().to_scalar().unwrap()
    };
    close(bound(0.0, -1.0), 0.0, 1e-6);

    let bar = |s: usize| diffusion.alpha_bar(s);
    let beta = 1.0 - bar(step) / bar(step - 1);
    let posterior = beta * (1.0 - bar(step - 1)) / (1.0 - bar(step));
    for (miss, v) in [(0.3f64, -1.0f64), (0.0, 1.0), (0.3, 0.5)] {
        let variance = ((0.5 + 0.5 * v) * beta.ln() + (0.5 - 0.5 * v) * posterior.ln()).exp();
        // The reverse mean is (x - beta / sqrt(1 - bar) eps) / sqrt(1 - beta).
        let shift = beta / (1.0 - bar(step)).sqrt() / (1.0 - beta).sqrt() * miss;
        let nats =
            0.5 * ((variance / posterior).ln() - 1.0 + (posterior + shift * shift) / variance);
        let expected = nats / std::f64::consts::LN_2;
        close(bound(miss, v), expected, 1e-4 * expected);
    }
}

#[test]
fn options_of_another_method_are_refused() {
    use lapflow_model::flow::{Coupling, Noise};
    for method in [Method::Pyramidal, Method::Edify, Method::Dit] {
        let levels = if method == Method::Dit { 1 } else { 2 };
        let plain = FlowConfig { method, levels, ..FlowConfig::default() };
        assert!(plain.build().is_ok());
        assert!(FlowConfig { coupling: Coupling::Gvp, ..plain.clone() }.build().is_err());
        assert!(FlowConfig { noise: Noise::White, ..plain }.build().is_err());
    }
    assert!(FlowConfig { method: Method::Dit, ..FlowConfig::default() }.build().is_err());
}
