//! Sources in object stores.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use tokio::runtime::Handle;

use super::blob::Object;
use super::names::{MADE_HERE_WORDS, is_hidden, is_made_here, mark};
use crate::config::IngestConfig;
use crate::error::{IngestError, Result};
use crate::left_out::LeftOut;

/// Attempts at a request after the first.
const RETRIES_MAX: usize = 6;

/// A place in an object store: a prefix or an object.
#[derive(Clone)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    origin: Arc<str>,
    prefix: ObjectPath,
}

/// Whether `source` names a place in an object store.
pub(super) fn is_remote(source: &str) -> bool {
    source.contains("://")
}

impl Remote {
    /// Opens `s3://`, `gs://` and `az://` URIs with the credentials in the usual environment
    /// variables, and `file://`. Requests are retried with exponential backoff.
    pub(super) fn open(uri: &str, config: &IngestConfig) -> Result<Self> {
        let failed = |error: object_store::Error| IngestError::source(uri, error);
        let (scheme, place) = uri.split_once("://").unwrap_or(("", uri));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: Duration::from_secs(config.retry_seconds_max),
        };
        let options = ClientOptions::new()
            .with_timeout(Duration::from_secs(config.request_seconds_max))
            .with_allow_http(std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true"));
        let store: Arc<dyn ObjectStore> = match scheme {
            "s3" => Arc::new(
                AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(options)
                    .with_retry(retry)
                    .build()
                    .map_err(failed)?,
            ),
            "gs" => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(options)
                    .with_retry(retry)
                    .build()
                    .map_err(failed)?,
            ),
            "az" => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket)
                    .with_client_options(options)
                    .with_retry(retry)
                    .build()
                    .map_err(failed)?,
            ),
            "file" => Arc::new(LocalFileSystem::new()),
            _ => {
                let reason = format!("`{scheme}://` is none of s3://, gs://, az:// and file://");
                return Err(IngestError::source(uri, reason));
            }
        };
        let prefix = ObjectPath::parse(prefix.trim_end_matches('/'))
            .map_err(|error| IngestError::source(uri, error))?;
        Ok(Self { store, origin: format!("{scheme}://{bucket}").into(), prefix })
    }

    /// The object at `path`, a full path in the bucket.
    pub(super) fn object(&self, path: ObjectPath, runtime: &Handle) -> Object {
        let (store, origin) = (Arc::clone(&self.store), Arc::clone(&self.origin));
        Object { store, path, origin, runtime: runtime.clone() }
    }

    /// The object that the URI itself names.
    pub(super) fn itself(&self, runtime: &Handle) -> Object {
        self.object(self.prefix.clone(), runtime)
    }

    /// The objects below the URI that are neither hidden nor of a place that lapflow made.
    pub(super) async fn list(&self, entries_max: usize) -> Result<Objects> {
        let failed =
            |error: object_store::Error| IngestError::source(&self.origin, error.to_string());
        let mut found = Vec::new();
        let mut listed = self.store.list(Some(&self.prefix));
        while let Some(object) = listed.try_next().await.map_err(failed)? {
            let Some(parts) = object.location.prefix_match(&self.prefix) else { continue };
            let key = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            if !key.is_empty() && !is_hidden(&key) {
                found.push(Found { key, path: object.location, bytes: object.size });
                super::check_count(&self.origin, found.len(), entries_max)?;
            }
        }
        Ok(without_made_here(found))
    }
}

/// Takes the objects out that are below a place that lapflow made, unless that is the whole.
fn without_made_here(mut objects: Vec<Found>) -> Objects {
    let mut marks: HashMap<&str, u8> = HashMap::new();
    for Found { key, .. } in &objects {
        let slashes = || key.match_indices('/').map(|(at, _)| at);
        // All folders that the key leads through, with what is next in each.
        for (slash, end) in slashes().zip(slashes().skip(1).chain([key.len()])) {
            let mark = mark(&key[slash + 1..end]);
            if mark != 0 {
                *marks.entry(&key[..=slash]).or_default() |= mark;
            }
        }
    }
    let made_here = marks.into_iter().filter(|&(_, marks)| is_made_here(marks));
    let mut made_here: Vec<String> = made_here.map(|(folder, _)| folder.to_owned()).collect();
    made_here.sort_unstable();
    // A place within another is part of it.
    made_here.dedup_by(|inner, outer| inner.starts_with(outer.as_str()));
    let mut left_out = LeftOut::default();
    made_here.iter().for_each(|_| left_out.add(MADE_HERE_WORDS));
    objects.retain(|object| !made_here.iter().any(|place| object.key.starts_with(place.as_str())));
    Objects { objects, left_out }
}

/// What a place in an object store holds.
pub(super) struct Objects {
    pub(super) objects: Vec<Found>,
    /// Places passed over.
    pub(super) left_out: LeftOut,
}

/// An object of a listing.
pub(super) struct Found {
    pub(super) key: String,
    pub(super) path: ObjectPath,
    pub(super) bytes: u64,
}
