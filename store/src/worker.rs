//! Which share of a job this process does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// Worker `index` of `count`: of a job's numbered pieces it does those whose number leaves `index`
/// when divided by `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// From 0 to `count - 1`.
    pub index: u64,
    /// How many workers share the job.
    pub count: u64,
}

impl Worker {
    /// The only worker.
    pub const ALONE: Self = Self { index: 0, count: 1 };
}

impl fmt::Display for Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Worker {
    type Err = StoreError;

    /// Reads `i/N`, `i` counted from 0.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        let parts = text.split_once('/');
        let parsed = parts.and_then(|(index, count)| {
            Some(Self { index: index.parse().ok()?, count: count.parse().ok()? })
        });
        parsed.filter(|worker| worker.index < worker.count).ok_or_else(|| {
            StoreError::Config(format!("worker '{text}' is not i/N with i from 0 to N-1"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_strictly() {
        assert_eq!("0/1".parse::<Worker>().unwrap(), Worker::ALONE);
        assert_eq!("3/8".parse::<Worker>().unwrap().to_string(), "3/8");
        for wrong in ["", "1", "1/1", "8/8", "-1/2", "0/0", "a/b", "1/2/3", " 0/1"] {
            let error = wrong.parse::<Worker>().unwrap_err().to_string();
            assert_eq!(error, format!("worker '{wrong}' is not i/N with i from 0 to N-1"));
        }
    }
}
