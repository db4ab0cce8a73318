//! The `lapflow` binary: images to latent pyramids, to a trained flow, to scored samples.

mod autoencoder;
mod commands;
mod config;
mod device;
mod pictures;
mod presets;
mod progress;
mod ranks;
mod signals;

use clap::Parser;
use std::ffi::{c_int, c_long};
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Training allocates and frees the same large tensors step after step: an allocator that keeps its
/// pages spares most of the page faults (see bench/train).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    park_idle_threads();
    keep_pages();
    let cli = commands::Cli::parse();
    let filter = EnvFilter::try_from_env("LAPFLOW_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .init();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lapflow: {}", without_backtrace(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Candle's errors carry a backtrace in their text where `RUST_BACKTRACE` is set: its lines say nothing
/// to those who read them here.
fn without_backtrace(text: &str) -> String {
    let is_frame = |line: &&str| {
        let indented = line.trim_start();
        let number = indented.split_once(": ").map(|(number, _)| number);
        indented.len() < line.len()
            && (indented.starts_with("at ") || number.is_some_and(|n| n.parse::<u32>().is_ok()))
    };
    text.lines().filter(|line| !is_frame(line)).collect::<Vec<_>>().join("\n")
}

/// Lets the threads of Candle's elementwise pool sleep when idle. They spin by default, on cores
/// that our kernels' threads need: training on two cores is a tenth faster without.
#[expect(unsafe_code, reason = "the pool is configured through the environment alone")]
fn park_idle_threads() {
    const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPIN_LIMIT).is_none() {
        // SAFETY: first thing in `main`, so no other thread reads the environment.
        unsafe { std::env::set_var(SPIN_LIMIT, "1") };
    }
}

/// Lets the allocator keep what it has freed: a step's activations come and go, and faulting their
/// pages in anew was a fifth of a training step. `MIMALLOC_PURGE_DELAY` in the environment wins.
#[expect(unsafe_code, reason = "the crate has no call for the allocator's options")]
fn keep_pages() {
    /// `mi_option_purge_delay` of mimalloc 3, in milliseconds.
    const PURGE_DELAY: c_int = 15;
    const NEVER: c_long = -1;
    unsafe extern "C" {
        fn mi_option_set_default(option: c_int, value: c_long);
    }
    // SAFETY: mimalloc.h declares it so, and it may be called at any time; the number is of the
    // version that the workspace pins.
    unsafe { mi_option_set_default(PURGE_DELAY, NEVER) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_tensor_error_comes_without_its_backtrace() {
        let text = "shape mismatch in cat\n   0: candle_core::error::Error::bt\n             at \
                    /src/error.rs:264:25\n  10: main\nin run";
        assert_eq!(super::without_backtrace(text), "shape mismatch in cat\nin run");
        let text = "a.toml, line 3: expected\n  | 12: x";
        assert_eq!(super::without_backtrace(text), text);
    }
}
