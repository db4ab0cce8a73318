//! Where each token of each level lies in the matrix of rows.

use std::ops::Range;

/// Tokens of several levels as the rows of one matrix: level after level with the coarsest first,
/// inside a level sample after sample, inside a sample in raster order.
///
/// A level is then one contiguous block of rows, so that level-specific projections need no copy,
/// and under a causal mask the keys of a level are a prefix of the levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenLayout {
    batch: usize,
    tokens: Vec<usize>,
}

/// Consecutive rows of one sample in one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub rows: Range<usize>,
    pub level: usize,
    pub sample: usize,
}

impl TokenLayout {
    /// A layout of `batch` samples with `tokens[i]` tokens in the i-th level, coarsest first.
    pub fn new(batch: usize, tokens: Vec<usize>) -> Self {
        Self { batch, tokens }
    }

    /// Samples in the batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Levels present.
    pub fn levels(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens a sample has in `level`, counted from the coarsest.
    pub fn tokens(&self, level: usize) -> usize {
        self.tokens[level]
    }

    /// Tokens a sample has in `levels` together.
    pub fn tokens_in(&self, levels: Range<usize>) -> usize {
        self.tokens[levels].iter().sum()
    }

    /// All rows.
    pub fn rows(&self) -> usize {
        self.batch * self.tokens_in(0..self.levels())
    }

    /// The rows of `level`, all samples.
    pub fn level_rows(&self, level: usize) -> Range<usize> {
        let start = self.batch * self.tokens_in(0..level);
        start..start + self.batch * self.tokens[level]
    }

    /// The rows of one sample in one level.
    pub fn sample_rows(&self, level: usize, sample: usize) -> Range<usize> {
        let start = self.level_rows(level).start + sample * self.tokens[level];
        start..start + self.tokens[level]
    }

    /// All rows in order, cut where level or sample changes and at `rows_max` rows.
    pub(crate) fn tiles(&self, rows_max: usize) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for level in 0..self.levels() {
            for sample in 0..self.batch {
                let all = self.sample_rows(level, sample);
                for start in all.clone().step_by(rows_max) {
                    let rows = start..all.end.min(start + rows_max);
                    tiles.push(Tile { rows, level, sample });
                }
            }
        }
        tiles
    }

    /// The row of a modulation matrix that applies to (`level`, `sample`): the matrix has one row
    /// a sample, or one a level and sample with the levels outermost.
    pub(crate) fn modulation_row(&self, rows: usize, level: usize, sample: usize) -> usize {
        if rows == self.batch { sample } else { level * self.batch + sample }
    }

    /// The row ranges that row `index` of a modulation matrix of `rows` rows applies to.
    pub(crate) fn modulated_rows(&self, rows: usize, index: usize) -> Vec<Range<usize>> {
        let levels = 0..self.levels();
        if rows == self.batch {
            levels.map(|level| self.sample_rows(level, index)).collect()
        } else {
            vec![self.sample_rows(index / self.batch, index % self.batch)]
        }
    }
}

/// Cuts `data` (rows of `width`) into the mutable slices of `tiles`, which must cover it in order.
pub(crate) fn split_tiles<'a, 't>(
    mut data: &'a mut [f32],
    width: usize,
    tiles: &'t [Tile],
) -> Vec<(&'a mut [f32], &'t Tile)> {
    tiles
        .iter()
        .map(|tile| {
            let (head, rest) = std::mem::take(&mut data).split_at_mut(tile.rows.len() * width);
            data = rest;
            (head, tile)
        })
        .collect()
}
