//! Large buffers that are handed on instead of freed: fresh memory costs a page fault and a
//! cleared page every 4 KiB, which took a third of the loader's time.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes kept for reuse by the whole process, at most.
const RETAINED_BYTES_MAX: usize = 256 << 20;

static RETAINED: Mutex<Retained> = Mutex::new(Retained { buffers: Vec::new(), bytes: 0 });

struct Retained {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// Bytes from a pool of the process; they return to it when dropped.
pub struct Buffer {
    /// At least `length` bytes, all initialised.
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// A buffer of `length` bytes: the smallest retained one that fits without wasting more than
    /// half of itself, else a fresh one. Its content is arbitrary.
    pub(crate) fn take(length: usize) -> Self {
        let mut retained = retained();
        let fits = |size: usize| size >= length && size / 2 <= length;
        let best = (0..retained.buffers.len())
            .filter(|&index| fits(retained.buffers[index].len()))
            .min_by_key(|&index| retained.buffers[index].len());
        let bytes = best.map(|index| retained.buffers.swap_remove(index));
        retained.bytes -= bytes.as_ref().map_or(0, Vec::len);
        drop(retained);
        Self { bytes: bytes.unwrap_or_else(|| vec![0; length]), length }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        let length = bytes.len();
        Self { bytes, length }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut retained = retained();
        if retained.bytes + self.bytes.len() <= RETAINED_BYTES_MAX {
            retained.bytes += self.bytes.len();
            retained.buffers.push(std::mem::take(&mut self.bytes));
        }
    }
}

fn retained() -> MutexGuard<'static, Retained> {
    RETAINED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::take(self.length);
        copy.copy_from_slice(self);
        copy
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_handed_on_with_the_length_asked_for() {
        let length = 7_654_321;
        let mut first = Buffer::take(length);
        first.fill(7);
        let address = first.as_ptr();
        drop(first);
        let second = Buffer::take(length - 10);
        assert_eq!((second.len(), second.as_ptr()), (length - 10, address));
        assert_eq!(Buffer::take(3).len(), 3);
    }
}
