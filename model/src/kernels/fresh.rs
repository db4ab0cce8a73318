//! New vectors for kernels' results, written by all threads: one thread's zeros and copies were a
//! sixth of a training step.

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Elements a thread writes at a time; shorter vectors are one thread's.
const CHUNK: usize = 1 << 15;

/// `len` zeros.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    if len <= CHUNK {
        return vec![0.0; len];
    }
    written(len, CHUNK, |_, chunk| {
        for place in chunk {
            place.write(0.0);
        }
    })
}

/// A copy of `values`.
pub(crate) fn copied(values: &[f32]) -> Vec<f32> {
    written(values.len(), CHUNK, |start, chunk| {
        chunk.write_copy_of_slice(&values[start..start + chunk.len()]);
    })
}

/// `rows` copies of `row`, one after the other.
pub(crate) fn repeated(row: &[f32], rows: usize) -> Vec<f32> {
    let together = (CHUNK / row.len().max(1)).max(1);
    written(rows * row.len(), together * row.len(), |_, chunk| {
        for place in chunk.chunks_exact_mut(row.len()) {
            place.write_copy_of_slice(row);
        }
    })
}

/// `len` elements, which `write` gets in pieces of `chunk`, with where each begins, and must write.
fn written(
    len: usize,
    chunk: usize,
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    let place = &mut values.spare_capacity_mut()[..len];
    place.par_chunks_mut(chunk.max(1)).enumerate().for_each(|(i, place)| write(i * chunk, place));
    // SAFETY: the chunks make up the `len` elements, and each caller above writes whole chunks.
    unsafe { values.set_len(len) };
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_written() {
        for len in [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17] {
            // Memory that was something else before.
            drop(std::hint::black_box(vec![f32::NAN; len]));
            assert_eq!(zeros(len), vec![0.0; len]);
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(copied(&values), values);
        }
        for (width, rows) in [(0, 5), (3, 0), (7, 9001), (CHUNK + 3, 3)] {
            let row: Vec<f32> = (0..width).map(|i| i as f32).collect();
            assert_eq!(repeated(&row, rows), row.repeat(rows));
        }
    }
}
