//! Where a network is evaluated: on a thread of the pool that its kernels use.

use candle_core::Device;

/// Runs `work` on a thread of the pool where `device` is the CPU, on this thread where it is not.
///
/// A kernel that is called from outside the pool wakes the pool's threads and sleeps until they are
/// done; from inside, its thread takes part. That was a quarter of the time of sampling one image.
/// `work` must not wait for another thread of the process.
pub fn on_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    match device.is_cpu() {
        true => rayon::scope(|_| work()),
        false => work(),
    }
}
