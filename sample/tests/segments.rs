//! Segmented sampling of a Gaussian, whose flow is known, and guidance.

use candle_core::{Device, Result as TensorResult, Tensor};
use lapflow_model::flow::{Flow, FlowConfig, Path, image_rng};
use lapflow_sample::sde::{Diffusion, Sde};
use lapflow_sample::segments::{sample_pyramid, sample_through};
use lapflow_sample::solver::{Control, Dopri5, Grid, Method, Query, StepSizes};
use lapflow_sample::{Guidance, Sampled, Solver, guided};

const STARTS: [f64; 3] = [0.67, 0.33, 0.0];
/// Mean and standard deviation of the data at each level.
const DATA: [(f64, f64); 3] = [(0.1, 0.3), (-0.2, 0.5), (1.5, 0.8)];

/// The velocity at which x_t = alpha x_1 + sigma x_0 flows when x_1 ~ N(mean, std^2): level k of
/// the linear path at time t.
fn gaussian_velocity(x: &Tensor, t: f64, k: usize) -> TensorResult<Tensor> {
    let (mean, std) = DATA[k];
    let alpha = (t - STARTS[k]) / (1.0 - STARTS[k]);
    let sigma = 1.0 - t;
    let variance = (alpha * std).powi(2) + sigma * sigma;
    let centred = x.affine(1.0, -alpha * mean)?;
    let data = centred.affine(alpha * std * std / variance, mean)?;
    let noise = (centred * (sigma / variance))?;
    (data / (1.0 - STARTS[k]))? - noise
}

fn velocity(query: &Query) -> lapflow_model::Result<Vec<Tensor>> {
    let finest = STARTS.len() - query.levels.len();
    let mut out = Vec::new();
    let together = query.times.iter().all(|t| *t == query.times[0]);
    for (i, level) in query.levels.iter().enumerate() {
        if together {
            out.push(gaussian_velocity(level, query.times[0], finest + i)?);
            continue;
        }
        let mut rows = Vec::new();
        for (row, time) in query.times.iter().enumerate() {
            rows.push(gaussian_velocity(&level.narrow(0, row, 1)?, *time, finest + i)?);
        }
        out.push(Tensor::cat(&rows, 0)?);
    }
    Ok(out)
}

fn path() -> Path {
    Path::new(&FlowConfig { levels: 3, ..Default::default() }).unwrap()
}

fn noise(ids: &[u64]) -> Vec<Tensor> {
    let mut rngs: Vec<_> = ids.iter().map(|id| image_rng(3, *id)).collect();
    path().draw_noise(&mut rngs, [2, 8, 8], &Device::Cpu).unwrap()
}

