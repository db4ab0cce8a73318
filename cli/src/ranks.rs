//! The ranks of a training job, and the GPU of each: what a launcher leaves in the environment.

use crate::commands::environment;
use crate::config::Config;
use anyhow::{Result, bail};
use candle_core::Device;
use lapflow_train::{Alone, Communicator};
use std::rc::Rc;

/// A launcher's variables: rank, size, and the rank among those of this machine.
const LAUNCHERS: [[&str; 3]; 4] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
];

/// One process of several that were started together.
struct Launched {
    rank: usize,
    size: usize,
    local: usize,
    /// The variable that gave the size.
    source: &'static str,
}

fn launched() -> Option<Launched> {
    let number = |name| environment(name).and_then(|text| text.parse::<usize>().ok());
    LAUNCHERS.iter().find_map(|&[rank, source, local]| {
        let (rank, size) = (number(rank)?, number(source).filter(|&size| size > 1)?);
        Some(Launched { rank, size, local: number(local).unwrap_or(0), source })
    })
}

/// This process among those of this machine, which have a GPU each.
pub fn local_rank() -> usize {
    launched().map_or(0, |launched| launched.local)
}

/// The ranks that this process was started with: over NCCL on GPUs, over MPI else.
pub fn join(config: &Config, device: &Device) -> Result<Rc<dyn Communicator>> {
    let Some(Launched { rank, size, source, .. }) = launched() else { return Ok(Rc::new(Alone)) };
    let _ = (rank, config);
    #[cfg(feature = "nccl")]
    if device.is_cuda() {
        let folder = config.train.folder.join("ranks");
        return Ok(Rc::new(lapflow_train::Nccl::join(device, rank, size, &folder)?));
    }
    let missing = if device.is_cuda() { "NCCL or MPI" } else { "MPI" };
    mpi(size, source, missing)
}

#[cfg(feature = "mpi")]
fn mpi(size: usize, source: &str, _missing: &str) -> Result<Rc<dyn Communicator>> {
    let mpi = lapflow_train::Mpi::join()?;
    if mpi.size() != size {
        bail!(
            "{size} processes were started together ({source}), but MPI sees {}: each would \
             train by itself into the same folder; srun wants --mpi=pmix",
            mpi.size()
        )
    }
    Ok(Rc::new(mpi))
}

#[cfg(not(feature = "mpi"))]
fn mpi(size: usize, source: &str, missing: &str) -> Result<Rc<dyn Communicator>> {
    bail!(
        "{size} processes were started together ({source}) and this lapflow was built without \
         {missing}: each would train by itself into the same folder"
    )
}
