//! What a person commands, and what a late or foreign command does not do.

use super::world::*;
use crate::{
    api::{Outcome, Phase, Stage},
    release::at_rest,
};
use serde_json::json;

/// The first step waits for approval once its minute is over.
fn gated() -> World {
    world().spec(json!({"steps": [{"weight": 10, "hold": "1m", "approval": true}, {"weight": 50, "hold": "1m"}]}))
}

#[test]
fn a_step_waits_for_approval_and_says_how_to_give_it() {
    let story = gated().at_first_step().later(6).round().later(60).round();
    assert_eq!(story.clone().later(86_400).decide().writes, [], "without a deadline");
    insta::assert_snapshot!(story.story);
}

#[test]
fn an_approval_lets_the_release_go_on_and_is_remembered() {
    let waiting = gated().at_first_step().later(66).rounds(1);
    let story = waiting
        .later(86_400)
        .command("approve", "/1")
        .round()
        .when("the annotation is gone")
        .round();
    assert_eq!(story.clone().canary_ready(2).rounds(1).rollout().step, 2);
    insta::assert_snapshot!(story.story);
}

#[test]
fn an_approval_before_the_time_is_over_saves_the_wait_for_it() {
    let approved = gated().at_first_step().later(30).command("approve", "/1").rounds(2);
    assert_eq!(approved.rollout().step, 1);
    assert_eq!(approved.later(36).canary_ready(2).rounds(2).rollout().step, 2);
}

#[test]
fn a_changed_schedule_takes_an_approval_back() {
    let approved = gated().at_first_step().later(30).command("approve", "/1").rounds(2);
    let steps = json!({"steps": [{"weight": 10, "approval": true}, {"weight": 60, "hold": "1m"}]});
    let world = approved.spec(steps).rounds(1).later(6).rounds(1);
    assert_eq!((world.rollout().step, world.phase()), (1, Phase::Paused));
}

#[test]
fn a_command_that_is_late_foreign_or_misspelt_changes_nothing_and_is_told() {
    let world = gated().at_first_step().later(66).rounds(1);
    for text in [
        "approve/0000000000/1".to_owned(),
        format!("approve/{}/2", world.revision()),
        format!("retry/{}", world.revision()),
        "aprove/1".to_owned(),
        "x".repeat(10_000),
    ] {
        let told = world.clone().annotated(&text).round();
        assert_eq!((told.rollout().step, told.phase()), (1, Phase::Paused), "{text}");
        let note = &world.clone().annotated(&text).decide().notes[0];
        assert_eq!(note.reason, "CommandIgnored", "{text}");
        assert!(note.message.len() < 500, "{}", note.message);
        assert_eq!(told.command_annotation(), None);
    }
    let told = |text: &str| world.clone().annotated(text).decide().notes[0].message.clone();
    insta::assert_snapshot!(told("approve/0000000000/1"));
    insta::assert_snapshot!(told(&format!("approve/{}/2", world.revision())));
    insta::assert_snapshot!(told("stop"));
}

#[test]
fn a_command_is_carried_out_once_even_if_the_operator_dies_before_the_annotation_goes() {
    let world = gated().at_first_step().later(66).rounds(1).command("abort", "");
    let died = world.clone().rounds_keeping_the_annotation(1);
    assert_eq!(died.rollout().stage, Stage::RollingBack);
    let decision = died.decide();
    assert_eq!(decision.notes, [], "told once");
    assert!(decision.answered);
    assert_eq!(died.rounds(1).command_annotation(), None);
}

#[test]
fn an_abort_returns_the_traffic_first_and_ends_as_aborted() {
    let story = gated()
        .at_first_step()
        .command("abort", "")
        .round()
        .later(6)
        .round()
        .round();
    assert_eq!(story.rollout().outcome, Some(Outcome::Aborted));
    insta::assert_snapshot!(story.story);
}

#[test]
fn an_abort_comes_too_late_once_version_1_is_being_replaced() {
    let world = world().finishing().command("abort", "");
    assert_eq!(world.clone().rounds(1).rollout().stage, Stage::Finishing);
    insta::assert_snapshot!(world.decide().notes[0].message);
}

#[test]
fn promote_skips_the_rest_of_the_schedule_but_not_the_pods() {
    let story = gated().at_first_step().later(1).command("promote", "").round();
    insta::assert_snapshot!(story.when("the pods are there").canary_ready(4).round().round().story);
}

#[test]
fn a_promotion_by_command_is_found_again_by_an_operator_that_died_after_its_weight() {
    let world = gated().spec(json!({"canary": {"image": "shop:v2", "suffix": "-v2", "replicas": 4}}));
    let world = world
        .begun()
        .canary_ready(4)
        .rounds(1)
        .later(6)
        .rounds(1)
        .command("promote", "");
    let died = world.dies_after(1);
    assert_eq!(died.split("shop-ingress-v2").unwrap().step, 3);
    assert_eq!(died.rounds(1).rollout().stage, Stage::Promoting);
}

