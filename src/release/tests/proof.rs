//! What the counted requests say about the weight in force.

use super::world::*;
use crate::{
    api::{Phase, Stage},
    release::Kind,
};
use serde_json::json;

/// The first step at 10 %, live since just now, with half a minute of its hold to come.
fn live() -> World {
    world().at_first_step().later(6).rounds(1)
}

fn condition(world: &World, type_: &str) -> (String, String, String) {
    let conditions = &world.release.status.as_ref().unwrap().conditions;
    let found = conditions.iter().find(|c| c.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone(), found.message.clone())
}

#[test]
fn a_weight_is_live_after_the_settle_time_and_proven_by_what_is_counted_then() {
    let settled = live();
    assert_eq!(condition(&settled, "WeightLive").1, "Settled");
    assert_eq!(condition(&settled, "TrafficSplitVerified").0, "Unknown");
    let proven = settled.later(4).counted(4, 180, 20).rounds(1);
    let (status, reason, message) = condition(&proven, "WeightLive");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "Counted"));
    insta::assert_snapshot!(message);
    assert_eq!(condition(&proven, "TrafficSplitVerified").0, "True");
    let told = |world: &World| {
        world
            .release
            .status
            .clone()
            .map(|status| (status.message, status.conditions))
    };
    let before = told(&proven);
    let later = proven.later(1).counted(5, 230, 25).rounds(1);
    assert_eq!(told(&later), before, "a proof is told once");
}

#[test]
fn what_was_counted_before_the_weight_was_live_says_nothing() {
    let world = live().later(4).counted(8, 800, 0).rounds(1);
    assert_eq!(world.phase(), Phase::Progressing);
}

#[test]
fn requests_that_deny_the_weight_hold_it_and_the_hold_starts_over() {
    let held = live().later(20).counted(20, 990, 10).round();
    assert_eq!(condition(&held, "WeightLive").0, "False");
    let still = held.clone().later(30).counted(1, 9, 0).decide();
    assert_eq!(
        still.status.phase,
        Some(Phase::Holding),
        "too few to say that it is mended"
    );
    let mended = held
        .when("the split is right again")
        .later(30)
        .counted(20, 900, 100)
        .round();
    assert_eq!(mended.phase(), Phase::Progressing);
    insta::assert_snapshot!(mended.story);
}

#[test]
fn a_split_that_stays_wrong_is_rolled_back_at_the_deadline() {
    let held = live().later(20).counted(20, 990, 10).rounds(1);
    let late = held.later(600).counted(20, 990, 10).rounds(1);
    assert_eq!(
        (late.rollout().stage, late.rollout().reason.as_deref()),
        (Stage::RollingBack, Some("TrafficSplitDiffers"))
    );
}

#[test]
fn testers_on_top_of_the_weight_are_no_fault() {
    let world = world().spec(json!({"traffic": {"header": {"name": "X-Canary"}}}));
    let world = world.at_first_step().later(26).counted(20, 500, 500).rounds(1);
    assert_eq!(world.phase(), Phase::Progressing);
}

#[test]
fn clients_that_stay_with_their_version_say_nothing_about_the_weight() {
    let world = world().edit(Kind::Ingress, "shop-ingress", |i| {
        i["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/affinity": "cookie"});
    });
    let world = world.at_first_step().later(26).counted(20, 990, 10).rounds(1);
    assert_eq!(world.phase(), Phase::Progressing);
}

#[test]
fn version_1_is_not_replaced_while_it_still_gets_requests() {
    let world = world().promoting().later(8).counted(1, 30, 70).rounds(1);
    assert_eq!(
        (world.rollout().stage, world.phase()),
        (Stage::Promoting, Phase::Holding)
    );
}
