//! Our own small service beside CRI: import, and pull with progress.

use super::{Streamed, answer, export};
use crate::daemon::Daemon;
use crate::error::Error;
use cri_proto::slipway as local;
use slipway_images::{Progress, ProgressFn, Verdict, Verified};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream;
use tonic::{Request, Response, Status};

/// Handler of slipway.v1.Local.
#[derive(Debug)]
pub(crate) struct LocalApi(pub(crate) Arc<Daemon>);

#[tonic::async_trait]
impl local::local_server::Local for LocalApi {
    async fn import(
        &self,
        request: Request<local::ImportRequest>,
    ) -> Result<Response<local::ImportResponse>, Status> {
        let request = request.into_inner();
        let name = Some(request.name.as_str()).filter(|n| !n.is_empty());
        if !request.path.starts_with('/') {
            return answer("Import", Err(Error::invalid(format!("path {:?} is not absolute", request.path))));
        }
        let imported = self.0.images.import(Path::new(&request.path), name).await;
        let images = imported.map_err(Error::from).map(|imported| {
            let one = |i: &Arc<slipway_images::Image>| local::ImportedImage {
                id: i.id.clone(),
                names: i.repo_tags.clone(),
            };
            local::ImportResponse {
                images: imported.images.iter().map(one).collect(),
                skipped: imported.skipped,
            }
        });
        answer("Import", images)
    }

    async fn verify(
        &self,
        request: Request<local::VerifyRequest>,
    ) -> Result<Response<local::VerifyResponse>, Status> {
        let request = request.into_inner();
        let verified = self.0.images.verify(&request.images, request.repair).await;
        let layers = verified.map(|layers| layers.into_iter().map(verified_layer).collect());
        answer("Verify", layers.map(|layers| local::VerifyResponse { layers }).map_err(Error::from))
    }

    type ExportStream = Streamed<local::ExportPiece>;

    async fn export(
        &self,
        request: Request<local::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Ok(Response::new(export::pieces(self.0.images.clone(), request.into_inner().images)))
    }

    type PullStream = Streamed<local::PullEvent>;

    async fn pull(&self, request: Request<local::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let (store, reference) = (self.0.images.clone(), request.into_inner().image);
        tokio::spawn(async move {
            let board = Arc::new(Mutex::new(Board::default()));
            let pulled = tokio::select! {
                pulled = store.pull(&reference, None, Some(report(&board, &sender))) => pulled,
                // The client left: dropping the pull gives it up, unless others wait for it.
                () = sender.closed() => return,
            };
            let last = match pulled {
                Ok(image) => {
                    let mut event = board.lock().unwrap_or_else(PoisonError::into_inner).event();
                    event.image_id = image.id.clone();
                    Ok(event)
                }
                Err(error) => Err(Status::from(Error::from(error))),
            };
            // A client that left needs no answer.
            let _ = sender.send(last).await;
        });
        Ok(Response::new(Box::pin(Receiving(receiver))))
    }
}

fn verified_layer(layer: Verified) -> local::VerifiedLayer {
    let (verdict, why) = match layer.verdict {
        Verdict::Unknown => (local::LayerVerdict::VerdictUnknown, String::new()),
        Verdict::Intact => (local::LayerVerdict::VerdictIntact, String::new()),
        Verdict::Damaged => (local::LayerVerdict::VerdictDamaged, String::new()),
        Verdict::Repaired => (local::LayerVerdict::VerdictRepaired, String::new()),
        Verdict::Broken(why) => (local::LayerVerdict::VerdictBroken, why),
    };
    local::VerifiedLayer { diff_id: layer.diff_id, images: layer.images, verdict: verdict.into(), why }
}

/// The state of a pull, assembled from its progress.
#[derive(Debug, Default)]
struct Board {
    total: u64,
    layers: BTreeMap<String, local::LayerProgress>,
}

impl Board {
    fn note(&mut self, progress: Progress) {
        match progress {
            Progress::Resolved { bytes, .. } => self.total = bytes,
            Progress::Layer { digest, done, total } => {
                let state = local::LayerState::LayerPulling.into();
                let layer = local::LayerProgress {
                    digest: digest.clone(),
                    state,
                    bytes_done: done,
                    bytes_total: total,
                };
                self.layers.insert(digest, layer);
            }
            Progress::LayerReady { digest, cached } => {
                let layer = self.layers.entry(digest.clone()).or_default();
                layer.digest = digest;
                layer.bytes_done = layer.bytes_total;
                layer.state =
                    if cached { local::LayerState::LayerPresent } else { local::LayerState::LayerDone }
                        .into();
            }
        }
    }

    fn event(&self) -> local::PullEvent {
        local::PullEvent {
            layers: self.layers.values().cloned().collect(),
            bytes_done: self.layers.values().map(|l| l.bytes_done).sum(),
            bytes_total: self.total,
            image_id: String::new(),
        }
    }
}

type Events = mpsc::Sender<Result<local::PullEvent, Status>>;

/// Progress must not block: events that find no room are left out, each one tells the whole state anyway.
fn report(board: &Arc<Mutex<Board>>, sender: &Events) -> ProgressFn {
    let (board, sender) = (Arc::clone(board), sender.clone());
    Arc::new(move |progress| {
        let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
        board.note(progress);
        let _ = sender.try_send(Ok(board.event()));
    })
}

/// A channel as a stream.
pub(super) struct Receiving<T>(pub(super) mpsc::Receiver<T>);

impl<T> tokio_stream::Stream for Receiving<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}