fn sample(solver: &Solver, noise: &[Tensor]) -> Sampled {
    sample_pyramid(&path(), solver, noise, &mut velocity).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_solver_carries_noise_to_the_data() {
    let dopri5 = |control| Solver::Dopri5(Dopri5 { control, ..Default::default() });
    let fixed = |method| Solver::Fixed(method, Grid::Shifted { steps: 200, shift: 0.8 });
    for (solver, bound) in [
        (dopri5(Control::Sample), 2e-4),
        (dopri5(Control::Torchdiffeq), 2e-4),
        (fixed(Method::Heun), 2e-3),
        (fixed(Method::Midpoint), 2e-3),
        (fixed(Method::Euler), 1e-1),
    ] {
        let noise = noise(&[0, 1, 2, 3]);
        let sampled = sample(&solver, &noise);
        for (k, (mean, std)) in DATA.iter().enumerate() {
            for (end, start) in values(&sampled.levels[k]).iter().zip(values(&noise[k])) {
                let wanted = *mean + *std * f64::from(start);
                let error = (f64::from(*end) - wanted).abs();
                assert!(error < bound, "{solver:?} level {k}: {end} for {wanted}");
            }
        }
        let spans: Vec<_> = sampled.costs.iter().map(|cost| cost.segment).collect();
        assert_eq!(spans.iter().map(|s| s.level).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!((spans[0].start, spans[0].end, spans[2].end), (0.0, 0.33, 1.0));
    }
}

#[test]
fn stochastic_sampling_keeps_the_distribution() {
    let ids: Vec<u64> = (0..400).collect();
    for diffusion in [
        Diffusion::Constant,
        Diffusion::Sigma,
        Diffusion::Linear,
        Diffusion::Decreasing,
        Diffusion::IncreasingDecreasing,
    ] {
        // Small steps, and a small last one: it follows the drift alone and draws the data together.
        let grid = Grid::Uniform { steps: 500 };
        let sde = Sde { grid, diffusion, last_step: 0.002, ..Default::default() };
        let mut rngs: Vec<_> = ids.iter().map(|id| image_rng(3, *id)).collect();
        let noise = path().draw_noise(&mut rngs, [2, 8, 8], &Device::Cpu).unwrap();
        let sampled = sde.sample(&path(), &noise, &mut rngs, &mut velocity).unwrap();
        for (k, (mean, std)) in DATA.iter().enumerate() {
            // The data's spread is given in units of the level's noise.
            let ends = moments(&values(&sampled.levels[k]));
            let unit = moments(&values(&noise[k])).1;
            let message =
                format!("{diffusion:?} level {k}: {ends:?} for {mean} and {}", std * unit);
            assert!((ends.0 - mean).abs() < 0.04, "{message}");
            assert!((ends.1 / (std * unit) - 1.0).abs() < 0.06, "{message}");
        }
        let ode = sample(&Solver::Fixed(Method::Euler, sde.grid.clone()), &noise);
        let moved = (&sampled.levels[2] - &ode.levels[2]).unwrap();
        assert!(moments(&values(&moved)).1 > 0.1, "{diffusion:?} added no noise");
    }
}

fn moments(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[test]
fn the_way_can_be_watched() {
    let solver = Solver::Dopri5(Dopri5::default());
    let mut shown = Vec::new();
    let show = |t: f64, levels: &[Tensor]| {
        shown.push((t, levels.len()));
        Ok(())
    };
    let noise = noise(&[5]);
    let times = [0.2, 0.33, 0.5, 1.0];
    let watched = sample_through(&path(), &solver, &noise, &mut velocity, &times, show).unwrap();
    assert_eq!(shown, [(0.2, 1), (0.33, 1), (0.5, 2), (1.0, 3)]);
    let plain = sample(&solver, &noise);
    for (a, b) in values(&watched.levels[0]).iter().zip(values(&plain.levels[0])) {
        assert!((a - b).abs() < 1e-4);
    }
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let solver = Solver::Dopri5(Dopri5::default());
    let together = sample(&solver, &noise(&[4, 9, 7]));
    let alone = sample(&solver, &noise(&[9]));
    assert_eq!(alone.evaluations()[0], together.evaluations()[1]);
    for (a, b) in alone.levels.iter().zip(&together.levels) {
        assert_eq!(values(a), values(&b.narrow(0, 1, 1).unwrap()));
    }
}

#[test]
fn noise_of_other_levels_is_refused() {
    let solver = Solver::Dopri5(Dopri5::default());
    let error = sample_pyramid(&path(), &solver, &noise(&[0])[1..], &mut velocity);
    assert!(error.unwrap_err().to_string().contains("2 levels, not 3"));
}

/// A network whose velocity tells its label and time: x * label + t.
fn network(levels: &[Tensor], times: &[f64], labels: &[u32]) -> lapflow_model::Result<Vec<Tensor>> {
    let column = |values: Vec<f32>| Tensor::from_vec(values, (labels.len(), 1), &Device::Cpu);
    let labels = column(labels.iter().map(|label| *label as f32).collect())?;
    let times = column(times.iter().map(|t| *t as f32).collect())?;
    Ok(levels
        .iter()
        .map(|x| x.broadcast_mul(&labels)?.broadcast_add(&times))
        .collect::<TensorResult<_>>()?)
}

#[test]
fn guidance_combines_both_halves_where_it_applies() {
    let guidance = Guidance { scale: 3.0, interval: (0.2, 0.6) };
    let labels = [1, 2, 4, 5];
    let mut rows = Vec::new();
    let counted = |levels: &[Tensor], times: &[f64], labels: &[u32]| {
        rows.push(times.len());
        network(levels, times, labels)
    };
    let x = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu).unwrap();
    let mut velocity = guided(counted, &labels, 10, guidance);
    let mut ask = |times: [f64; 3]| {
        let query = Query { levels: &[x.clone(), x.clone()], times: &times, samples: &[0, 2, 3] };
        velocity(&query).unwrap()
    };
    // Samples 0 and 3 are guided: (10 + 3 (label - 10)) x + t; sample 2 lies outside: 4 x + t.
    let some = ask([0.2, 0.7, 0.5]);
    let all = ask([0.3, 0.3, 0.3]);
    let none = ask([0.1, 0.1, 0.1]);
    drop(velocity);
    assert_eq!(rows, [5, 6, 3]);
    let check = |v: &[Tensor], factors: [f32; 3], times: [f32; 3]| {
        for level in v {
            let x: Vec<Vec<f32>> = x.to_vec2().unwrap();
            for (i, row) in level.to_vec2::<f32>().unwrap().iter().enumerate() {
                for (v, x) in row.iter().zip(&x[i]) {
                    assert!((v - (factors[i] * x + times[i])).abs() < 1e-4, "{v}");
                }
            }
        }
    };
    check(&some, [-17.0, 4.0, -5.0], [0.2, 0.7, 0.5]);
    check(&all, [-17.0, -8.0, -5.0], [0.3; 3]);
    check(&none, [1.0, 4.0, 5.0], [0.1; 3]);
}

#[test]
fn guided_samples_stay_independent_of_their_batch() {
    let solve = |rows: &[usize]| {
        let labels: Vec<u32> = rows.iter().map(|row| [1, 2, 5][*row]).collect();
        let data: Vec<f32> = rows.iter().map(|row| 0.1 + *row as f32).collect();
        let state = Tensor::from_vec(data, (rows.len(), 1), &Device::Cpu).unwrap();
        let guidance = Guidance { scale: 1.5, interval: (0.3, 0.8) };
        let mut velocity = guided(network, &labels, 0, guidance);
        let solver = Solver::Dopri5(Dopri5::default());
        let steps = &mut StepSizes::default();
        values(&solver.integrate(&mut velocity, vec![state], (0.0, 1.0), steps).unwrap().state[0])
    };
    let together = solve(&[0, 1, 2]);
    assert_eq!([solve(&[0]), solve(&[1]), solve(&[2])].concat(), together);
}
