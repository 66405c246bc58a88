//! One replica writes at a time: who holds the Lease leads, for as long as it is renewed.
//!
//! Our own, because what there is does not compare before it swaps or trusts other machines' clocks: two replicas may win.

mod elector;

pub use elector::{Elector, Standing, Timing};

#[cfg(test)]
mod tests;
