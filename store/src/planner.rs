//! Which rows make up each step on this rank, computed without reading data.

use std::sync::Arc;

use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::loader::{LoaderConfig, LoaderState};
use crate::order::{EpochOrder, GroupRef, RowRef};

/// One batch of this rank, and where the run stands after it.
pub(crate) struct Step {
    /// The rows, in the parts of epochs and windows they come from.
    pub parts: Vec<Part>,
    /// The dataset at the version of the step's last epoch.
    pub dataset: Dataset,
    pub state: LoaderState,
}

/// Rows of one window.
pub(crate) struct Part {
    pub epoch: u64,
    pub dataset: Dataset,
    pub order: Arc<EpochOrder>,
    /// Whether its last row is the window's.
    pub ends_window: bool,
    pub rows: Vec<RowRef>,
    /// Where each row stands in the step of all ranks.
    pub positions: Vec<u32>,
}

impl Step {
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }
}

/// Walks the global order step by step.
pub(crate) struct Planner {
    config: LoaderConfig,
    dataset: Dataset,
    state: LoaderState,
    order: Arc<EpochOrder>,
    /// The window the position is in, and its rows.
    window: Option<(usize, Vec<RowRef>)>,
}

impl Planner {
    pub async fn start(
        dataset: &Dataset,
        config: &LoaderConfig,
        state: LoaderState,
    ) -> Result<Self> {
        let dataset = match state.version {
            _ if config.follow && state.position == 0 => {
                newest(dataset, config, state.epoch).await?
            }
            Some(version) => dataset.at_version(version).await?,
            None => dataset.clone(),
        };
        let order = epoch_order(&dataset, config, state.epoch)?;
        if state.position > order.rows {
            let (position, rows) = (state.position, order.rows);
            return Err(StoreError::Config(format!(
                "the loader's state is at sample {position} of an epoch of {rows}"
            )));
        }
        let state = LoaderState { version: Some(dataset.version()), ..state };
        let config = config.clone();
        Ok(Self { config, dataset, state, order, window: None })
    }

    /// The next step, or `None` after the last epoch.
    pub async fn next(&mut self) -> Result<Option<Step>> {
        let step_rows = self.config.batch * self.config.world;
        let mut parts = Vec::new();
        let mut missing = step_rows;
        while missing > 0 {
            if self.state.position == self.order.rows && !self.next_epoch().await? {
                break;
            }
            let part = self.take(missing, step_rows - missing);
            missing -= part.rows.len();
            parts.push(part);
        }
        if self.state.position == self.order.rows {
            self.next_epoch().await?;
        }
        if missing == step_rows {
            return Ok(None);
        }
        let parts = self.deal(parts, step_rows - missing);
        Ok(Some(Step { parts, dataset: self.dataset.clone(), state: self.state }))
    }

    /// Up to `rows_max` rows from the current position to the end of its window; the first of them
    /// stands at `place` in its step.
    fn take(&mut self, rows_max: usize, place: usize) -> Part {
        let index = self.order.window_at(self.state.position);
        if self.window.as_ref().is_none_or(|(held, _)| *held != index) {
            self.window = Some((index, self.order.window_order(index)));
        }
        let rows = self.window.as_ref().map_or(&[][..], |(_, rows)| rows);
        let from = (self.state.position - self.order.window_start(index)) as usize;
        let to = rows.len().min(from + rows_max);
        self.state.position += (to - from) as u64;
        Part {
            epoch: self.state.epoch,
            dataset: self.dataset.clone(),
            order: Arc::clone(&self.order),
            ends_window: to == rows.len(),
            rows: rows[from..to].to_vec(),
            positions: (place..place + to - from).map(|place| place as u32).collect(),
        }
    }

    /// This rank's share of a step of `rows` rows, in the step's order: an equal, contiguous piece
    /// of them after sorting by row group, where there are several ranks.
    fn deal(&self, mut parts: Vec<Part>, rows: usize) -> Vec<Part> {
        let (rank, world) = (self.config.rank, self.config.world);
        if world == 1 {
            return parts;
        }
        let (first, last) = (rows * rank / world, rows * (rank + 1) / world);
        let mut offset = 0;
        for part in &mut parts {
            let mut sorted: Vec<_> = part.rows.drain(..).zip(part.positions.drain(..)).collect();
            sorted.sort_unstable();
            let length = sorted.len();
            let from = first.saturating_sub(offset).min(length);
            let to = last.saturating_sub(offset).min(length);
            sorted[from..to].sort_unstable_by_key(|&(_, position)| position);
            (part.rows, part.positions) = sorted[from..to].iter().copied().unzip();
            offset += length;
        }
        parts
    }

    /// Moves to the beginning of the next epoch; false where the last one is over.
    async fn next_epoch(&mut self) -> Result<bool> {
        if self.config.epochs.is_some_and(|epochs| self.state.epoch + 1 >= epochs) {
            return Ok(false);
        }
        let epoch = self.state.epoch + 1;
        if self.config.follow {
            self.dataset = newest(&self.dataset, &self.config, epoch).await?;
        }
        self.order = epoch_order(&self.dataset, &self.config, epoch)?;
        self.window = None;
        self.state = LoaderState { epoch, position: 0, version: Some(self.dataset.version()) };
        Ok(true)
    }
}

/// The dataset as it is now; among ranks, as it was when the first of them came to `epoch`.
///
/// That one leaves the version in a small file beside the table, which no later rank can replace.
async fn newest(dataset: &Dataset, config: &LoaderConfig, epoch: u64) -> Result<Dataset> {
    let found = dataset.refresh().await?;
    let Some(run) = &config.run else { return Ok(found) };
    let name = format!("runs/{run}/epoch-{epoch}");
    found.create_beside(&name, found.version().to_string()).await?;
    let agreed = found.read_beside(&name).await?.unwrap_or_default();
    let version = std::str::from_utf8(&agreed).ok().and_then(|text| text.parse().ok());
    match version {
        Some(version) => found.at_version(version).await,
        None => Err(StoreError::Config(format!("'_lapflow/{name}' does not hold a version"))),
    }
}

fn epoch_order(dataset: &Dataset, config: &LoaderConfig, epoch: u64) -> Result<Arc<EpochOrder>> {
    let files = dataset.shards().enumerate();
    let groups: Vec<_> = files
        .flat_map(|(file, shard)| {
            let groups = shard.row_groups.iter().enumerate();
            groups.map(move |(group, summary)| GroupRef { file, group, rows: summary.rows })
        })
        .collect();
    let order =
        EpochOrder::new(groups, config.seed, epoch, config.window_rows as u64, config.shuffle);
    if order.rows == 0 {
        return Err(StoreError::Config(format!("dataset '{}' has no rows", dataset.uri())));
    }
    Ok(Arc::new(order))
}
