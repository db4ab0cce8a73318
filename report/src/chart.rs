//! Curves as inline SVG.
//!
//! The drawing stretches with the page while its labels are HTML and keep their size, so that a
//! chart is as readable on a phone as on a desk.

use super::axis::{Axis, short_number};
use super::html::escape;
use super::{Curves, Scale, Series};

/// The SVG's coordinates run from 0 to this on both axes.
const SIDE: f64 = 1000.0;
/// Columns that a line is thinned to; each keeps its extremes.
const COLUMNS_MAX: usize = 400;
/// Series of no more points than this are drawn as they are, each point with a dot.
const POINTS_DOTTED_MAX: usize = 24;
/// Colours that the style sheet has.
const COLOURS: usize = 6;
/// Ticks that an axis gets, about.
const TICKS: usize = 5;

/// The chart of `curves` as HTML.
pub fn curves_html(curves: &Curves) -> String {
    let points = || curves.series.iter().flat_map(|series| &series.points);
    let chart = Chart {
        x_axis: Axis::spanning(Scale::Linear, points().map(|point| point.0), 0.0),
        y_axis: Axis::spanning(curves.y_scale, points().map(|point| point.1), 0.05),
        smoothing: curves.smoothing,
    };
    let each = |part: &dyn Fn(usize, &Series) -> String| -> String {
        curves.series.iter().enumerate().map(|(i, series)| part(i % COLOURS, series)).collect()
    };
    format!(
        r#"<figure class="chart">
<figcaption>{caption}</figcaption>
<ul class="legend">{legend}</ul>
<div class="y-label">{y_label}</div>
<div class="plot">{ticks}
<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" aria-label="{description}">
{rules}
{lines}</svg>
</div>
<div class="x-label">{x_label}</div>
</figure>
"#,
        caption = escape(&curves.caption),
        legend = each(&|colour, series| chart.legend_entry(colour, series)),
        y_label = escape(&curves.y_label),
        ticks = chart.tick_labels(),
        description = escape(&chart.description(curves)),
        rules = chart.rules(),
        lines = each(&|colour, series| chart.lines(colour, series)),
        x_label = escape(&curves.x_label),
    )
}

struct Chart {
    x_axis: Axis,
    y_axis: Axis,
    smoothing: f64,
}

impl Chart {
    fn legend_entry(&self, colour: usize, series: &Series) -> String {
        let name = escape(&series.name);
        let last = match self.main_line(series).iter().rfind(|point| self.shows(point)) {
            Some(&(_, y)) => format!(" <b>{}</b>", short_number(y)),
            None => String::new(),
        };
        let hidden = series.points.iter().filter(|point| !self.shows(point)).count();
        let gaps = match hidden {
            0 => String::new(),
            _ => format!(" <em>{hidden} of {} values not drawable</em>", series.points.len()),
        };
        format!(
            r#"<li><svg class="swatch" viewBox="0 0 24 8" aria-hidden="true"><path class="line s{colour}" d="M2 4H22"/></svg>{name}{last}{gaps}</li>"#
        )
    }

