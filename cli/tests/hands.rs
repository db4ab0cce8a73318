//! What hands do at a command line: two runs in one folder, readers that leave, disks that are full,
//! datasets that have moved, figures that no machine has memory for.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const CONFIG: &str = r#"
[data]
source = "pictures"
dataset = "ds"
size = 32
levels = 2
[model]
width = 32
depth = 1
heads = 2
patch = 1
[flow]
levels = 2
[train]
folder = "run"
steps = 2
batch = 4
[sample]
solver = "euler"
steps = 2
"#;

/// A folder with pictures of two classes, a config, and the dataset and run that it makes.
fn made() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for class in ["ant", "bee"] {
        let place = folder.path().join("pictures").join(class);
        fs::create_dir_all(&place).unwrap();
        for i in 0..4_u8 {
            let picture = image::RgbImage::from_fn(40, 40, |x, y| {
                image::Rgb([x as u8 * 5, y as u8 * 5, i * 50])
            });
            picture.save(place.join(format!("{i}.png"))).unwrap();
        }
    }
    fs::write(folder.path().join("c.toml"), CONFIG).unwrap();
    good(folder.path(), &["encode", "c.toml"]);
    good(folder.path(), &["train", "c.toml"]);
    folder
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapflow"));
    command.current_dir(folder).args(["--device", "cpu"]).args(arguments);
    command
}

fn good(folder: &Path, arguments: &[&str]) -> Output {
    let output = command(folder, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", words(&output));
    output
}

/// The last line that a command which must fail with status 1 says.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", words(&output));
    words(&output).lines().last().unwrap_or_default().to_string()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn one_process_trains_in_a_folder_and_a_kill_leaves_it_free() {
    let folder = made();
    let long = ["train", "c.toml", "--set", "train.folder=long", "--set", "train.steps=10000000"];
    let mut first = command(folder.path(), &long).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !folder.path().join("long/metrics.jsonl").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = refused(folder.path(), &long);
    assert!(said.starts_with(&format!("lapflow: long: process {} on ", first.id())), "{said}");
    first.kill().unwrap();
    first.wait().unwrap();
    let rest = ["train", "c.toml", "--resume", "--set", "train.folder=long"];
    good(folder.path(), &rest);
}

#[test]
fn readers_that_leave_and_full_disks_end_no_command_in_a_panic() {
    let folder = made();
    for arguments in [&["dataset", "info", "ds"][..], &["flops", "c.toml"], &["--help"]] {
        let mut left = command(folder.path(), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(left.stdout.take());
        let output = left.wait_with_output().unwrap();
        assert_eq!((output.status.code(), words(&output).as_str()), (Some(0), ""), "{arguments:?}");
    }
    let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else {
        eprintln!("skipped: there is no /dev/full");
        return;
    };
    let output = command(folder.path(), &["dataset", "info", "ds"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).starts_with("lapflow: stdout: No space left"), "{}", words(&output));
}

#[test]
fn a_page_is_made_without_the_dataset_and_reading_makes_no_folders() {
    let folder = made();
    let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    good(folder.path(), &["report", "run", "--out", "with.html"]);
    fs::rename(folder.path().join("ds"), folder.path().join("moved")).unwrap();
    good(folder.path(), &["report", "run", "--out", "without.html"]);
    assert!(page("with.html").contains("decoded latents"));
    assert!(page("without.html").contains("The dataset cannot be shown"));
    assert!(page("without.html").contains("Gradient norm"));

    for reads in ["sample moved --count 1 --out x", "report moved", "dataset info gone"] {
        let arguments: Vec<&str> = reads.split(' ').collect();
        refused(folder.path(), &arguments);
    }
    for made in ["moved/checkpoints", "gone", "x"] {
        assert!(!folder.path().join(made).exists(), "{made}");
    }
    let above = ["dataset", "verify", "pictures/../moved"];
    good(folder.path(), &above);
}

#[test]
fn what_no_machine_has_memory_for_is_refused_before_it_begins() {
    let folder = made();
    for (arguments, key) in [
        ("train c.toml --set train.folder=big --set train.batch=100000000", "train.batch"),
        ("encode c.toml --set data.dataset=big --set data.batch=100000000", "data.batch"),
        ("sample run --count 1 --out big --batch 100000000000", "sample.batch"),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let said = refused(folder.path(), &arguments);
        assert!(said.starts_with(&format!("lapflow: {key} = 1")), "{said}");
        assert!(said.contains(" GB of memory, ") && said.ends_with(" GB are free"), "{said}");
        assert!(!folder.path().join("big").exists());
    }
}

#[test]
fn a_command_asks_only_for_what_it_uses() {
    let folder = made();
    let without = CONFIG.replace("source = \"pictures\"\n", "");
    fs::write(folder.path().join("t.toml"), without).unwrap();
    good(folder.path(), &["train", "t.toml", "--set", "train.folder=again"]);
    let said = refused(folder.path(), &["encode", "t.toml"]);
    assert_eq!(said, "lapflow: data.source: no source is given");
    let said = refused(folder.path(), &["encode", "c.toml", "--set", "data.dataset=pictures"]);
    assert_eq!(said, "lapflow: pictures: data.dataset is the source itself; name another folder");
}

/// What a config's latents are is said in one place: `flops` counts what `train --dry-run` does.
#[test]
fn all_commands_count_the_same_latents() {
    let folder = tempfile::tempdir().unwrap();
    let counted = |command: &str| -> serde_json::Value {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = good(folder.path(), &arguments);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    for preset in ["demo", "celebahq-256", "celebahq-1024"] {
        let flops = counted(&format!("flops --preset {preset} --json"));
        let set = "--set data.dataset=gone";
        let plan = counted(&format!("train --preset {preset} {set} --dry-run --json"));
        assert_eq!(flops["model"]["mean_macs"], plan["mean_macs"], "{preset}");
        assert_eq!(flops["model"]["segment_macs"], plan["segment_macs"], "{preset}");
    }
}
