//! Image volumes: a mount of the request whose content is an image (CRI-MNT-10 to CRI-MNT-13), and the `VOLUME`s of the
//! container's own image.
//!
//! A pod has one mounted view of each such image, shared by its containers, below the pod's directory; it goes with the
//! pod's other mounts when the pod stops.

use super::ContainerRecord;
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::pods::PodRecord;
use crate::pods::files::PodDir;
use crate::spec::clean;
use cri_proto::v1;
use slipway_images::Image;
use slipway_runtime::rootfs::{self, Overlay};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the kubelet looks for at the beginning of the text (CRI-IMG-26).
const FAILED: &str = "ImageVolumeMountFailed";

/// Whether this mount is of an image.
pub(super) fn is_image(mount: &v1::Mount) -> bool {
    mount.image.as_ref().is_some_and(|image| !image.image.is_empty())
}

/// # Errors
/// InvalidArgument for what cannot be meant.
pub(super) fn check(mount: &v1::Mount) -> Result<()> {
    let path = &mount.container_path;
    let invalid = |why: &str| Err(Error::invalid(format!("image mount {path}: {why}")));
    if !mount.host_path.is_empty() {
        return invalid("host_path must be empty");
    }
    if !mount.readonly {
        return invalid("readonly must be true: images are never written to");
    }
    if mount.propagation() != v1::MountPropagation::PropagationPrivate {
        return invalid("propagation must be private");
    }
    if mount.image_sub_path.starts_with('/') {
        return invalid("image_sub_path must be relative to the image's root");
    }
    Ok(())
}

impl Daemon {
    /// Where the content of each mount of the request is on the host; and says in the record which image it was, which a
    /// status shows (CRI-CSTAT-08).
    pub(super) async fn mount_sources(
        self: &Arc<Self>,
        record: &mut ContainerRecord,
    ) -> Result<Vec<PathBuf>> {
        let mut sources = Vec::new();
        let pod = self.pods.get(&record.pod_id)?.record();
        for mount in &mut record.config.mounts {
            sources.push(if is_image(mount) {
                let path = mount.container_path.clone();
                let source = self.image_source(&pod, mount).await;
                source.map_err(|e| Error::new(e.code(), format!("{FAILED}: image mount {path}: {e}")))?
            } else {
                PathBuf::from(&mount.host_path)
            });
        }
        Ok(sources)
    }

    async fn image_source(self: &Arc<Self>, pod: &Arc<PodRecord>, mount: &mut v1::Mount) -> Result<PathBuf> {
        let asked = mount.image.get_or_insert_default();
        let image = self.images.find(&asked.image);
        let image = image.ok_or_else(|| {
            Error::not_found(format!("image {:?} is not in the store: pull it first", asked.image))
        })?;
        let name =
            if asked.user_specified_image.is_empty() { &asked.image } else { &asked.user_specified_image };
        self.images.admit(&image, name)?;
        asked.image_ref.clone_from(&image.id);
        let (daemon, pod, sub) = (Arc::clone(self), Arc::clone(pod), PathBuf::from(&mount.image_sub_path));
        blocking(move || {
            let view = daemon.view_for_pod(&pod, &image)?;
            if sub.as_os_str().is_empty() {
                return Ok(view);
            }
            rootfs::directory_in_root(&view, &sub).map_err(Error::from)
        })
        .await
    }

    /// The pod's view of an image, mounted if it is not yet. Blocks.
    fn view_for_pod(&self, pod: &PodRecord, image: &Image) -> Result<PathBuf> {
        // Two containers of a pod may come at once.
        let _one = self.views.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dir = PodDir::new(&self.config, &pod.id);
        let short = image.id.trim_start_matches("sha256:").get(..32).unwrap_or_default();
        let owner = format!("{}.{short}", pod.id);
        // An overlay cannot be id-mapped, but its layers can (IMG-VOL-03).
        // Read-only, and for all containers of the pod.
        let label = pod.selinux.as_ref().map(|labels| crate::selinux::shared(&labels.file));
        let overlay = Overlay { idmap: pod.user(), label, ..self.images.hold_view(image, &owner)? };
        let mounted = dir.image_view(short, || Ok(rootfs::mount_overlay(&overlay)?));
        if mounted.is_err()
            && let Err(error) = self.images.release(&owner)
        {
            tracing::warn!(pod = pod.id, "release an image view that was not mounted: {error}");
        }
        mounted
    }

    /// Lets go of the images that a pod's views held; after they were unmounted.
    pub(crate) fn release_views(&self, pod: &str) -> Result<()> {
        for owner in self.images.owners().into_iter().filter(|o| pod_of_view(o) == Some(pod)) {
            self.images.release(&owner)?;
        }
        Ok(())
    }

    /// `VOLUME`s that no mount of the request covers: (source, target) of each, filled from the image.
    pub(super) async fn volumes(
        self: &Arc<Self>,
        image: &Arc<Image>,
        record: &ContainerRecord,
    ) -> Result<Vec<(PathBuf, PathBuf)>> {
        let covered: Vec<_> = record.config.mounts.iter().map(|m| clean(&m.container_path)).collect();
        let mut targets: Vec<_> = image.config.volumes.iter().map(|v| clean(v)).collect();
        targets.sort();
        targets.dedup();
        targets.retain(|t| t != Path::new("/") && !covered.contains(t));
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let names = targets.iter().map(|t| t.display().to_string()).collect::<Vec<_>>();
        let (daemon, image, owner) = (Arc::clone(self), Arc::clone(image), record.id.clone());
        let sources = blocking(move || daemon.images.volumes(&image, &owner, &names)).await?;
        Ok(sources.into_iter().zip(targets).collect())
    }
}

/// The pod whose view this owner in the image store is; none for a container.
pub(crate) fn pod_of_view(owner: &str) -> Option<&str> {
    owner.split_once('.').map(|(pod, _)| pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-MNT-10, CRI-MNT-12.
    #[test]
    fn image_mounts_are_read_only_and_stay_in_the_image() {
        let good = v1::Mount {
            container_path: "/data".into(),
            image: Some(v1::ImageSpec { image: "r/i:1".into(), ..Default::default() }),
            image_sub_path: "a/b".into(),
            readonly: true,
            ..Default::default()
        };
        assert_eq!(check(&good), Ok(()));
        for (bad, word) in [
            (v1::Mount { readonly: false, ..good.clone() }, "readonly"),
            (v1::Mount { host_path: "/x".into(), ..good.clone() }, "host_path"),
            (v1::Mount { image_sub_path: "/etc".into(), ..good.clone() }, "image_sub_path"),
        ] {
            assert!(check(&bad).is_err_and(|e| e.to_string().contains(word)), "{word}");
        }
        assert_eq!(pod_of_view("pod.image"), Some("pod"));
        assert_eq!(pod_of_view("container"), None);
    }
}
