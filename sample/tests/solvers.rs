//! Solvers against torchdiffeq, and the promises of error control per sample.

use candle_core::{D, DType, Device, Result as TensorResult, Tensor};
use lapflow_sample::Solver;
use lapflow_sample::solver::{Control, Dopri5, Grid, Method, Query, StepSizes};
use serde::Deserialize;

#[derive(Clone, Deserialize)]
struct Case {
    ode: String,
    f64: bool,
    method: String,
    times: Vec<f64>,
    tolerance: f64,
    start: Vec<Vec<Vec<f64>>>,
    end: Vec<Vec<Vec<f64>>>,
    evaluations: usize,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("golden/solvers.json")).unwrap()
}

impl Case {
    fn state(&self) -> Vec<Tensor> {
        let dtype = if self.f64 { DType::F64 } else { DType::F32 };
        let tensor = |rows: &Vec<Vec<f64>>| Tensor::new(rows.clone(), &Device::Cpu).unwrap();
        self.start.iter().map(|rows| tensor(rows).to_dtype(dtype).unwrap()).collect()
    }

    fn span(&self) -> (f64, f64) {
        (self.times[0], *self.times.last().unwrap())
    }

    /// The largest difference from the golden end, relative to its largest value.
    fn error(&self, state: &[Tensor]) -> f64 {
        let scale = self.end.iter().flatten().flatten().fold(0.0, |m: f64, v| m.max(v.abs()));
        let mut error = 0f64;
        for (level, rows) in state.iter().zip(&self.end) {
            let level: Vec<Vec<f64>> = level.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
            for (a, b) in level.iter().flatten().zip(rows.iter().flatten()) {
                assert!(!a.is_nan(), "NaN");
                error = error.max((a - b).abs());
            }
        }
        error / scale
    }
}

fn column(y: &Tensor, i: usize) -> TensorResult<Tensor> {
    y.narrow(1, i, 1)
}

/// Right-hand sides of golden/solvers.py, by name, at a time for each row.
fn derivative(ode: &str, t: &Tensor, y: &[Tensor]) -> TensorResult<Vec<Tensor>> {
    let first = &y[0];
    Ok(match ode {
        "decay" => vec![(first.sqr()? * first)?.affine(-2.0, 0.0)?],
        "rotation" => {
            vec![(Tensor::cat(&[&column(first, 1)?, &column(first, 0)?.neg()?], 1)? * 6.0)?]
        }
        "forced" => {
            vec![(first.broadcast_mul(&(t * 9.0)?.cos()?)? + (first * 4.0)?.sin()?)?]
        }
        "van_der_pol" => {
            let (x, v) = (column(first, 0)?, column(first, 1)?);
            let damping = x.sqr()?.affine(-30.0, 30.0)?;
            vec![Tensor::cat(&[&v, &((damping * &v)? - x)?], 1)?]
        }
        "lorenz" => {
            let (a, b, c) = (column(first, 0)?, column(first, 1)?, column(first, 2)?);
            let da = ((&b - &a)? * 10.0)?;
            let db = ((&a * c.affine(-1.0, 28.0)?)? - &b)?;
            let dc = ((a * b)? - (c * (8.0 / 3.0))?)?;
            vec![Tensor::cat(&[da, db, dc], 1)?]
        }
        "to_data" => {
            vec![first.affine(-1.0, 0.5)?.broadcast_div(&t.affine(-1.0, 1.02)?)?]
        }
        "coupled" => {
            let coarse = ((&y[1] * 3.0)?.sin()? - y[1].broadcast_mul(t)?)?;
            let mean = (y[1].mean_keepdim(D::Minus1)? * 2.0)?;
            let fine = first.broadcast_mul(&(t * 7.0)?.cos()?)?.broadcast_add(&mean)?;
            vec![fine, coarse]
        }
        other => panic!("no such ODE: {other}"),
    })
}

fn velocity(ode: &str) -> impl FnMut(&Query) -> lapflow_model::Result<Vec<Tensor>> {
    move |query| {
        let level = &query.levels[0];
        let times = Tensor::new(query.times, level.device())?.to_dtype(level.dtype())?;
        Ok(derivative(ode, &times.reshape(((), 1))?, query.levels)?)
    }
}

fn dopri5(tolerance: f64, control: Control) -> Solver {
    Solver::Dopri5(Dopri5 { rtol: tolerance, atol: tolerance, control, ..Default::default() })
}

#[test]
fn torchdiffeq_mode_repeats_torchdiffeq() {
    let mut worst = 0f64;
    for case in cases().iter().filter(|case| case.method == "dopri5") {
        let solver = dopri5(case.tolerance, Control::Torchdiffeq);
        let mut function = velocity(&case.ode);
        let mut steps = StepSizes::default();
        let solution =
            solver.integrate(&mut function, case.state(), case.span(), &mut steps).unwrap();
        let name = format!("{} at {} (f64: {})", case.ode, case.tolerance, case.f64);
        assert_eq!(solution.calls, case.evaluations, "{name}");
        assert!(solution.evaluations.iter().all(|n| *n == case.evaluations), "{name}");
        let error = case.error(&solution.state);
        let bound = if case.f64 { 1e-12 } else { 1e-5 };
        assert!(error < bound, "{name}: {error:e}");
        worst = worst.max(if case.f64 { 0.0 } else { error });
    }
    eprintln!("worst relative difference in f32: {worst:e}");
}

