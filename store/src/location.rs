//! Where a dataset lives: an address resolved to an object store, and the runtime its I/O runs on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use crate::buffers::Buffer;
use crate::error::{Result, StoreError};

/// Worker threads of the I/O runtime; blocking work (decoding, log replay) has its own pool.
const IO_THREADS: usize = 2;
/// Threads that decode row groups or replay the log at the same time, at most.
const BLOCKING_THREADS_MAX: usize = 64;

/// Times an operation on storage is repeated after failing.
pub(crate) const RETRIES_MAX: u32 = 6;
/// Bound of the wait before the first repetition.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest bound of a wait.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Bytes of a local file read and summed at a time: they fit a core's own cache.
const CHECKED_BYTES: usize = 128 << 10;

/// All storage I/O of the process runs here, so that datasets work from synchronous callers and
/// from any flavour of runtime, and connections outlive the caller's runtime.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("lapflow-store")
        .enable_all()
        .build()
        .expect("the operating system grants a few threads at start")
});

/// The I/O runtime's handle.
pub(crate) fn runtime() -> &'static tokio::runtime::Handle {
    RUNTIME.handle()
}

/// Runs `future` on the I/O runtime; it is cancelled when the caller drops the returned future.
pub(crate) async fn on_runtime<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let task = AbortOnDrop(runtime().spawn(future));
    task.await
}

/// Runs blocking `work` (decoding, log replay) on the I/O runtime's blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    AbortOnDrop(runtime().spawn_blocking(work)).await
}

/// Repeats an operation on remote storage that failed for no lasting reason, such as a connection
/// that was reset: the client itself repeats little but what the server asks it to.
pub(crate) async fn retrying<T, F>(mut attempt: impl FnMut() -> F) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let mut failures = 0;
    loop {
        match attempt().await {
            Err(error @ object_store::Error::Generic { .. }) if failures < RETRIES_MAX => {
                tracing::warn!(%error, "storage failed, once more");
                let wait = backoff(failures);
                failures += 1;
                on_runtime(async move { tokio::time::sleep(wait).await }).await;
            }
            outcome => return outcome,
        }
    }
}

/// A random wait whose bound doubles with every failure, up to [`BACKOFF_MAX`].
pub(crate) fn backoff(failures: u32) -> Duration {
    let bound = (BACKOFF_MIN * (1 << failures.min(10))).min(BACKOFF_MAX);
    bound.mul_f64(rand::random())
}

/// A spawned task that is aborted when nobody waits for it any more.
pub(crate) struct AbortOnDrop<T>(pub(crate) tokio::task::JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = T;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<T> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|joined| match joined {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        })
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An address and the object store behind it.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    /// The table's root, ending in `/`.
    pub url: Url,
    /// The table's root as a path within `store`.
    pub root: Path,
    /// The whole bucket or file system.
    pub store: Arc<dyn ObjectStore>,
}

impl Location {
    /// Resolves a path or a `file://`, `s3://`, `gs://` or `az://` address.
    ///
    /// Credentials and endpoints come from the usual environment variables (`AWS_*`,
    /// `GOOGLE_*`, `AZURE_*`).
    pub fn resolve(uri: &str) -> Result<Self> {
        let refuse = |reason: String| StoreError::Address { uri: uri.to_string(), reason };
        let url = parse(uri).map_err(refuse)?;
        let variables = std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value));
        let (store, root) = object_store::parse_url_opts(&url, variables)
            .map_err(|error| refuse(error.to_string()))?;
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "file" => Arc::new(LocalFileSystem::new().with_fsync(true)),
            _ => Arc::from(store),
        };
        Ok(Self { url, root, store })
    }

    /// Reads `range` of a file named relative to the table's root, and the CRC-32 of each piece
    /// of it that ends at one of `ends`; fewer bytes where the file ends early.
    ///
    /// Local files are read without the object store, whose reads allocate and clear new memory
    /// every time.
    pub async fn read(
        &self,
        relative: &str,
        range: Range<u64>,
        ends: Vec<u64>,
    ) -> std::result::Result<(Bytes, Vec<u32>), object_store::Error> {
        let path = self.path(relative);
        let Some(file) = self.local(relative) else {
            let start = range.start;
            let bytes = retrying(|| {
                let (store, path, range) = (Arc::clone(&self.store), path.clone(), range.clone());
                on_runtime(async move { store.get_range(&path, range).await })
            })
            .await?;
            return Ok(blocking(move || {
                let crcs = checksums(&bytes, start, &ends);
                (bytes, crcs)
            })
            .await);
        };
        blocking(move || read_local(&file, range, &ends)).await.map_err(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => {
                    object_store::Error::NotFound { path: path.to_string(), source: error.into() }
                }
                _ => object_store::Error::Generic { store: "local file", source: error.into() },
            }
        })
    }

    /// The path on this machine of a file named relative to the table's root, if it is here.
    pub fn local(&self, relative: &str) -> Option<PathBuf> {
        self.url.to_file_path().ok().map(|root| root.join(relative))
    }

    /// Whether operations fail for lasting reasons only.
    pub fn is_local(&self) -> bool {
        self.url.scheme() == "file"
    }

    /// A path within the store as people write it: from the root on this machine, a whole address
    /// elsewhere.
    pub fn address(&self, path: &Path) -> String {
        if self.is_local() {
            return format!("/{path}");
        }
        let within = path.as_ref().strip_prefix(self.root.as_ref()).unwrap_or(path.as_ref());
        format!("{}{}", self.url, within.trim_start_matches('/'))
    }

    /// The error of an `operation` on a path within the store.
    pub fn failed(
        &self,
        operation: &'static str,
        path: &Path,
        error: object_store::Error,
    ) -> StoreError {
        StoreError::storage(operation, self.address(path), error)
    }

    /// The path within the store of a file named relative to the table's root.
    pub fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }
}

