//! ingress-nginx: how Ingresses, Services and EndpointSlices become the answer to "where does this request go".
//!
//! [`model`] compiles what is stored into upstreams and locations, [`decide`] routes one request through them, and
//! [`actor`] keeps a compiled model as late as the real controller would be.

pub mod actor;
pub mod decide;
pub mod model;

pub use actor::Nginx;
pub use decide::{Outcome, SimRequest, Split};
pub use model::Model;

#[cfg(test)]
mod tests;
