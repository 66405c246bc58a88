//! Virtual time: an epoch plus what tokio's (paused) clock says has passed.

use jiff::{SignedDuration, Timestamp, Unit};
use std::time::Duration;
use tokio::time::Instant;

/// 2026-01-01T00:00:00Z, when every world begins that is not told otherwise.
const EPOCH_SECONDS: i64 = 1_767_225_600;

/// The clock that all of one world reads.
#[derive(Clone, Copy, Debug)]
pub struct VirtualClock {
    start: Instant,
    epoch: Timestamp,
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtualClock {
    /// A clock that starts at the beginning of 2026 now.
    pub fn new() -> Self {
        Self::starting_at(Timestamp::from_second(EPOCH_SECONDS).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// A clock that says `epoch` now, such as the time of day where others go by that.
    pub fn starting_at(epoch: Timestamp) -> Self {
        Self {
            start: Instant::now(),
            epoch,
        }
    }

    /// How long the world has existed.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The present, to the nanosecond.
    pub fn now(&self) -> Timestamp {
        self.at(self.elapsed())
    }

    /// What it says when the world has existed for `age`.
    pub fn at(&self, age: Duration) -> Timestamp {
        let passed = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
        self.epoch.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }

    /// The present as `metav1.Time` is written, to the second.
    pub fn stamp(&self) -> String {
        stamp(self.now())
    }

    /// The instant at which the world has existed for `age`.
    pub fn instant(&self, age: Duration) -> Instant {
        self.start.checked_add(age).unwrap_or(self.start)
    }

    /// How long after the world's start `stamp` (RFC 3339) lies; zero when it does not parse or is earlier.
    pub fn age_at(&self, stamp: &str) -> Duration {
        let Ok(at) = stamp.parse::<Timestamp>() else {
            return Duration::ZERO;
        };
        Duration::try_from(at.duration_since(self.epoch)).unwrap_or(Duration::ZERO)
    }
}

/// `metav1.Time` for a timestamp: RFC 3339, whole seconds, rounded down.
pub fn stamp(at: Timestamp) -> String {
    let floor = jiff::TimestampRound::new()
        .smallest(Unit::Second)
        .mode(jiff::RoundMode::Floor);
    at.round(floor).unwrap_or(at).to_string()
}
