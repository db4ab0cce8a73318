//! Every method samples a distribution whose best network is known: independent normal levels.

use candle_core::{Device, Result, Tensor};
use lapflow_model::flow::{Flow, FlowConfig, Method, image_rng};
use lapflow_model::pyramid;
use lapflow_sample::solver::{Grid, Method as Step};
use lapflow_sample::{Query, Solver, sample_pyramid};

const SHAPE: [usize; 3] = [2, 8, 8];
const IMAGES: u64 = 300;
/// Standard deviation of the data's levels before the residuals lose their coarse part.
const SPREAD: [f64; 3] = [0.3, 0.7, 1.4];

fn noise(flow: &dyn Flow, seed: u64, images: u64) -> Vec<Tensor> {
    let mut rngs: Vec<_> = (0..images).map(|i| image_rng(seed, i)).collect();
    flow.draw_noise(&mut rngs, SHAPE, &Device::Cpu).unwrap()
}

/// `x` without its coarse part, unless it is the coarsest level.
fn residual(x: &Tensor, coarsest: bool) -> Result<Tensor> {
    if coarsest { Ok(x.clone()) } else { x - pyramid::up(&pyramid::down(x)?)? }
}

fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(f64::from((a * b)?.sum_all()?.to_scalar::<f32>()?))
}

/// What data and noise of pyramid level `level` each become in the state and the target of stage
/// `k` at `t`: ((in state, in target) of the data, of the noise), from probes through `example`.
fn factors(flow: &dyn Flow, k: usize, level: usize, t: f64) -> Result<[(f64, f64); 2]> {
    let levels = flow.levels();
    let probe = residual(&noise(flow, 9, 1)[level], level + 1 == levels)?;
    let zero: Vec<Tensor> =
        noise(flow, 9, 1).iter().map(Tensor::zeros_like).collect::<Result<_>>()?;
    let answer = |data: &[Tensor], noise: &[Tensor]| -> Result<(f64, f64)> {
        let example = flow.example(k, data, noise, &[t]).unwrap();
        let of = |x: &Tensor| -> Result<f64> {
            let part = &pyramid::split(x, levels - k)?[level - k];
            Ok(dot(part, &probe)? / dot(&probe, &probe)?)
        };
        Ok((of(&example.states[0])?, of(&example.targets[0])?))
    };
    let mut data = zero.clone();
    data[level] = probe.clone();
    let mut loud = zero.clone();
    let mut raised = probe.clone();
    for _ in k..level {
        raised = pyramid::up(&raised)?;
    }
    loud[k] = raised;
    Ok([answer(&data, &zero)?, answer(&zero, &loud)?])
}

/// E[target | state], level by level.
fn best(flow: &dyn Flow, query: &Query) -> Result<Vec<Tensor>> {
    let levels = flow.levels();
    let x = &query.levels[0];
    let k = (SHAPE[1] / x.dim(2)?).ilog2() as usize;
    let mut parts = pyramid::split(x, levels - k)?;
    for (i, part) in parts.iter_mut().enumerate() {
        let [data, noise] = factors(flow, k, k + i, query.times[0])?;
        // White noise at level k has 4^-i of its variance left i levels further down.
        let (d, n) = (SPREAD[k + i].powi(2), 0.25f64.powi(i as i32));
        let gain = (data.1 * data.0 * d + noise.1 * noise.0 * n)
            / (data.0 * data.0 * d + noise.0 * noise.0 * n);
        *part = (&*part * gain)?;
    }
    Ok(vec![pyramid::merge(&parts)?])
}

#[test]
fn jumps_and_segments_together_sample_the_data() {
    for (method, levels) in [
        (Method::Pyramidal, 1),
        (Method::Pyramidal, 2),
        (Method::Pyramidal, 3),
        (Method::Edify, 2),
        (Method::Edify, 3),
    ] {
        let config = FlowConfig { method, levels, ..FlowConfig::default() };
        let flow = config.build().unwrap();
        let flow = flow.as_ref();
        let solver = Solver::Fixed(Step::Heun, Grid::Uniform { steps: 60 });
        let mut velocity = |query: &Query| best(flow, query).map_err(Into::into);
        let sampled =
            sample_pyramid(flow, &solver, &noise(flow, 3, IMAGES), &mut velocity).unwrap();
        let image = flow.image(&sampled.levels).unwrap();
        assert_eq!(image.dims()[1..], SHAPE);
        for (k, level) in pyramid::split(&image, levels).unwrap().iter().enumerate() {
            let kept = if k + 1 == levels { 1.0 } else { 0.75 };
            let variance = dot(level, level).unwrap() / level.elem_count() as f64 / kept;
            let error = (variance.sqrt() / SPREAD[k] - 1.0).abs();
            eprintln!("{method:?}, {levels} levels: level {k} off by {:.2}%", 100.0 * error);
            assert!(error < 0.04, "{method:?}, {levels} levels, level {k}: {error}");
        }
    }
}
