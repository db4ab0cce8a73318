//! Workers killed with SIGKILL at random instants leave the same dataset as one that runs through.
//!
//! The program is its own worker: started as `kill worker IMAGES URI i/N` it runs a job.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Fixture, rows, work};
use lapflow_encode::Status;
use lapflow_store::Dataset;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const KILLS: usize = 50;
const WORKERS: u64 = 2;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", images, uri, worker] => work(images, uri, worker.parse().unwrap()).await,
        ["--list", ..] => println!("kill: test"),
        _ => kill_until_done().await,
    }
}

async fn kill_until_done() {
    let fixture = Fixture::new(60, 11);
    let images = fixture.ingest.source.clone();
    let spawn = |dataset: &str, worker: String| {
        let program = std::env::current_exe().unwrap();
        Command::new(program)
            .args(["worker", &images, &fixture.uri(dataset), &worker])
            .spawn()
            .unwrap()
    };
    let start = Instant::now();
    assert!(spawn("straight", "0/1".into()).wait().unwrap().success());
    let span = start.elapsed();
    let expected = rows(&fixture.uri("straight")).await;
    assert_eq!(expected.len(), 54);
    let statistics = Dataset::open(&fixture.uri("straight")).await.unwrap().statistics();

    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let (mut kills, mut datasets) = (0, 0);
    while kills < KILLS {
        let name = format!("killed-{datasets}");
        datasets += 1;
        loop {
            let workers = (0..WORKERS).map(|index| spawn(&name, format!("{index}/{WORKERS}")));
            let workers: Vec<Child> = workers.collect();
            let patience = if kills < KILLS { span } else { 20 * span };
            tokio::time::sleep(rng.random_range(Duration::ZERO..patience)).await;
            let killed = workers.into_iter().map(kill).filter(|&killed| killed).count();
            kills += killed;
            if killed == 0 {
                break;
            }
        }
        let status = Status::read(&fixture.uri(&name)).await.unwrap();
        assert_eq!((status.missing.len(), status.skips, status.skipped.len()), (0, 6, 6));
        assert!(rows(&fixture.uri(&name)).await == expected, "{name} has other rows");
        let dataset = Dataset::open(&fixture.uri(&name)).await.unwrap();
        assert_eq!(dataset.statistics(), statistics);
    }
    println!("{kills} kills in {datasets} datasets of 9 shards, a run takes {span:?}: all equal");
}

/// Kills a worker; whether it was still at work. One that ended by itself must have succeeded.
fn kill(mut worker: Child) -> bool {
    worker.kill().unwrap();
    let status = worker.wait().unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}");
    !status.success()
}
