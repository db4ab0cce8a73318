//! A store that fails, stalls and breaks off.
//!
//! Its address reaches `s3://` URIs through the environment, so the reading is done by a process
//! of its own: this test binary again, told to run `reads_from_the_store_in_the_environment`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use lapflow_ingest::{IngestConfig, Outcome, Source};

const KEYS: [&str; 6] =
    ["broken.png", "dead.png", "fails.png", "hangs.png", "sound.png", "stalls.png"];

/// Longer than the reader waits.
const STALL: Duration = Duration::from_secs(3);

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y) as u8, y as u8, 7]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("PNG into memory");
    bytes.into_inner()
}

/// Answers one request; `attempt` counts those for the same key, from 0.
fn answer(stream: &mut TcpStream, key: &str, range_start: Option<usize>, attempt: usize) {
    let content = png();
    let head = |status: &str, length: usize, extra: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"one\"\r\nLast-Modified: \
             Mon, 01 Jan 2024 00:00:00 GMT\r\n{extra}Connection: close\r\n\r\n"
        )
    };
    let whole = || [head("200 OK", content.len(), "").into_bytes(), content.clone()].concat();
    let response = match (key, attempt) {
        ("dead.png", _) | ("fails.png", 0 | 1) => {
            head("503 Service Unavailable", 0, "").into_bytes()
        }
        ("hangs.png", _) | ("stalls.png", 0) => {
            std::thread::sleep(STALL);
            return;
        }
        ("broken.png", 0) => whole()[..whole().len() - 40].to_vec(),
        ("broken.png", _) => {
            let start = range_start.unwrap_or(0);
            let range =
                format!("Content-Range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len());
            let head = head("206 Partial Content", content.len() - start, &range);
            [head.as_bytes(), &content[start..]].concat()
        }
        ("", _) => {
            let object = |key: &&str| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z\
                     </LastModified><ETag>\"one\"</ETag><Size>{}</Size></Contents>",
                    content.len()
                )
            };
            let objects: String = KEYS.iter().map(object).collect();
            let list = format!(
                "<ListBucketResult><Name>images</Name><IsTruncated>false</IsTruncated>{objects}\
                 </ListBucketResult>"
            );
            [head("200 OK", list.len(), "").as_bytes(), list.as_bytes()].concat()
        }
        _ => whole(),
    };
    // The reader may have given up.
    let _ = stream.write_all(&response);
}

/// Serves the bucket `images` for as long as the process lives; returns the port.
fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let attempts = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, attempts) = (stream.expect("a connection"), Arc::clone(&attempts));
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines();
                let head: Vec<String> = lines
                    .by_ref()
                    .map_while(|line| line.ok().filter(|line| !line.is_empty()))
                    .collect();
                let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else {
                    return;
                };
                let path = path.split('?').next().unwrap_or_default();
                let key = path.trim_start_matches("/images").trim_start_matches('/').to_owned();
                let range_start = head.iter().find_map(|line| {
                    let range = line.to_ascii_lowercase();
                    range.strip_prefix("range: bytes=")?.split('-').next()?.parse().ok()
                });
                let attempt = {
                    let mut attempts = attempts.lock().expect("no thread panicked");
                    let count = attempts.entry(key.clone()).or_default();
                    *count += 1;
                    *count - 1
                };
                answer(&mut stream, &key, range_start, attempt);
            });
        }
    });
    port
}

#[test]
fn a_failing_or_stalled_store_is_asked_again_and_then_named() {
    let endpoint = format!("http://127.0.0.1:{}", serve());
    let output = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "reads_from_the_store_in_the_environment", "--ignored", "--nocapture"])
        .env("AWS_ENDPOINT", endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "nowhere")
        .env("AWS_ACCESS_KEY_ID", "someone")
        .env("AWS_SECRET_ACCESS_KEY", "something")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(".png")).collect();
    let words = |key: &str| {
        let found = lines.iter().find(|line| line.starts_with(key));
        found.unwrap_or_else(|| panic!("{key} is not in {text}"))
    };
    for key in ["broken.png", "fails.png", "sound.png", "stalls.png"] {
        assert_eq!(*words(key), format!("{key} read"));
    }
    for key in ["dead.png", "hangs.png"] {
        let skip = words(key);
        assert!(skip.starts_with(&format!("{key} skipped: unreadable: ")), "{skip}");
        assert!(skip.contains(&format!("images/{key}")), "{skip}");
    }
}

#[tokio::test]
#[ignore = "run by the test above, with a store in the environment"]
async fn reads_from_the_store_in_the_environment() {
    let config = IngestConfig {
        source: "s3://images".into(),
        size: 32,
        skip_fraction_max: 1.0,
        request_seconds_max: 1,
        retry_seconds_max: 3,
        ..IngestConfig::default()
    };
    let source = Arc::new(Source::open(&config).await.expect("opens"));
    let order = (0..source.entries().len()).collect();
    let outcomes: Vec<_> = source.stream(order).collect().await;
    println!();
    for outcome in outcomes {
        match outcome.expect("the job goes on") {
            Outcome::Image(item) => println!("{} read", item.key),
            Outcome::Skip(skip) => println!("{} skipped: {}", skip.key, skip.reason),
        }
    }
}
