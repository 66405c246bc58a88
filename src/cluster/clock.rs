use jiff::{SignedDuration, Timestamp};
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// Wall-clock time, injected, so that a rehearsal runs in virtual time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A wall clock that cannot be set: settle times and holds are safety, and a clock that is put forward by an hour would end
/// them all at once. Where the wall clock goes elsewhere than the monotonic one, this follows by a hundredth of the time that
/// passes, never backwards. A process that starts takes the wall clock as it is.
#[derive(Debug)]
pub struct SteadyClock<W> {
    wall: W,
    last: Mutex<Option<Last>>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    told: Timestamp,
    at: Instant,
    /// Whether the wall clock was elsewhere, as logged.
    off: bool,
}

/// Time that passes over each time unit that the clock is put right by.
const FOLLOWS: i32 = 100;
/// How far the wall clock has to be elsewhere to be worth a word.
const WORTH_A_WORD: SignedDuration = SignedDuration::from_secs(5);

impl<W: Clock> SteadyClock<W> {
    /// Steadies `wall`.
    pub const fn new(wall: W) -> Self {
        Self {
            wall,
            last: Mutex::new(None),
        }
    }
}

impl<W: Clock> Clock for SteadyClock<W> {
    fn now(&self) -> Timestamp {
        let (wall, at) = (self.wall.now(), Instant::now());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match *last {
            None => Last {
                told: wall,
                at,
                off: false,
            },
            Some(before) => before.next(wall, at),
        };
        *last = Some(now);
        now.told
    }
}

impl Last {
    fn next(self, wall: Timestamp, at: Instant) -> Self {
        let passed = SignedDuration::try_from(at.saturating_duration_since(self.at)).unwrap_or_default();
        let steady = self.told.saturating_add(passed).unwrap_or(self.told);
        let (error, most) = (wall.duration_since(steady), passed / FOLLOWS);
        let step = error.clamp(-most, most);
        let off = error.abs() >= WORTH_A_WORD;
        if off && !self.off {
            let seconds = error.as_secs();
            tracing::warn!(
                seconds,
                "the machine's clock was set; releases go on by the time that passes, and follow it slowly"
            );
        }
        Self {
            told: steady.saturating_add(step).unwrap_or(steady),
            at,
            off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rehearse::{clock::VirtualClock, world::runtime};
    use std::{
        sync::{
            Arc,
            atomic::{AtomicI64, Ordering},
        },
        time::Duration,
    };

    struct Set(VirtualClock, Arc<AtomicI64>);

    impl Clock for Set {
        fn now(&self) -> Timestamp {
            let by = SignedDuration::from_secs(self.1.load(Ordering::SeqCst));
            self.0.now().saturating_add(by).unwrap()
        }
    }

    /// How many seconds the clock says have passed while sixty did, after the wall clock was set by so many.
    fn a_minute_after_it_was_set(by: i64) -> f64 {
        runtime().unwrap().block_on(async {
            let set = Arc::new(AtomicI64::new(0));
            let clock = SteadyClock::new(Set(VirtualClock::new(), set.clone()));
            let begin = clock.now();
            set.store(by, Ordering::SeqCst);
            for _ in 0..60 {
                let before = clock.now();
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(clock.now() > before);
            }
            clock.now().duration_since(begin).as_secs_f64()
        })
    }

    #[test]
    fn a_wall_clock_that_is_set_is_followed_by_a_hundredth_of_the_time_that_passes() {
        assert_eq!(a_minute_after_it_was_set(3600), 60.6);
        assert_eq!(a_minute_after_it_was_set(-3600), 59.4);
    }

    #[test]
    fn a_wall_clock_that_agrees_is_told_as_it_is() {
        assert_eq!(a_minute_after_it_was_set(0), 60.0);
    }
}
