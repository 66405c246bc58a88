//! The cluster as seen from the operator: the client, its deadlines and its fence, the clock, the watches, the writes.

mod around;
mod client;
mod clock;
mod events;
#[cfg(debug_assertions)]
mod faults;
mod term;
mod watches;
mod writes;

pub use around::Wrap;
pub use client::{ApiMetrics, CALL_DEADLINE, CallError, Metered, bounded, connect};
pub use clock::{Clock, SteadyClock, SystemClock};
pub use events::publish;
#[cfg(debug_assertions)]
pub use faults::WrongClock;
pub use term::{Fence, NotLeading, Term};
pub use watches::watch_on;
pub use writes::{Applied, FIELD_MANAGER, object_ref, perform};
