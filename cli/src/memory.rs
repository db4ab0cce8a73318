//! The memory that is there, and whether a job fits into it.

use anyhow::{Result, bail};
use candle_core::Device;
use std::fs;

/// Refuses a job that needs more bytes of `device`'s memory than are free; `what` says what for,
/// and which key makes it less. Where nothing tells how much is free, every job is let through.
pub fn check(what: &str, bytes: u64, device: &Device) -> Result<()> {
    match free(device) {
        Some(free) if bytes > free => bail!(
            "{what} needs about {:.1} GB of memory, {:.1} GB are free",
            bytes as f64 / 1e9,
            free as f64 / 1e9
        ),
        _ => Ok(()),
    }
}

fn free(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return cuda.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free as u64);
    }
    match device.is_cpu() {
        true => [available(), left_in_group()].into_iter().flatten().min(),
        false => None,
    }
}

/// What Linux can give without swapping.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What the control group of a container or batch job leaves, if it has a limit.
fn left_in_group() -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_with_both_figures() {
        check("a batch", 1 << 20, &Device::Cpu).unwrap();
        if free(&Device::Cpu).is_some() {
            let error = check("a batch", 1 << 60, &Device::Cpu).unwrap_err().to_string();
            let start = "a batch needs about 1152921504.6 GB of memory, ";
            assert!(error.starts_with(start) && error.ends_with(" GB are free"), "{error}");
        }
    }
}
