//! The real controller in a simulated cluster, in virtual time: whole releases, and the operator killed around every write.

// clippy.toml's leave for tests reaches #[test] functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod chaos;
mod commanding;
mod faults;
mod judging;
mod lab;
mod leading;
mod meddling;
mod mutations;
mod properties;
mod refusing;
mod scenario;
mod starting;
mod sweep;

use canary_operator::rehearse::server::{
    intercept::{Before, Interceptor},
    routes::Call,
};
use faults::Kill;
use scenario::{Run, Scenario, play};

/// In which the operator dies before and after every write.
const SCENARIOS: [Scenario; 16] = [
    Scenario::Good,
    Scenario::Fractions,
    Scenario::CrashLoop,
    Scenario::CrashMidway,
    Scenario::Deleted,
    Scenario::Superseded,
    Scenario::Testers,
    Scenario::Approval,
    Scenario::AwaitStable,
    Scenario::NeverShift,
    Scenario::Quota,
    Scenario::NeverRollsOut,
    Scenario::Aborted,
    Scenario::PromotedEarly,
    Scenario::Retried,
    Scenario::Kept,
];

#[test]
fn a_good_release_walks_its_steps_and_is_promoted() {
    let run = play(Scenario::Good, 1, None);
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("Promoted"));
    assert_eq!(run.weights(), ["0", "10", "25", "50", "100"]);
    assert_eq!(run.stable_image(), "shop:v2");
}

#[test]
fn fractions_of_a_percent_reach_nginx_as_weight_and_total() {
    let run = play(Scenario::Fractions, 1, None);
    properties::sound(&run);
    assert_eq!(run.weights(), ["0", "0.01", "0.5", "5", "100"]);
}

#[test]
fn a_crash_looping_version_2_is_rolled_back_with_its_last_words_and_never_gets_a_request() {
    let run = play(Scenario::CrashLoop, 1, None);
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("RolledBack"));
    assert!(
        run.message().contains("CrashLoopBackOff")
            && run
                .message()
                .contains("ModuleNotFoundError: No module named 'flask_limiter'"),
        "{}",
        run.message()
    );
    assert_eq!(run.canary_answers, 0);
    assert_eq!(run.stable_image(), "shop:v1");
}

#[test]
fn a_version_2_that_crashes_later_loses_its_traffic_before_its_pods() {
    let run = play(Scenario::CrashMidway, 1, None);
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("RolledBack"));
    assert!(run.weights().len() > 1, "it had traffic: {:?}", run.weights());
}

#[test]
fn a_deleted_release_leaves_version_1_alone_with_all_traffic() {
    let run = play(Scenario::Deleted, 1, None);
    properties::sound(&run);
    assert_eq!(run.outcome(), None, "the object is gone");
    assert_eq!(run.stable_image(), "shop:v1");
}

#[test]
fn another_version_midway_waits_until_version_1_has_all_traffic_back() {
    let run = play(Scenario::Superseded, 1, None);
    properties::sound(&run);
    assert_eq!(run.outcome().as_deref(), Some("Promoted"));
    assert_eq!(run.stable_image(), "shop:v3");
    assert!(run.history().contains(&"Superseded".to_owned()));
}

/// Reliability S4–S7, S9 and S10 after each write, with the operator dead before or after any one of them, and after each.
#[test]
fn the_operator_may_die_before_and_after_every_single_write() {
    let only = std::env::var("SCENARIO").unwrap_or_default();
    let swept = SCENARIOS.iter().filter(|s| format!("{s:?}").contains(&only));
    let mut jobs = Vec::new();
    let calm: Vec<_> = swept.map(|scenario| play(*scenario, 1, None)).collect();
    for calm in &calm {
        properties::sound(calm);
        let (outcome, image) = calm.scenario.end();
        assert_eq!(
            (calm.outcome().as_deref(), &*calm.stable_image()),
            (outcome, image),
            "{}",
            calm.message()
        );
        let writes = calm.records.iter().filter(|record| lab::is_written(record)).count();
        assert!(writes >= 10, "{:?} makes {writes} writes", calm.scenario);
        println!("{:?}: {writes} writes", calm.scenario);
        jobs.extend((1..=writes).flat_map(|at| [(calm, Kill::Before(at)), (calm, Kill::After(at))]));
    }
    // One that told another time after each start, or an error before anybody could answer, never got any further. In three
    // scenarios one life has to be long enough to record a write: who comes next makes pods anew that crashed, asks again for those
    // that a quota refused, or waits anew before it asks people, who take their time.
    let needs_a_life = [Scenario::CrashLoop, Scenario::Quota, Scenario::AwaitStable];
    let others = calm.iter().filter(|calm| !needs_a_life.contains(&calm.scenario));
    jobs.extend(others.map(|calm| (calm, Kill::AfterEach)));
    let found = sweep::on_threads(&jobs, |(calm, kill)| {
        let run = play(calm.scenario, 1, Some(*kill));
        let mut broken = properties::broken(&run);
        if !run.killed {
            broken.push("a fault that never fires proves nothing".to_owned());
        }
        let end = |run: &Run| (run.outcome(), run.stable_image(), run.history(), run.commands());
        if end(&run) != end(calm) {
            broken.push(format!(
                "ends as {:?} instead of {:?}: {}",
                end(&run),
                end(calm),
                run.message()
            ));
        }
        let name = |line: String| format!("{:?} {kill:?}: {line}", calm.scenario);
        broken.into_iter().map(name).collect()
    });
    println!("{} releases with a killed operator", jobs.len());
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
}

#[test]
fn the_same_seed_plays_the_same_release() {
    for seed in [1, 2] {
        let trace = || play(Scenario::Good, seed, Some(Kill::After(7))).trace();
        assert_eq!(trace(), trace());
    }
}

#[test]
fn a_release_that_is_over_sends_no_request() {
    let run = play(Scenario::Good, 1, None);
    let over = run.ended_at.expect("it ends");
    let late: Vec<_> = run
        .records
        .iter()
        .filter(|r| r.at.duration_since(over).as_secs() > 5)
        .map(|r| format!("{} {}", r.verb, r.resource))
        .collect();
    assert!(
        late.iter()
            .all(|call| call == "watch canaryreleases.canary-operator.dev"),
        "{late:?}"
    );
}

#[test]
fn a_five_step_release_stays_within_its_request_budget() {
    let run = play(Scenario::FiveSteps, 1, None);
    properties::sound(&run);
    let mut counts = std::collections::BTreeMap::new();
    for record in &run.records {
        *counts
            .entry(format!("{} {}{}", record.verb, record.resource, record.subresource))
            .or_insert(0) += 1;
    }
    println!("{} requests: {counts:#?}", run.records.len());
    assert!(run.records.len() <= 62, "{counts:#?}");
}

/// Lets each of the operator's writes take as long as it does on a real cluster.
struct Slow;

impl Interceptor for Slow {
    fn before(&self, call: &Call) -> Before {
        match &*call.client == "operator" && call.is_write() {
            true => Before::Delay(std::time::Duration::from_millis(15)),
            false => Before::Pass,
        }
    }
}

/// A cluster's latency made each step's status be written twice: 65 requests instead of 59.
#[test]
fn writes_that_take_their_time_cost_no_further_requests() {
    let run = lab::lab(async |lab| {
        lab.world.server.intercept(Slow);
        lab.start(Scenario::FiveSteps);
        lab.ended().await;
        lab.pass(120).await;
    });
    properties::sound(&run);
    let at_once = play(Scenario::FiveSteps, 1, None);
    assert_eq!(run.records.len(), at_once.records.len());
}
