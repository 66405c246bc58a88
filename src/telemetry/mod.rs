//! Metrics, and the HTTP server for them and for probes.

mod metrics;
mod server;

pub use metrics::{Metrics, Ready};
pub use server::{ServeError, serve};
