//! Rules that decide whether a release is rolled back: the operator's, and what is done elsewhere.

use crate::traffic::at;
use canary_operator::{
    analysis::{InForce, Judge, Look, Rules, Tally, counts::Counter, counts::Round},
    api::CheckStatus,
};
use std::{collections::BTreeMap, time::Duration};

/// What a rule may know.
pub struct Seen<'a> {
    pub now: u32,
    pub rules: &'a Rules,
    pub in_force: &'a InForce,
    /// All requests so far.
    pub stable: Tally,
    pub canary: Tally,
}

/// How the operator judges: counters of controllers, added up and judged at every look.
pub struct Operator {
    counter: Counter,
    judge: Judge,
    pub checks: Vec<CheckStatus>,
    /// What is in the status, as the API server keeps it.
    status: String,
}

impl Operator {
    pub fn new(now: u32) -> Self {
        Self {
            counter: Counter::new(at(now)),
            judge: Judge::resume(&[]),
            checks: Vec::new(),
            status: "[]".to_owned(),
        }
    }

    /// Whether it rolls back.
    pub fn look(&mut self, seen: &Seen<'_>, round: Round) -> bool {
        self.counter.add(round);
        let judged = self.judge.look(&look(seen, &self.counter));
        self.checks = judged.checks;
        let limit = seen.rules.failure_limit;
        judged.harm.is_some() || self.checks.iter().any(|check| check.breaches >= limit)
    }

    /// How soon it looks again.
    pub fn pace(&self, seen: &Seen<'_>) -> Duration {
        self.judge.pace(&look(seen, &self.counter))
    }

    /// The status is written.
    pub fn record(&mut self) {
        self.status = serde_json::to_string(&self.checks).unwrap();
    }

    /// It dies, and another goes on.
    pub fn restart(&mut self, now: u32) {
        let checks: Vec<CheckStatus> = serde_json::from_str(&self.status).unwrap();
        self.judge = Judge::resume(&checks);
        self.counter = Counter::new(at(now));
    }
}

fn look<'a>(seen: &'a Seen<'_>, counter: &'a Counter) -> Look<'a> {
    const NO_ANSWERS: &BTreeMap<String, canary_operator::analysis::Answer> = &BTreeMap::new();
    Look {
        now: at(seen.now),
        rules: seen.rules,
        in_force: Some(seen.in_force),
        counts: counter.counts(),
        lag: Duration::ZERO,
        uncounted: None,
        answers: NO_ANSWERS,
    }
}

/// Seconds between two looks of the others.
const WINDOW: u32 = 30;

/// Success of version 2 of at least 99 % in every window; the fifth that has less rolls back.
#[derive(Default)]
pub struct Threshold {
    window: u32,
    before: Tally,
    breaches: u32,
}

impl Threshold {
    pub fn look(&mut self, seen: &Seen<'_>) -> bool {
        if seen.now / WINDOW == self.window {
            return false;
        }
        self.window = seen.now / WINDOW;
        let requests = seen.canary.requests - self.before.requests;
        let failed = seen.canary.failed - self.before.failed;
        self.before = seen.canary;
        self.breaches += u32::from(failed * 100 > requests);
        self.breaches >= 5
    }
}

/// A z-test of both shares of failures at a level of 5 %, of all requests so far, looked at after every window.
#[derive(Default)]
pub struct Peeking {
    window: u32,
}

impl Peeking {
    pub fn look(&mut self, seen: &Seen<'_>) -> bool {
        if seen.now / WINDOW == self.window {
            return false;
        }
        self.window = seen.now / WINDOW;
        let share = |tally: Tally| tally.failed as f64 / tally.requests as f64;
        let all = Tally {
            requests: seen.stable.requests + seen.canary.requests,
            failed: seen.stable.failed + seen.canary.failed,
        };
        let each = 1.0 / seen.stable.requests as f64 + 1.0 / seen.canary.requests as f64;
        let error = (share(all) * (1.0 - share(all)) * each).sqrt();
        (share(seen.canary) - share(seen.stable)) / error > 1.645
    }
}
