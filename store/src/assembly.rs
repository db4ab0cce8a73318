//! Batches being put together from row groups that are read ahead.
//!
//! Each row goes from its decoded page straight to its place in its batch, while the core's cache
//! still holds the page: a window is in memory once, as the batches to come.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::buffers::Buffer;
use crate::column::Page;
use crate::error::Result;
use crate::group::{GroupReader, RowGroup};
use crate::loader::{Batch, LevelBatch, Loader};
use crate::location::{AbortOnDrop, blocking, runtime};
use crate::planner::{Part, Step};
use crate::scheduler::cores;

/// A row group by epoch and place in the epoch's order, so that keys grow as reading proceeds.
type GroupKey = (u64, u32);

/// A row group of a data file, by the file's path and the index in it.
type Stored = (String, usize);

/// A row group being read; its rows are in their batches when it ends, and what is to be kept of it
/// is its result.
type Reading = AbortOnDrop<Result<Option<(Stored, RowGroup)>>>;

/// The batches to come and the row groups being read for them.
pub(crate) struct Assembly {
    /// Payload columns read, levels first.
    payloads: Arc<[usize]>,
    levels: usize,
    verify: bool,
    permits: Arc<Semaphore>,
    /// Steps planned and not handed out, oldest first.
    open: VecDeque<Open>,
    /// Rows of the open steps whose row groups are all being read.
    rows_ahead: usize,
    /// Row groups of the window that is not planned to its end, with the rows wanted of each.
    wanted: BTreeMap<GroupKey, Wanted>,
    reading: HashMap<GroupKey, Reading>,
    /// Row groups kept for later epochs; `None` while they are read.
    kept: HashMap<Stored, Option<Arc<RowGroup>>>,
    /// Bytes that may still be kept.
    keep_bytes: usize,
}

/// A step whose rows are arriving.
struct Open {
    step: Step,
    groups: Vec<GroupKey>,
    sheet: Arc<Mutex<Sheet>>,
}

/// A batch being filled, row by row in any order.
struct Sheet {
    ids: Vec<i64>,
    labels: Vec<i32>,
    payloads: Vec<LevelBatch>,
}

impl Sheet {
    fn lock(sheet: &Mutex<Self>) -> MutexGuard<'_, Self> {
        sheet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A row group and the rows wanted of it.
struct Wanted {
    reader: GroupReader,
    targets: Vec<Target>,
}

/// A row of a row group and its place in a batch.
struct Target {
    row: usize,
    sheet: Arc<Mutex<Sheet>>,
    place: usize,
}

impl Assembly {
    pub fn new(loader: &Loader) -> Self {
        let logvar = loader.config.logvar.then(|| loader.dataset.metadata().levels.len());
        let local = loader.dataset.location().is_local();
        let useful = if local { cores(&|key| std::env::var(key).ok()) } else { usize::MAX };
        Self {
            payloads: loader.levels.iter().copied().chain(logvar).collect(),
            levels: loader.levels.len(),
            verify: loader.config.verify,
            permits: Arc::new(Semaphore::new(loader.config.reads_max.min(useful))),
            open: VecDeque::new(),
            rows_ahead: 0,
            wanted: BTreeMap::new(),
            reading: HashMap::new(),
            kept: HashMap::new(),
            keep_bytes: loader.config.memory_cache_bytes_max,
        }
    }

    /// Rows of batches to come whose row groups are all being read.
    pub fn rows_ahead(&self) -> usize {
        self.rows_ahead
    }

    /// Adds the step after the last one; reading begins with the end of each window.
    pub fn add(&mut self, step: Step) {
        let sheet = Arc::new(Mutex::new(self.sheet(&step)));
        let mut groups = Vec::new();
        let mut place = 0;
        for part in &step.parts {
            for &(group, row) in &part.rows {
                let key = (part.epoch, group);
                groups.push(key);
                let wanted = self.wanted.entry(key).or_insert_with(|| {
                    let reader = reader(part, group, &self.payloads, self.verify);
                    Wanted { reader, targets: Vec::new() }
                });
                wanted.targets.push(Target { row: row as usize, sheet: Arc::clone(&sheet), place });
                place += 1;
            }
            if part.ends_window {
                self.read_wanted();
                self.rows_ahead = self.open.iter().map(|open| open.step.rows()).sum();
            }
        }
        groups.sort_unstable();
        groups.dedup();
        if self.wanted.is_empty() {
            self.rows_ahead += step.rows();
        }
        self.open.push_back(Open { step, groups, sheet });
    }

