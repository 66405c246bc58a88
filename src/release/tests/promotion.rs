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
    let entered = world().spec(never).at_last_step().later(66).round();
    let died = entered.clone().dies_after(1).rounds(1);
    assert_eq!(
        died.rollout().stage,
        Stage::Finishing,
        "its own write is no change by somebody else"
    );
    insta::assert_snapshot!(entered.round().story);
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

/// Whether anybody was told of it before or not: who led before may have died.
#[test]
fn requests_do_not_return_to_pods_of_a_rollout_that_was_undone_unseen_before_the_controllers_know_them() {
    let undo = |d: &mut serde_json::Value| {
        d["metadata"]["generation"] = json!(3);
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v1");
    };
    for finishing in [
        world().finishing(),
        world().finishing().stable_rolled_out().rounds(1).later(5),
    ] {
        let undone = finishing.stable(undo).stable_rolled_out().rounds(1);
        assert_eq!(undone.rollout().stage, Stage::RollingBack);
        assert_eq!(
            undone
                .clone()
                .later(5)
                .rounds(1)
                .split("shop-ingress-v2")
                .unwrap()
                .weight,
            Weight::FULL
        );
        assert_eq!(undone.later(6).rounds(1).split("shop-ingress-v2"), None);
    }
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

#[test]
fn a_pod_lost_after_a_long_wait_for_people_has_the_whole_deadline_to_come_back() {
    let gitops = json!({"promotion": {"mode": "AwaitStable"}});
    for patch in [gitops, json!({"paused": true})] {
        let waiting = world().promoting().spec(patch).later(6).rounds(1).later(86_400);
        let lost = waiting.canary_ready(3).rounds(1);
        assert_eq!(lost.clone().later(599).rounds(1).rollout().stage, Stage::Promoting);
        assert_eq!(lost.later(600).rounds(1).rollout().stage, Stage::RollingBack);
    }
}

fn shift_traffic(how: &str) -> serde_json::Value {
    json!({"promotion": {"mode": "AwaitStable", "shiftTraffic": how}})
}

#[test]
fn a_pause_keeps_the_weight_after_an_interruption_or_another_shift_traffic() {
    let interrupted = world()
        .at_last_step()
        .later(66)
        .rounds(1)
        .canary_ready(4)
        .stable_ready(0)
        .rounds(1)
        .stable_ready(4);
    let unshifted = world()
        .spec(shift_traffic("Never"))
        .at_last_step()
        .later(66)
        .rounds(2)
        .spec(shift_traffic("Auto"))
        .canary_ready(4);
    for world in [interrupted, unshifted] {
        let paused = world.spec(json!({"paused": true})).rounds(2).later(10).rounds(2);
        assert_eq!(paused.split("shop-ingress-v2").unwrap().weight.to_string(), "50");
        assert_eq!(paused.phase(), Phase::Paused);
    }
}

#[test]
fn what_the_user_changes_is_not_taken_for_somebody_elses_hand() {
    let later_shifted = world()
        .spec(shift_traffic("Never"))
        .at_last_step()
        .later(66)
        .rounds(2)
        .spec(shift_traffic("Auto"))
        .rounds(1)
        .canary_ready(4);
    let no_more_shifted = world()
        .spec(shift_traffic("Auto"))
        .promoting()
        .later(6)
        .rounds(1)
        .spec(shift_traffic("Never"))
        .rounds(1);
    let other_testers = world()
        .at_first_step()
        .canary_ready(0)
        .spec(json!({"traffic": {"cookie": "beta"}}))
        .rounds(1)
        .canary_ready(1);
    for (world, weight) in [(later_shifted, "100"), (no_more_shifted, "100"), (other_testers, "10")] {
        let notes = world.decide().notes;
        assert!(
            notes.iter().all(|note| note.reason != "CanaryIngressChanged"),
            "{notes:?}"
        );
        let after = world.rounds(1);
        assert_eq!(after.split("shop-ingress-v2").unwrap().weight.to_string(), weight);
    }
}

#[test]
fn another_suffix_while_version_1_is_replaced_makes_no_second_canary() {
    let world = world().finishing().later(6);
    assert_eq!(writes(&world.spec(json!({"canary": {"suffix": "-v3"}}))), [""; 0]);
}

#[test]
fn a_template_that_somebody_else_gave_is_not_taken_back_even_if_it_is_exactly_version_2() {
    let gitops = json!({"promotion": {"mode": "AwaitStable"}});
    let given = world().spec(gitops).promoting().later(6).rounds(1).stable(|d| {
        d["metadata"]["generation"] = json!(2);
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v2");
    });
    let stuck = given.rounds(1).later(600);
    assert_eq!(writes(&stuck), [""; 0]);
    assert_eq!(stuck.decide().status.phase, Some(Phase::Stalled));
}

/// Somebody else's tool gives the stable Deployment version 2, with a note beside.
fn committed_by_somebody(world: World) -> World {
    world.stable(|d| {
        d["metadata"]["generation"] = json!(2);
        d["spec"]["template"]["metadata"]["annotations"] = json!({"commit": "abc"});
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:v2");
    })
}

#[test]
fn a_restart_of_version_2_while_finishing_is_waited_for_and_no_rollback() {
    let restarted = committed_by_somebody(world().finishing());
    let world = restarted.rounds(1);
    assert_eq!(world.rollout().stage, Stage::Finishing);
    assert_eq!(world.split("shop-ingress-v2").unwrap().weight, Weight::FULL);
    let ended = world
        .stable_rolled_out()
        .rounds(1)
        .later(6)
        .rounds(1)
        .later(6)
        .rounds(2);
    assert_eq!(ended.rollout().outcome, Some(Outcome::Promoted));
}

#[test]
fn a_rollback_waits_for_the_pods_that_an_autoscaler_took_away_while_version_2_is_sound() {
    let autoscaler = crate::observe::Autoscaler {
        name: "shop".to_owned(),
        deployment: "shop".to_owned(),
        min: 1,
        max: 9,
    };
    let world = world()
        .survey(|s| s.autoscalers.push(autoscaler))
        .promoting()
        .stable(|d| d["spec"]["replicas"] = json!(1))
        .stable_rolled_out();
    let crashed = world.clone().canary_crashes(None).rounds(1);
    assert_eq!(crashed.split("shop-ingress-v2"), None, "a crash waits for nothing");
    let story = world.command("abort", "").round();
    assert_eq!(story.split("shop-ingress-v2").unwrap().weight, Weight::FULL);
    let again = story
        .clone()
        .stable(|d| d["spec"]["replicas"] = json!(2))
        .stable_rolled_out()
        .rounds(1);
    assert_eq!(writes(&again), [""; 0], "the autoscaler has the last word");
    assert_eq!(again.later(6).rounds(1).split("shop-ingress-v2"), None);
    insta::assert_snapshot!(story.story);
}

#[test]
fn a_stable_deployment_replaced_by_somebody_before_the_shift_raises_no_weight_without_pods() {
    let gitops = json!({"promotion": {"mode": "AwaitStable"}});
    let scaling = world().spec(gitops).at_last_step().later(66).rounds(1);
    let world = committed_by_somebody(scaling).rounds(1).later(7).rounds(1);
    assert_eq!(world.rollout().stage, Stage::Finishing);
    assert_eq!(world.split("shop-ingress-v2").unwrap().weight.to_string(), "50");
}

#[test]
fn a_release_deleted_while_somebody_replaces_the_stable_deployment_keeps_the_canary_until_that_has_rolled_out() {
    let gitops = json!({"promotion": {"mode": "AwaitStable"}});
    let awaiting = world().spec(gitops).promoting().later(6).rounds(1);
    let deleted = committed_by_somebody(awaiting).deleted();
    assert_eq!(writes(&deleted), [""; 0]);
    let waiting = deleted.rounds(1);
    let back = waiting.clone().stable_rolled_out().rounds(1).later(6).rounds(1);
    assert_eq!(back.split("shop-ingress-v2"), None);
    let overdue = waiting.later(121).rounds(1);
    assert_eq!(overdue.split("shop-ingress-v2"), None, "not for ever");
}

#[test]
fn testers_and_another_schedule_while_a_stable_deployment_is_awaited_that_serves_move_no_weight() {
    let gitops = json!({"promotion": {"mode": "AwaitStable", "shiftTraffic": "Never"}});
    let awaiting = world().spec(gitops).at_last_step().later(66).rounds(1);
    let changes =
        json!({"steps": [{"weight": 20, "hold": "1m"}, {"weight": 90, "hold": "1m"}], "traffic": {"cookie": "canary"}});
    let world = awaiting.spec(changes).rounds(1).later(7).rounds(1);
    assert_eq!(world.phase(), Phase::Promoting);
    assert_eq!(world.split("shop-ingress-v2").unwrap().weight.to_string(), "50");
    let ingress = &world.objects[&(Kind::Ingress, "shop-ingress-v2".to_owned())];
    assert_eq!(
        ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-by-cookie"],
        json!("canary")
    );
}

#[test]
fn pods_for_everything_that_are_refused_are_no_failure_either_where_the_operator_died_after_asking_for_them() {
    let asked = world().at_last_step().later(66).dies_after(1).quota_exceeded();
    assert_eq!(asked.rollout().stage, Stage::Stepping);
    let world = asked.rounds(1);
    assert_eq!(world.rollout().stage, Stage::Promoting);
    assert!(world.rollout().unshifted.is_some());
}
