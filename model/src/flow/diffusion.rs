//! DiT's own objective (Ho et al. 2020; Nichol and Dhariwal 2021): the noise is predicted over
//! 1000 steps of a linear schedule, the variance of the reverse step optionally learned beside it.
//!
//! Steps count from 0 (almost clean) to 999 (almost noise); the network is told step / 1000. With
//! `alpha_bar_s = prod (1 - beta)`, `x_s = sqrt(alpha_bar_s) x + sqrt(1 - alpha_bar_s) eps`.

use super::method::{Example, Flow};
use super::path::{mix, per_sample};
use crate::error::{ModelError, Result};
use candle_core::Tensor;

/// Steps of the schedule.
const STEPS: usize = 1000;
const BETA_FIRST: f64 = 1e-4;
const BETA_LAST: f64 = 0.02;

/// The 1000-step linear schedule.
#[derive(Clone, Debug)]
pub struct Diffusion {
    alpha_bar: Vec<f64>,
}

/// One reverse step between two of the schedule's steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reverse {
    /// The step left: what the network is told is `step / 1000`.
    pub step: usize,
    alpha_bar: f64,
    alpha_bar_next: f64,
    /// Log of the posterior's variance, finite for the last step too.
    log_posterior: f64,
}

impl Diffusion {
    /// DDPM's schedule, beta from 1e-4 to 0.02.
    pub fn new() -> Self {
        let beta = |i| BETA_FIRST + (BETA_LAST - BETA_FIRST) * i as f64 / (STEPS - 1) as f64;
        let mut product = 1.0;
        let next = |i| {
            product *= 1.0 - beta(i);
            product
        };
        Self { alpha_bar: (0..STEPS).map(next).collect() }
    }

    /// alpha_bar of `step`.
    pub fn alpha_bar(&self, step: usize) -> f64 {
        self.alpha_bar[step]
    }

    /// The reverse steps of a schedule of `count` of the steps, evenly spread with both ends.
    ///
    /// # Errors
    /// When `count` is not in 2..=1000.
    pub fn reverse(&self, count: usize) -> Result<Vec<Reverse>> {
        if !(2..=STEPS).contains(&count) {
            let reason = format!("{count} diffusion steps, there can be 2 to {STEPS}");
            return Err(ModelError::config("flow", reason));
        }
        let stride = (STEPS - 1) as f64 / (count - 1) as f64;
        let steps: Vec<usize> = (0..count).map(|i| (i as f64 * stride).round() as usize).collect();
        let bar = |i: usize| self.alpha_bar[steps[i]];
        let posterior =
            |i: usize| (1.0 - bar(i) / bar(i - 1)) * (1.0 - bar(i - 1)) / (1.0 - bar(i));
        let reverse = |i: usize| Reverse {
            step: steps[i],
            alpha_bar: bar(i),
            alpha_bar_next: if i == 0 { 1.0 } else { bar(i - 1) },
            log_posterior: posterior(i.max(1)).ln(),
        };
        Ok((0..count).rev().map(reverse).collect())
    }

    fn step(&self, t: f64) -> usize {
        ((t * STEPS as f64).floor().max(0.0) as usize).min(STEPS - 1)
    }
}

impl Default for Diffusion {
    fn default() -> Self {
        Self::new()
    }
}

impl Reverse {
    /// The time the network is told.
    pub fn time(&self) -> f64 {
        self.step as f64 / STEPS as f64
    }

    /// Whether no noise is left after it.
    pub fn is_last(&self) -> bool {
        self.alpha_bar_next == 1.0
    }

    /// The image that `eps` in `x` implies.
    fn denoised(&self, x: &Tensor, eps: &Tensor) -> Result<Tensor> {
        let (signal, noise) = (self.alpha_bar.sqrt(), (1.0 - self.alpha_bar).sqrt());
        Ok(((x - (eps * noise)?)? / signal)?)
    }

