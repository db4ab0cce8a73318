//! The Frechet distance of two Gaussians.

use super::linear;
use super::statistics::Gaussian;
use crate::error::{Result, SampleError};

/// |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), in f64.
///
/// The last trace is the sum of the singular values of a product of roots of S1 and S2, so that
/// singular covariances need no offset and give no imaginary parts.
///
/// # Errors
/// When the Gaussians differ in dimension or a value is not finite.
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    let dims = a.mean.len();
    if b.mean.len() != dims {
        let reason = format!("{dims} dimensions against {}", b.mean.len());
        return Err(SampleError::setting("statistics", reason));
    }
    let all = [&a.mean, &b.mean, &a.covariance, &b.covariance];
    if all.iter().any(|values| values.iter().any(|v| !v.is_finite())) {
        return Err(SampleError::setting("statistics", "hold a value that is not finite"));
    }
    let trace = |s: &[f64]| -> f64 { s.iter().step_by(dims + 1).sum() };
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let joint = linear::trace_sqrt_product(&a.covariance, &b.covariance, dims)?;
    Ok(means + trace(&a.covariance) + trace(&b.covariance) - 2.0 * joint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distances() {
        // Diagonal: the sum over dimensions of (m1 - m2)^2 + (s1 - s2)^2; one direction is flat.
        let diagonal = |values: [f64; 3]| {
            (0..9).map(|i| if i % 4 == 0 { values[i / 4] } else { 0.0 }).collect::<Vec<_>>()
        };
        let a = Gaussian { mean: vec![1.0, 2.0, 3.0], covariance: diagonal([4.0, 9.0, 0.0]) };
        let b = Gaussian { mean: vec![1.5, 0.0, 3.0], covariance: diagonal([1.0, 16.0, 25.0]) };
        let distance = frechet_distance(&a, &b).unwrap();
        assert!((distance - (0.25 + 4.0 + 1.0 + 1.0 + 25.0)).abs() < 1e-12, "{distance}");
        assert!(frechet_distance(&a, &a).unwrap().abs() < 1e-12);
    }

    #[test]
    fn other_statistics_are_refused() {
        let gaussian = |dims: usize, value: f64| Gaussian {
            mean: vec![value; dims],
            covariance: vec![0.0; dims * dims],
        };
        let message = |a, b| frechet_distance(&a, &b).unwrap_err().to_string();
        assert!(message(gaussian(2, 0.0), gaussian(3, 0.0)).contains("2 dimensions against 3"));
        assert!(message(gaussian(2, 0.0), gaussian(2, f64::NAN)).contains("not finite"));
    }
}
