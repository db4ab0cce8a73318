//! Files that are written beside their place and then renamed.

use crate::error::{Result, SampleError};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file under a temporary name in its final folder; removed unless [`Partial::keep`] is called.
pub struct Partial {
    file: Option<BufWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
}

impl Partial {
    /// Starts writing what will become `path`; its folder is made if absent.
    ///
    /// # Errors
    /// When the folder or file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| SampleError::file(path, "is not a file name"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(|e| SampleError::file(folder, e))?;
        }
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|e| SampleError::file(&temporary, e))?;
        let file = Some(BufWriter::with_capacity(1 << 18, file));
        Ok(Self { file, temporary, path: path.to_path_buf() })
    }

    /// Flushes the file to disk and gives it its name, replacing what was there.
    ///
    /// # Errors
    /// When the disk is full or the name cannot be taken.
    pub fn keep(mut self) -> Result<()> {
        let file = self.file.take().expect("a partial file is open until it is kept");
        let file = file.into_inner().map_err(|e| SampleError::file(&self.path, e.error()))?;
        file.sync_all().map_err(|e| SampleError::file(&self.path, e))?;
        std::fs::rename(&self.temporary, &self.path).map_err(|e| SampleError::file(&self.path, e))
    }

    fn open(&mut self) -> &mut BufWriter<File> {
        self.file.as_mut().expect("a partial file is open until it is kept")
    }
}

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.open().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.open().flush()
    }
}

impl Seek for Partial {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.open().seek(to)
    }
}

impl Drop for Partial {
    /// Removes the temporary file; after `keep` there is none.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}
