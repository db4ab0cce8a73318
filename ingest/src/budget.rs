//! A bound on the memory of images being decoded.

use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes that decoding threads share. A thread that finds too few left waits for the others.
pub(crate) struct Budget {
    bytes_max: u64,
    bytes_left: Mutex<u64>,
    returned: Condvar,
}

impl Budget {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes_left: Mutex::new(bytes_max), returned: Condvar::new() }
    }

    /// Waits for `bytes` and takes them until the reservation is dropped. A request beyond the
    /// whole budget takes all of it, so it is granted when nobody else holds any.
    ///
    /// A thread must not reserve twice: it could wait for itself.
    pub(crate) fn reserve(&self, bytes: u64) -> Reservation<'_> {
        let bytes = bytes.min(self.bytes_max);
        let bytes_left = self.bytes_left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes_left = self
            .returned
            .wait_while(bytes_left, |bytes_left| *bytes_left < bytes)
            .unwrap_or_else(PoisonError::into_inner);
        *bytes_left -= bytes;
        Reservation { budget: self, bytes }
    }
}

/// Bytes taken from a [`Budget`], returned on drop.
pub(crate) struct Reservation<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        *self.budget.bytes_left.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn reservations_never_exceed_the_budget_and_oversized_ones_run_alone() {
        let budget = Budget::new(100);
        let (held, peak) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (budget, held, peak) = (&budget, &held, &peak);
                scope.spawn(move || {
                    for step in 0..200_u64 {
                        let bytes = (thread * 37 + step * 13) % 150;
                        let reservation = budget.reserve(bytes);
                        let now = held.fetch_add(bytes.min(100), Ordering::SeqCst) + bytes.min(100);
                        peak.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        held.fetch_sub(bytes.min(100), Ordering::SeqCst);
                        drop(reservation);
                    }
                });
            }
        });
        let peak = peak.into_inner();
        assert!((50..=100).contains(&peak), "peak {peak}");
    }
}
