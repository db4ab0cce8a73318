//! Work that a GPU is told once and then repeats.

use crate::error::Result;
use candle_core::{Device, Tensor};
#[cfg(feature = "cuda")]
use {
    candle_core::DType,
    candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, sys},
    candle_core::cuda_backend::{CudaDevice, WrapErr},
    std::collections::HashMap,
    std::sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Shapes that are recorded; with more of them, the rest is computed as if there were no recorder.
#[cfg(feature = "cuda")]
const RECORDINGS_MAX: usize = 8;

/// Records what a function of tensors does on a GPU (a CUDA graph) and repeats it for other values in one
/// launch, where the launches of small kernels would take longer than the kernels. Elsewhere, and by
/// default, it calls the function.
///
/// It records only between [`Recorder::start`] and [`Recorder::stop`], when no other thread may use the GPU.
#[derive(Default)]
pub struct Recorder {
    #[cfg(feature = "cuda")]
    cuda: Option<Mutex<CudaRecorder>>,
}

impl Recorder {
    /// For functions on `device`.
    pub fn new(device: &Device) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Self {
            #[cfg(feature = "cuda")]
            cuda: match device {
                Device::Cuda(device) => Some(Mutex::new(CudaRecorder {
                    device: device.clone(),
                    recording: false,
                    known: HashMap::new(),
                })),
                _ => None,
            },
        }
    }

    /// From now on shapes that come again are recorded, by a thread that has the GPU for itself.
    pub fn start(&self) {
        #[cfg(feature = "cuda")]
        if let Some(mut cuda) = self.cuda() {
            cuda.recording = true;
        }
    }

    /// From now on nothing new is recorded.
    pub fn stop(&self) {
        #[cfg(feature = "cuda")]
        if let Some(mut cuda) = self.cuda().filter(|cuda| cuda.recording) {
            cuda.recording = false;
            tracing::info!(shapes = cuda.recordings(), "the GPU repeats what it has recorded");
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self) -> Option<MutexGuard<'_, CudaRecorder>> {
        Some(self.cuda.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `f` of `inputs`: called the first time that inputs have these shapes, recorded the second time,
    /// repeated from then on.
    ///
    /// Besides `inputs`, `f` must depend on nothing that changes, and the tensors that it uses must live
    /// as long as the recorder. What cannot be recorded is called, with a warning.
    ///
    /// # Errors
    /// As `f`; when the device has no memory left.
    pub fn run(
        &self,
        inputs: &[Tensor],
        f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        #[cfg(feature = "cuda")]
        if let Some(mut cuda) = self.cuda() {
            return cuda.run(inputs, f);
        }
        f(inputs)
    }
}

/// The types and shapes of inputs.
#[cfg(feature = "cuda")]
type Kind = Vec<(DType, Vec<usize>)>;

#[cfg(feature = "cuda")]
struct CudaRecorder {
    device: CudaDevice,
    recording: bool,
    known: HashMap<Kind, Known>,
}

#[cfg(feature = "cuda")]
enum Known {
    Called,
    Recorded(Recording),
    Refused,
}

#[cfg(feature = "cuda")]
impl CudaRecorder {
    fn run(
        &mut self,
        inputs: &[Tensor],
        f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let kind: Kind = inputs.iter().map(|x| (x.dtype(), x.dims().to_vec())).collect();
        let record = self.recording && self.recordings() < RECORDINGS_MAX;
        match self.known.get(&kind) {
            Some(Known::Recorded(recording)) => return Ok(recording.repeat(inputs)?),
            None if record => drop(self.known.insert(kind, Known::Called)),
            Some(Known::Called) if record => match Recording::new(&self.device, inputs, &f) {
                Ok(recording) => {
                    let outputs = recording.repeat(inputs)?;
                    self.known.insert(kind, Known::Recorded(recording));
                    return Ok(outputs);
                }
                Err(reason) => {
                    tracing::warn!(%reason, "the GPU refuses to record; its work is launched piece by piece");
                    self.known.insert(kind, Known::Refused);
                }
            },
            _ => {}
        }
        f(inputs)
    }

    fn recordings(&self) -> usize {
        self.known.values().filter(|known| matches!(known, Known::Recorded(_))).count()
    }
}

#[cfg(feature = "cuda")]
impl Drop for CudaRecorder {
    fn drop(&mut self) {
        // No recording goes while it is being repeated; what fails here has been said by then.
        let _ = self.device.cuda_stream().synchronize();
    }
}

/// One recording, from tensors of its own to tensors of its own.
#[cfg(feature = "cuda")]
struct Recording {
    graph: CudaGraph,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

// SAFETY: CUDA asks that a graph is used by one thread at a time, which the recorder's lock gives.
#[cfg(feature = "cuda")]
unsafe impl Send for Recording {}

#[cfg(feature = "cuda")]
impl Recording {
    fn new(
        device: &CudaDevice,
        inputs: &[Tensor],
        f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Self> {
        // What kernels read of shapes and constants stays in Candle's cache, for good.
        let _cache = device.enable_cuda_graph_htod_cache();
        let copies = |tensors: &[Tensor]| -> candle_core::Result<Vec<Tensor>> {
            tensors.iter().map(|x| Ok(x.contiguous()?.copy()?.detach())).collect()
        };
        let inputs = copies(inputs)?;
        let outputs = copies(&f(&inputs)?)?;
        let stream = device.cuda_stream();
        stream.synchronize().w()?;
        // SAFETY: all that is allocated while nothing is tracked is freed before the end of the recording,
        // on one stream; no other thread uses the device, as `Recorder` asks.
        unsafe { stream.context().disable_event_tracking() };
        let graph = capture(&stream, || Ok(set(&outputs, &f(&inputs)?)?));
        // SAFETY: as it was.
        unsafe { stream.context().enable_event_tracking() };
        Ok(Self { graph: graph?, inputs, outputs })
    }

    fn repeat(&self, inputs: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
        set(&self.inputs, inputs)?;
        self.graph.launch().w()?;
        self.outputs.iter().map(Tensor::copy).collect()
    }
}

/// What `work` asks of `stream`, not done but recorded.
#[cfg(feature = "cuda")]
fn capture(stream: &Arc<CudaStream>, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
    let done = work();
    // cudarc keeps errors of dropped tensors for the next call, which must be made.
    let dropped = stream.context().check_err().w();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    done?;
    dropped?;
    Ok(graph?.ok_or_else(|| candle_core::Error::msg("the GPU recorded nothing"))?)
}

/// Writes the values of tensors over those of others.
#[cfg(feature = "cuda")]
fn set(places: &[Tensor], values: &[Tensor]) -> candle_core::Result<()> {
    for (place, value) in places.iter().zip(values) {
        place.slice_set(&value.contiguous()?, 0, 0)?;
    }
    Ok(())
}
