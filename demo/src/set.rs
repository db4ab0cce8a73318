//! A set of pictures on disk: PNG files in class folders.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use image::ImageFormat;
use rayon::prelude::*;

use super::render::{CLASSES, render};

/// Writes one picture of every class for each of `seeds` as `out/CLASS/SEED.png`, `size` by `size`
/// pixels, on all threads. Returns how many were written.
///
/// The same arguments give the same files, byte for byte; disjoint ranges of seeds give sets
/// without a common picture, one to train on and one held out.
///
/// # Errors
/// If a folder or file cannot be written; the message names it.
pub fn write_set(out: &Path, seeds: Range<u64>, size: u32) -> io::Result<usize> {
    for class in CLASSES {
        let folder = out.join(class);
        fs::create_dir_all(&folder).map_err(|error| named(&folder, error))?;
    }
    let pictures: Vec<(usize, u64)> =
        (0..CLASSES.len()).flat_map(|class| seeds.clone().map(move |seed| (class, seed))).collect();
    pictures.par_iter().try_for_each(|&(class, seed)| {
        let path = out.join(CLASSES[class]).join(format!("{seed:06}.png"));
        // Written beside and renamed, so that a file of that name is always whole.
        let part = path.with_extension("part");
        render(class, seed, size)
            .save_with_format(&part, ImageFormat::Png)
            .map_err(io::Error::other)
            .and_then(|()| fs::rename(&part, &path))
            .map_err(|error| named(&path, error))
    })?;
    Ok(pictures.len())
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_set_is_the_same_every_time_and_holds_every_picture()
    -> Result<(), Box<dyn std::error::Error>> {
        let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
        assert_eq!(write_set(first.path(), 5..8, 32)?, 3 * CLASSES.len());
        write_set(second.path(), 5..8, 32)?;
        let mut contents = BTreeSet::new();
        for (class, name) in CLASSES.iter().enumerate() {
            for seed in 5..8 {
                let file = format!("{name}/{seed:06}.png");
                let bytes = fs::read(first.path().join(&file))?;
                assert_eq!(bytes, fs::read(second.path().join(&file))?);
                let decoded = image::load_from_memory(&bytes)?.into_rgb8();
                assert_eq!(decoded, render(class, seed, 32));
                contents.insert(bytes);
            }
            assert_eq!(fs::read_dir(first.path().join(name))?.count(), 3);
        }
        assert_eq!(contents.len(), 3 * CLASSES.len());
        Ok(())
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = write_set(file.path(), 0..1, 32).expect_err("a file is no folder");
        assert!(error.to_string().contains(&*file.path().to_string_lossy()), "{error}");
    }
}
