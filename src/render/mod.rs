//! Version 2's objects from version 1's. Pure: JSON in, JSON out.

mod deployment;
mod labels;
mod owner;
mod service;

pub use deployment::{deployment, promotion_patch};
pub use labels::{LabelError, escape, matches};
pub use owner::{Owner, owned_by};
pub use service::service;
