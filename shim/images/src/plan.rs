//! The layers of one image to be made ready, and how: found, or fetched and unpacked, each once for all who want it.

use crate::digest::{Digest, chain_ids};
use crate::flight::Seat;
use crate::pipeline::{Source, run};
use crate::store::Inner;
use crate::store::layers::Pinned;
use crate::types::{Progress, ProgressFn};
use crate::{Error, Result};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use tokio::sync::Semaphore;

/// A layer and all below it, bottom first.
pub(crate) type Stacked = Arc<Vec<Pinned>>;

/// One layer as the image wants it.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) diff_id: Digest,
    pub(crate) source: Source,
    /// For progress: the blob's digest and size.
    pub(crate) name: String,
    pub(crate) size: u64,
}

pub(crate) struct Plan {
    inner: Arc<Inner>,
    layers: Vec<Wanted>,
    chain: Vec<Digest>,
    permits: Semaphore,
    progress: Option<ProgressFn>,
}

impl Plan {
    pub(crate) fn new(inner: &Arc<Inner>, layers: Vec<Wanted>, progress: Option<ProgressFn>) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Self {
            inner: inner.clone(),
            layers,
            chain: chain_ids(&diff_ids),
            permits: Semaphore::new(inner.registries().parallel_layers.max(1)),
            progress,
        }
    }

    pub(crate) fn chain_ids(&self) -> &[Digest] {
        &self.chain
    }

    /// Makes all layers ready. Flights of others that fail (their credentials, their cancelling) are flown again on
    /// our own.
    pub(crate) async fn ready(self: &Arc<Self>) -> Result<Stacked> {
        let mut tries = 0;
        loop {
            // Boarding bottom first: the lowest layers are mostly the largest.
            let mut seats: Vec<Seat<Result<Stacked>>> =
                (0..self.layers.len()).map(|index| self.seat(index)).collect();
            let joined = seats.iter().any(|seat| seat.joined);
            let Some(top) = seats.pop() else { return Ok(Stacked::default()) };
            match top.wait().await {
                Some(Ok(stacked)) => return Ok(stacked),
                Some(Err(error)) if !joined || tries == 2 => return Err(error),
                None if !joined || tries == 2 => return Err(Error::cancelled("unpack", "layer")),
                _ => tries += 1,
            }
        }
    }

    fn seat(self: &Arc<Self>, index: usize) -> Seat<Result<Stacked>> {
        self.inner.layer_flights.board(&self.chain[index], || self.clone().fly(index))
    }

    /// Boxed, as each flight boards the one below.
    fn fly(self: Arc<Self>, index: usize) -> Pin<Box<dyn Future<Output = Result<Stacked>> + Send>> {
        Box::pin(async move {
            let below = index.checked_sub(1).map(|below| self.seat(below));
            let below = async {
                match below {
                    None => Ok(Stacked::default()),
                    Some(seat) => {
                        seat.wait().await.unwrap_or_else(|| Err(Error::cancelled("unpack", "layer below")))
                    }
                }
            };
            let (below, own) = tokio::try_join!(below, self.own(index))?;
            let pinned = match own {
                Own::Ready(pinned) => pinned,
                Own::Loose(unpacked) => self.commit(index, *unpacked, below.clone()).await?,
            };
            let mut stacked = Vec::clone(&below);
            stacked.push(pinned);
            Ok(Arc::new(stacked))
        })
    }

    /// This layer alone.
    async fn own(self: &Arc<Self>, index: usize) -> Result<Own> {
        let layer = &self.layers[index];
        if let Some(found) = self.find(index) {
            return Ok(Own::Ready(found));
        }
        // The lock before the permit: who holds a permit never waits for a lock.
        let lock = self.lock_of(&layer.diff_id);
        let _only = lock.lock().await;
        if let Some(found) = self.find(index) {
            return Ok(Own::Ready(found));
        }
        let _permit = self.permits.acquire().await.map_err(|_| Error::cancelled("fetch", &layer.name))?;
        let unpacked = run(&self.inner, layer.source.clone(), &layer.diff_id, self.on_bytes(layer)).await?;
        let own = if unpacked.tree.pending.is_empty() {
            // Depends on nothing below: visible to everyone as soon as it is unpacked.
            Own::Ready(self.commit(index, unpacked, Stacked::default()).await?)
        } else {
            Own::Loose(Box::new(unpacked))
        };
        self.report(Progress::LayerReady { digest: layer.name.clone(), cached: false });
        Ok(own)
    }

    async fn commit(
        self: &Arc<Self>,
        index: usize,
        unpacked: crate::store::layers::Unpacked,
        below: Stacked,
    ) -> Result<Pinned> {
        let plan = self.clone();
        let commit = move || plan.inner.commit_layer(unpacked, &plan.chain[index], &below);
        let committed = tokio::task::spawn_blocking(commit).await;
        committed.unwrap_or_else(|_| Err(Error::cancelled("make layer visible", &self.layers[index].diff_id)))
    }

    fn find(&self, index: usize) -> Option<Pinned> {
        let found = self.inner.find_layer(&self.layers[index].diff_id, &self.chain[index])?;
        self.report(Progress::LayerReady { digest: self.layers[index].name.clone(), cached: true });
        Some(found)
    }

    fn lock_of(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.inner.diff_locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(diff_id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(diff_id.clone(), Arc::downgrade(&lock));
        lock
    }

    fn report(&self, progress: Progress) {
        if let Some(receiver) = &self.progress {
            receiver(progress);
        }
    }

    /// Reports at most every 256 KiB.
    fn on_bytes(&self, layer: &Wanted) -> crate::pipeline::OnBytes {
        let Some(receiver) = self.progress.clone() else { return Arc::new(|_| ()) };
        let (digest, total, done) = (layer.name.clone(), layer.size, AtomicU64::new(0));
        Arc::new(move |count| {
            let before = done.fetch_add(count, Ordering::Relaxed);
            let now = before + count;
            if before >> 18 != now >> 18 || now == total {
                receiver(Progress::Layer { digest: digest.clone(), done: now, total });
            }
        })
    }
}

enum Own {
    Ready(Pinned),
    /// Unpacked, and waiting for the layers below to be settled over.
    Loose(Box<crate::store::layers::Unpacked>),
}
