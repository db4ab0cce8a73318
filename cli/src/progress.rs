//! Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// Time between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Progress of one job, towards a known end where there is one.
pub struct Progress {
    name: &'static str,
    unit: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    began: Instant,
    begun_at: u64,
    last_line: Instant,
}

impl Progress {
    /// A job called `name` of `total` `unit` (0 where nobody knows), `done` of which are done
    /// already.
    pub fn new(name: &'static str, unit: &'static str, done: u64, total: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done).with_prefix(name);
            let template = match total {
                0 => "{prefix} {spinner} {pos} {msg}",
                _ => "{prefix} [{bar:32}] {pos}/{len} {msg} {eta} left",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self { name, unit, total, bar, began: now, begun_at: done, last_line: now }
    }

    /// `done` of the total are done; `note` says more, e.g. a rate or a loss.
    pub fn update(&mut self, done: u64, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(note.to_string());
        } else if self.last_line.elapsed() >= PLAIN_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}: {}", self.name, self.line(done, note));
        }
    }

    /// The job is over; `summary` stays on the screen.
    pub fn finish(self, summary: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: {summary}", self.name);
    }

    fn line(&self, done: u64, note: &str) -> String {
        let Self { unit, total, .. } = self;
        match total {
            0 => format!("{done} {unit}, {note}"),
            _ => format!("{done}/{total} {unit}, {note}, {} left", self.left(done)),
        }
    }

    fn left(&self, done: u64) -> String {
        let rate = done.saturating_sub(self.begun_at) as f64 / self.began.elapsed().as_secs_f64();
        let seconds = self.total.saturating_sub(done) as f64 / rate.max(1e-9);
        match seconds {
            s if s < 120.0 => format!("{s:.0} s"),
            s if s < 7200.0 => format!("{:.0} min", s / 60.0),
            s => format!("{:.1} h", s / 3600.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_without_a_known_end_promises_none() {
        let open = Progress::new("encode", "images", 0, 0);
        assert_eq!(open.line(160, "9 images/s"), "160 images, 9 images/s");
        let known = Progress::new("encode", "images", 0, 320);
        let line = known.line(160, "9 images/s");
        assert!(
            line.starts_with("160/320 images, 9 images/s, ") && line.ends_with(" left"),
            "{line}"
        );
    }
}
