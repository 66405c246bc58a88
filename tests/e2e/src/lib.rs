//! What the end-to-end tests and the demonstration are made of.
//!
//! The operator is driven here as its users drive it: objects go in by `kubectl apply`, what happened is read back
//! by `kubectl get`, and the traffic goes through the real ingress-nginx. Nothing of the operator's own code is
//! linked, so that a field renamed by mistake fails a test instead of being renamed on both sides.
//!
//! Every function returns an error that says what was waited for and what was seen instead; [`scene::play`] adds
//! the state of the namespace to it and keeps the logs.

pub mod ab;
pub mod app;
pub mod audit;
pub mod cluster;
pub mod control_plane;
pub mod controllers;
pub mod exercise;
pub mod load;
pub mod local;
pub mod metrics;
pub mod namespace;
pub mod operator;
pub mod process;
pub mod prometheus;
pub mod release;
pub mod scene;
pub mod stats;
pub mod trial;
pub mod watch;
