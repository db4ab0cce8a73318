//! Workers killed with SIGKILL at random instants leave the same dataset as one that runs through.
//!
//! The program is its own worker: started as `kill worker IMAGES URI i/N` it runs a job, as
//! `kill watch IMAGES URI` it follows a folder.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Fixture, by_source, rows, watch, work};
use lapflow_encode::Status;
use lapflow_store::{Dataset, Worker};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const KILLS: usize = 50;
const WORKERS: u64 = 2;
/// Kills of watchers.
const WATCH_KILLS: usize = 20;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", images, uri, worker] => work(images, uri, worker.parse().unwrap()).await,
        ["watch", images, uri] => watch(images, uri).await,
        ["--list", ..] => println!("kill: test"),
        _ => {
            kill_until_done().await;
            kill_watchers().await;
        }
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

/// Images arrive a few at a time, and the watcher is killed at a random instant after each time.
async fn kill_watchers() {
    let fixture = Fixture::new(60, 11);
    let images = fixture.ingest.source.clone();
    work(&images, &fixture.uri("planned"), Worker::ALONE).await;
    let expected = by_source(&fixture.rows("planned").await);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut kills, mut datasets) = (0, 0);
    while kills < WATCH_KILLS {
        let (inbox, name) = (format!("inbox-{datasets}"), format!("watched-{datasets}"));
        datasets += 1;
        let (inbox, uri) = (fixture.folder.path().join(inbox), fixture.uri(&name));
        std::fs::create_dir(&inbox).unwrap();
        let spawn = || {
            let program = std::env::current_exe().unwrap();
            Command::new(program).arg("watch").arg(&inbox).arg(&uri).spawn().unwrap()
        };
        for index in 0..60 {
            let class = ["ash", "birch", "cedar"][index % 3];
            let key = format!("{class}/{index:03}.png");
            std::fs::create_dir_all(inbox.join(class)).unwrap();
            let beside = inbox.join(".arriving");
            std::fs::copy(std::path::Path::new(&images).join(&key), &beside).unwrap();
            std::fs::rename(&beside, inbox.join(&key)).unwrap();
            if index % 5 == 4 {
                let watcher = spawn();
                let patience = rng.random_range(Duration::ZERO..Duration::from_millis(300));
                tokio::time::sleep(patience).await;
                kills += usize::from(kill(watcher));
            }
        }
        assert!(spawn().wait().unwrap().success());
        let rows = rows(&uri).await;
        assert!(by_source(&rows) == expected, "{name} has other rows");
        let mut ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        ids.dedup();
        assert_eq!(ids.len(), 54);
        let status = Status::read(&uri).await.unwrap();
        assert_eq!((status.open.len(), status.skips, status.skipped.len()), (0, 6, 6));
    }
    println!("{kills} kills of watchers of {datasets} growing folders: all rows there, once");
}

/// Kills a worker; whether it was still at work. One that ended by itself must have succeeded.
fn kill(mut worker: Child) -> bool {
    worker.kill().unwrap();
    let status = worker.wait().unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}");
    !status.success()
}
