//! ImageService.

use super::{Streamed, answer, stream};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use cri_proto::v1;
use serde_json::json;
use slipway_images::{Auth, Image};
use std::collections::HashMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Handler of ImageService.
#[derive(Debug)]
pub(crate) struct ImageApi(pub(crate) Arc<Daemon>);

#[tonic::async_trait]
impl v1::image_service_server::ImageService for ImageApi {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let images = self.list(request.get_ref().filter.as_ref());
        answer("ListImages", Ok(v1::ListImagesResponse { images }))
    }

    type StreamImagesStream = Streamed<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(request.get_ref().filter.as_ref());
        Ok(Response::new(stream(images, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        answer("ImageStatus", name(request.image).map(|name| self.status(&name, request.verbose)))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let deadline = deadline(&request);
        let request = request.into_inner();
        answer("PullImage", self.pull(request, deadline).await)
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let outcome = match name(request.into_inner().image) {
            Ok(name) => self.0.images.remove(&name).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        answer("RemoveImage", outcome.map(|()| v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        answer("ImageFsInfo", self.fs_info().await)
    }
}

impl ImageApi {
    fn list(&self, filter: Option<&v1::ImageFilter>) -> Vec<v1::Image> {
        let wanted =
            filter.and_then(|f| f.image.as_ref()).map(|i| i.image.as_str()).filter(|i| !i.is_empty());
        match wanted {
            Some(wanted) => self.0.images.find(wanted).iter().map(|i| to_cri(i)).collect(),
            None => self.0.images.list().iter().map(|i| to_cri(i)).collect(),
        }
    }

    /// Unknown is OK with no image (CRI-IMG-01).
    fn status(&self, name: &str, verbose: bool) -> v1::ImageStatusResponse {
        let found = self.0.images.find(name);
        let mut info = HashMap::new();
        if let (true, Some(image)) = (verbose, &found) {
            let spec: serde_json::Value = serde_json::from_str(&image.raw_config).unwrap_or_default();
            info.insert(
                "info".to_owned(),
                json!({"chainID": image.layers.last(), "imageSpec": spec, "verified": image.verified})
                    .to_string(),
            );
        }
        v1::ImageStatusResponse { image: found.as_deref().map(to_cri), info }
    }

    /// Goes on for other callers when this one's deadline passes (CRI-IMG-18, CRI-IMG-19).
    async fn pull(
        &self,
        request: v1::PullImageRequest,
        deadline: Option<std::time::Duration>,
    ) -> Result<v1::PullImageResponse> {
        let reference = name(request.image)?;
        let telemetry = &self.0.telemetry;
        let pull = telemetry.pull(self.0.images.pull(&reference, request.auth.map(auth), None));
        let image = match deadline {
            None => pull.await?,
            Some(limit) => tokio::time::timeout(limit, pull).await.map_err(|_| {
                Error::new(
                    tonic::Code::DeadlineExceeded,
                    format!("pull {reference}: the client's deadline passed"),
                )
            })??,
        };
        tracing::info!(reference, id = image.id, "image is here");
        Ok(v1::PullImageResponse { image_ref: image.id.clone() })
    }

    /// CRI-IMG-27, CRI-IMG-28.
    async fn fs_info(&self) -> Result<v1::ImageFsInfoResponse> {
        let images = self.0.images.clone();
        let info = crate::daemon::blocking(move || images.fs_info()).await?;
        let usage = v1::FilesystemUsage {
            timestamp: crate::clock::now(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: info.mountpoint.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: info.used_bytes }),
            inodes_used: Some(v1::UInt64Value { value: info.inodes_used }),
        };
        Ok(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        })
    }
}

fn name(spec: Option<v1::ImageSpec>) -> Result<String> {
    let name = spec.map(|s| s.image).filter(|i| !i.is_empty());
    name.ok_or_else(|| Error::invalid("image.image is empty: name an image"))
}

/// The client's own deadline, from the grpc-timeout header (gRPC over HTTP/2, "Timeout"): tonic itself answers a passed one
/// with Cancelled, where the contract wants DeadlineExceeded.
fn deadline<T>(request: &Request<T>) -> Option<std::time::Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => std::time::Duration::from_secs(n.checked_mul(3600)?),
        "M" => std::time::Duration::from_secs(n.checked_mul(60)?),
        "S" => std::time::Duration::from_secs(n),
        "m" => std::time::Duration::from_millis(n),
        "u" => std::time::Duration::from_micros(n),
        "n" => std::time::Duration::from_nanos(n),
        _ => return None,
    })
}

fn auth(auth: v1::AuthConfig) -> Auth {
    Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}

/// CRI-IMG-02, CRI-IMG-04, CRI-IMG-10.
fn to_cri(image: &Image) -> v1::Image {
    let (uid, username) = user(&image.config.user);
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size.max(1),
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// Of an image's USER: a number or a name, never both; its group is not told.
fn user(user: &str) -> (Option<v1::Int64Value>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<i64>() {
        Ok(value) => (Some(v1::Int64Value { value }), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-IMG-10, CRI-IMG-11.
    #[test]
    fn a_user_is_a_number_or_a_name() {
        let uid = |value| Some(v1::Int64Value { value });
        for (text, expected) in [
            ("", (None, "")),
            ("0", (uid(0), "")),
            ("1000", (uid(1000), "")),
            ("1000:1001", (uid(1000), "")),
            ("app", (None, "app")),
            ("app:staff", (None, "app")),
        ] {
            assert_eq!(user(text), (expected.0, expected.1.to_owned()), "{text:?}");
        }
    }
}