fn read_local(
    file: &std::path::Path,
    range: Range<u64>,
    ends: &[u64],
) -> io::Result<(Bytes, Vec<u32>)> {
    let mut file = File::open(file)?;
    let wanted = range.end.saturating_sub(range.start);
    let present = file.metadata()?.len().saturating_sub(range.start).min(wanted);
    file.seek(SeekFrom::Start(range.start))?;
    let length = usize::try_from(present).map_err(io::Error::other)?;
    let mut buffer = Buffer::take(length);
    if ends.is_empty() {
        file.read_exact(&mut buffer)?;
        return Ok((Bytes::from_owner(buffer), Vec::new()));
    }
    let mut crcs = Vec::with_capacity(ends.len());
    let mut filled = 0;
    for piece_end in piece_ends(range.start, ends, length) {
        // Bytes are summed while the core's cache still holds them.
        let mut crc = crc32fast::Hasher::new();
        while filled < piece_end {
            let end = piece_end.min(filled + CHECKED_BYTES);
            file.read_exact(&mut buffer[filled..end])?;
            crc.update(&buffer[filled..end]);
            filled = end;
        }
        crcs.push(crc.finalize());
    }
    file.read_exact(&mut buffer[filled..])?;
    Ok((Bytes::from_owner(buffer), crcs))
}

/// The CRC-32 of each piece of `bytes`, which begin at offset `start` of their file.
fn checksums(bytes: &[u8], start: u64, ends: &[u64]) -> Vec<u32> {
    let mut from = 0;
    let piece = |to: usize| {
        let crc = crc32fast::hash(&bytes[from..to]);
        from = to;
        crc
    };
    piece_ends(start, ends, bytes.len()).map(piece).collect()
}

/// Offsets in a file, which go up, as indices into `length` bytes that begin at `start`.
fn piece_ends(start: u64, ends: &[u64], length: usize) -> impl Iterator<Item = usize> {
    ends.iter().map(move |end| (end.saturating_sub(start) as usize).min(length))
}

fn parse(uri: &str) -> std::result::Result<Url, String> {
    if uri.is_empty() {
        return Err("it is empty".to_string());
    }
    let mut url = if uri.contains("://") {
        Url::parse(uri).map_err(|error| error.to_string())?
    } else {
        let path = without_parents(uri).map_err(|error| error.to_string())?;
        if let Some(part) = misread(&path.to_string_lossy()) {
            return Err(format!(
                "its path has `{part}`, which the table's log would read as another"
            ));
        }
        Url::from_directory_path(&path).map_err(|()| "not an absolute path".to_string())?
    };
    if !matches!(url.scheme(), "file" | "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss") {
        return Err(format!("unknown scheme '{}'", url.scheme()));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// A part of a local path that the storage crates take for an escape: a backslash, or `%` before two
/// hexadecimal digits.
fn misread(path: &str) -> Option<&str> {
    let escape = |(at, _)| {
        let part = path.get(at..at + 3)?;
        part[1..].bytes().all(|b| b.is_ascii_hexdigit()).then_some(part)
    };
    let backslash = || path.find('\\').map(|at| &path[at..=at]);
    path.match_indices('%').find_map(escape).or_else(backslash)
}

/// The absolute path that `path` leads to, without `.` and `..`; what is above a link that exists is
/// what the link leads to.
fn without_parents(path: &str) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            std::path::Component::ParentDir => {
                plain = plain.canonicalize().unwrap_or(plain);
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_end_in_a_slash() {
        assert_eq!(Location::resolve("/data/set").unwrap().url.as_str(), "file:///data/set/");
        assert_eq!(Location::resolve("file:///a b/c").unwrap().url.as_str(), "file:///a%20b/c/");
        assert_eq!(Location::resolve("/a b/c").unwrap().path("data/x").as_ref(), "a b/c/data/x");
        let s3 = Location::resolve("s3://bucket/set").unwrap();
        assert_eq!((s3.url.as_str(), s3.root.as_ref()), ("s3://bucket/set/", "set"));
    }

    #[test]
    fn a_path_may_lead_up_and_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        let url =
            |path: &str| Location::resolve(&format!("{}/{path}", root.display())).unwrap().url;
        for path in ["set", "a/../set", "./a/./b/../../set//", "gone/../set"] {
            assert_eq!(url(path).to_file_path().unwrap(), root.join("set"), "{path}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.join("a/b"), root.join("link")).unwrap();
            assert_eq!(url("link/../set").to_file_path().unwrap(), root.join("a/set"));
        }
    }

    #[test]
    fn names_that_would_be_misread_are_refused() {
        for (path, part) in [("/my%20set", "%20"), ("/a\\b", "\\")] {
            let error = Location::resolve(path).unwrap_err().to_string();
            assert!(error.contains(&format!("its path has `{part}`")), "{error}");
        }
        assert!(Location::resolve("/100%").is_ok() && Location::resolve("/100%/a b").is_ok());
    }

    #[test]
    fn unknown_schemes_are_refused_by_name() {
        let error = Location::resolve("ftp://host/x").unwrap_err().to_string();
        assert_eq!(error, "dataset address 'ftp://host/x' cannot be used: unknown scheme 'ftp'");
    }
}
