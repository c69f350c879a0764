//! NRI at our requests: pods and containers as its messages, its answers as changes of ours. The rules of NRI itself are
//! in the room `slipway_nri`.

mod apply;
mod config;
mod container;
mod host;
mod pod;
mod resources;
mod told;

pub(crate) use apply::apply;
pub(crate) use config::Keys;
pub(crate) use container::container;
pub(crate) use host::Plugins;
pub(crate) use pod::pod;
pub(crate) use resources::{from_cri, overlay, put_over, take_out};

use crate::error::Error;
use tonic::Code;

impl From<slipway_nri::Error> for Error {
    fn from(error: slipway_nri::Error) -> Self {
        let code = match error.kind {
            // A plugin's own words: whatever it means, the kubelet tries again.
            slipway_nri::Kind::Refused => Code::Unknown,
            slipway_nri::Kind::Conflict | slipway_nri::Kind::Rejected => Code::FailedPrecondition,
            slipway_nri::Kind::Io => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
