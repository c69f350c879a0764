//! SELinux: which labels a container gets, and the files on the host that get them with it.

use super::{ContainerRecord, image_mounts};
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::pods::PodRecord;
use crate::pods::files::PodDir;
use crate::rollback::Rollback;
use slipway_runtime::lsm;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Daemon {
    /// Decides the labels and writes them into the record.
    pub(super) fn label(
        self: &Arc<Self>,
        record: &mut ContainerRecord,
        pod: &PodRecord,
        rollback: &mut Rollback,
    ) -> Result<()> {
        let security = record.config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
        let (daemon, id) = (Arc::clone(self), record.id.clone());
        rollback.push("SELinux categories", async move {
            daemon.selinux.free(&id);
            Ok(())
        });
        record.selinux = self.selinux.container(&record.id, pod, &security)?;
        Ok(())
    }

    /// Gives the container's label to the mounts that ask for it (CRI-MNT-09), to the `VOLUME`s of its image, and takes the
    /// categories off the pod's own files if it has others than the pod.
    pub(super) async fn relabel(
        &self,
        record: &ContainerRecord,
        pod: &PodRecord,
        sources: &[PathBuf],
        volumes: &[(PathBuf, PathBuf)],
    ) -> Result<()> {
        let (Some(labels), Some(of_pod)) = (record.selinux.clone(), pod.selinux.clone()) else {
            return Ok(());
        };
        let asked = record.config.mounts.iter().zip(sources);
        let asked = asked.filter(|(mount, _)| mount.selinux_relabel && !image_mounts::is_image(mount));
        let asked: Vec<_> =
            asked.map(|(mount, source)| (mount.container_path.clone(), source.clone())).collect();
        let volumes = volumes.to_vec();
        let dir = PodDir::new(&self.config, &pod.id);
        let (root, state) = (self.config.root.clone(), self.config.state.clone());
        // Trees may be large: nobody else waits for them.
        blocking(move || {
            let own: [&Path; 2] = [&root, &state];
            for (target, source) in asked {
                tree(&source, &labels.file, &own).map_err(|e| e.of(format_args!("mount {target}")))?;
            }
            volumes.iter().try_for_each(|(source, _)| tree(source, &labels.file, &own))?;
            if labels.file == of_pod.file { Ok(()) } else { dir.label(&crate::selinux::shared(&of_pod.file)) }
        })
        .await
    }
}

/// `own`: directories of the daemon.
fn tree(source: &Path, label: &str, own: &[&Path]) -> Result<()> {
    // The tree that is mounted, not a link to it (CRI-MNT-04).
    let real = source.canonicalize().map_err(|e| Error::io("find", source, &e))?;
    Ok(lsm::relabel(&real, label, own)?)
}
