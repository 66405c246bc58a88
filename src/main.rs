//! The canary operator's binary.
fn main() {}
