//! What the plugins ask for, one after the other, as one answer: each sees what the former have changed, and may not set
//! what another has set (NRI-18, NRI-21 to NRI-24, NRI-28).

mod adjust;
mod items;
mod resources;

use crate::error::{Error, Kind, Result};
use crate::owners::Owners;
use cri_proto::nri::{ContainerEviction, ContainerUpdate, LinuxResources};
use protobuf::MessageField;

pub(crate) use adjust::Creation;

/// Changes of containers other than the one being created.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    pub(crate) owners: Owners,
    /// One per container, in the order in which they were first named.
    all: Vec<ContainerUpdate>,
    pub(crate) evict: Vec<ContainerEviction>,
}

impl Updates {
    /// Takes one plugin's; nothing of an update that contradicts and may be ignored is kept.
    ///
    /// # Errors
    /// Conflict.
    pub(crate) fn take(&mut self, asked: &[ContainerUpdate], plugin: &str) -> Result<()> {
        for update in asked {
            let known = self.all.iter().position(|u| u.container_id == update.container_id);
            let mut merged = match known {
                Some(index) => self.all[index].clone(),
                None => ContainerUpdate {
                    container_id: update.container_id.clone(),
                    ignore_failure: true,
                    ..Default::default()
                },
            };
            merged.ignore_failure &= update.ignore_failure;
            let resources = &update.linux.resources;
            let into = merged.linux.mut_or_insert_default().resources.mut_or_insert_default();
            match resources::merge(&mut self.owners, &update.container_id, plugin, resources, &mut [into]) {
                Ok(()) => {}
                Err(error) if update.ignore_failure => {
                    tracing::warn!("{error}; ignored, as the plugin wishes");
                    continue;
                }
                Err(error) => return Err(error),
            }
            match known {
                Some(index) => self.all[index] = merged,
                None => self.all.push(merged),
            }
        }
        Ok(())
    }

    /// What concerns `container`, taken out of the rest.
    pub(crate) fn split(
        mut self,
        container: &str,
    ) -> (Option<LinuxResources>, Vec<ContainerUpdate>, Vec<ContainerEviction>) {
        let own =
            self.all.iter().position(|u| u.container_id == container).map(|index| self.all.remove(index));
        let resources = own.and_then(|u| u.linux.into_option()?.resources.into_option());
        (resources, self.all, self.evict)
    }

    pub(crate) fn all(&self) -> &[ContainerUpdate] {
        &self.all
    }

    /// # Errors
    /// A plugin that updates what is only being created: that is what adjustments are for.
    pub(crate) fn check_not(asked: &[ContainerUpdate], container: &str, plugin: &str) -> Result<()> {
        if asked.iter().any(|u| u.container_id == container) {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "NRI plugin {plugin} asked to update container {container}, which is only being created"
                ),
            ));
        }
        Ok(())
    }
}

/// What plugins after this one see of an update of the container in question.
///
/// # Errors
/// None: what contradicts was found before.
pub(crate) fn show(resources: &mut MessageField<LinuxResources>, asked: &[ContainerUpdate], container: &str) {
    let seen = resources.mut_or_insert_default();
    for update in asked.iter().filter(|u| u.container_id == container) {
        // Owners of its own: the merge has been checked already.
        let _ = resources::merge(
            &mut Owners::default(),
            container,
            "",
            &update.linux.resources,
            &mut [&mut *seen],
        );
    }
}

#[cfg(test)]
mod tests;
