//! The first round, and the rounds of releases that have nothing to do.

use super::{tell::writes, world::*};
use crate::{
    api::{Outcome, Phase, Stage},
    release::{Kind, at_rest},
};
use serde_json::json;

#[test]
fn a_release_begins_with_its_finalizer_then_pods_then_their_service() {
    insta::assert_snapshot!(world().round().story);
}

#[test]
fn a_release_that_holds_its_finalizer_does_not_take_it_twice() {
    let writes = writes(&world().dies_after(1));
    assert_eq!(writes.len(), 2, "{writes:?}");
    assert!(writes[0].starts_with("create Deployment shop-v2"), "{writes:?}");
}

#[test]
fn an_operator_that_died_between_the_first_writes_makes_what_is_missing() {
    let with_deployment = world().dies_after(2);
    assert_eq!(
        writes(&with_deployment),
        ["create Service shop-v2: to app \"shop-v2\" (version 2's Service, for endpoints of its own)"]
    );
    assert_eq!(writes(&world().dies_after(3)), [""; 0]);
}

#[test]
fn what_an_operator_made_that_died_before_it_recorded_that_stays_guarded_while_the_release_is_paused() {
    let made = world().dies_after(2).spec(json!({"paused": true})).rounds(1);
    assert_eq!(made.phase(), Phase::Paused);
    assert!(made.guarded());
    let none = world().spec(json!({"paused": true})).rounds(1);
    assert!(!none.guarded());
}

#[test]
fn what_was_made_for_another_version_that_is_asked_for_no_more_goes() {
    let ended = world().rolled_back().rounds(3);
    assert!(at_rest(&ended.release, ended.now).is_some());
    let made = ended.spec(json!({"canary": {"image": "shop:v3"}})).dies_after(3);
    assert_eq!(made.owned(), ["Deployment shop-v2", "Service shop-v2"]);
    let back = made.spec(json!({"canary": {"image": "shop:v2"}})).rounds(1);
    assert_eq!(back.owned(), [""; 0]);
    assert!(back.guarded());
    let over = back.rounds(1);
    assert!(!over.guarded());
    assert_eq!(over.rollout().outcome, Some(Outcome::RolledBack));
}

#[test]
fn the_first_pods_are_as_many_as_the_first_step_needs() {
    for (first, replicas, expected) in [
        ("0", json!(null), 1),
        ("10", json!(null), 1),
        ("50", json!(null), 2),
        ("100", json!(null), 4),
        ("10", json!(3), 3),
    ] {
        let world = world()
            .steps(&[(first, "1m")])
            .spec(json!({"canary": {"replicas": replicas}}))
            .begun();
        let pods = &world.objects[&(Kind::Deployment, "shop-v2".to_owned())]["spec"]["replicas"];
        assert_eq!(pods, &json!(expected), "{first}% with replicas {replicas}");
    }
}

#[test]
fn a_version_that_already_runs_is_promoted_without_a_write() {
    insta::assert_snapshot!(world().spec(json!({"canary": {"image": "shop:v1"}})).round().story);
}

#[test]
fn what_an_earlier_release_left_goes_before_this_one_starts() {
    let left = world().begun().spec(json!({"canary": {"image": "shop:v3"}}));
    let mut forgot = left;
    forgot.release.status = None;
    insta::assert_snapshot!(forgot.round().round().round().story);
}

#[test]
fn a_release_after_a_rollback_starts_with_another_intent_and_keeps_the_history() {
    let world = world().rolled_back();
    assert_eq!(
        (world.rollout().stage, world.rollout().outcome),
        (Stage::Ended, Some(Outcome::RolledBack))
    );
    assert_eq!(writes(&world), [""; 0], "the same intent is not tried again");
    let again = world.spec(json!({"canary": {"image": "shop:v3"}})).round();
    assert_eq!(
        (again.rollout().stage, again.rollout().outcome),
        (Stage::Preparing, None)
    );
    assert_eq!(again.release.status.as_ref().unwrap().history.len(), 1);
    insta::assert_snapshot!(again.story);
}

#[test]
fn another_schedule_alone_does_not_start_a_release_that_ended() {
    let world = world().rolled_back().steps(&[("20", "1m")]);
    assert_eq!(writes(&world), [""; 0]);
    assert_eq!(world.decide().status.phase, Some(Phase::RolledBack));
}

#[test]
fn an_old_object_that_the_schema_would_refuse_today_is_stalled_in_words() {
    let mut world = world();
    world.release.spec.steps = None;
    let decision = world.decide();
    assert_eq!(
        decision.status.message.as_deref(),
        Some("set either spec.steps or spec.ramp, exactly one of them")
    );
    assert_eq!(
        (decision.status.phase, decision.writes.len()),
        (Some(Phase::Stalled), 0)
    );
}

#[test]
fn a_round_that_was_not_told_the_merged_template_writes_nothing() {
    let mut world = world();
    world.merge_unasked = true;
    assert_eq!(writes(&world), [""; 0]);
}

#[test]
fn a_stalled_release_tells_its_event_once_and_starts_when_the_cause_is_gone() {
    let world = world().stable(|d| d["spec"]["paused"] = json!(true)).rounds(1);
    assert_eq!(world.decide().notes, [], "already told");
    let mended = world.stable(|d| d["spec"]["paused"] = json!(false)).rounds(1);
    assert_eq!(mended.rollout().stage, Stage::Preparing);
}

fn rests(world: &World) -> bool {
    at_rest(&world.release, world.now).is_some()
}

#[test]
fn only_a_release_with_nothing_to_do_and_nothing_to_guard_is_at_rest() {
    let ended = world().rolled_back();
    assert!(!rests(&world()), "new");
    assert!(!rests(&world().begun()), "preparing");
    assert!(rests(&ended), "ended");
    assert!(
        !rests(&ended.clone().spec(json!({"canary": {"image": "shop:v3"}}))),
        "asked for another version"
    );
    assert!(
        !rests(&ended.clone().steps(&[("20", "1m")])),
        "its status answers an older generation"
    );
    assert!(rests(&world().deleted()), "deleted before it began");
    assert!(!rests(&world().begun().deleted()), "deleted, but guarding objects");
}

#[test]
fn a_deployment_made_beside_another_version_1_is_made_again() {
    // The operator died before it recorded the start; version 1 changes in what version 2 replaces.
    let begun = world().dies_after(3);
    let changed = begun.stable(|d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v1.1"));
    let again = changed.stable_rolled_out().rounds(3);
    let deployment = &again.objects[&(super::super::Kind::Deployment, "shop-v2".to_owned())];
    let kept = deployment["metadata"]["annotations"].to_string();
    assert!(kept.contains("shop:v1.1"), "{kept}");
}