#[test]
fn a_release_that_was_rolled_back_is_tried_again_by_command() {
    let ended = world().rolled_back();
    let world = ended.command("retry", "");
    assert!(at_rest(&world.release, world.now).is_none());
    let story = world.round().round();
    assert_eq!(story.rollout().stage, Stage::Preparing);
    assert_eq!(story.release.status.as_ref().unwrap().history.len(), 1);
    insta::assert_snapshot!(story.story);
}

#[test]
fn a_promoted_release_is_not_tried_again() {
    let promoted = world()
        .finishing()
        .stable_rolled_out()
        .rounds(1)
        .later(6)
        .rounds(1)
        .later(6)
        .rounds(2);
    assert_eq!(promoted.rollout().outcome, Some(Outcome::Promoted));
    let told = promoted.command("retry", "").decide();
    assert_eq!((told.writes.len(), &*told.notes[0].reason), (0, "CommandIgnored"));
}

#[test]
fn a_paused_release_does_not_start() {
    let paused = world().spec(json!({"paused": true})).round();
    assert_eq!(paused.owned(), [""; 0]);
    assert!(!paused.guarded());
    insta::assert_snapshot!(
        paused
            .when("paused no longer")
            .spec(json!({"paused": false}))
            .round()
            .story
    );
}

#[test]
fn a_pause_keeps_the_weight_and_a_crash_is_rolled_back_all_the_same() {
    let paused = world().at_first_step().later(10).spec(json!({"paused": true})).round();
    assert_eq!(paused.clone().later(3600).decide().writes, []);
    let crashed = paused.clone().later(3600).canary_crashes(None).rounds(1);
    assert_eq!(crashed.rollout().stage, Stage::RollingBack);
    let resumed = paused
        .later(3600)
        .when("an hour later")
        .spec(json!({"paused": false}))
        .round();
    insta::assert_snapshot!(resumed.story);
}

#[test]
fn a_pause_during_the_shift_keeps_version_1() {
    let paused = world().promoting().spec(json!({"paused": true})).later(6).rounds(1);
    assert_eq!(
        (paused.rollout().stage, paused.phase()),
        (Stage::Promoting, Phase::Paused)
    );
    assert_eq!(
        paused.spec(json!({"paused": false})).rounds(1).rollout().stage,
        Stage::Finishing
    );
}

#[test]
fn a_promotion_by_command_before_there_is_an_ingress_makes_it_once_and_at_weight_0() {
    let world = world().spec(json!({"canary": {"replicas": 4}})).begun();
    let world = world.command("promote", "").rounds(1).canary_ready(4).rounds(1);
    assert_eq!(world.split("shop-ingress-v2").unwrap().weight.to_string(), "0");
    assert_eq!(
        world.rounds(1).split("shop-ingress-v2").unwrap().weight.to_string(),
        "100"
    );
}

#[test]
fn a_retry_starts_with_pods_of_its_own_rather_than_with_those_that_were_kept_because_they_failed() {
    let ended = world().spec(json!({"rollback": {"keepFor": "1h"}})).rolled_back();
    assert_eq!(ended.owned(), ["Deployment shop-v2"]);
    let retried = ended.command("retry", "").rounds(1);
    assert_eq!(retried.phase(), Phase::Pending, "the API server is asked first");
    let removed = retried.rounds(1);
    assert_eq!(removed.owned(), [""; 0]);
    let world = removed.rounds(1);
    assert_eq!(world.owned(), ["Deployment shop-v2", "Service shop-v2"]);
    assert_eq!(world.rollout().stage, Stage::Preparing);
    assert_eq!(world.rollout().commands.len(), 1);
}

#[test]
fn another_version_after_a_retry_does_not_claim_its_command() {
    let again = world()
        .rolled_back()
        .command("retry", "")
        .rounds(3)
        .canary_crashes(None)
        .rounds(1);
    let ended = again.canary_recovers().rounds(1);
    assert_eq!(ended.rollout().stage, Stage::Ended);
    let next = ended.spec(json!({"canary": {"image": "shop:v3"}})).rounds(1);
    assert_eq!(
        (next.rollout().stage, next.rollout().commands.len()),
        (Stage::Preparing, 0)
    );
}

#[test]
fn a_huge_command_is_told_in_brief() {
    let text = format!("promote/{}", "é".repeat(100_000));
    let decision = world().begun().annotated(&text).decide();
    assert!(decision.answered);
    assert!(decision.notes.iter().all(|note| note.message.len() < 1_000));
}

#[test]
fn promote_before_any_ingress_exists_writes_each_ingress_once_a_round() {
    let fixed = world().spec(json!({"canary": {"image": "shop:v2", "suffix": "-v2", "replicas": 4}}));
    let begun = fixed.begun().command("promote", "").rounds(1).canary_ready(4);
    let world = begun.rounds(1);
    assert_eq!(world.split("shop-ingress-v2").unwrap().step, 0);
    assert_eq!(
        world.rounds(1).split("shop-ingress-v2").unwrap().weight,
        crate::api::Weight::FULL
    );
}
