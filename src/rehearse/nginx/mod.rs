//! ingress-nginx: how Ingresses, Services and EndpointSlices become the answer to "where does this request go".
//!
//! [`model`] compiles what is stored into upstreams and locations, [`decide`] routes one request through them, [`serve`]
//! passes it on to the pods, [`metrics`] counts it, and [`actor`] keeps all of that as late as the real controller would be.

pub mod actor;
pub mod decide;
pub mod metrics;
pub mod model;
pub mod serve;

pub use actor::{Nginx, Scrapes, Watched, controller_pod};
pub use decide::{SimRequest, Split};
pub use model::Model;
pub use serve::{Outcome, Reply};

#[cfg(test)]
mod tests;