    /// DDIM without noise of its own (Song et al. 2021, eq. 12): the same `eps` at the next step.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn ddim(&self, x: &Tensor, answer: &Tensor) -> Result<Tensor> {
        let eps = answer.narrow(1, 0, x.dim(1)?)?;
        let image = self.denoised(x, &eps)?;
        let noise = (1.0 - self.alpha_bar_next).sqrt();
        Ok(((image * self.alpha_bar_next.sqrt())? + (eps * noise)?)?)
    }

    /// DDPM's ancestral step: the posterior's mean, and `white` times the deviation that the
    /// network learned (as many channels again behind its eps), or the posterior's.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn ddpm(&self, x: &Tensor, answer: &Tensor, white: &Tensor) -> Result<Tensor> {
        let channels = x.dim(1)?;
        let eps = answer.narrow(1, 0, channels)?;
        let (of_image, of_state) = self.mean_weights();
        let mean = ((self.denoised(x, &eps)? * of_image)? + (x * of_state)?)?;
        if self.is_last() {
            return Ok(mean);
        }
        if answer.dim(1)? == channels {
            return Ok((mean + (white * (0.5 * self.log_posterior).exp())?)?);
        }
        let log_variance = self.log_variance(&answer.narrow(1, channels, channels)?)?;
        Ok((mean + ((log_variance * 0.5)?.exp()? * white)?)?)
    }

    /// Weights of the image and of the state in the posterior's mean.
    fn mean_weights(&self) -> (f64, f64) {
        let alpha = self.alpha_bar / self.alpha_bar_next;
        let left = 1.0 - self.alpha_bar;
        let of_image = self.alpha_bar_next.sqrt() * (1.0 - alpha) / left;
        (of_image, alpha.sqrt() * (1.0 - self.alpha_bar_next) / left)
    }

    /// `v` in [-1, 1] between the log of the posterior's variance and the log of beta.
    fn log_variance(&self, v: &Tensor) -> Result<Tensor> {
        let log_beta = (1.0 - self.alpha_bar / self.alpha_bar_next).ln();
        let half = 0.5 * (log_beta - self.log_posterior);
        Ok(v.affine(half, self.log_posterior + half)?)
    }
}

impl Flow for Diffusion {
    fn levels(&self) -> usize {
        1
    }

    fn segment(&self, _k: usize) -> (f64, f64) {
        (0.0, 1.0)
    }

    fn example(&self, _k: usize, data: &[Tensor], noise: &[Tensor], t: &[f64]) -> Result<Example> {
        let signal = |t: f64| self.alpha_bar(self.step(t)).sqrt();
        let left = |t: f64| (1.0 - self.alpha_bar(self.step(t))).sqrt();
        let state = mix(t, (&signal, &data[0]), (&left, &noise[0]))?;
        let told = |&t: &f64| self.step(t) as f64 / STEPS as f64;
        let times = t.iter().map(told).collect();
        Ok(Example { states: vec![state], targets: vec![noise[0].clone()], times })
    }

    fn enter(&self, k: usize, _state: Vec<Tensor>, noise: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![noise[k].clone()])
    }

    /// The learned variance's share of the variational bound, in bits a value: the divergence of
    /// the reverse step from the true posterior, the mean held fixed. Step 0 adds no noise, so its
    /// variance is left alone.
    fn penalty(&self, answers: &[Tensor], example: &Example) -> Result<Option<Tensor>> {
        let (answer, eps, x) = (&answers[0], &example.targets[0], &example.states[0]);
        let channels = eps.dim(1)?;
        if answer.dim(1)? == channels {
            return Ok(None);
        }
        let guess = answer.narrow(1, 0, channels)?.detach();
        let v = answer.narrow(1, channels, channels)?;
        let steps: Vec<usize> =
            example.times.iter().map(|t| (t * STEPS as f64).round() as usize).collect();
        let all = self.reverse(STEPS)?;
        let of = |f: &dyn Fn(&Reverse) -> f64| -> Result<Tensor> {
            let values = |t: f64| f(&all[STEPS - 1 - t as usize]);
            let steps: Vec<f64> = steps.iter().map(|&s| s as f64).collect();
            per_sample(&steps, &values, x)
        };
        let low = of(&|r| r.log_posterior)?;
        let range = of(&|r| (1.0 - r.alpha_bar / r.alpha_bar_next).ln() - r.log_posterior)?;
        let log_variance = v.affine(0.5, 0.5)?.broadcast_mul(&range)?.broadcast_add(&low)?;
        // The means differ by the weight of the image times the difference of the images.
        let gap = of(&|r| r.mean_weights().0 * ((1.0 - r.alpha_bar) / r.alpha_bar).sqrt())?;
        let gap = (eps - guess)?.broadcast_mul(&gap)?.sqr()?;
        let excess = log_variance.broadcast_sub(&low)?; // log of the ratio of variances
        let ratio = (excess.neg()?.exp()? + (gap * log_variance.neg()?.exp()?)?)?;
        let divergence = ((excess + ratio)? - 1.0)?;
        let counts = of(&|r| if r.is_last() { 0.0 } else { 0.5 / std::f64::consts::LN_2 })?;
        Ok(Some(divergence.broadcast_mul(&counts)?.mean_all()?))
    }
}
