//! The cluster as seen from the operator: the client and its deadlines, the clock, the writes.

mod client;
mod clock;
mod events;
mod writes;

pub use client::{ApiMetrics, CALL_DEADLINE, CallError, Metered, bounded, connect};
pub use clock::{Clock, SystemClock};
pub use events::publish;
pub use writes::{Applied, object_ref, perform};
