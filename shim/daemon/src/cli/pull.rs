//! Getting an image, with progress where somebody watches.

use anyhow::{Context, Result, ensure};
use cri_proto::slipway::{LayerState, PullEvent, PullRequest};
use cri_proto::v1 as cri;
use tonic::Code;

use super::client::{Client, said};
use super::manifest::PullPolicy;
use super::output::Progress;
use super::translate::ImageFacts;

/// Pulls `image`; gives its id.
pub(crate) async fn pull(client: &mut Client, image: &str, progress: &Progress) -> Result<String> {
    let step = format!("pull {image}");
    progress.step(&format!("pulling {image}"));
    let mut events = match client.local.pull(PullRequest { image: image.to_owned() }).await {
        Ok(answer) => answer.into_inner(),
        // Some other CRI runtime: no progress, the same result.
        Err(status) if status.code() == Code::Unimplemented => return plain_pull(client, image).await,
        Err(status) => return Err(said(&step)(status)),
    };
    let mut id = String::new();
    while let Some(event) = events.message().await.map_err(said(&step))? {
        progress.bytes(&summary(image, &event), event.bytes_done, event.bytes_total);
        id = event.image_id;
    }
    progress.transfer_ended();
    ensure!(!id.is_empty(), "cannot {step}: the daemon ended the transfer without an image");
    Ok(id)
}

async fn plain_pull(client: &mut Client, image: &str) -> Result<String> {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = cri::PullImageRequest { image: Some(spec), ..Default::default() };
    let answer = client.images.pull_image(request).await.map_err(said(&format!("pull {image}")))?;
    Ok(answer.into_inner().image_ref)
}

fn summary(image: &str, event: &PullEvent) -> String {
    let done = |state: i32| {
        matches!(LayerState::try_from(state), Ok(LayerState::LayerDone | LayerState::LayerPresent))
    };
    let done = event.layers.iter().filter(|layer| done(layer.state)).count();
    format!("pulling {image}: {done} of {} layers", event.layers.len())
}

/// Makes sure that an image is there, by its policy, and says what the containers need to know of it. Without a policy
/// a local image is taken as it is, whatever its tag: one that was never published cannot be pulled.
pub(crate) async fn ensure(
    client: &mut Client,
    image: &str,
    policy: Option<PullPolicy>,
    progress: &Progress,
) -> Result<ImageFacts> {
    let policy = policy.unwrap_or(PullPolicy::IfNotPresent);
    if policy != PullPolicy::Always
        && let Some(facts) = look(client, image).await?
    {
        return Ok(facts);
    }
    ensure!(
        policy != PullPolicy::Never,
        "image {image} is not in the local store and imagePullPolicy is Never: `slipway pull` or `slipway import` it"
    );
    let id = pull(client, image, progress).await?;
    progress.done(&format!("image {image}: pulled"));
    look(client, &id)
        .await?
        .with_context(|| format!("image {image} was pulled as {id}, but is not in the store"))
}

async fn look(client: &mut Client, image: &str) -> Result<Option<ImageFacts>> {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
    let answer =
        client.images.image_status(request).await.map_err(said(&format!("look for image {image}")))?;
    let facts = |image: cri::Image| ImageFacts {
        id: image.id,
        uid: image.uid.map(|uid| uid.value),
        username: image.username,
    };
    Ok(answer.into_inner().image.map(facts))
}
