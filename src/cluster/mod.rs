//! The cluster as seen from the operator: the client, its deadlines and its fence, whether it is in reach, the clock, the
//! watches, the writes.

mod around;
mod client;
mod clock;
mod contact;
mod events;
#[cfg(debug_assertions)]
mod faults;
mod term;
mod watches;
mod writes;

pub use around::Wrap;
pub use client::{ApiMetrics, CALL_DEADLINE, CallError, IN_PASSING, Metered, bounded, connect};
pub use clock::{Clock, SteadyClock, SystemClock};
pub use contact::{Contact, Outage, Outages};
pub use events::publish;
#[cfg(debug_assertions)]
pub use faults::WrongClock;
pub use term::{Fence, NotLeading, Term};
pub use watches::watch_on;
pub use writes::{Applied, object_ref, patch_params, perform, post_params};
