//! Back to version 1.

use super::{tell::writes, world::*};
use crate::{
    api::{Outcome, Phase, Stage},
    release::{Kind, Rest, at_rest},
};
use serde_json::json;
use std::time::Duration;

#[test]
fn traffic_leaves_first_and_the_pods_outlive_it_by_the_settle_time() {
    let story = world()
        .at_first_step()
        .later(10)
        .when("version 2 crashes")
        .canary_crashes(Some("Killed"))
        .round()
        .when("not settled yet")
        .later(5)
        .round()
        .when("settled")
        .later(1)
        .round()
        .when("everything is gone")
        .canary_recovers()
        .canary_ready(0)
        .round()
        .round();
    assert_eq!(story.owned(), [""; 0]);
    assert!(!story.guarded());
    insta::assert_snapshot!(story.story);
}

/// Who dies after the first weight and before the status leaves nobody who knows that there were requests.
#[test]
fn pods_that_an_ingress_may_have_led_to_outlive_it_by_the_settle_time_whatever_was_recorded() {
    let world = world().routed().canary_crashes(None).rounds(1);
    assert_eq!(world.owned(), ["Deployment shop-v2", "Service shop-v2"]);
    assert_eq!(writes(&world), [""; 0]);
    let settled = world.later(6);
    assert_eq!(writes(&settled).len(), 2);
}

#[test]
fn a_release_that_never_had_an_ingress_loses_its_pods_in_the_first_round() {
    let world = world().begun().canary_crashes(None).rounds(1);
    assert_eq!(world.owned(), [""; 0]);
}

#[test]
fn an_ingress_that_is_slow_to_go_keeps_the_pods_and_is_deleted_once() {
    let world = world().at_first_step().canary_crashes(None);
    let slow = world.edit(super::super::Kind::Ingress, "shop-ingress-v2", |i| {
        i["metadata"]["deletionTimestamp"] = json!("2026-01-05T10:00:00Z")
    });
    assert_eq!(writes(&slow.rounds(1).later(60)), [""; 0]);
}

#[test]
fn a_rollback_goes_on_when_version_2_recovers_or_the_spec_changes() {
    let world = world().at_first_step().canary_crashes(None).rounds(1).canary_recovers();
    let changed = world
        .clone()
        .spec(json!({"canary": {"image": "shop:v3"}}))
        .later(6)
        .rounds(2);
    for ended in [world.later(6).rounds(2), changed] {
        assert_eq!(
            (ended.rollout().stage, ended.rollout().outcome),
            (Stage::Ended, Some(Outcome::RolledBack))
        );
    }
}

#[test]
fn the_history_keeps_the_last_ten_newest_first() {
    let mut world = world();
    for n in 1..=12 {
        world = world
            .spec(json!({"canary": {"image": format!("shop:v2.{n}")}}))
            .rolled_back();
    }
    let history = world.release.status.unwrap().history;
    let images: Vec<_> = history.iter().filter_map(|entry| entry.canary_image.clone()).collect();
    assert_eq!(images.len(), 10);
    assert_eq!((images[0].as_str(), images[9].as_str()), ("shop:v2.12", "shop:v2.3"));
}

#[test]
fn a_rolled_back_release_says_so_and_rests() {
    let world = world().rolled_back();
    let decision = world.decide();
    assert_eq!(
        (decision.status.phase, decision.watching),
        (Some(Phase::RolledBack), false)
    );
    assert_eq!(decision.status.weight.as_deref(), Some("0"));
    assert_eq!(
        decision.status,
        world.release.status.unwrap(),
        "nothing is left to be written"
    );
}

#[test]
fn pods_outlive_a_weight_that_the_operator_died_before_recording() {
    let world = world().routed().later(6).dies_after(1).canary_crashes(None).rounds(1);
    assert_eq!(writes(&world), [""; 0], "the settle time is not over");
}

#[test]
fn a_release_of_testers_only_keeps_its_pods_for_the_settle_time_after_promotion() {
    let world = world()
        .steps(&[("0", "30s")])
        .begun()
        .canary_ready(1)
        .rounds(1)
        .later(36)
        .rounds(1)
        .canary_ready(4)
        .rounds(1);
    let world = world
        .later(6)
        .rounds(1)
        .stable_rolled_out()
        .rounds(1)
        .later(6)
        .rounds(1);
    assert_eq!(world.split("shop-ingress-v2"), None);
    assert_eq!(writes(&world), [""; 0], "the settle time is not over");
}

#[test]
fn a_selector_that_cannot_be_escaped_takes_no_finalizer() {
    let any = json!([{"key": "app", "operator": "Exists"}]);
    let world = world().stable(|d| d["spec"]["selector"] = json!({"matchExpressions": any}));
    assert_eq!(writes(&world), [""; 0]);
}

#[test]
fn pods_of_a_lost_status_outlive_their_ingress_by_the_settle_time() {
    let mut world = world().at_first_step();
    world.release.status = None;
    assert_eq!(writes(&world.rounds(1)), [""; 0], "the settle time is not over");
}