#[test]
fn fixed_methods_repeat_torchdiffeq() {
    for case in cases().into_iter().filter(|case| case.method != "dopri5") {
        let method = match case.method.as_str() {
            "euler" => Method::Euler,
            "midpoint" => Method::Midpoint,
            "heun2" => Method::Heun,
            other => panic!("no such method: {other}"),
        };
        let solver = Solver::Fixed(method, Grid::Given(case.times.clone()));
        let mut steps = StepSizes::default();
        let solution = solver
            .integrate(&mut velocity(&case.ode), case.state(), case.span(), &mut steps)
            .unwrap();
        assert_eq!(solution.calls, case.evaluations);
        let error = case.error(&solution.state);
        assert!(error < 2e-6, "{} {}: {error:e}", case.ode, case.method);
    }
}

#[test]
fn the_default_is_as_accurate_as_torchdiffeq() {
    let goldens = cases();
    let golden = |ode: &str, tolerance: f64| {
        let found = |case: &&Case| case.f64 && case.ode == ode && case.tolerance == tolerance;
        goldens.iter().find(found).unwrap().clone()
    };
    for ode in ["decay", "rotation", "forced", "van_der_pol", "lorenz", "to_data", "coupled"] {
        let (loose, exact) = (golden(ode, 1e-5), golden(ode, 1e-9));
        let theirs = exact.error(&Case { start: loose.end.clone(), ..loose.clone() }.state());
        let solution = dopri5(1e-5, Control::Sample)
            .integrate(&mut velocity(ode), loose.state(), loose.span(), &mut StepSizes::default())
            .unwrap();
        let ours = exact.error(&solution.state);
        assert!(ours < 3.0 * theirs + 1e-6, "{ode}: {ours:e}, torchdiffeq {theirs:e}");
    }
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    for case in cases().iter().filter(|case| case.tolerance == 1e-5 && !case.f64) {
        let solve = |state: Vec<Tensor>| {
            let mut steps = StepSizes::default();
            let middle = 0.5 * (case.span().0 + case.span().1);
            let solver = dopri5(case.tolerance, Control::Sample);
            let mut function = velocity(&case.ode);
            let half = solver
                .integrate(&mut function, state, (case.span().0, middle), &mut steps)
                .unwrap();
            solver
                .integrate(&mut function, half.state, (middle, case.span().1), &mut steps)
                .unwrap()
        };
        let together = solve(case.state());
        for row in 0..3 {
            let alone: Vec<Tensor> =
                case.state().iter().map(|level| level.narrow(0, row, 1).unwrap()).collect();
            let alone = solve(alone);
            assert_eq!(alone.evaluations[0], together.evaluations[row], "{}", case.ode);
            for (a, b) in alone.state.iter().zip(&together.state) {
                let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(a), bits(&b.narrow(0, row, 1).unwrap()), "{}", case.ode);
            }
        }
    }
}

#[test]
fn the_default_never_passes_the_end_and_carries_its_step() {
    let case = cases().into_iter().find(|case| case.ode == "to_data" && !case.f64).unwrap();
    let mut inner = velocity("to_data");
    let mut latest = 0f64;
    let mut function = |query: &Query| {
        latest = query.times.iter().fold(latest, |latest, t| latest.max(*t));
        inner(query)
    };
    let mut steps = StepSizes::default();
    let solver = dopri5(1e-5, Control::Sample);
    let first = solver.integrate(&mut function, case.state(), (0.33, 0.67), &mut steps).unwrap();
    let second = solver.integrate(&mut function, first.state, (0.67, 1.0), &mut steps).unwrap();
    // Six evaluations a step and one at the start; the first segment needs one more for its step.
    assert!(first.evaluations.iter().all(|n| n % 6 == 2), "{:?}", first.evaluations);
    assert!(second.evaluations.iter().all(|n| n % 6 == 1), "{:?}", second.evaluations);
    assert_eq!(latest, 1.0);
}

#[test]
fn hopeless_equations_end_with_an_error() {
    let state = || vec![Tensor::new(&[[1f32], [2.0]], &Device::Cpu).unwrap()];
    for control in [Control::Sample, Control::Torchdiffeq] {
        let mut not_a_number = |query: &Query| Ok(vec![(&query.levels[0] * f64::NAN)?]);
        let solve = dopri5(1e-5, control).integrate(
            &mut not_a_number,
            state(),
            (0.0, 1.0),
            &mut StepSizes::default(),
        );
        assert!(solve.unwrap_err().to_string().contains("not finite"));

        let mut blow_up = |query: &Query| Ok(vec![query.levels[0].sqr()?]);
        let solver = Solver::Dopri5(Dopri5 { control, steps_max: 100, ..Default::default() });
        let solve = solver.integrate(&mut blow_up, state(), (0.0, 1.0), &mut StepSizes::default());
        assert!(solve.is_err());
    }
    for rtol in [0.0, -1.0, f64::NAN] {
        let solver = Solver::Dopri5(Dopri5 { rtol, ..Default::default() });
        assert!(solver.validate().unwrap_err().to_string().contains("rtol"));
    }
}
