//! The canary operator.

pub mod rehearse;
