//! The canary operator.