    fn tick_labels(&self) -> String {
        let y_ticks = self.y_axis.ticks(TICKS).into_iter().map(|tick| {
            let top = (1.0 - tick.place) * 100.0;
            format!(r#"<span class="tick-y" style="top:{top:.2}%">{}</span>"#, tick.label)
        });
        let x_ticks = self.x_axis.ticks(TICKS).into_iter().map(|tick| {
            let left = tick.place * 100.0;
            format!(r#"<span class="tick-x" style="left:{left:.2}%">{}</span>"#, tick.label)
        });
        y_ticks.chain(x_ticks).collect()
    }

    fn rules(&self) -> String {
        let height = |place: f64| (1.0 - place) * SIDE;
        let ticks = self.y_axis.ticks(TICKS).into_iter();
        let path: String =
            ticks.map(|tick| format!("M0 {:.1}H{SIDE}", height(tick.place))).collect();
        format!(r#"<path class="rule" d="{path}"/>"#)
    }

    fn lines(&self, colour: usize, series: &Series) -> String {
        let raw = match self.smooths(series) {
            true => {
                format!("<path class=\"raw s{colour}\" d=\"{}\"/>\n", self.path(&series.points))
            }
            false => String::new(),
        };
        let dots = match is_dotted(series) {
            true => format!("<path class=\"dots s{colour}\" d=\"{}\"/>\n", self.dots(series)),
            false => String::new(),
        };
        let path = self.path(&self.main_line(series));
        format!("{raw}<path class=\"line s{colour}\" d=\"{path}\"/>\n{dots}")
    }

    /// What a reader who does not see the chart is told.
    fn description(&self, curves: &Curves) -> String {
        let course = |series: &Series| {
            let line = self.main_line(series);
            let mut shown = line.iter().filter(|point| self.shows(point));
            match (shown.next(), shown.next_back()) {
                (Some(first), Some(last)) => {
                    format!("from {} to {}", short_number(first.1), short_number(last.1))
                }
                (Some(only), None) => short_number(only.1),
                (None, _) => "no values".to_owned(),
            }
        };
        let courses =
            curves.series.iter().map(|series| format!("; {}: {}", series.name, course(series)));
        format!("{} over {}{}", curves.y_label, curves.x_label, courses.collect::<String>())
    }

    /// The points of the series' main line: the moving mean where there is noise to smooth.
    fn main_line(&self, series: &Series) -> Vec<(f64, f64)> {
        if self.smooths(series) {
            let drawable: Vec<_> =
                series.points.iter().copied().filter(|p| self.shows(p)).collect();
            moving_mean(&drawable, self.smoothing)
        } else {
            series.points.clone()
        }
    }

    fn smooths(&self, series: &Series) -> bool {
        self.smoothing > 0.0 && !is_dotted(series)
    }

    fn shows(&self, point: &(f64, f64)) -> bool {
        self.x_axis.shows(point.0) && self.y_axis.shows(point.1)
    }

    /// The SVG path with a line of no length, which round line ends make a dot, at every point.
    fn dots(&self, series: &Series) -> String {
        let shown = series.points.iter().filter(|point| self.shows(point));
        shown.map(|point| self.path(std::slice::from_ref(point))).collect()
    }

    /// The SVG path through `points`, broken where a point cannot be shown; a lone point becomes a
    /// line of no length.
    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for run in points.split(|point| !self.shows(point)) {
            let run = thinned(run, COLUMNS_MAX);
            for (i, &(x, y)) in run.iter().enumerate() {
                let (x, y) = (self.x_axis.place(x) * SIDE, (1.0 - self.y_axis.place(y)) * SIDE);
                let command = if i == 0 { 'M' } else { 'L' };
                path.push_str(&format!("{command}{x:.1} {y:.1}"));
            }
            if run.len() == 1 {
                path.push_str("h0");
            }
        }
        path
    }
}

fn is_dotted(series: &Series) -> bool {
    series.points.len() <= POINTS_DOTTED_MAX
}

/// The mean of the points within `width` (a share of the whole range of x) around some
/// [`COLUMNS_MAX`] of the points. Near the start, where curves are steep, the window shrinks so that
/// it stays centred.
fn moving_mean(points: &[(f64, f64)], width: f64) -> Vec<(f64, f64)> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    let reach = (last.0 - first.0) * width / 2.0;
    let stride = points.len().div_ceil(COLUMNS_MAX);
    let centres = points.iter().step_by(stride).chain((stride > 1).then_some(last));
    let mean_around = |&(x, _): &(f64, f64)| {
        let reach = reach.min(x - first.0);
        let start = points.partition_point(|point| point.0 < x - reach);
        let end = points.partition_point(|point| point.0 <= x + reach);
        let window = &points[start..end];
        (x, window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64)
    };
    centres.map(mean_around).collect()
}

/// The lowest and the highest point of each of at most `columns` equal parts of `points`, in order.
fn thinned(points: &[(f64, f64)], columns: usize) -> Vec<(f64, f64)> {
    if points.len() <= columns * 2 {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(columns * 2);
    for column in points.chunks(points.len().div_ceil(columns)) {
        let by_height = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let extremes =
            column.iter().min_by(by_height).into_iter().chain(column.iter().max_by(by_height));
        let mut extremes: Vec<_> = extremes.copied().collect();
        extremes.sort_by(|a, b| a.0.total_cmp(&b.0));
        extremes.dedup();
        kept.extend(extremes);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves(y_scale: Scale, points: Vec<(f64, f64)>) -> Curves {
        Curves {
            caption: "Loss".to_owned(),
            x_label: "step".to_owned(),
            y_label: "loss".to_owned(),
            y_scale,
            smoothing: 0.1,
            series: vec![Series { name: "level 0".to_owned(), points }],
        }
    }

    /// Every coordinate in the paths of `html`.
    fn coordinates(html: &str) -> Vec<f64> {
        let paths = html.split(" d=\"").skip(1).map(|rest| rest.split('"').next().unwrap_or(""));
        let numbers =
            paths.flat_map(|path| path.split(|c: char| c.is_ascii_alphabetic() || c == ' '));
        numbers.filter(|text| !text.is_empty()).map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn hostile_series_stay_within_the_frame() {
        let noisy = |n: usize| (0..n).map(|i| (i as f64, (i as f64 * 1.7).sin() + 1.5)).collect();
        let with_hole: Vec<_> = (0..60)
            .map(|i| (i as f64, if i % 7 == 0 { f64::NAN } else { 1.0 / (1.0 + i as f64) }))
            .collect();
        let cases: [Vec<(f64, f64)>; 8] = [
            vec![],
            vec![(3.0, 0.25)],
            vec![(0.0, f64::NAN)],
            vec![(0.0, f64::INFINITY), (1.0, -1.0), (2.0, 0.0)],
            vec![(1.0, 5.0); 40],
            with_hole,
            noisy(30),
            noisy(20_000),
        ];
        for points in cases {
            for scale in [Scale::Linear, Scale::Log] {
                let html = curves_html(&curves(scale, points.clone()));
                let numbers = coordinates(&html);
                assert!(numbers.iter().all(|v| (-0.1..=SIDE + 0.1).contains(v)), "{html}");
                assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
                assert!(html.len() < 60_000, "{} bytes", html.len());
            }
        }
    }

    #[test]
    fn a_lone_point_is_a_dot_and_gaps_break_the_line() {
        assert!(
            curves_html(&curves(Scale::Linear, vec![(3.0, 0.25)])).contains("d=\"M500.0 500.0h0\"")
        );
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 2.0)];
        let html = curves_html(&curves(Scale::Linear, points));
        assert!(html.contains("h0M666.7"), "{html}");
        assert!(html.contains("1 of 4 values not drawable"));
    }

    #[test]
    fn smoothing_keeps_lines_and_calms_noise() {
        let line: Vec<_> = (0..101).map(|i| (i as f64, 3.0 - 0.02 * i as f64)).collect();
        for (mean, point) in moving_mean(&line, 0.2).iter().zip(&line).take(90) {
            assert!((mean.1 - point.1).abs() < 1e-9);
        }
        let noise: Vec<_> = (0..1000).map(|i| (i as f64, (i % 2) as f64)).collect();
        let means = moving_mean(&noise, 0.1);
        assert!(means[100..].iter().all(|mean| (mean.1 - 0.5).abs() < 0.02));
        assert_eq!(means.last().map(|mean| mean.0), Some(999.0));
    }

    #[test]
    fn thinning_keeps_the_extremes_in_order() {
        let mut points: Vec<_> = (0..50_000).map(|i| (i as f64, (i as f64).sin())).collect();
        points[31_234].1 = 9.0;
        points[777].1 = -9.0;
        let kept = thinned(&points, 100);
        assert!(kept.len() <= 200 && kept.is_sorted_by(|a, b| a.0 < b.0));
        assert!(kept.contains(&(31_234.0, 9.0)) && kept.contains(&(777.0, -9.0)));
    }
}
