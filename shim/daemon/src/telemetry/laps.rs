//! Spans for what the keeper did within one of its calls, down to each step of the container's program.

use super::traces;
use crate::error::Result;
use crate::keeper::Keeper;
use std::future::Future;

/// Makes a call that creates or starts container `id`, and puts its steps into the trace of the request, if there is one.
pub(crate) async fn traced<T>(keeper: &Keeper, id: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let done = call.await?;
    if traces::is_sampled() {
        match keeper.laps(id).await {
            Ok(laps) => traces::add(laps),
            Err(error) => tracing::debug!("the keeper's steps are not traced: {error}"),
        }
    }
    Ok(done)
}
