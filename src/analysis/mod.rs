//! What the traffic says of a release: requests of both versions, counted from the controllers' own metrics.

pub mod exposition;
