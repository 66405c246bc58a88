//! Waiting for version 2's pods: no request goes there yet.

use super::{tell::writes, world::*};
use crate::{
    api::{Outcome, Stage},
    release::Kind,
};
use serde_json::json;

#[test]
fn it_waits_for_the_pods_and_then_makes_the_canary_ingress_at_weight_0() {
    let story = world()
        .begun()
        .when("no pod is ready")
        .later(30)
        .round()
        .when("the pod is ready")
        .canary_ready(1)
        .round();
    assert_eq!(story.split("shop-ingress-v2").unwrap().weight.to_string(), "0");
    insta::assert_snapshot!(story.story);
}

#[test]
fn every_pod_that_is_wanted_must_be_ready() {
    let world = world().spec(json!({"canary": {"replicas": 3}})).begun();
    assert_eq!(
        world.clone().canary_ready(2).rounds(1).rollout().stage,
        Stage::Preparing
    );
    assert_eq!(world.canary_ready(3).rounds(1).rollout().stage, Stage::Stepping);
}

#[test]
fn pods_that_are_not_ready_by_the_deadline_end_the_release() {
    let world = world().begun().later(599);
    assert_eq!(world.clone().rounds(1).rollout().stage, Stage::Preparing);
    assert_eq!(
        world.decide().again.as_secs(),
        1,
        "it looks again when the deadline passes"
    );
    insta::assert_snapshot!(world.later(1).round().story);
}

#[test]
fn a_crash_is_told_with_the_last_line_of_its_log() {
    let log = "ModuleNotFoundError: No module named 'flask_limiter'";
    insta::assert_snapshot!(world().begun().canary_crashes(Some(log)).round().round().story);
}

#[test]
fn a_crash_without_a_log_is_told_with_what_the_kubelet_says() {
    insta::assert_snapshot!(world().begun().canary_image_missing().round().story);
}

#[test]
fn a_quota_that_leaves_no_room_ends_the_release() {
    insta::assert_snapshot!(world().begun().quota_exceeded().round().story);
}

#[test]
fn a_deleted_canary_deployment_or_service_is_made_again() {
    let begun = world().begun();
    let without_pods = begun.clone().without(Kind::Deployment, "shop-v2");
    assert!(writes(&without_pods)[0].starts_with("create Deployment shop-v2: 1 of \"shop:v2\""));
    let without_service = begun.without(Kind::Service, "shop-v2").canary_ready(1);
    assert!(writes(&without_service)[0].starts_with("create Service shop-v2"));
    assert_eq!(
        without_service.rounds(1).rollout().stage,
        Stage::Preparing,
        "no Ingress before there is a Service"
    );
}

#[test]
fn a_changed_version_1_ends_the_release_before_it_got_a_request() {
    let world = world()
        .begun()
        .stable(|d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v1.1"));
    insta::assert_snapshot!(world.round().story);
}

#[test]
fn a_scaled_version_1_is_still_version_1() {
    let world = world().begun().stable(|d| d["spec"]["replicas"] = json!(8)).rounds(1);
    assert_eq!(world.rollout().outcome, None);
}

#[test]
fn another_version_supersedes_this_one_and_starts_after_it_is_gone() {
    let story = world()
        .begun()
        .spec(json!({"canary": {"image": "shop:v3"}}))
        .round()
        .round()
        .round();
    assert_eq!(
        story.release.status.as_ref().unwrap().history[0].outcome,
        Outcome::Superseded
    );
    insta::assert_snapshot!(story.story);
}

#[test]
fn a_deleted_service_is_made_again_once_the_api_server_was_asked() {
    let mut deleted = world().begun().without(Kind::Service, "shop-v2");
    deleted.merge_unasked = true;
    let unasked = deleted.rounds(1);
    assert_eq!(unasked.rollout().stage, Stage::Preparing);
    let mut asked = unasked;
    asked.merge_unasked = false;
    assert!(writes(&asked)[0].starts_with("create Service shop-v2"));
}

#[test]
fn a_canary_deployment_that_somebody_changes_before_it_is_ready_gets_no_request() {
    let changed = world().begun().rounds(1).edit(Kind::Deployment, "shop-v2", |d| {
        d["metadata"]["generation"] = json!(2);
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:debug");
    });
    let told = changed.canary_ready(1).rounds(1);
    assert_eq!(told.rollout().reason.as_deref(), Some("CanaryChanged"));
}
