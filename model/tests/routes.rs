//! Every operation has a way to run on a GPU: a kernel of its own there, or Candle's operations. A
//! kernel that only the CPU has, and that nobody looked at, fails here. The sources are read: a
//! build without the CUDA feature has no other trace of the kernels there.

use candle_core::Device;
use lapflow_model::kernels::check;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Operations of the CPU alone, and the functions that choose Candle's for other devices.
const BY_CANDLE: [(&str, &str); 6] = [
    ("linear", "Linear"),
    ("linear", "Product"),
    ("linear", "ColumnSum"),
    ("conv2d", "Conv2dOp"),
    ("upsample", "Upsample"),
    ("upsample", "SumOfFour"),
];

/// What `doctor` calls the public operations.
const CHECKED_AS: [(&str, &str); 10] = [
    ("attention", "attention"),
    ("conv2d", "convolution"),
    ("gated_residual", "gated residual"),
    ("gelu", "gelu"),
    ("group_norm", "group norm"),
    ("linear", "linear"),
    ("modulated_norm", "modulated norm"),
    ("pyramid_add_up", "pyramid up and add"),
    ("pyramid_down", "pyramid down"),
    ("upsample", "upsampling"),
];

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels")
}

fn source(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Module, name and body of every custom operation in `source`.
fn operations(source: &str) -> Vec<(&str, &str)> {
    let blocks = source.split("\nimpl CustomOp").skip(1).map(|block| {
        let (head, body) = block.split_once('{').unwrap();
        let name = head.split_once(" for ").unwrap().1.trim();
        (name, body.split("\n}\n").next().unwrap())
    });
    blocks.collect()
}

#[test]
fn kernels_have_a_twin_on_cuda_or_leave_it_to_candle() {
    let mut by_candle = BTreeSet::new();
    let mut twins = 0;
    for entry in std::fs::read_dir(kernels()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let (text, module) = (source(&path), path.file_stem().unwrap().to_str().unwrap());
        for (name, body) in operations(&text) {
            assert!(body.contains("fn cpu_fwd"), "{name} in {module} was not read in full");
            if body.contains("fn cuda_fwd") {
                twins += 1;
            } else {
                by_candle.insert((module.to_owned(), name.to_owned()));
                assert!(
                    text.contains("device().is_cpu()"),
                    "{name} in {module} has no CUDA kernel and looks at no device"
                );
            }
        }
    }
    let expected = BY_CANDLE.map(|(module, name)| (module.to_owned(), name.to_owned()));
    assert_eq!(by_candle, BTreeSet::from(expected), "kernels that only the CPU has");
    assert!(twins >= 10, "only {twins} kernels with a twin were found");
}

#[test]
fn doctor_checks_every_public_operation() {
    let module = source(&kernels().join("mod.rs"));
    let exported: BTreeSet<&str> = module
        .lines()
        .filter_map(|line| line.strip_prefix("pub use ")?.strip_suffix(';')?.split_once("::"))
        .flat_map(|(_, names)| names.trim_matches(['{', '}']).split(", "))
        // Types begin with a capital.
        .filter(|name| name.starts_with(char::is_lowercase))
        .filter(|name| !["check", "largest", "matrix_rate"].contains(name))
        .collect();
    assert_eq!(exported, BTreeSet::from(CHECKED_AS.map(|(function, _)| function)));
    let checked = check(&Device::Cpu, rand::random()).unwrap();
    for (function, name) in CHECKED_AS {
        assert!(checked.iter().any(|c| c.name.starts_with(name)), "doctor leaves out {function}");
    }
}
