//! How processes that share a folder agree on a word that one of them has drawn, whatever jobs before
//! them left there.
//!
//! Rank R writes `rank-R.json` with a number of its own. The first answers in `word.json` with all
//! numbers that it has found: who finds its own there knows the word to be this job's, and says so in
//! its file. When all have, the first removes the folder.

use crate::error::{Result, TrainError};
use crate::folder::write_whole;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// Between two looks at the folder.
const PAUSE: Duration = Duration::from_millis(20);

/// What a rank says.
#[derive(Default, Serialize, Deserialize)]
struct Guest {
    number: u64,
    heard: Option<String>,
}

/// What the first rank answers.
#[derive(Serialize, Deserialize)]
struct Answer {
    word: String,
    /// Of the ranks from the second on, 0 for who is not there yet.
    numbers: Vec<u64>,
}

/// The word that the first of `size` ranks has drawn. `draw` must never give one word twice.
///
/// # Errors
/// Names the first rank that did not come within `patience`, or the file that could not be written.
pub(crate) fn agree(
    folder: &Path,
    rank: usize,
    size: usize,
    draw: impl FnOnce() -> Result<String>,
    patience: Duration,
) -> Result<String> {
    fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
    let end = Instant::now() + patience;
    let late = |who: usize| {
        let seconds = patience.as_secs();
        TrainError::Config(format!(
            "rank {who} of {size} did not come to {} in {seconds} s: do all ranks see this folder?",
            folder.display()
        ))
    };
    if rank > 0 {
        let mut guest = Guest { number: rand::random::<u64>().max(1), heard: None };
        write(folder, &format!("rank-{rank}.json"), &guest)?;
        loop {
            let answer = read::<Answer>(folder, "word.json");
            let own = |answer: &Answer| answer.numbers.get(rank - 1) == Some(&guest.number);
            if let Some(answer) = answer.filter(own) {
                guest.heard = Some(answer.word.clone());
                write(folder, &format!("rank-{rank}.json"), &guest)?;
                return Ok(answer.word);
            }
            if Instant::now() > end {
                return Err(late(0));
            }
            thread::sleep(PAUSE);
        }
    }
    let word = draw()?;
    let mut answer = Answer { word: word.clone(), numbers: Vec::new() };
    loop {
        let guests = (1..size).map(|rank| read::<Guest>(folder, &format!("rank-{rank}.json")));
        let guests: Vec<Guest> = guests.map(Option::unwrap_or_default).collect();
        let missing = guests.iter().position(|guest| guest.heard.as_ref() != Some(&word));
        let Some(missing) = missing else { break };
        if Instant::now() > end {
            return Err(late(missing + 1));
        }
        let numbers: Vec<u64> = guests.iter().map(|guest| guest.number).collect();
        if numbers != answer.numbers {
            answer.numbers = numbers;
            write(folder, "word.json", &answer)?;
        }
        thread::sleep(PAUSE);
    }
    fs::remove_dir_all(folder).map_err(TrainError::io(folder))?;
    Ok(word)
}

/// What `name` holds, if it is there and whole.
fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok()
}

fn write(folder: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let path = folder.join(name);
    let bytes = serde_json::to_vec(value).map_err(io::Error::other);
    write_whole(&path, &bytes.map_err(TrainError::io(&path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The words that `size` ranks hear when the first draws `word`.
    fn meet(folder: &Path, size: usize, word: &str) -> Vec<String> {
        thread::scope(|scope| {
            let ranks: Vec<_> = (0..size)
                .map(|rank| {
                    scope.spawn(move || {
                        thread::sleep(Duration::from_millis(rand::random_range(0..80)));
                        agree(folder, rank, size, || Ok(word.to_string()), PATIENCE).unwrap()
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn what_an_earlier_job_left_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ranks");
        for size in [1, 2, 4] {
            assert_eq!(meet(&folder, size, "first"), vec!["first"; size]);
            assert!(!folder.exists());
            // Killed before its first rank could tidy up, with and without having been heard.
            fs::create_dir_all(&folder).unwrap();
            let left = Answer { word: "old".into(), numbers: vec![7; 3] };
            write(&folder, "word.json", &left).unwrap();
            for rank in 1..4 {
                let heard = (rank != 2).then(|| "old".to_string());
                write(&folder, &format!("rank-{rank}.json"), &Guest { number: 7, heard }).unwrap();
            }
            assert_eq!(meet(&folder, size, "second"), vec!["second"; size]);
        }
    }

    #[test]
    fn who_does_not_come_is_named() {
        let root = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(100);
        let error = agree(root.path(), 0, 2, || Ok("word".into()), short).unwrap_err();
        assert!(error.to_string().contains("rank 1 of 2 did not come"), "{error}");
        let error = agree(root.path(), 1, 2, || Ok("word".into()), short).unwrap_err();
        assert!(error.to_string().contains("rank 0 of 2 did not come"), "{error}");
    }
}
