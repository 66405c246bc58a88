//! What the traffic says of a release: requests of both versions, counted from the controllers' own metrics.

pub mod counts;
pub mod exposition;

pub use counts::{Counts, Exposed, Interest, Side, Status};
