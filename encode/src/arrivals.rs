//! When a file that appeared is complete, and when images that wait become a shard.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use lapflow_ingest::{Piece, Survey};

use crate::ledger::Listed;

/// The files seen so far.
#[derive(Default)]
pub(crate) struct Arrivals {
    seen: HashMap<String, Seen>,
}

struct Seen {
    bytes: u64,
    modified: Option<SystemTime>,
    since: Instant,
    taken: bool,
}

impl Arrivals {
    /// Names of the files that are new or have changed, and now rest: seen with the same size and
    /// time for `settle`, or last changed so long ago. An object without a time is whole from the
    /// start. Each is named once, until it changes.
    pub fn settled(&mut self, survey: &Survey, settle: Duration) -> Vec<String> {
        let names = survey.pieces().filter(|piece| self.settles(piece, settle));
        names.map(|piece| piece.name.clone()).collect()
    }

    fn settles(&mut self, piece: &Piece, settle: Duration) -> bool {
        let Piece { bytes, modified, .. } = *piece;
        let fresh = || Seen { bytes, modified, since: Instant::now(), taken: false };
        let seen = self.seen.entry(piece.name.clone()).or_insert_with(fresh);
        if (seen.bytes, seen.modified) != (bytes, modified) {
            *seen = fresh();
        }
        let old = match modified {
            None => true,
            Some(modified) => modified.elapsed().is_ok_and(|age| age >= settle),
        };
        let settled = !seen.taken && (old || seen.since.elapsed() >= settle);
        seen.taken |= settled;
        settled
    }

    /// Has `name` offered again at the next look.
    pub fn offer_again(&mut self, name: &str) {
        self.seen.remove(name);
    }
}

/// Images that wait for their shard.
#[derive(Default)]
pub(crate) struct Pending {
    images: Vec<Listed>,
    oldest: Option<Instant>,
}

impl Pending {
    pub fn push(&mut self, image: Listed) {
        self.oldest.get_or_insert_with(Instant::now);
        self.images.push(image);
    }

    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// The next shard's images: as many as it may hold, or all once the oldest has waited for
    /// `age`. They stay until [`Pending::retain`] removes them.
    pub fn closed(&self, images_max: usize, age: Duration) -> Option<Vec<Listed>> {
        let old = self.oldest.is_some_and(|oldest| oldest.elapsed() >= age);
        let closed = self.images.len() >= images_max || old;
        closed.then(|| self.images[..self.images.len().min(images_max)].to_vec())
    }

    /// Keeps the images that `keep` holds for.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.images.retain(|image| keep(&image.key));
        if self.images.is_empty() {
            self.oldest = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: u64, modified: SystemTime) -> Piece {
        Piece { name: "a.png".into(), bytes, modified: Some(modified) }
    }

    #[test]
    fn a_file_is_taken_once_it_rests_and_again_when_it_changes() {
        let (settle, now) = (Duration::from_secs(3600), SystemTime::now());
        let old = now - 2 * settle;
        let mut arrivals = Arrivals::default();
        assert!(!arrivals.settles(&piece(1, now), settle), "it may still be written to");
        assert!(arrivals.settles(&piece(1, now), Duration::ZERO));
        assert!(!arrivals.settles(&piece(1, now), Duration::ZERO), "it was taken");
        assert!(arrivals.settles(&piece(2, old), settle), "changed, and long ago");
        arrivals.offer_again("a.png");
        assert!(arrivals.settles(&piece(2, old), settle));
        let object = Piece { modified: None, ..piece(2, now) };
        assert!(arrivals.settles(&object, settle));
    }

    #[test]
    fn shards_are_closed_by_size_or_age() {
        let mut pending = Pending::default();
        assert!(pending.closed(2, Duration::ZERO).is_none(), "nothing waits");
        let image = |key: &str| Listed { key: key.into(), label: None };
        for key in ["a", "b", "c"] {
            pending.push(image(key));
        }
        let forever = Duration::from_secs(3600);
        assert_eq!(pending.closed(2, forever), Some(vec![image("a"), image("b")]));
        pending.retain(|key| key == "c");
        assert_eq!(pending.closed(2, forever), None);
        assert_eq!(pending.closed(2, Duration::ZERO), Some(vec![image("c")]));
        pending.retain(|_| false);
        assert!(pending.closed(2, Duration::ZERO).is_none());
    }
}
