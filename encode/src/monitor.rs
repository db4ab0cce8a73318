//! A run's figures for Prometheus, and a health check.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::stats::{EncodeStats, Latencies, StageTimes};

/// Bytes of a request that are looked at.
const REQUEST_BYTES_MAX: usize = 4096;
/// How long a client may take to send its request or take the answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(2);

/// Serves `/metrics` (Prometheus text format) and `/healthz` over HTTP, one client at a time, until
/// it is dropped. There is no authentication: bind it to loopback unless the network is trusted.
pub struct Monitor {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    latest: Mutex<(EncodeStats, Instant)>,
    stalled_after: Duration,
    closed: AtomicBool,
}

impl Monitor {
    /// Listens at `address` (port 0 for a free one). `/healthz` fails when nothing was reported
    /// for `stalled_after`, which must exceed the time of a batch and of a commit.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub fn bind(address: impl ToSocketAddrs, stalled_after: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let latest = Mutex::new((EncodeStats::default(), Instant::now()));
        let state = Arc::new(State { latest, stalled_after, closed: AtomicBool::new(false) });
        let address = listener.local_addr()?;
        let serving = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || serve(&listener, &serving))?;
        Ok(Self { address, state, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shows `stats` from now on; meant for the progress callback of a run.
    pub fn report(&self, stats: &EncodeStats) {
        *self.state.latest.lock().unwrap_or_else(PoisonError::into_inner) =
            (stats.clone(), Instant::now());
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the thread from `accept`; where even that fails, it is left behind.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, state: &State) {
    for stream in listener.incoming() {
        if state.closed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = stream.and_then(|stream| answer(stream, state)) {
            tracing::debug!(%error, "a client of the monitor left early");
        }
    }
}

fn answer(mut stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
    stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let mut request = Vec::new();
    let mut buffer = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        match stream.read(&mut buffer)? {
            0 => break,
            count => request.extend_from_slice(&buffer[..count]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let (stats, reported) = state.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (status, body) = match request.split_whitespace().take(2).collect::<Vec<_>>()[..] {
        ["GET", "/metrics"] => ("200 OK", metrics(&stats)),
        ["GET", "/healthz"] if reported.elapsed() < state.stalled_after => {
            ("200 OK", "ok\n".to_owned())
        }
        ["GET", "/healthz"] => {
            let seconds = reported.elapsed().as_secs();
            ("503 Service Unavailable", format!("nothing was reported for {seconds} s\n"))
        }
        _ => ("404 Not Found", "there are /metrics and /healthz\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// `stats` in the Prometheus text format.
fn metrics(stats: &EncodeStats) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "# HELP lapflow_encode_{name} {help}\n# TYPE lapflow_encode_{name} {kind}"
        );
        for (labels, value) in samples {
            let _ = writeln!(text, "lapflow_encode_{name}{labels} {value}");
        }
    };
    let one = |value: f64| [(String::new(), value)];
    let states = |stage: &str, times: StageTimes| {
        [("busy", times.busy), ("starved", times.starved), ("blocked", times.blocked)]
            .map(|(state, value)| (format!("{{stage=\"{stage}\",state=\"{state}\"}}"), value))
    };
    let stages = [("read", stats.read), ("encode", stats.encode), ("write", stats.write)];
    let stages: Vec<_> =
        stages.into_iter().flat_map(|(stage, times)| states(stage, times)).collect();
    let skips: Vec<_> = stats
        .skipped
        .iter()
        .map(|(reason, &count)| (format!("{{reason=\"{reason}\"}}"), count as f64))
        .collect();
    let queues = [("batches", stats.batches_queued), ("rows", stats.rows_queued)]
        .map(|(queue, length)| (format!("{{queue=\"{queue}\"}}"), length as f64));

    let occupancy = [("read", stats.read), ("encode", stats.encode), ("write", stats.write)]
        .map(|(stage, times)| (format!("{{stage=\"{stage}\"}}"), times.occupancy()));
    let gauges = [
        ("rows_assigned", "Rows this worker is to write.", stats.rows_assigned),
        ("shards_assigned", "Shards this worker is to write.", stats.shards_assigned),
        ("shards_present", "Assigned shards found committed.", stats.shards_present),
        ("images_pending", "Images whose shard is not closed yet.", stats.images_pending),
        ("images_unlabelled", "Images left out, of no known class.", stats.images_unlabelled),
    ];
    let counters = [
        ("rows_total", "Rows (views of images) encoded.", stats.rows_encoded),
        ("bytes_total", "Bytes of levels encoded.", stats.bytes_encoded),
        ("rows_committed_total", "Rows committed.", stats.rows_committed),
        ("shards_committed_total", "Shards committed.", stats.shards_committed),
        ("polls_total", "Looks at the watched source.", stats.polls),
        ("polls_failed_total", "Looks that failed.", stats.polls_failed),
    ];
    for (name, help, value) in gauges {
        family(name, "gauge", help, &one(value as f64));
    }
    for (name, help, value) in counters {
        family(name, "counter", help, &one(value as f64));
    }
    family("skipped_total", "counter", "Images skipped, by reason.", &skips);
    family("stage_seconds_total", "counter", "Seconds of each stage, by state.", &stages);
    family("stage_occupancy", "gauge", "Share of its time that a stage worked.", &occupancy);
    family("queue_length", "gauge", "Batches waiting between stages.", &queues);
    family("seconds", "gauge", "Seconds since the run began.", &one(stats.seconds));
    commit_latencies(&mut text, &stats.commits);
    text
}

/// The commits' latencies as a Prometheus histogram, whose buckets are cumulative.
fn commit_latencies(text: &mut String, commits: &Latencies) {
    const NAME: &str = "lapflow_encode_commit_seconds";
    let mut below = 0;
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {NAME} Seconds a commit took.\n# TYPE {NAME} histogram");
    for (bound, count) in Latencies::BOUNDS.iter().zip(commits.counts) {
        below += count;
        let _ = writeln!(text, "{NAME}_bucket{{le=\"{bound}\"}} {below}");
    }
    let Latencies { count, seconds, .. } = commits;
    let _ = writeln!(text, "{NAME}_bucket{{le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{NAME}_sum {seconds}\n{NAME}_count {count}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(monitor: &Monitor, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(monitor.address()).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[test]
    fn figures_are_served_as_they_were_reported() {
        let monitor = Monitor::bind("127.0.0.1:0", Duration::from_secs(60)).unwrap();
        let read = StageTimes { busy: 1.5, ..StageTimes::default() };
        let skipped = [("truncated".to_owned(), 3)].into();
        let mut commits = Latencies::default();
        [0.02, 0.5, 99.0].into_iter().for_each(|seconds| commits.add(seconds));
        monitor.report(&EncodeStats {
            rows_encoded: 7,
            read,
            skipped,
            commits,
            ..EncodeStats::default()
        });
        let (status, body) = get(&monitor, "GET /metrics");
        assert_eq!(status, "HTTP/1.1 200 OK");
        for line in [
            "lapflow_encode_rows_total 7",
            "lapflow_encode_skipped_total{reason=\"truncated\"} 3",
            "lapflow_encode_stage_seconds_total{stage=\"read\",state=\"busy\"} 1.5",
            "lapflow_encode_stage_occupancy{stage=\"read\"} 1",
            "lapflow_encode_commit_seconds_bucket{le=\"0.03\"} 1",
            "lapflow_encode_commit_seconds_bucket{le=\"1\"} 2",
            "lapflow_encode_commit_seconds_bucket{le=\"30\"} 2",
            "lapflow_encode_commit_seconds_bucket{le=\"+Inf\"} 3",
            "lapflow_encode_commit_seconds_count 3",
        ] {
            assert!(body.lines().any(|found| found == line), "no '{line}' in:\n{body}");
        }
        assert_eq!(get(&monitor, "GET /healthz"), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
        assert_eq!(get(&monitor, "GET /").0, "HTTP/1.1 404 Not Found");
        assert_eq!(get(&monitor, "POST /metrics").0, "HTTP/1.1 404 Not Found");
    }

    #[test]
    fn a_stalled_run_is_not_healthy_and_a_dropped_monitor_is_gone() {
        let monitor = Monitor::bind("127.0.0.1:0", Duration::ZERO).unwrap();
        assert_eq!(get(&monitor, "GET /healthz").0, "HTTP/1.1 503 Service Unavailable");
        let address = monitor.address();
        drop(monitor);
        assert!(TcpStream::connect(address).is_err());
    }
}
