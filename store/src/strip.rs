//! A segment of a local file, read page by page and summed on the way: a page is decoded while the
//! core's cache holds it, and the whole is known to be right when its end is reached.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parquet::file::reader::{ChunkReader, Length};

use crate::buffers::Buffer;

/// Bytes read for the first page, whose length is not known yet.
const FIRST_BYTES: usize = 160 << 10;
/// Later pages are taken to be as long as the one before and this part of it.
const SLACK: usize = 32;

/// The bytes of `range` of a file, for a page reader that goes through them from first to last.
pub(crate) struct Strip {
    range: Range<u64>,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// Of the bytes read so far, where they are to be checked.
    crc: Option<crc32fast::Hasher>,
    /// Where the bytes begin that are not in `crc` yet.
    summed: u64,
    /// Offset of the last page's header, and the bytes from there that were read.
    page: (u64, Bytes),
    /// Bytes to read for the next page.
    ahead: usize,
}

impl Strip {
    /// Bytes are summed where `verify` says so.
    ///
    /// Errors: the file cannot be opened, or ends before `range` does.
    pub fn open(path: &Path, range: Range<u64>, verify: bool) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length < range.end {
            let reason = format!("{length} bytes, expected {}: the file is truncated", range.end);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        let crc = verify.then(crc32fast::Hasher::new);
        let (summed, page) = (range.start, (0, Bytes::new()));
        let state = Mutex::new(State { file, crc, summed, page, ahead: FIRST_BYTES });
        Ok(Self { range, state })
    }

    /// The CRC-32 of the whole range, what was not asked for included; `None` without `verify`.
    /// To be asked for once, at the end.
    pub fn checksum(&self) -> io::Result<Option<u32>> {
        let mut state = self.lock();
        let Some(mut crc) = state.crc.take() else { return Ok(None) };
        crc.update(&self.bytes(&state, state.summed, usize::MAX)?);
        Ok(Some(crc.finalize()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `length` bytes from `start` on, which lies in the range.
    fn bytes(&self, state: &State, start: u64, length: usize) -> io::Result<Bytes> {
        let present = self.range.end.checked_sub(start).filter(|_| start >= self.range.start);
        let present = present.ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = usize::try_from(present).map_err(io::Error::other)?.min(length);
        let mut buffer = Buffer::take(length);
        state.file.read_exact_at(&mut buffer, start)?;
        Ok(Bytes::from_owner(buffer))
    }
}

impl Length for Strip {
    fn len(&self) -> u64 {
        self.range.end
    }
}

impl ChunkReader for Strip {
    type T = Exhaustible;

    /// The page header at `start`: reads what is probably the whole page.
    fn get_read(&self, start: u64) -> parquet::errors::Result<Exhaustible> {
        let mut state = self.lock();
        let bytes = self.bytes(&state, start, state.ahead)?;
        state.page = (start, bytes.clone());
        Ok(Exhaustible(Cursor::new(bytes)))
    }

    /// The page that belongs to the header asked for before.
    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let mut state = self.lock();
        let (from, mut bytes) = state.page.clone();
        let header = start.checked_sub(from).map_or(usize::MAX, |header| header as usize);
        let whole =
            header.checked_add(length).ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        if whole > bytes.len() {
            bytes = self.bytes(&state, from, whole)?;
        }
        let page = bytes.get(..whole).ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if let State { crc: Some(crc), summed, .. } = &mut *state
            && *summed == from
        {
            crc.update(page);
            *summed += whole as u64;
        }
        state.ahead = whole + whole / SLACK;
        Ok(bytes.slice(header..whole))
    }
}

/// Bytes whose end is an error: a damaged page header may tell to skip for hours behind it.
pub(crate) struct Exhaustible(Cursor<Bytes>);

impl Read for Exhaustible {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 if !buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }
}
