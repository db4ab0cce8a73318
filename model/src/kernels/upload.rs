//! Tensors on their way to a device.

use crate::error::Result;
use candle_core::{Device, Tensor};
#[cfg(feature = "cuda")]
use {
    super::with_values,
    candle_core::cuda_backend::cudarc::driver::{CudaStream, PinnedHostSlice},
    candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr},
    candle_core::op::BackpropOp,
    candle_core::{DType, Storage},
    std::collections::{HashMap, hash_map::Entry},
    std::sync::Arc,
};

/// Copies tensors to a device; to a GPU on a stream of its own, while another computes.
///
/// f32 tensors go through pinned memory, which is kept for the next tensor of the same size. Work on
/// the device's own stream that takes such a tensor waits for its copy by cudarc's events.
pub struct Upload {
    device: Device,
    #[cfg(feature = "cuda")]
    cuda: Option<Cuda>,
}

#[cfg(feature = "cuda")]
struct Cuda {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    /// By the number of values.
    pinned: HashMap<usize, PinnedHostSlice<f32>>,
}

impl Upload {
    /// Copies to `device`.
    ///
    /// # Errors
    /// When a GPU refuses a stream.
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let cuda = match device {
            Device::Cuda(device) => {
                let stream = device.cuda_stream().context().new_stream().w()?;
                Some(Cuda { device: device.clone(), stream, pinned: HashMap::new() })
            }
            _ => None,
        };
        Ok(Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            cuda,
        })
    }

    /// `tensor` on the device.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn upload(&mut self, tensor: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(cuda) = self.cuda.as_mut().filter(|_| tensor.dtype() == DType::F32) {
            return Ok(cuda.upload(tensor)?);
        }
        Ok(tensor.to_device(&self.device)?)
    }
}

#[cfg(feature = "cuda")]
impl Cuda {
    fn upload(&mut self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        let count = tensor.elem_count();
        let pinned = match self.pinned.entry(count) {
            Entry::Occupied(pinned) => pinned.into_mut(),
            Entry::Vacant(place) => {
                // SAFETY: written below, before anything reads it.
                place.insert(unsafe { self.stream.context().alloc_pinned::<f32>(count) }.w()?)
            }
        };
        // Waits for the copy before this one, if that is still under way.
        let memory = pinned.as_mut_slice().w()?;
        let tensor = tensor.contiguous()?;
        with_values("upload", [&tensor], |[values]| memory.copy_from_slice(values))?;
        // SAFETY: the copy fills all of it.
        let mut copy = unsafe { self.stream.alloc::<f32>(count) }.w()?;
        self.stream.memcpy_htod(&*pinned, &mut copy).w()?;
        let storage = CudaStorage::wrap_cuda_slice(copy, self.device.clone());
        Ok(Tensor::from_storage(Storage::Cuda(storage), tensor.shape(), BackpropOp::none(), false))
    }
}
