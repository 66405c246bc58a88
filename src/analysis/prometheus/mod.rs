//! Prometheus as a source.
mod template;
pub use template::*;
