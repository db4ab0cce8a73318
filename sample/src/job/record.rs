//! What a set is of, beside the set: a resumed job must be the same job.

use crate::error::{Result, SampleError};
use crate::images::Partial;
use serde_json::Value;
use std::io::Write;
use std::path::Path;

/// Writes `record` at `path`, or compares it with what is there.
///
/// # Errors
/// Names the first field in which the job that was begun differs from this one.
pub(super) fn claim(path: &Path, record: &Value) -> Result<()> {
    if path.exists() {
        let bytes = std::fs::read(path).map_err(|e| SampleError::file(path, e))?;
        let begun: Value =
            serde_json::from_slice(&bytes).map_err(|e| SampleError::file(path, e))?;
        return match difference(&begun, record, String::new()) {
            None => Ok(()),
            Some((field, there, here)) => {
                let reason = format!("the set was begun with {field} = {there}, not {here}");
                Err(SampleError::file(path, reason))
            }
        };
    }
    let text = serde_json::to_vec_pretty(record).map_err(|e| SampleError::file(path, e))?;
    let mut file = Partial::create(path)?;
    file.write_all(&text).map_err(|e| SampleError::file(path, e))?;
    file.keep()
}

fn difference(a: &Value, b: &Value, at: String) -> Option<(String, Value, Value)> {
    let (Some(left), Some(right)) = (a.as_object(), b.as_object()) else {
        return (a != b).then(|| (at, a.clone(), b.clone()));
    };
    left.keys().chain(right.keys()).find_map(|key| {
        let name = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        let side = |object: &serde_json::Map<String, Value>| object.get(key).cloned();
        difference(&side(left).unwrap_or_default(), &side(right).unwrap_or_default(), name)
    })
}
