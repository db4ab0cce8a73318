//! Ranks with a GPU each, which meet in the run folder: `torchrun`, `srun` or `mpirun` starts them.

use crate::error::{Result, TrainError};
use crate::ranks::Communicator;
use crate::rendezvous::agree;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, Id, NcclType, ReduceOp};
use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor, bail};
use std::path::Path;
use std::time::Duration;

/// For how long the ranks of a job wait for each other to start.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of NCCL's id.
const ID_BYTES: usize = 128;

/// All processes of the job, one a GPU.
///
/// Tensors travel between the GPUs in place and on a stream of their own, while Candle's stream goes on
/// computing: cudarc's events of each piece of memory make one stream wait for the other.
pub struct Nccl {
    comm: Comm,
    device: Device,
}

impl Nccl {
    /// Joins the `size` ranks that meet in `folder`, which all of them see.
    ///
    /// # Errors
    /// When `device` is no GPU, another rank does not come, or NCCL refuses.
    pub fn join(device: &Device, rank: usize, size: usize, folder: &Path) -> Result<Self> {
        let context = device.as_cuda_device()?.cuda_stream().context().clone();
        let stream = context.new_stream().map_err(candle_core::Error::wrap)?;
        let word = agree(folder, rank, size, new_id, PATIENCE)?;
        let id = word.split(' ').filter_map(|byte| byte.parse::<u8>().ok());
        let id: Vec<_> = id.map(|byte| byte as std::ffi::c_char).collect();
        let id = <[_; ID_BYTES]>::try_from(id)
            .map_err(|_| TrainError::Config(format!("no NCCL id: {word}")))?;
        let comm = Comm::from_rank(stream, rank, size, Id::uninit(id)).map_err(refused)?;
        Ok(Self { comm, device: device.clone() })
    }

    fn exchange(&self, values: Tensor, exchange: Exchange) -> Result<Tensor> {
        let values = values.to_device(&self.device)?.contiguous()?;
        values.inplace_op1(&Collective { comm: &self.comm, exchange })?;
        Ok(values)
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.world_size()
    }

    fn sum(&self, values: Tensor) -> Result<Tensor> {
        self.exchange(values, Exchange::Sum)
    }

    fn broadcast(&self, values: Tensor, root: usize) -> Result<Tensor> {
        self.exchange(values, Exchange::From(root))
    }

    /// The launcher ends the others.
    fn abort(&self) -> ! {
        std::process::exit(1)
    }
}

/// A new job's id, its bytes in decimal.
fn new_id() -> Result<String> {
    let id = Id::new().map_err(refused)?;
    let bytes = id.internal().iter().map(|&byte| (byte as u8).to_string());
    Ok(bytes.collect::<Vec<_>>().join(" "))
}

fn refused(error: NcclError) -> TrainError {
    TrainError::Config(format!("NCCL: {:?} (is libnccl.so.2 installed?)", error.0))
}

#[derive(Clone, Copy)]
enum Exchange {
    Sum,
    From(usize),
}

/// An exchange of a tensor, as an operation on it.
struct Collective<'a> {
    comm: &'a Comm,
    exchange: Exchange,
}

impl Collective<'_> {
    fn of<T>(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()>
    where
        T: CudaDType + DeviceRepr + NcclType,
    {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("NCCL wants contiguous tensors")
        };
        let mut values = storage.as_cuda_slice_mut::<T>()?.slice_mut(start..end);
        let done = match self.exchange {
            Exchange::Sum => self.comm.all_reduce_in_place(&mut values, &ReduceOp::Sum),
            Exchange::From(root) => self.comm.broadcast_in_place(&mut values, i32::try_from(root)?),
        };
        done.map_err(|error| candle_core::Error::msg(refused(error)))?;
        Ok(())
    }
}

impl InplaceOp1 for Collective<'_> {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        bail!("NCCL takes tensors on a GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        match storage.dtype() {
            DType::F32 => self.of::<f32>(storage, layout),
            DType::F64 => self.of::<f64>(storage, layout),
            other => bail!("ranks exchange f32 and f64, not {other:?}"),
        }
    }
}
