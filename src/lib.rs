//! Progressive releases behind ingress-nginx from one `CanaryRelease`.
//!
//! One way through, each step a module: [`observe`] reads, [`release`] validates and decides without I/O,
//! [`cluster`] applies the writes that were decided, and the status is written last. [`controller`] drives the rounds, of the
//! replica that the [`leader`] election lets write;
//! [`analysis`] counts the requests of both versions; [`rehearse`] is a cluster in memory in which the same controller runs in virtual time.

pub mod analysis;
pub mod api;
pub mod cluster;
pub mod controller;
pub mod leader;
pub mod observe;
pub mod rehearse;
pub mod release;
pub mod render;
pub mod routing;
pub mod telemetry;
