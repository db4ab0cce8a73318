//! `--device auto|cpu|cuda:N`.

use crate::ranks::local_rank;
use anyhow::{Result, anyhow, bail};
use candle_core::Device;
use candle_core::utils::cuda_is_available;
use std::str::FromStr;

/// The device that tensors live on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where this build and machine have one, else the CPU: the first, or for one of several
    /// processes that a launcher started on a machine, the one of its number among them.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err("expected auto, cpu or cuda:N".into()),
        }
    }
}

impl DeviceChoice {
    /// Opens the device. A GPU with an explicit stream: CUDA's default one is each thread's own, and work of
    /// several threads of ours would not be in order.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if !cuda_is_available() => Ok(Device::Cpu),
            Self::Auto => {
                // Where a launcher shows each process its own GPU alone, that is the first.
                let number = if gpus() == 1 { 0 } else { local_rank() };
                match Device::new_cuda_with_stream(number) {
                    Ok(gpu) => Ok(gpu),
                    // Any other answer is a fault to mend, and no reason to compute for days on a CPU.
                    Err(error) if error.to_string().contains(NO_GPU) => Ok(Device::Cpu),
                    Err(error) => bail!(
                        "cuda:{number}: {} (--device cpu computes without it)",
                        reason(&error.to_string())
                    ),
                }
            }
            Self::Cuda(number) if cuda_is_available() => Device::new_cuda_with_stream(number)
                .map_err(|error| anyhow!("cuda:{number}: {}", reason(&error.to_string()))),
            Self::Cuda(number) => bail!("cuda:{number}: this lapflow was built without CUDA"),
        }
    }
}

/// What the driver answers where there is no GPU, and what stands in for it where there is no driver.
const NO_GPU: &str = "NO_DEVICE";

/// GPUs that this process sees; 0 where that cannot be told.
fn gpus() -> usize {
    #[cfg(feature = "cuda")]
    {
        use candle_core::cuda_backend::cudarc::driver::CudaContext;
        CudaContext::device_count().map_or(0, |count| count as usize)
    }
    #[cfg(not(feature = "cuda"))]
    0
}

/// What the driver answered, without the backtrace that Candle puts below it.
fn reason(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.contains("NO_DEVICE") || line.contains("INVALID_DEVICE") {
        return format!("no such GPU, or no NVIDIA driver, on this machine ({line})");
    }
    line.to_string()
}
