//! SPDY/3.1 as Kubernetes' clients speak it: one connection, many streams, no windows.

pub(crate) mod connection;
mod dictionary;
pub(crate) mod frame;
pub(crate) mod headers;
mod table;

pub(crate) use connection::{Connection, Role};
