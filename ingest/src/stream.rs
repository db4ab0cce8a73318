//! The bounded, ordered stream of a source's images.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::{SemaphorePermit, oneshot};
use tokio::task::{JoinError, JoinHandle};

use crate::config::Decode;
use crate::crop::crop_decoded;
use crate::decode::{Format, Opened, contained};
use crate::error::{IngestError, Result};
use crate::image::RgbImage;
use crate::skip::{Skip, SkipReason};
use crate::source::{Entry, FETCH_PERMIT_BYTES, Source};

/// What a stream yields for an entry: its image (once per view) or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A cropped image.
    Image(Item),
    /// An entry that was left out.
    Skip(Skip),
}

/// A cropped image with its label and identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Position in the sorted listing.
    pub id: u64,
    /// Relative path or member name.
    pub key: String,
    /// Class, where the source or a label file tells it.
    pub label: Option<u32>,
    /// SHA-256 of the source's bytes.
    pub sha256: [u8; 32],
    /// Width of the source image in pixels, as stored (before any EXIF rotation).
    pub width: u32,
    /// Height of the source image in pixels, as stored.
    pub height: u32,
    /// 0 as it is, 1 mirrored.
    pub view: u8,
    /// Whether its EXIF orientation asks for a turn that the configuration does not give it.
    pub unturned: bool,
    /// The square image.
    pub image: RgbImage,
}

impl Source {
    /// Streams the entries at the positions in `order`, in that order whatever the number of
    /// threads: each as an [`Outcome::Image`] (two with `flip`) or an [`Outcome::Skip`].
    ///
    /// At most `queue_images_max` entries are being read or wait to be taken; nothing is begun
    /// before the stream is polled. Must be polled within a tokio runtime.
    ///
    /// # Errors
    /// Only what ends the job: [`IngestError::TooManySkips`] and [`IngestError::Index`].
    pub fn stream(
        self: &Arc<Self>,
        order: Vec<usize>,
    ) -> impl Stream<Item = Result<Outcome>> + Send + 'static {
        let source = Arc::clone(self);
        let planned = order.len();
        let skips_max = (source.config.skip_fraction_max * planned as f64).ceil() as usize;
        async_stream::try_stream! {
            let count = source.entries().len();
            if let Some(&index) = order.iter().find(|&&index| index >= count) {
                Err(IngestError::Index { index, count })?;
            }
            let queue = source.config.queue_images_max;
            let mut produced = stream::iter(order)
                .map(|index| source.start(index))
                .buffered(queue);
            let mut skipped = 0;
            while let Some(result) = produced.next().await {
                match result {
                    Ok(item) => {
                        let mirrored = source.config.flip.then(|| Item {
                            view: 1,
                            image: item.image.flipped(),
                            ..item.clone()
                        });
                        yield Outcome::Image(item);
                        if let Some(item) = mirrored {
                            yield Outcome::Image(item);
                        }
                    }
                    Err(skip) => {
                        skipped += 1;
                        tracing::debug!(key = skip.key, reason = %skip.reason, "skipped");
                        if skipped > skips_max {
                            Err(IngestError::TooManySkips {
                                skipped,
                                planned,
                                fraction_max: source.config.skip_fraction_max,
                                last: format!("{}: {}", skip.key, skip.reason),
                            })?;
                        }
                        yield Outcome::Skip(skip);
                    }
                }
            }
        }
    }

    /// Begins to produce an entry, whether or not the result is polled for. The work is dropped
    /// with its future.
    fn start(self: &Arc<Self>, index: usize) -> impl Future<Output = Result<Item, Skip>> + 'static {
        let source = Arc::clone(self);
        let task = AbortOnDrop(tokio::spawn(async move {
            let entry = &source.entries()[index];
            let produced = match source.fetch_bytes(entry) {
                None => source.decode_in_pool(index, None).await,
                Some(bytes) => {
                    // Held until the image is decoded.
                    let _permit = source.fetch_permit(bytes).await;
                    match source.fetch(index).await {
                        Ok(content) => source.decode_in_pool(index, Some(content)).await,
                        Err(reason) => Err(reason),
                    }
                }
            };
            produced.map_err(|reason| Skip { id: entry.id, key: entry.key.clone(), reason })
        }));
        async { task.await.expect("producing an image neither panics nor is cancelled") }
    }

    /// Waits until `bytes` more may be held; a file beyond the whole budget waits for all of it.
    async fn fetch_permit(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let bytes = bytes.min(self.config.bytes_max).min(self.config.fetch_bytes_max);
        let permits = (bytes / FETCH_PERMIT_BYTES).max(1) as u32;
        self.fetch_budget.acquire_many(permits).await.ok()
    }

    /// The bytes of an entry in an object store.
    async fn fetch(self: &Arc<Self>, index: usize) -> Result<Bytes, SkipReason> {
        let source = Arc::clone(self);
        tokio::task::spawn_blocking(move || source.read(&source.entries()[index]))
            .await
            .expect("reading neither panics nor is cancelled")
    }

    /// Produces an entry on the decoding threads, which also read it if `content` is not given.
    async fn decode_in_pool(
        self: &Arc<Self>,
        index: usize,
        content: Option<Bytes>,
    ) -> Result<Item, SkipReason> {
        let (sender, receiver) = oneshot::channel();
        let source = Arc::clone(self);
        self.pool.spawn(move || {
            if !sender.is_closed() {
                // The receiver may have gone meanwhile, and then nobody wants the answer.
                let _ = sender.send(source.produce(&source.entries()[index], content));
            }
        });
        receiver.await.expect("a decoding thread answers while its stream listens")
    }

    /// Reads, decodes and crops one entry, on the calling thread.
    fn produce(&self, entry: &Entry, content: Option<Bytes>) -> Result<Item, SkipReason> {
        if self.labels_required && entry.label.is_none() {
            return Err(SkipReason::Unlabelled);
        }
        let bytes = match content {
            Some(content) => content,
            None => self.read(entry)?,
        };
        let format = Format::sniff(&bytes)?;
        contained(format, || self.process(entry, &bytes))
    }

    fn process(&self, entry: &Entry, bytes: &[u8]) -> Result<Item, SkipReason> {
        let mut opened = Opened::new(bytes, &self.limits())?;
        if self.config.decode == Decode::Fast {
            opened.reduce_to(self.config.crop.short_side(self.config.size))?;
        }
        let (width, height) = (opened.width, opened.height);
        let reservation = self.decode_budget.reserve(opened.working_bytes);
        let decoded = opened.decode(self.config.exif_orientation)?;
        let unturned = decoded.unturned;
        let seed = self.config.seed ^ entry.id.wrapping_mul(0xd134_2543_de82_ef95);
        let image = crop_decoded(decoded, self.config.size, self.config.crop, seed);
        drop(reservation);
        Ok(Item {
            id: entry.id,
            key: entry.key.clone(),
            label: entry.label,
            sha256: Sha256::digest(bytes).into(),
            width,
            height,
            view: 0,
            unturned,
            image,
        })
    }
}

/// A task that ends with its handle.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
