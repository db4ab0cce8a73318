//! The order of samples in an epoch: a pure function of seed, epoch and the row groups.
//!
//! Row groups are permuted over the whole dataset and cut into windows; the rows of a window are
//! fully permuted. Any position can be found without visiting those before it.

use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// A row group of the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupRef {
    /// Index of its file in the dataset.
    pub file: usize,
    /// Index of the row group in the file.
    pub group: usize,
    /// Rows it holds.
    pub rows: u64,
}

/// One epoch's order.
#[derive(Debug)]
pub(crate) struct EpochOrder {
    seed: u64,
    epoch: u64,
    shuffle: bool,
    /// Row groups in this epoch's order.
    pub groups: Vec<GroupRef>,
    windows: Vec<Window>,
    /// Rows of the epoch.
    pub rows: u64,
}

/// Consecutive row groups whose rows are mixed.
#[derive(Debug, Clone)]
struct Window {
    start: u64,
    rows: u64,
    groups: Range<usize>,
}

/// A row as (index into the epoch's row groups, row in the group).
pub(crate) type RowRef = (u32, u32);

impl EpochOrder {
    /// The order of `groups` in `epoch`; windows hold at least `window_rows` rows, but for the
    /// last. Without `shuffle` rows come as stored.
    pub fn new(
        mut groups: Vec<GroupRef>,
        seed: u64,
        epoch: u64,
        window_rows: u64,
        shuffle: bool,
    ) -> Self {
        groups.retain(|group| group.rows > 0);
        if shuffle {
            permute(&mut groups, &mut generator(seed, epoch, u64::MAX));
        }
        let mut windows = Vec::new();
        let mut open = Window { start: 0, rows: 0, groups: 0..0 };
        for (index, group) in groups.iter().enumerate() {
            open.rows += group.rows;
            open.groups.end = index + 1;
            if open.rows >= window_rows || index + 1 == groups.len() {
                let start = open.start + open.rows;
                windows.push(open);
                open = Window { start, rows: 0, groups: index + 1..index + 1 };
            }
        }
        let rows = open.start;
        Self { seed, epoch, shuffle, groups, windows, rows }
    }

    /// Index of the window that holds `position`, which is below `self.rows`.
    pub fn window_at(&self, position: u64) -> usize {
        self.windows.partition_point(|window| window.start + window.rows <= position)
    }

    /// First position of window `index`.
    pub fn window_start(&self, index: usize) -> u64 {
        self.windows[index].start
    }

    /// The rows of window `index` in the order they are read.
    pub fn window_order(&self, index: usize) -> Vec<RowRef> {
        let window = &self.windows[index];
        let mut rows: Vec<RowRef> = window
            .groups
            .clone()
            .flat_map(|group| {
                (0..self.groups[group].rows as u32).map(move |row| (group as u32, row))
            })
            .collect();
        if self.shuffle {
            permute(&mut rows, &mut generator(self.seed, self.epoch, index as u64));
        }
        rows
    }
}

/// A generator keyed by all that the order may depend on.
fn generator(seed: u64, epoch: u64, stream: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&stream.to_le_bytes());
    key[24..].copy_from_slice(b"lapflow1");
    ChaCha8Rng::from_seed(key)
}

/// Fisher-Yates, spelt out because the order is part of what a run can reproduce years later.
fn permute<T>(items: &mut [T], generator: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        let pick = (u128::from(generator.next_u64()) * (last as u128 + 1)) >> 64;
        items.swap(last, pick as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(rows: &[u64]) -> Vec<GroupRef> {
        rows.iter().enumerate().map(|(group, &rows)| GroupRef { file: 0, group, rows }).collect()
    }

    fn all_rows(order: &EpochOrder) -> Vec<(usize, u32)> {
        (0..order.windows.len())
            .flat_map(|window| order.window_order(window))
            .map(|(group, row)| (order.groups[group as usize].group, row))
            .collect()
    }

    #[test]
    fn an_epoch_holds_every_row_once() {
        let sizes = [5, 0, 7, 1, 16, 3, 9];
        for (window_rows, shuffle) in [(1, true), (8, true), (1000, true), (8, false)] {
            let order = EpochOrder::new(groups(&sizes), 1, 2, window_rows, shuffle);
            let rows = all_rows(&order);
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            let expected: Vec<_> = sizes
                .iter()
                .enumerate()
                .flat_map(|(group, &rows)| (0..rows as u32).map(move |row| (group, row)))
                .collect();
            assert_eq!(sorted, expected);
            assert_eq!(rows == expected, !shuffle);
        }
    }

    #[test]
    fn windows_are_found_by_position() {
        let order = EpochOrder::new(groups(&[4; 10]), 3, 0, 8, true);
        for position in 0..40 {
            let window = order.window_at(position);
            assert_eq!(window as u64, position / 8);
            assert_eq!(order.window_start(window), position / 8 * 8);
        }
    }

    #[test]
    fn seed_and_epoch_change_the_order_and_nothing_else_does() {
        let rows =
            |seed, epoch| all_rows(&EpochOrder::new(groups(&[50; 4]), seed, epoch, 100, true));
        assert_eq!(rows(1, 1), rows(1, 1));
        assert_ne!(rows(1, 1), rows(1, 2));
        assert_ne!(rows(1, 1), rows(2, 1));
    }

    /// Rows that follow each other lie as far apart in the dataset as in a full permutation, and
    /// seldom share a row group: 16 of 64 row groups are mixed at a time.
    #[test]
    fn neighbours_are_as_far_apart_as_in_a_full_permutation() {
        let (count, size) = (64, 512);
        let distance = |rows: &[(usize, u32)]| {
            let position = |row: &(usize, u32)| (row.0 * size) as f64 + f64::from(row.1);
            let steps = rows.windows(2).map(|pair| (position(&pair[0]) - position(&pair[1])).abs());
            steps.sum::<f64>() / (rows.len() - 1) as f64
        };
        let together = |rows: &[(usize, u32)]| {
            let same = rows.windows(2).filter(|pair| pair[0].0 == pair[1].0).count();
            same as f64 / (rows.len() - 1) as f64
        };
        for epoch in 0..5 {
            let all = groups(&vec![size as u64; count]);
            let order = EpochOrder::new(all, 5, epoch, 16 * size as u64, true);
            let mixed = all_rows(&order);
            let mut full = mixed.clone();
            permute(&mut full, &mut generator(5, epoch, 1 << 40));
            let ratio = distance(&mixed) / distance(&full);
            eprintln!(
                "distance {ratio:.3} of a full permutation's, {:.4} in one row group",
                together(&mixed)
            );
            assert!((ratio - 1.0).abs() < 0.15, "{ratio}");
            assert!((together(&mixed) - 1.0 / 16.0).abs() < 0.01);
        }
    }

    /// The order is part of the format: a run resumed by a later version must go on the same way.
    #[test]
    fn the_order_never_changes() {
        let order = EpochOrder::new(groups(&[3, 3, 2]), 7, 1, 6, true);
        assert_eq!(
            all_rows(&order),
            [(0, 0), (2, 0), (0, 2), (1, 0), (1, 1), (2, 1), (0, 1), (1, 2)]
        );
    }
}
