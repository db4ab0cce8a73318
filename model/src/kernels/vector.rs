//! Loops compiled for the processor at hand, and the elementary functions they need.

/// Runs `f`, compiled for the widest vector instructions this processor has.
///
/// Everything `f` calls must be `#[inline(always)]` to profit.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Values that loops take at a time: one register of AVX-512, two of AVX2.
pub(super) const LANES: usize = 16;
/// [`LANES`] values.
pub(super) type Row = [f32; LANES];

/// A row from at most [`LANES`] `values`. By value: a row whose address is taken would not stay in
/// registers.
#[inline(always)]
pub(super) fn load(values: &[f32]) -> Row {
    match Row::try_from(values) {
        Ok(row) => row,
        Err(_) => {
            let mut row = [0f32; LANES];
            row[..values.len()].copy_from_slice(values);
            row
        }
    }
}

/// The first columns of `row` to `values`, as many as it has.
#[inline(always)]
pub(super) fn store(row: Row, values: &mut [f32]) {
    match <&mut Row>::try_from(&mut *values) {
        Ok(values) => *values = row,
        Err(_) => {
            let len = values.len();
            values.copy_from_slice(&row[..len]);
        }
    }
}

/// Sum of `f` of the slices' values side by side, in a fixed order that vectorizes.
///
/// # Panics
/// When a slice is shorter than the first.
#[inline(always)]
pub(crate) fn sum<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let slices = slices.map(|values| values[..slices[0].len()].as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for i in 0..slices[0].0.len() {
        let chunks = slices.map(|(chunks, _)| &chunks[i]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(chunks.map(|chunk| chunk[lane]));
        }
    }
    for i in 0..slices[0].1.len() {
        lanes[i] += f(slices.map(|(_, rest)| rest[i]));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest value, `-inf` of none.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    // Not `f32::max`: what it does of NaN is not one instruction.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}

/// e^x to 2 units in the last place for x in [-87, 88], clamped outside.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

/// Hyperbolic tangent through [`exp`], absolute error below 2e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elementary_functions_agree_with_f64() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01 + 0.003;
            let want = (x as f64).exp();
            assert!(((exp(x) as f64 - want) / want).abs() < 3e-7, "exp({x})");
            assert!((tanh(x) as f64 - (x as f64).tanh()).abs() < 2e-7, "tanh({x})");
        }
        assert!(exp(-1e30) < 1e-37);
    }

    #[test]
    fn max_sees_every_element() {
        for count in 1..70 {
            for at in 0..count {
                let values: Vec<f32> =
                    (0..count).map(|i| if i == at { 2.0 } else { -1.0 }).collect();
                assert_eq!(max(&values), 2.0);
            }
        }
    }

    #[test]
    fn sum_takes_every_element_once() {
        for count in 0..70 {
            let values: Vec<f32> = (1..=count).map(|i| i as f32).collect();
            assert_eq!(sum([&values], |[x]| x), (count * (count + 1) / 2) as f32);
            let pairs = sum([&values, &values], |[a, b]| a - 0.5 * b);
            assert_eq!(pairs, (count * (count + 1)) as f32 / 4.0);
        }
    }
}
