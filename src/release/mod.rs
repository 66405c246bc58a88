//! The life of a release: preflight and the state machine. Pure: no clock, no I/O, no panic.

mod analysing;
mod command;
mod decide;
mod decision;
mod draft;
mod ending;
mod hash;
mod holding;
mod preflight;
mod preparing;
mod promoting;
mod proof;
mod schedule;
mod settling;
mod stepping;
#[cfg(test)]
mod tests;
mod waiting;
mod windows;

pub use analysing::{ToJudge, to_judge};
pub use command::{Command, CommandError, Verb, commanded};
pub use decide::{Decide, Rest, at_rest, decide};
pub use decision::{Decision, Kind, Level, Note, Op, Write};
pub use draft::IDLE;
pub use hash::{intent, schedule_hash};
pub use preflight::{Finding, Fit, Ground, Questions, ground, preflight, questions, server};
pub use schedule::{Schedule, schedule};
pub use settling::Settling;
pub use windows::{Gate, check_windows, gate};
