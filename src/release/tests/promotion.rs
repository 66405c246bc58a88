//! Version 2 takes version 1's place.

use super::{tell::writes, world::*};
use crate::{
    api::{Outcome, Phase, Stage, Weight},
    release::{Kind, Op},
};
use serde_json::json;

#[test]
fn pods_then_all_traffic_then_the_template_then_the_canary_goes() {
    let story = world()
        .at_last_step()
        .later(66)
        .when("the last step was held")
        .round()
        .when("pods for everything are ready")
        .canary_ready(4)
        .round()
        .when("100% has settled")
        .later(6)
        .round()
        .when("version 1's Deployment rolls")
        .later(20)
        .round()
        .when("it has rolled out")
        .stable_rolled_out()
        .round()
        .when("its endpoints have settled")
        .later(6)
        .round()
        .when("the Ingress's end has settled")
        .later(6)
        .round()
        .when("everything is gone")
        .canary_ready(0)
        .round()
        .round();
    assert_eq!(story.rollout().outcome, Some(Outcome::Promoted));
    assert_eq!(story.owned(), [""; 0]);
    assert!(!story.guarded());
    insta::assert_snapshot!(story.story);
}

#[test]
fn the_template_is_not_touched_a_moment_before_all_traffic_has_settled() {
    let world = world().promoting();
    assert_eq!(writes(&world.clone().later(5)), [""; 0]);
    let decision = world.later(6).decide();
    assert!(
        matches!(
            decision.writes[..],
            [super::super::Write {
                op: Op::StrategicMerge { .. },
                ..
            }]
        ),
        "{:?}",
        decision.writes
    );
}

#[test]
fn the_overlay_is_promoted_as_it_was_tested() {
    let overlay = json!({"spec": {"containers": [{"name": "web", "env": [{"name": "A", "value": "b"}]}]}});
    let world = world().spec(json!({"canary": {"template": overlay}})).finishing();
    let container = &world.objects[&(Kind::Deployment, "shop".to_owned())]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container,
        &json!({"name": "web", "image": "shop:v2", "env": [{"name": "A", "value": "b"}]})
    );
}

#[test]
fn an_operator_that_died_after_the_template_finishes() {
    let world = world().promoting().later(6).dies_after(1);
    assert_eq!(world.rollout().stage, Stage::Promoting);
    assert_eq!(world.rounds(1).rollout().stage, Stage::Finishing);
}

#[test]
fn pods_that_must_be_had_for_everything_end_the_release_at_the_deadline() {
    let always = json!({"promotion": {"shiftTraffic": "Always"}});
    let scaling = world().spec(always).at_last_step().later(66).rounds(1);
    assert_eq!(scaling.clone().later(599).rounds(1).rollout().stage, Stage::Promoting);
    insta::assert_snapshot!(scaling.later(600).round().story);
}

#[test]
fn pods_that_cannot_be_had_for_everything_are_done_without_and_version_1_is_replaced_while_it_serves() {
    let scaling = world().at_last_step().later(66).rounds(1);
    insta::assert_snapshot!(
        scaling
            .when("pods for everything are not there at the deadline")
            .later(600)
            .round()
            .when("the next round")
            .round()
            .when("version 2 has rolled out")
            .stable_rolled_out()
            .round()
            .later(6)
            .round()
            .later(6)
            .round()
            .story
    );
}

#[test]
fn a_quota_that_refuses_pods_for_everything_is_taken_for_an_answer() {
    let scaling = world().at_last_step().later(66).rounds(1).quota_exceeded();
    insta::assert_snapshot!(scaling.round().story);
}

#[test]
fn version_1_is_replaced_while_it_serves_where_traffic_is_never_shifted() {
    let never = json!({"promotion": {"shiftTraffic": "Never"}});
    insta::assert_snapshot!(world().spec(never).at_last_step().later(66).round().story);
}

#[test]
fn version_1_gets_its_template_back_and_requests_return_when_that_has_rolled_out() {
    let restoring = world().finishing().later(600).round();
    let waiting = restoring.clone().later(5).rounds(1);
    assert_eq!(waiting.split("shop-ingress-v2").unwrap().weight, Weight::FULL);
    insta::assert_snapshot!(
        restoring
            .when("version 1 has rolled out")
            .later(20)
            .stable_rolled_out()
            .round()
            .later(6)
            .round()
            .round()
            .story
    );
}

#[test]
fn a_stable_deployment_that_somebody_else_gives_version_2_is_awaited() {
    let gitops = json!({"promotion": {"mode": "AwaitStable"}});
    let waiting = world().spec(gitops).promoting().later(6).round();
    assert_eq!(waiting.clone().later(86_400).decide().writes, []);
    insta::assert_snapshot!(
        waiting
            .when("the Git repository has version 2 and a note beside")
            .later(3600)
            .stable(|d| {
                d["metadata"]["generation"] = json!(2);
                d["spec"]["template"]["metadata"]["annotations"] = json!({"commit": "abc"});
                d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v2");
            })
            .round()
            .when("it has rolled out")
            .stable_rolled_out()
            .round()
            .later(6)
            .round()
            .later(6)
            .round()
            .round()
            .story
    );
}

