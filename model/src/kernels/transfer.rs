//! Tensors on their way to a device and back.

use crate::error::Result;
use candle_core::{Device, Tensor};
#[cfg(feature = "cuda")]
use {
    super::with_values,
    candle_core::cuda_backend::cudarc::driver::{CudaStream, PinnedHostSlice},
    candle_core::cuda_backend::{CudaDevice, CudaStorage, WrapErr},
    candle_core::op::BackpropOp,
    candle_core::{DType, Storage, bail},
    std::collections::{HashMap, hash_map::Entry},
    std::sync::Arc,
};

/// Copies tensors to a device; to a GPU on a stream of its own, while another computes.
///
/// f32 tensors go through pinned memory, which is kept for the next tensor of the same size. Work that
/// the device's own stream is given after an upload waits for its copy.
pub struct Upload {
    device: Device,
    #[cfg(feature = "cuda")]
    cuda: Option<CudaUpload>,
}

#[cfg(feature = "cuda")]
struct CudaUpload {
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
        Ok(Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            cuda: copy_stream(device)?.map(|(device, stream)| CudaUpload {
                device,
                stream,
                pinned: HashMap::new(),
            }),
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
impl CudaUpload {
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
        // Not every way to read a slice waits for the stream that wrote it.
        self.device.cuda_stream().join(&self.stream).w()?;
        let storage = CudaStorage::wrap_cuda_slice(copy, self.device.clone());
        Ok(Tensor::from_storage(Storage::Cuda(storage), tensor.shape(), BackpropOp::none(), false))
    }
}

/// A stream for copies alone, where `device` is a GPU.
#[cfg(feature = "cuda")]
fn copy_stream(device: &Device) -> Result<Option<(CudaDevice, Arc<CudaStream>)>> {
    let Device::Cuda(device) = device else { return Ok(None) };
    Ok(Some((device.clone(), device.cuda_stream().context().new_stream().w()?)))
}

/// Copies tensors to the host; from a GPU on a stream of its own, while it computes what comes next.
///
/// The memory of the copies is pinned, and kept for the next tensor of the same size.
pub struct Download {
    #[cfg(feature = "cuda")]
    cuda: Option<CudaDownload>,
}

#[cfg(feature = "cuda")]
struct CudaDownload {
    stream: Arc<CudaStream>,
    /// Not in use, by the number of values.
    pinned: HashMap<usize, Vec<PinnedHostSlice<f32>>>,
}

/// A tensor that is being computed or copied. It keeps its memory on the device until it has arrived.
pub struct InFlight {
    tensor: Tensor,
    #[cfg(feature = "cuda")]
    pinned: Option<PinnedHostSlice<f32>>,
}

impl Download {
    /// Copies from `device`.
    ///
    /// # Errors
    /// When a GPU refuses a stream.
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            #[cfg(feature = "cuda")]
            cuda: copy_stream(device)?
                .map(|(_, stream)| CudaDownload { stream, pinned: HashMap::new() }),
        })
    }

    /// Asks for the values of `tensor` (f32), to be copied as soon as they are computed; does not wait.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn start(&mut self, tensor: &Tensor) -> Result<InFlight> {
        let tensor = tensor.contiguous()?;
        #[cfg(feature = "cuda")]
        let pinned = self.cuda.as_mut().map(|cuda| cuda.start(&tensor)).transpose()?;
        Ok(InFlight {
            tensor,
            #[cfg(feature = "cuda")]
            pinned,
        })
    }

    /// The values of a tensor asked for, row by row, once they are here.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn finish(&mut self, in_flight: InFlight) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        if let (Some(cuda), Some(pinned)) = (&mut self.cuda, in_flight.pinned) {
            let values = pinned.as_slice().w()?.to_vec();
            cuda.pinned.entry(values.len()).or_default().push(pinned);
            return Ok(values);
        }
        Ok(in_flight.tensor.flatten_all()?.to_vec1()?)
    }
}

#[cfg(feature = "cuda")]
impl CudaDownload {
    fn start(&mut self, tensor: &Tensor) -> candle_core::Result<PinnedHostSlice<f32>> {
        let count = tensor.elem_count();
        let mut pinned = match self.pinned.get_mut(&count).and_then(Vec::pop) {
            Some(pinned) => pinned,
            // SAFETY: the copy fills all of it, and nothing reads it before. No flags: the host reads it.
            None => {
                unsafe { self.stream.context().alloc_pinned_with_flags::<f32>(count, 0) }.w()?
            }
        };
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("download: not on a GPU") };
        // The copy would wait for what has been recorded as a write of this memory, and a kernel's
        // output that was passed by shared reference is recorded as read: wait for the whole stream.
        self.stream.join(&storage.device.cuda_stream()).w()?;
        let start = layout.start_offset();
        let values = storage.as_cuda_slice::<f32>()?.slice(start..start + count);
        self.stream.memcpy_dtoh(&values, &mut pinned).w()?;
        Ok(pinned)
    }
}
