//! Whole releases in simulated traffic, each judged by all rules at once.

use crate::{
    rules::{Operator, Peeking, Seen, Threshold},
    traffic::{Event, Traffic, World, at},
};
use canary_operator::{
    analysis::{InForce, Rules},
    api::{Duration, Step, Weight},
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Seconds that a weight takes to reach every controller.
const SETTLE: u32 = 6;
/// The rules: the operator's, success in every window, and the z-test.
pub const RULES: usize = 3;

/// Weights in percent and how many seconds each is held.
pub type Plan = Vec<(u32, u32)>;

/// A release was rolled back.
#[derive(Clone, Copy, Debug)]
pub struct RolledBack {
    /// After so many seconds.
    pub after: u32,
    /// After so many failed requests to version 2.
    pub failed: u64,
}

/// What each rule did.
pub type Ending = [Option<RolledBack>; RULES];

/// One release.
pub struct Release {
    pub world: World,
    pub operator: Operator,
    threshold: Threshold,
    peeking: Peeking,
    pub ending: Ending,
    now: u32,
    /// Until when there is no operator.
    down_until: u32,
}

impl Release {
    /// From its first weight to its last second, or until all rules have rolled it back.
    pub fn play(traffic: Traffic, plan: &Plan, seed: u64) -> Self {
        let length = plan.iter().map(|(_, hold)| hold + SETTLE).sum();
        let mut release = Self {
            world: World::new(traffic, length, seed),
            operator: Operator::new(0),
            threshold: Threshold::default(),
            peeking: Peeking::default(),
            ending: Ending::default(),
            now: 0,
            down_until: 0,
        };
        for (step, (percent, hold)) in (1..).zip(plan) {
            let weight = Weight::percent(*percent);
            let rules = Rules::of(None, Some(&step_of(weight, *hold)));
            let in_force = InForce {
                step,
                weight,
                live: at(release.now + SETTLE),
                chosen: None,
                denied: false,
            };
            release.world.raise(release.now, weight.fraction());
            let end = release.now + SETTLE + hold;
            while release.now < end && release.ending.iter().any(Option::is_none) {
                let seen = Seen {
                    now: release.now,
                    rules: &rules,
                    in_force: &in_force,
                    stable: release.world.stable,
                    canary: release.world.canary,
                };
                release.look(&seen);
                release.go_on(&seen, end);
            }
        }
        release
    }

    /// Every rule looks.
    fn look(&mut self, seen: &Seen<'_>) {
        let found = [
            self.now >= self.down_until && self.operator.look(seen, self.world.round(self.now)),
            self.threshold.look(seen),
            self.peeking.look(seen),
        ];
        for (rolled_back, found) in self.ending.iter_mut().zip(found) {
            if found && rolled_back.is_none() {
                *rolled_back = Some(RolledBack {
                    after: self.now,
                    failed: seen.canary.failed,
                });
            }
        }
    }

    /// Until the operator looks again.
    fn go_on(&mut self, seen: &Seen<'_>, end: u32) {
        let up = self.now >= self.down_until;
        let pace = if up {
            self.operator.pace(seen).as_secs() as u32
        } else {
            1
        };
        let pace = pace.min(end - self.now);
        if up && self.world.traffic.event == Event::Operator {
            // Not every look is worth a write.
            if self.world.chance(0.3) {
                self.operator.record();
            }
            if self.world.happens(pace) {
                self.down_until = self.now + pace + 10;
            }
        }
        self.world.pass(self.now, pace);
        self.now += pace;
        if self.now == self.down_until {
            self.operator.restart(self.now);
        }
    }
}

fn step_of(weight: Weight, hold: u32) -> Step {
    Step {
        weight,
        hold: Some(Duration::seconds(hold)),
        approval: false,
        analysis: None,
    }
}

/// Many releases of the same kind. The same ones every time.
pub fn play_all(traffic: Traffic, plan: &Plan, releases: u64, seed: u64) -> Vec<Ending> {
    each(releases, |number| {
        Release::play(traffic, plan, (seed << 32) + number).ending
    })
}

/// Does something for each number, on two threads; what comes of it is in no order.
pub fn each<T: Send>(numbers: u64, do_it: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(0);
    let some = || -> Vec<T> {
        let taken = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        taken.take_while(|number| *number < numbers).map(&do_it).collect()
    };
    thread::scope(|scope| {
        let other = scope.spawn(some);
        let mut all = some();
        all.extend(other.join().unwrap());
        all
    })
}