    /// The oldest batch, once all its rows are there; `None` where no step is left.
    pub async fn next(&mut self) -> Result<Option<Batch>> {
        let Some(Open { step, groups, sheet }) = self.open.pop_front() else { return Ok(None) };
        self.rows_ahead -= step.rows();
        for key in groups {
            let Some(task) = self.reading.remove(&key) else { continue };
            if let Some((stored, group)) = task.await? {
                self.kept.insert(stored, Some(Arc::new(group)));
            }
        }
        let mut sheet = Sheet::lock(&sheet);
        let mut levels = std::mem::take(&mut sheet.payloads);
        let logvar = levels.split_off(self.levels).pop();
        Ok(Some(Batch {
            ids: std::mem::take(&mut sheet.ids),
            labels: std::mem::take(&mut sheet.labels),
            positions: step.parts.into_iter().flat_map(|part| part.positions).collect(),
            levels,
            logvar,
            state: step.state,
        }))
    }

    fn sheet(&self, step: &Step) -> Sheet {
        let rows = step.rows();
        let metadata = step.dataset.metadata();
        let dtype = metadata.dtype;
        let specs: Vec<_> = metadata.levels.iter().copied().chain(metadata.logvar()).collect();
        let level = |&payload: &usize| {
            let spec = specs[payload];
            LevelBatch { spec, dtype, data: Buffer::take(rows * spec.bytes(dtype)) }
        };
        let payloads = self.payloads.iter().map(level).collect();
        Sheet { ids: vec![0; rows], labels: vec![0; rows], payloads }
    }

    /// Starts reading what is wanted; what is kept needs no reading.
    fn read_wanted(&mut self) {
        for (key, Wanted { reader, mut targets }) in std::mem::take(&mut self.wanted) {
            targets.sort_unstable_by_key(|target| target.row);
            let stored = (reader.dataset.files()[reader.file].path.clone(), reader.group);
            let (kept, bytes) = (self.kept.get(&stored), reader.bytes());
            if let Some(Some(kept)) = kept {
                let kept = Arc::clone(kept);
                let copied = blocking(move || {
                    kept.pages
                        .iter()
                        .for_each(|(payload, page)| deal_page(&targets, *payload, page));
                    deal_head(&targets, &kept);
                    Ok(None)
                });
                self.reading.insert(key, AbortOnDrop(runtime().spawn(copied)));
                continue;
            }
            let keep = kept.is_none() && bytes <= self.keep_bytes;
            if keep {
                self.kept.insert(stored.clone(), None);
                self.keep_bytes -= bytes;
            }
            let permits = Arc::clone(&self.permits);
            let reading = async move {
                let _permit = permits.acquire_owned().await;
                let encoded = reader.read().await?;
                blocking(move || {
                    let mut pages = Vec::new();
                    let (ids, labels) = encoded.decode(|payload, page| {
                        deal_page(&targets, payload, &page);
                        if keep {
                            pages.push((payload, page));
                        }
                    })?;
                    let group = RowGroup { ids, labels, pages };
                    deal_head(&targets, &group);
                    Ok(keep.then_some((stored, group)))
                })
                .await
            };
            self.reading.insert(key, AbortOnDrop(runtime().spawn(reading)));
        }
    }
}

fn reader(part: &Part, group: u32, payloads: &Arc<[usize]>, verify: bool) -> GroupReader {
    let at = part.order.groups[group as usize];
    let (dataset, payloads) = (part.dataset.clone(), Arc::clone(payloads));
    GroupReader { dataset, file: at.file, group: at.group, payloads, verify }
}

/// Copies the rows of a page to their places; `targets` are in the order of their rows.
fn deal_page(targets: &[Target], payload: usize, page: &Page) {
    let from = targets.partition_point(|target| target.row < page.first_row);
    for target in &targets[from..] {
        let Some(value) = page.value(target.row) else { break };
        let at = target.place * value.len();
        let mut sheet = Sheet::lock(&target.sheet);
        sheet.payloads[payload].data[at..at + value.len()].copy_from_slice(value);
    }
}

/// Copies the ids and labels of the rows to their places.
fn deal_head(targets: &[Target], group: &RowGroup) {
    for target in targets {
        let mut sheet = Sheet::lock(&target.sheet);
        sheet.ids[target.place] = group.ids[target.row];
        sheet.labels[target.place] = group.labels[target.row];
    }
}
