//! The scenarios, on a real cluster with traffic through the real ingress-nginx. They mostly wait, so they run side
//! by side, each in a namespace of its own: `--test-threads=8`.

mod bad_input;
mod common;
mod conformance;
mod deletion;
mod judging;
mod life_cycle;
mod pinned;
mod protect_production;
mod ramp;
mod seventy_thirty;
mod shapes;
mod testers;