#[test]
fn a_stable_deployment_that_somebody_else_gives_another_version_ends_the_release() {
    let gitops = json!({"promotion": {"mode": "AwaitStable"}});
    let world = world().spec(gitops).promoting().later(6).rounds(1).stable(|d| {
        d["metadata"]["generation"] = json!(2);
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v9");
    });
    insta::assert_snapshot!(
        world
            .round()
            .when("it has rolled out")
            .later(9)
            .stable_rolled_out()
            .round()
            .later(6)
            .round()
            .story
    );
}

#[test]
fn a_crash_while_the_canary_carries_everything_returns_it_to_version_1() {
    let world = world().promoting().canary_crashes(Some("out of memory")).rounds(1);
    assert_eq!(world.rollout().stage, Stage::RollingBack);
    assert_eq!(world.split("shop-ingress-v2"), None);
}

#[test]
fn a_version_1_without_endpoints_keeps_the_promotion_waiting() {
    let world = world()
        .at_last_step()
        .later(66)
        .rounds(1)
        .canary_ready(4)
        .stable_ready(0);
    assert_eq!(world.decide().status.phase, Some(Phase::Holding));
    assert_eq!(writes(&world), [""; 0]);
}

#[test]
fn a_version_1_that_is_scaled_to_nothing_does_not_send_everything_to_a_canary_without_pods() {
    let world = world().at_last_step().later(66).rounds(1).canary_ready(0);
    let scaled = world.stable(|d| d["spec"]["replicas"] = json!(0)).stable_ready(1);
    assert_eq!(writes(&scaled), [""; 0], "its last endpoint is still there");
}

#[test]
fn a_paused_version_1_stalls_the_promotion_until_it_is_resumed() {
    let world = world()
        .promoting()
        .later(6)
        .stable(|d| d["spec"]["paused"] = json!(true))
        .round();
    assert_eq!(world.rollout().stage, Stage::Promoting);
    let resumed = world.clone().stable(|d| d["spec"]["paused"] = json!(false)).rounds(1);
    assert_eq!(resumed.rollout().stage, Stage::Finishing);
    insta::assert_snapshot!(world.story);
}

#[test]
fn a_promotion_that_gets_stuck_leaves_the_traffic_where_it_is_and_says_so() {
    let stuck = world().finishing().later(600).round();
    assert_eq!(stuck.split("shop-ingress-v2").unwrap().weight.to_string(), "100");
    let mended = stuck.clone().stable_rolled_out().rounds(1).later(6).rounds(1);
    assert_eq!(
        mended.split("shop-ingress-v2"),
        None,
        "a rollout that comes after all is finished"
    );
    insta::assert_snapshot!(stuck.story);
}

#[test]
fn another_version_does_not_interrupt_a_promotion_that_has_written_the_template() {
    let world = world()
        .finishing()
        .spec(json!({"canary": {"image": "shop:v3"}}))
        .rounds(1);
    assert_eq!(
        (world.rollout().stage, world.rollout().outcome),
        (Stage::Finishing, None)
    );
}

#[test]
fn another_version_before_the_template_is_written_supersedes() {
    let world = world()
        .promoting()
        .spec(json!({"canary": {"image": "shop:v3"}}))
        .rounds(1);
    assert_eq!(
        (world.rollout().stage, world.rollout().outcome),
        (Stage::RollingBack, Some(Outcome::Superseded))
    );
}

#[test]
fn pods_of_version_1_lost_while_its_endpoints_settle_start_the_settling_over() {
    let world = world()
        .finishing()
        .stable_rolled_out()
        .rounds(1)
        .later(3)
        .stable_ready(0)
        .rounds(1);
    assert_eq!(world.rollout().stable_since, None);
    let back = world.stable_ready(4).later(4).rounds(1);
    assert_eq!(back.split("shop-ingress-v2").unwrap().weight.to_string(), "100");
}

#[test]
fn a_template_that_somebody_takes_back_while_finishing_ends_in_a_rollback() {
    let world = world()
        .finishing()
        .stable(|d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v1"));
    let rollout = world.rounds(1).rollout().clone();
    assert_eq!(
        (rollout.stage, rollout.reason.as_deref()),
        (Stage::RollingBack, Some("PromotionFailed"))
    );
}

#[test]
fn version_1_gets_back_the_pods_that_its_autoscaler_took_away() {
    let autoscaler = crate::observe::Autoscaler {
        name: "shop".to_owned(),
        deployment: "shop".to_owned(),
        min: 1,
        max: 9,
    };
    let world = world()
        .survey(|s| s.autoscalers.push(autoscaler))
        .promoting()
        .stable(|d| d["spec"]["replicas"] = json!(1));
    let writes = writes(&world.later(6));
    assert_eq!(writes.len(), 1);
    assert!(writes[0].contains("\"replicas\":4"), "{writes:?}");
}

#[test]
fn a_template_that_somebody_else_keeps_is_not_taken_back_from_them() {
    let gitops = json!({"promotion": {"mode": "AwaitStable"}});
    let committed = world().spec(gitops).promoting().later(6).rounds(1).stable(|d| {
        d["metadata"]["generation"] = json!(2);
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v2");
    });
    let stuck = committed.rounds(1).later(600);
    assert_eq!(writes(&stuck), [""; 0]);
    assert_eq!(stuck.rounds(1).phase(), Phase::Stalled);
}
