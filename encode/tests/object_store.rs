//! Workers on an object store: concurrent, some killed, the same rows as on disk.
//!
//! Needs moto's server (`pip install 'moto[server]'`), found in PATH or through
//! `LAPFLOW_MOTO_SERVER`; without it the test says so and skips. Credentials and endpoint are
//! environment variables, so every part that touches the store is a process of its own.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, by_source, rows, watch, work};
use lapflow_encode::Status;

const BUCKET: &str = "lapflow";
const URI: &str = "s3://lapflow/sets/latents";
const WATCHED_URI: &str = "s3://lapflow/sets/watched";

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", images, uri, worker] => work(images, uri, worker.parse().unwrap()).await,
        ["compare", left, right] => {
            assert!(rows(left).await == rows(right).await, "{left} and {right} differ");
            let status = Status::read(left).await.unwrap();
            assert_eq!((status.missing.len(), status.skips, status.skipped.len()), (0, 6, 6));
        }
        ["watch", images, uri] => watch(images, uri).await,
        ["compare-watched", watched, planned] => {
            let (watched, planned) = (rows(watched).await, rows(planned).await);
            assert!(by_source(&watched) == by_source(&planned), "a watcher made other rows");
        }
        ["--list", ..] => println!("object_store: test"),
        _ => match Server::start() {
            Some(server) => run(&server),
            None => eprintln!("skipped: moto_server is not installed"),
        },
    }
}

fn run(server: &Server) {
    let fixture = Fixture::new(60, 11);
    let images = &fixture.ingest.source;
    let local = fixture.uri("latents");
    assert!(server.part(&["worker", images, &local, "0/1"]).wait().unwrap().success());
    let start = |worker: &str| server.part(&["worker", images, URI, worker]);

    let mut kills = 0;
    for patience_ms in [100, 300, 700, 1500] {
        let mut workers = [start("0/2"), start("1/2")];
        std::thread::sleep(Duration::from_millis(patience_ms));
        for worker in &mut workers {
            worker.kill().unwrap();
            kills += usize::from(!worker.wait().unwrap().success());
        }
    }
    let workers = ["0/3", "1/3", "2/3", "0/1"].map(start);
    assert!(workers.into_iter().all(|mut worker| worker.wait().unwrap().success()));
    assert!(server.part(&["compare", URI, &local]).wait().unwrap().success());

    let mut watcher = server.part(&["watch", images, WATCHED_URI]);
    std::thread::sleep(Duration::from_millis(500));
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    assert!(server.part(&["watch", images, WATCHED_URI]).wait().unwrap().success());
    assert!(server.part(&["compare-watched", WATCHED_URI, &local]).wait().unwrap().success());
    println!("on {URI}: the same rows as on disk after {kills} kills and 4 workers at once");
}

/// A moto server, killed on drop.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Option<Self> {
        let program =
            std::env::var("LAPFLOW_MOTO_SERVER").unwrap_or_else(|_| "moto_server".to_owned());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut server = Self { process, address: format!("127.0.0.1:{port}") };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !server.create_bucket() {
            // A launcher that knows no such program ends at once.
            if server.process.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "moto_server did not answer");
            std::thread::sleep(Duration::from_millis(200));
        }
        Some(server)
    }

    fn create_bucket(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(&self.address) else { return false };
        let request = format!(
            "PUT /{BUCKET} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.address
        );
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    /// This program as `arguments`, with the server as its object store.
    fn part(&self, arguments: &[&str]) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .env("AWS_ENDPOINT", format!("http://{}", self.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .spawn()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is left to do when it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
