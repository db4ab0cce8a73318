//! The plan of a job: which image falls to which shard, whatever the number of workers.

use std::collections::HashSet;
use std::ops::Range;

use lapflow_ingest::Entry;
use lapflow_store::Dataset;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Version of the plan's format.
const PLAN_VERSION: u32 = 1;

/// A source's images, permuted and cut into shards. Small: the permutation follows from the seed,
/// and a digest stands for the listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this format.
    pub version: u32,
    /// Images of the source.
    pub images: u64,
    /// SHA-256 over every image's key and label, in the order of their ids.
    pub listing_sha256: String,
    /// Rows an image becomes: 2 with mirrored views.
    pub views: u64,
    /// Logical shards.
    pub shards: u64,
    /// Seed of the permutation.
    pub shuffle_seed: u64,
}

impl Plan {
    /// Plans `entries`, each to become `views` rows, in shards of at most `shard_rows` rows (but
    /// at least one image).
    pub fn new(entries: &[Entry], views: u64, shard_rows: usize, shuffle_seed: u64) -> Self {
        let images = entries.len() as u64;
        let shard_images = (shard_rows as u64 / views).max(1);
        Self {
            version: PLAN_VERSION,
            images,
            listing_sha256: digest(entries),
            views,
            shards: images.div_ceil(shard_images),
            shuffle_seed,
        }
    }

    /// Rows of the table if no image is skipped.
    pub fn rows(&self) -> u64 {
        self.images * self.views
    }

    /// The name under which `shard` is committed.
    pub fn shard_name(&self, shard: u64) -> String {
        format!("{shard:06}")
    }

    /// Images that fall to `shard`; the shards' sizes differ by one at most.
    pub fn shard_images(&self, shard: u64) -> u64 {
        let Range { start, end } = self.span(shard);
        end - start
    }

    /// The shards that fall to worker `index` of `count`.
    pub fn shards_of(&self, index: u64, count: u64) -> impl Iterator<Item = u64> + use<> {
        (index..self.shards).step_by(count.max(1) as usize)
    }

    /// Shards that `dataset` does not hold, ascending.
    pub fn missing(&self, dataset: &Dataset) -> Vec<u64> {
        let held: HashSet<u64> =
            dataset.shards().filter_map(|shard| self.shard_number(&shard.shard)).collect();
        (0..self.shards).filter(|shard| !held.contains(shard)).collect()
    }

    /// Images skipped in the shards that `dataset` holds: their planned rows less their rows.
    pub fn skips(&self, dataset: &Dataset) -> u64 {
        dataset
            .shards()
            .filter_map(|summary| {
                let shard = self.shard_number(&summary.shard)?;
                Some(self.shard_images(shard).saturating_sub(summary.rows() / self.views))
            })
            .sum()
    }

    /// The shard committed under `name`, if it is one of this plan's.
    pub(crate) fn shard_number(&self, name: &str) -> Option<u64> {
        name.parse().ok().filter(|&shard| shard < self.shards && self.shard_name(shard) == name)
    }

    /// Where the images of `shard` stand in the permutation.
    fn span(&self, shard: u64) -> Range<u64> {
        let cut = |shard: u64| {
            (u128::from(self.images) * u128::from(shard) / u128::from(self.shards)) as u64
        };
        cut(shard)..cut(shard + 1)
    }
}

/// A plan with its permutation drawn.
#[derive(Debug)]
pub struct Permutation {
    plan: Plan,
    order: Vec<u32>,
}

impl Permutation {
    /// Draws the permutation of `plan` (Fisher-Yates over ChaCha8, spelt out because a run resumed
    /// by a later version must find the same shards).
    pub fn new(plan: &Plan) -> Self {
        let images = u32::try_from(plan.images).expect("ingest lists at most 2^32 - 1 entries");
        let mut order: Vec<u32> = (0..images).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(plan.shuffle_seed);
        for last in (1..order.len()).rev() {
            let pick = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
            order.swap(last, pick as usize);
        }
        Self { plan: plan.clone(), order }
    }

    /// The images of `shard`, as positions in the source's listing.
    pub fn shard(&self, shard: u64) -> Vec<usize> {
        let span = self.plan.span(shard);
        let order = &self.order[span.start as usize..span.end as usize];
        order.iter().map(|&position| position as usize).collect()
    }
}

/// SHA-256 over keys and labels, each length-prefixed so that no two listings read alike.
fn digest(entries: &[Entry]) -> String {
    let mut hash = Sha256::new();
    for entry in entries {
        hash.update((entry.key.len() as u64).to_le_bytes());
        hash.update(entry.key.as_bytes());
        hash.update(entry.label.map_or(-1, i64::from).to_le_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(images: u64, shards: u64, shuffle_seed: u64) -> Plan {
        let listing_sha256 = String::new();
        Plan { version: PLAN_VERSION, images, listing_sha256, views: 1, shards, shuffle_seed }
    }

    #[test]
    fn every_image_falls_to_one_shard_and_every_shard_to_one_worker() {
        for (images, shards, workers) in [(1, 1, 3), (10, 3, 1), (1000, 7, 4), (97, 97, 5)] {
            let plan = plan(images, shards, 5);
            let permutation = Permutation::new(&plan);
            let mut seen = Vec::new();
            for worker in 0..workers {
                for shard in plan.shards_of(worker, workers) {
                    let order = permutation.shard(shard);
                    assert_eq!(order.len() as u64, plan.shard_images(shard));
                    assert!(order.len() as u64 - images / shards <= 1);
                    seen.extend(order);
                }
            }
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..images as usize));
        }
    }

    #[test]
    fn shards_are_mixed_and_the_seed_decides_how() {
        let first = |seed| Permutation::new(&plan(1000, 10, seed)).shard(0);
        let mean = first(1).iter().sum::<usize>() / 100;
        assert!((400..600).contains(&mean), "{mean}");
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    /// The permutation is part of the plan's format.
    #[test]
    fn the_permutation_never_changes() {
        assert_eq!(Permutation::new(&plan(8, 1, 7)).shard(0), [5, 0, 6, 2, 3, 4, 7, 1]);
    }
}
