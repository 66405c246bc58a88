//! Progressive releases behind ingress-nginx from one `CanaryRelease`.
//!
//! One way through, each step a module: [`observe`] reads, [`release`] validates and decides without I/O,
//! [`cluster`] applies the writes that were decided, and the status is written last.

pub mod api;
pub mod cluster;
pub mod controller;
pub mod observe;
pub mod release;
pub mod render;
pub mod routing;
pub mod telemetry;
