//! A training run killed with SIGKILL, through the binary.

use lapflow_model::checkpoint::Checkpoint;
use lapflow_store::{Dataset, Dtype, LevelSpec, Metadata, Posterior, Row};
use lapflow_train::RunFolder;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const STEPS: u64 = 120;
const KILLS: u64 = 4;

async fn dataset(folder: &Path) -> Dataset {
    let spec = |k: usize| LevelSpec { channels: 2, height: 8 >> k, width: 8 >> k };
    let metadata = Metadata {
        autoencoder: serde_json::json!({ "architecture": "pixel" }),
        ..Metadata::new(vec![spec(0), spec(1)], Dtype::F32, Posterior::Mean)
    };
    let dataset = Dataset::create(folder.to_str().unwrap(), &metadata).await.unwrap();
    let mut shard = dataset.shard("0").await.unwrap();
    for id in 0..21i64 {
        let level = |count: i64| -> Vec<f32> {
            (0..count).map(|i| ((i * 7 + id * 13) as f32 * 0.7).sin()).collect()
        };
        let levels = vec![Dtype::F32.encode(&level(128)), Dtype::F32.encode(&level(32))];
        let (source, sha256) = (format!("{id}.png"), [0; 32]);
        let row = Row {
            id,
            label: -1,
            source,
            sha256,
            width: 8,
            height: 8,
            view: 0,
            levels,
            logvar: None,
        };
        shard.push(row).await.unwrap();
    }
    shard.commit().await.unwrap();
    dataset
}

fn train(config: &Path, run: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_lapflow"))
        .arg("train")
        .arg(config)
        .args(["--resume", "--device", "cpu", "--set"])
        .arg(format!("train.folder={}", run.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn newest_step(run: &RunFolder) -> u64 {
    let name = |path: &std::path::PathBuf| path.file_stem()?.to_str()?[5..].parse().ok();
    run.list().unwrap().last().and_then(name).unwrap_or(0)
}

#[test]
fn a_run_killed_again_and_again_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    tokio::runtime::Runtime::new().unwrap().block_on(dataset(&data));
    let config = folder.path().join("config.toml");
    let text = format!(
        "[data]\nsource = 'images'\ndataset = '{}'\n[autoencoder]\nweights = 'pixel'\n[model]\nwidth = 64\n\
         depth = 2\nheads = 4\n[flow]\nlevels = 2\n[train]\nsteps = {STEPS}\nbatch = 8\n\
         accumulate = 2\nema_decay = 0.9\nema_decays = [0.99]\nwarmup_steps = 5\nlr = 1e-3\n\
         clip_norm = 1.0\nlog_every = 5\ncheckpoint_every = 3\nshuffle_window_rows = 16\n",
        data.display()
    );
    std::fs::write(&config, text).unwrap();
    let whole = RunFolder::open(folder.path().join("whole")).unwrap();
    assert!(train(&config, whole.root()).wait().unwrap().success());

    let parts = RunFolder::open(folder.path().join("parts")).unwrap();
    let mut kills = 0;
    while newest_step(&parts) < STEPS {
        let mut child = train(&config, parts.root());
        let until = (STEPS * (kills + 1)).div_ceil(KILLS + 1).min(STEPS);
        while child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
            if kills < KILLS && newest_step(&parts) >= until {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                break;
            }
        }
    }
    assert!(kills >= KILLS - 1, "the run was killed {kills} times only");

    let read = |run: &RunFolder| Checkpoint::read(run.checkpoint(STEPS)).unwrap();
    let (a, b) = (read(&whole), read(&parts));
    for group in ["model", "ema", "ema@0.99", "adam.m", "adam.v"] {
        let (a, b) = (a.group(group), b.group(group));
        assert!(!a.is_empty());
        for (name, tensor) in &a {
            let bits = |tensor: &candle_core::Tensor| -> Vec<u32> {
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect()
            };
            assert_eq!(bits(tensor), bits(&b[name]), "{group} {name}");
        }
    }
    let lines = |run: &RunFolder| -> Vec<u64> {
        run.read_metrics().unwrap().iter().map(|line| line.step).collect()
    };
    assert_eq!(lines(&whole), lines(&parts));
}

#[test]
fn latents_of_another_autoencoder_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    tokio::runtime::Runtime::new().unwrap().block_on(dataset(&data));
    let run = folder.path().join("run");
    let output = Command::new(env!("CARGO_BIN_EXE_lapflow"))
        .args(["train", "--preset", "demo", "--device", "cpu", "--set"])
        .arg(format!("data.dataset={}", data.display()))
        .arg("--set")
        .arg(format!("train.folder={}", run.display()))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.contains("its latents are of"), "{words}");
    assert!(words.contains("pixel") && !run.exists(), "{words}");
}
