//! Releases in simulated traffic: how often the judge is wrong, and whether it is right at all. `make bench-analysis` does the
//! same with many more.

// clippy.toml's leave for tests reaches #[test] functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod release;
mod rules;
mod split;
mod traffic;

use release::{Ending, Plan, RULES, Release, play_all};
use traffic::{Event, Traffic};

const EVENTS: [Event; 6] = [
    Event::Steady,
    Event::Drift,
    Event::Incident,
    Event::Weights,
    Event::Resets,
    Event::Operator,
];

/// The most that come of `n` at a chance of `p` each, but for one time in 10,000.
fn most_by_chance(n: u64, p: f64) -> u64 {
    let mut chance = (1.0 - p).powf(n as f64);
    let mut sum = chance;
    let mut k = 0;
    while sum < 1.0 - 1e-4 {
        chance *= (n - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
        sum += chance;
        k += 1;
    }
    k
}

/// Short, so that a debug build does many.
fn plan() -> Plan {
    [10, 25, 50].map(|weight| (weight, 50)).into()
}

fn traffic(event: Event, ratio: f64) -> Traffic {
    Traffic {
        per_second: 50.0,
        error_rate: 0.02,
        ratio,
        event,
    }
}

fn rolled_back(endings: &[Ending]) -> [u64; RULES] {
    [0, 1, 2].map(|rule| endings.iter().filter(|ending| ending[rule].is_some()).count() as u64)
}

#[test]
fn equal_versions_are_hardly_ever_told_apart_whatever_happens_to_both() {
    let releases = 150;
    let most = most_by_chance(releases, 0.01);
    for (event, seed) in EVENTS.into_iter().zip(1..) {
        let [operator, _, peeking] = rolled_back(&play_all(traffic(event, 1.0), &plan(), releases, seed));
        assert!(operator <= most, "{operator} of {releases} rolled back: {event:?}");
        assert!(
            peeking > most,
            "a rule that is often wrong would not be noticed: {event:?}"
        );
    }
}

#[test]
fn a_version_that_fails_more_often_is_found_whatever_happens_to_both() {
    for (event, seed) in EVENTS.into_iter().zip(11..) {
        let [operator, ..] = rolled_back(&play_all(traffic(event, 4.0), &plan(), 40, seed));
        assert!(operator >= 36, "{operator} of 40 found: {event:?}");
    }
}

#[test]
fn a_version_that_always_fails_is_found_within_seconds() {
    let endings = play_all(traffic(Event::Steady, 50.0), &plan(), 20, 21);
    let found: Vec<_> = endings.iter().map(|ending| ending[0].unwrap()).collect();
    assert!(
        found.iter().all(|found| found.after <= 10 && found.failed <= 40),
        "{found:?}"
    );
}

#[test]
fn every_request_is_weighed_once() {
    let release = Release::play(traffic(Event::Steady, 1.0), &plan(), 31);
    let evidence = &release.operator.checks[0].evidence[0];
    for (came, weighed, failed, weighed_failed) in [
        (
            release.world.stable.requests,
            evidence.stable,
            release.world.stable.failed,
            evidence.stable_failed,
        ),
        (
            release.world.canary.requests,
            evidence.canary,
            release.world.canary.failed,
            evidence.canary_failed,
        ),
    ] {
        // Those of the last seconds came after the last look.
        assert!((came - 400..=came).contains(&weighed), "{weighed} of {came}");
        assert!(
            (failed - 20..=failed).contains(&weighed_failed),
            "{weighed_failed} of {failed}"
        );
    }
}

#[test]
fn a_split_is_denied_where_it_is_wrong_and_hardly_ever_where_it_is_right() {
    let right = split::play_all("10", None, 100);
    assert!(
        right.iter().flatten().count() as u64 <= most_by_chance(100, 0.001),
        "{right:?}"
    );
    let mut wrong: Vec<_> = split::play_all("10", Some(0.5), 50)
        .into_iter()
        .map(Option::unwrap)
        .collect();
    wrong.sort_unstable();
    assert!(wrong[25] <= 1_000, "{wrong:?}");
}