#[test]
fn a_deployment_that_is_kept_gets_no_traffic_and_goes_when_its_time_is_over() {
    let kept = world()
        .spec(json!({"rollback": {"keepFor": "1h"}}))
        .at_first_step()
        .canary_crashes(None)
        .round()
        .later(6)
        .round()
        .round();
    assert_eq!(kept.owned(), ["Deployment shop-v2"]);
    assert!(!kept.guarded());
    let left = at_rest(&kept.release, kept.now);
    assert_eq!(left, Some(Rest::For(Duration::from_secs(300))));
    let over = kept.when("an hour later").later(3600);
    assert_eq!(at_rest(&over.release, over.now), None);
    insta::assert_snapshot!(over.round().round().story);
}

#[test]
fn a_deployment_that_is_kept_makes_room_for_the_next_version() {
    let kept = world()
        .spec(json!({"rollback": {"keepFor": "1h"}}))
        .at_first_step()
        .canary_crashes(None)
        .rounds(1)
        .later(6)
        .rounds(2)
        .canary_recovers();
    let next = kept.spec(json!({"canary": {"image": "shop:v3"}})).rounds(2);
    assert_eq!((next.rollout().stage, next.phase()), (Stage::Preparing, Phase::Pending));
    assert_eq!(next.owned(), ["Deployment shop-v2", "Service shop-v2"]);
}

#[test]
fn a_canary_deployment_that_somebody_changes_is_not_what_would_be_promoted() {
    let changed = world().at_first_step().edit(Kind::Deployment, "shop-v2", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:debug");
    });
    let told = changed.rounds(1);
    assert_eq!(
        (told.rollout().stage, told.rollout().reason.as_deref()),
        (Stage::RollingBack, Some("CanaryChanged"))
    );
    insta::assert_snapshot!(told.rollout().detail.clone().unwrap());
}

fn kept() -> World {
    world()
        .spec(json!({"rollback": {"keepFor": "1h"}}))
        .at_first_step()
        .canary_crashes(None)
        .rounds(1)
        .later(6)
        .rounds(2)
        .canary_recovers()
}

#[test]
fn a_deployment_that_was_kept_is_not_what_a_retry_releases() {
    let debugged = kept().edit(Kind::Deployment, "shop-v2", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:debug");
    });
    let retried = debugged.command("retry", "").rounds(2);
    assert_eq!(retried.owned(), [""; 0]);
    let again = retried.rounds(1);
    let deployment = &again.objects[&(Kind::Deployment, "shop-v2".to_owned())];
    assert_eq!(
        deployment["spec"]["template"]["spec"]["containers"][0]["image"],
        "shop:v2"
    );
    assert_eq!(
        (again.rollout().stage, &again.rollout().kept_until),
        (Stage::Preparing, &None)
    );
}

#[test]
fn a_deployment_that_is_kept_goes_in_time_whatever_the_next_version_waits_for() {
    let paused = kept().spec(json!({"paused": true, "canary": {"image": "shop:v3"}}));
    let stalled = kept().stable_ready(0).spec(json!({"canary": {"image": "shop:v3"}}));
    for world in [paused, stalled] {
        let waiting = world.rounds(1);
        assert_eq!(waiting.owned(), ["Deployment shop-v2"]);
        assert_eq!(waiting.clone().later(3_590).decide().again.as_secs(), 10);
        let over = waiting.later(3_600).rounds(2);
        assert_eq!((over.owned().len(), &over.rollout().kept_until), (0, &None));
    }
}

#[test]
fn who_asks_for_the_last_version_again_before_another_started_reads_how_that_ended() {
    let told = |world: &World| {
        let status = world.release.status.clone().unwrap();
        let conditions = status.conditions.into_iter().map(|c| (c.type_, c.status, c.reason));
        let images = (status.stable_image, status.canary_image, status.revision);
        (status.phase, status.message, images, conditions.collect::<Vec<_>>())
    };
    let promoted = world().finishing().stable_rolled_out().rounds(1);
    let promoted = promoted.later(6).rounds(1).later(6).rounds(3);
    assert_eq!(promoted.phase(), Phase::Promoted);
    let nobody = json!({"canary": {"image": "shop:v3", "container": "nobody"}});
    let paused = json!({"paused": true, "canary": {"image": "shop:v3"}});
    let back = json!({"paused": false, "canary": {"image": "shop:v2", "container": null}});
    for ended in [world().rolled_back(), promoted] {
        for other in [&nobody, &paused] {
            let waiting = ended.clone().spec(other.clone()).rounds(1);
            assert_ne!(told(&waiting), told(&ended));
            assert_eq!(told(&waiting.spec(back.clone()).rounds(1)), told(&ended));
        }
    }
}

#[test]
fn a_kept_deployment_that_made_room_for_a_version_that_never_started_is_told_of_no_more() {
    let cleaning = kept().spec(json!({"canary": {"image": "shop:v3"}})).rounds(1);
    assert_eq!(cleaning.phase(), Phase::Pending);
    let back = cleaning.spec(json!({"canary": {"image": "shop:v2"}})).rounds(1);
    assert_eq!(back.phase(), Phase::RolledBack);
    let message = back.release.status.unwrap().message.unwrap();
    assert!(!message.contains("kept"), "{message}");
}
