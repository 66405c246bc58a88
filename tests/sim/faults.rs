//! The operator dies.

use crate::lab::is_write;
use canary_operator::rehearse::server::{
    intercept::{After, Before, Interceptor, Outcome},
    routes::Call,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Around which of the operator's writes it dies, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    Before(usize),
    After(usize),
    AfterEach,
}

/// Kills once, or again and again.
pub struct Killer {
    pub kill: Kill,
    pub writes: AtomicUsize,
    pub fired: Arc<AtomicBool>,
}

impl Killer {
    fn fire(&self) -> bool {
        !self.fired.swap(true, Ordering::SeqCst)
    }
}

impl Interceptor for Killer {
    fn before(&self, call: &Call) -> Before {
        if !is_write(call) {
            return Before::Pass;
        }
        let number = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        match self.kill {
            Kill::Before(at) if at == number && self.fire() => Before::Crash,
            _ => Before::Pass,
        }
    }

    fn after(&self, call: &Call, _: Outcome<'_>) -> After {
        if !is_write(call) {
            return After::Pass;
        }
        match self.kill {
            Kill::After(at) if at == self.writes.load(Ordering::SeqCst) && self.fire() => After::Crash,
            Kill::AfterEach => {
                self.fire();
                After::Crash
            }
            _ => After::Pass,
        }
    }
}
