//! A Kubernetes world in memory, in which the real controller is run deterministically.
//!
//! [`server`] is an API server behind `kube::Client`; [`actors`] are the parts of a cluster that react to it (Deployments,
//! kubelet, EndpointSlices, garbage collection); [`nginx`] turns Ingress annotations into where requests go; [`world`] puts
//! them together on tokio's paused clock, so that an hour of a release takes milliseconds and a seed always replays alike.

pub mod actors;
pub mod clock;
pub mod json;
pub mod nginx;
pub mod play;
pub mod server;
pub mod world;

pub use server::{ApiServer, resource::Key, resource::Resource};
pub use world::World;
