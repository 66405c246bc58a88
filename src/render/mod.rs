//! Version 2's objects from version 1's. Pure: JSON in, JSON out.

mod deployment;
mod differences;
mod labels;
mod owner;
mod service;

pub use deployment::{deployment, keep_template, promotion_patch};
pub use differences::differences;
pub use labels::{LabelError, escape, matches};
pub use owner::{Owner, owned_by};
pub use service::service;
