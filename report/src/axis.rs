//! Axes: the range of a chart, its ticks and their labels.

use super::Scale;

/// The range that an axis shows.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

/// A marked place on an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// From 0 at the axis' low end to 1 at its high end.
    pub place: f64,
    pub label: String,
}

impl Axis {
    /// The axis from the least to the greatest of `values`, widened by `margin` (a share of the
    /// axis) on both sides. Values that it [cannot show](Self::shows) do not count.
    pub fn spanning(scale: Scale, values: impl Iterator<Item = f64>, margin: f64) -> Self {
        let mapped = values.filter(|&value| showable(scale, value)).map(|value| map(scale, value));
        let (low, high) = mapped
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = match (low, high) {
            (low, high) if low > high => (0.0, 1.0),
            (only, high) if only == high => {
                let reach = if scale == Scale::Linear && only != 0.0 { only.abs() } else { 1.0 };
                (only - reach / 2.0, only + reach / 2.0)
            }
            range => range,
        };
        let extra = (high - low) * margin;
        Self { scale, low: low - extra, high: high + extra }
    }

    /// Whether `value` has a place on this kind of axis: it is finite, and positive if the axis is
    /// logarithmic.
    pub fn shows(&self, value: f64) -> bool {
        showable(self.scale, value)
    }

    /// Where `value` lies, from 0 at the low end to 1 at the high end.
    pub fn place(&self, value: f64) -> f64 {
        (map(self.scale, value) - self.low) / (self.high - self.low)
    }

    /// About `count` ticks at round values.
    pub fn ticks(&self, count: usize) -> Vec<Tick> {
        let values = match self.scale {
            Scale::Linear => round_values(self.low, self.high, count),
            Scale::Log => self.log_values(count),
        };
        let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        values
            .into_iter()
            .map(|value| Tick { place: self.place(value), label: tick_label(value, largest) })
            .collect()
    }

    /// Powers of ten, with their double and fivefold where there are few, or round values where
    /// the axis spans hardly a decade.
    fn log_values(&self, count: usize) -> Vec<f64> {
        let within = |value: &f64| (0.0..=1.0).contains(&self.place(*value));
        let decades = self.low.floor() as i32..=self.high.ceil() as i32;
        let stride = ((self.high - self.low) / count as f64).ceil().max(1.0) as usize;
        for factors in [&[1.0][..], &[1.0, 2.0, 5.0]] {
            let values: Vec<f64> = decades
                .clone()
                .step_by(stride)
                .flat_map(|decade| factors.iter().map(move |factor| factor * 10f64.powi(decade)))
                .filter(within)
                .collect();
            if values.len() * 2 > count {
                return values;
            }
        }
        round_values(10f64.powf(self.low), 10f64.powf(self.high), count)
            .into_iter()
            .filter(|&value| value > 0.0)
            .collect()
    }
}

/// A number to four significant digits, for legends.
pub fn short_number(value: f64) -> String {
    if !value.is_finite() {
        return "not finite".to_owned();
    }
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    match magnitude {
        -4..=5 => format!("{value:.*}", (3 - magnitude).clamp(0, 7) as usize),
        _ => format!("{value:.3e}"),
    }
}

fn showable(scale: Scale, value: f64) -> bool {
    value.is_finite() && (scale == Scale::Linear || value > 0.0)
}

fn map(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log => value.log10(),
    }
}

/// About `count` multiples of 1, 2 or 5 times a power of ten from `low` to `high`.
fn round_values(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough * 0.9999);
    let step = factor.unwrap_or(10.0) * power;
    let slack = step * 1e-6;
    let first = ((low - slack) / step).ceil();
    let steps = (((high + slack) / step).floor() - first).max(0.0) as usize;
    (0..=steps).map(|i| (first + i as f64) * step).collect()
}

/// `value` in the unit (thousands, millions, ...) that suits an axis up to `largest`.
fn tick_label(value: f64, largest: f64) -> String {
    let (unit, suffix) = match largest {
        l if l >= 1e12 || (l > 0.0 && l < 1e-4) => return format!("{value:.0e}"),
        l if l >= 1e9 => (1e9, "G"),
        l if l >= 1e6 => (1e6, "M"),
        l if l >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let digits = format!("{:.6}", value / unit);
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    match digits {
        "0" | "-0" => "0".to_owned(),
        digits => format!("{}{suffix}", digits.replace('-', "\u{2212}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, values: &[f64], count: usize) -> Vec<String> {
        let axis = Axis::spanning(scale, values.iter().copied(), 0.0);
        axis.ticks(count).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(labels(Scale::Linear, &[0.0, 1.0], 5), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(Scale::Linear, &[0.0, 20_000.0], 4), ["0", "5k", "10k", "15k", "20k"]);
        assert_eq!(labels(Scale::Linear, &[-3.0, 4.0], 4), ["\u{2212}2", "0", "2", "4"]);
    }

    #[test]
    fn log_ticks_are_decades_or_finer() {
        assert_eq!(labels(Scale::Log, &[0.001, 10.0], 5), ["0.001", "0.01", "0.1", "1", "10"]);
        assert_eq!(labels(Scale::Log, &[0.1, 1.0], 5), ["0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(Scale::Log, &[0.31, 0.45], 4), ["0.35", "0.4", "0.45"]);
    }

    #[test]
    fn any_range_has_a_bounded_number_of_ticks_on_the_axis() {
        let ends = [-1e30, -1.0, 0.0, 1e-300, 1e-9, 0.1, 0.1 + 1e-12, 1.0, 7.3, 1e9, 1e30];
        for (&a, &b) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::spanning(scale, [a, b, f64::NAN].into_iter(), 0.04);
                let ticks = axis.ticks(5);
                assert!(ticks.len() <= 12, "{a} {b} {scale:?}: {ticks:?}");
                assert!(
                    ticks.iter().all(|tick| (-1e-3..=1.001).contains(&tick.place)),
                    "{a} {b} {scale:?}: {ticks:?}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_shown_does_not_stretch_the_axis() {
        let axis =
            Axis::spanning(Scale::Log, [0.0, -1.0, f64::INFINITY, 1.0, 100.0].into_iter(), 0.0);
        assert_eq!(axis.place(10.0), 0.5);
        assert!(!axis.shows(0.0) && !axis.shows(f64::INFINITY) && axis.shows(1e9));
        let empty = Axis::spanning(Scale::Linear, [f64::NAN].into_iter(), 0.0);
        assert_eq!((empty.place(0.0), empty.place(1.0)), (0.0, 1.0));
    }

    #[test]
    fn legends_keep_four_digits() {
        let numbers = [0.0, 0.123456, 12.3456, 123456.0, 1e-7, f64::NAN].map(short_number);
        assert_eq!(numbers, ["0.000", "0.1235", "12.35", "123456", "1.000e-7", "not finite"]);
    }
}
