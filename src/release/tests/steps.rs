//! Traffic moves along the steps.

use super::{tell::writes, world::*};
use crate::{
    api::{Outcome, Phase, Stage},
    release::{Decision, Kind},
};
use serde_json::json;
use std::time::Duration;

fn phase_and_reason(decision: &Decision) -> (Option<Phase>, String) {
    let reason = decision
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == "Reconciling")
        .unwrap()
        .reason
        .clone();
    (decision.status.phase, reason)
}

#[test]
fn the_weight_settles_then_holds_and_pods_come_before_the_next_weight() {
    let story = world()
        .routed()
        .when("weight 0 has settled")
        .later(6)
        .round()
        .when("10% has settled")
        .later(6)
        .round()
        .when("10% has been held")
        .later(60)
        .round()
        .when("the pods for 50% are ready")
        .canary_ready(2)
        .round();
    insta::assert_snapshot!(story.story);
}

#[test]
fn a_first_step_of_weight_0_is_held_like_any_other() {
    let world = world().steps(&[("0", "30s"), ("10", "1m")]).routed();
    assert_eq!((world.rollout().step, world.rollout().exposed), (1, false));
    assert_eq!(world.clone().later(35).rounds(1).rollout().step, 1);
    assert_eq!(world.later(36).rounds(1).rollout().step, 2);
}

#[test]
fn a_fraction_is_written_with_its_total_in_one_write() {
    let world = world().steps(&[("0.01", "1m")]).routed().later(6);
    let writes = writes(&world);
    assert_eq!(writes.len(), 1);
    assert!(writes[0].contains(r#""nginx.ingress.kubernetes.io/canary-weight":"1","nginx.ingress.kubernetes.io/canary-weight-total":"10000""#), "{writes:?}");
}

#[test]
fn a_step_does_not_advance_a_moment_before_its_hold_is_over() {
    let world = world().spec(json!({"canary": {"replicas": 1}})).at_first_step();
    assert_eq!(world.clone().later(65).rounds(1).rollout().step, 1);
    assert_eq!(world.clone().later(65).decide().again.as_secs(), 1);
    assert_eq!(world.later(66).rounds(1).rollout().step, 2);
}

#[test]
fn every_ingress_of_the_service_gets_a_canary_and_the_same_weight() {
    let world = world().with(ingress("api-ingress", "shop")).at_first_step();
    assert_eq!(world.split("shop-ingress-v2"), world.split("api-ingress-v2"));
    assert_eq!(world.split("api-ingress-v2").unwrap().weight.to_string(), "10");
}

#[test]
fn a_canary_without_endpoints_holds_the_weight_until_it_is_back_and_the_hold_starts_over() {
    let held = world().at_first_step().later(30).canary_ready(0).round();
    let back = held.later(10).canary_ready(1).round();
    let next = back.release.status.as_ref().unwrap().next_advance_at.clone().unwrap();
    assert_eq!(next.0, back.now + Duration::from_secs(66), "settle and hold count anew");
    insta::assert_snapshot!(back.story);
}

#[test]
fn a_canary_without_endpoints_is_rolled_back_at_the_deadline() {
    let held = world().at_first_step().canary_ready(0).rounds(1);
    assert_eq!(held.clone().later(599).rounds(1).rollout().stage, Stage::Stepping);
    insta::assert_snapshot!(held.later(600).round().story);
}

#[test]
fn a_version_1_without_endpoints_holds_the_weight() {
    let decision = world().at_first_step().later(66).stable_ready(0).decide();
    assert_eq!(
        phase_and_reason(&decision),
        (Some(Phase::Holding), "StableUnavailable".to_owned())
    );
    assert_eq!(decision.writes, []);
    insta::assert_snapshot!(decision.status.message.unwrap());
}

#[test]
fn a_deleted_ingress_of_version_1_holds_the_weight_and_says_what_to_do() {
    let decision = world().at_first_step().without(Kind::Ingress, "shop-ingress").decide();
    assert_eq!(
        phase_and_reason(&decision),
        (Some(Phase::Holding), "IngressNotFound".to_owned())
    );
    insta::assert_snapshot!(decision.status.message.unwrap());
}

#[test]
fn an_operator_that_died_after_the_weight_finds_the_step_beside_it() {
    let world = world().routed().later(6).dies_after(1);
    assert_eq!(
        (world.rollout().step, world.split("shop-ingress-v2").unwrap().step),
        (0, 1)
    );
    let story = world.later(20).round();
    assert_eq!((story.rollout().step, story.rollout().exposed), (1, true));
    assert_eq!(
        story.rollout().weight_since,
        Some(story.ago(0)),
        "the hold counts from when the weight is known again"
    );
    insta::assert_snapshot!(story.story);
}

#[test]
fn an_operator_that_died_after_the_last_weight_goes_on_with_the_promotion() {
    let world = world().at_last_step().later(66).rounds(1).canary_ready(4).dies_after(1);
    let world = world.remember(|r| r.stage = Stage::Stepping).rounds(1);
    assert_eq!(world.rollout().stage, Stage::Promoting);
}

#[test]
fn a_weight_that_somebody_changed_is_put_back() {
    let writes = writes(&world().at_first_step().live_split("90", 1));
    assert_eq!(writes.len(), 1);
    assert!(
        writes[0].contains(r#""nginx.ingress.kubernetes.io/canary-weight":"10""#),
        "{writes:?}"
    );
}

#[test]
fn a_weight_that_was_put_right_and_not_recorded_counts_from_when_it_was_put_right() {
    let world = world()
        .spec(json!({"canary": {"replicas": 1}}))
        .at_first_step()
        .later(3600)
        .edit(Kind::Ingress, "shop-ingress-v2", |ingress| {
            ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-weight"] = json!("0");
        });
    let recorded = world.release.clone();
    let mut died = world.round();
    died.release.status = recorded.status;
    let rolled = died.later(1).rounds(1);
    let (step, since) = (rolled.rollout().step, rolled.rollout().weight_since.clone().unwrap().0);
    assert_eq!((step, since), (1, rolled.now - Duration::from_secs(1)));
}

#[test]
fn a_canary_ingress_that_is_gone_stays_away() {
    let back = world()
        .at_first_step()
        .without(Kind::Ingress, "shop-ingress-v2")
        .rounds(1);
    assert_eq!(back.split("shop-ingress-v2"), None);
    let told = (back.rollout().stage, back.rollout().reason.clone().unwrap_or_default());
    assert_eq!(told, (Stage::RollingBack, "CanaryIngressGone".to_owned()));
}

#[test]
fn a_canary_ingress_that_is_gone_stays_away_also_when_it_would_carry_everything_or_the_schedule_is_another() {
    let gone = |world: World| world.without(Kind::Ingress, "shop-ingress-v2");
    let scaling = gone(world().at_last_step().later(66).rounds(1)).canary_ready(4);
    let shorter = gone(world().at_first_step()).steps(&[("20", "1m")]);
    let testers = gone(world().at_first_step()).spec(json!({"traffic": {"cookie": "canary"}}));
    for world in [scaling, shorter, testers] {
        let back = world.rounds(1);
        assert_eq!(back.split("shop-ingress-v2"), None);
        assert_eq!(back.rollout().reason.as_deref(), Some("CanaryIngressGone"));
    }
}

#[test]
fn no_pod_goes_for_want_of_others_where_the_canary_ingress_is_gone_and_nginx_may_not_know() {
    let waiting = world().at_last_step().later(66).rounds(1).canary_ready(3).later(600);
    let given_up = waiting.clone().rounds(1);
    assert!(given_up.rollout().unshifted.is_some(), "the deadline is over");
    for world in [waiting.clone(), waiting.stable_ready(0)] {
        let gone = world.without(Kind::Ingress, "shop-ingress-v2").round();
        let pods = gone.seen().own_deployments[0].replicas;
        assert_eq!((pods, gone.rollout().unshifted.is_some()), (4, false));
    }
}

#[test]
fn a_changed_schedule_goes_on_at_the_first_step_not_below_the_weight_in_force() {
    let at_50 = world().at_last_step();
    for (steps, step, weight) in [
        (&[("5", "1m"), ("20", "1m"), ("60", "1m"), ("80", "1m")][..], 3, "60"),
        (&[("5", "1m"), ("50", "2m"), ("80", "1m")][..], 2, "50"),
        (&[("5", "1m"), ("20", "1m")][..], 2, "20"),
    ] {
        let world = at_50.clone().steps(steps).rounds(1).canary_ready(3).rounds(1);
        assert_eq!(
            (world.rollout().step, world.rollout().stage),
            (step, Stage::Stepping),
            "{steps:?}"
        );
        assert_eq!(
            world.split("shop-ingress-v2").unwrap().weight.to_string(),
            weight,
            "{steps:?}"
        );
    }
}

#[test]
fn another_version_midway_takes_the_traffic_away_before_the_next_one_starts() {
    let story = world()
        .at_first_step()
        .later(10)
        .spec(json!({"canary": {"image": "shop:v3"}}))
        .when("shop:v3 is asked for")
        .round()
        .when("settled")
        .later(6)
        .round()
        .when("everything is gone")
        .canary_ready(0)
        .round()
        .round();
    assert_eq!(
        story.release.status.as_ref().unwrap().history[0].outcome,
        Outcome::Superseded
    );
    insta::assert_snapshot!(story.story);
}

#[test]
fn a_changed_version_1_midway_ends_the_release() {
    let world = world()
        .at_first_step()
        .stable(|d| d["spec"]["template"]["metadata"]["annotations"] = json!({"a": "b"}));
    insta::assert_snapshot!(world.round().story);
}

#[test]
fn a_deleted_version_1_midway_ends_the_release() {
    let decision = world().at_first_step().without(Kind::Deployment, "shop").decide();
    assert_eq!(
        decision.status.rollout.unwrap().detail.unwrap(),
        "Deployment shop was deleted while version 2 was being released"
    );
}

#[test]
fn a_canary_deployment_that_somebody_deleted_ends_the_release() {
    let decision = world().at_first_step().without(Kind::Deployment, "shop-v2").decide();
    assert_eq!(
        decision.status.rollout.unwrap().detail.unwrap(),
        "Deployment shop-v2 was deleted by somebody else"
    );
}

#[test]
fn pods_for_the_next_step_that_do_not_come_end_the_release_at_the_deadline() {
    let scaling = world().at_first_step().later(66).rounds(1);
    let begun = scaling.clone().later(533).rounds(1);
    assert_eq!(begun.rollout().stage, Stage::Stepping);
    insta::assert_snapshot!(scaling.later(600).round().story);
}

#[test]
fn a_canary_is_never_scaled_down_while_it_may_have_traffic() {
    let world = world()
        .at_first_step()
        .edit(Kind::Deployment, "shop-v2", |d| d["spec"]["replicas"] = json!(9))
        .canary_ready(9);
    let writes = writes(&world.later(66));
    assert!(writes.iter().all(|w| !w.contains("Deployment")), "{writes:?}");
}

/// 2026-01-05 is a Monday; the steps begin at 10:00.
fn until_eleven() -> World {
    world().spec(json!({"windows": [{"days": ["Mon"], "from": "09:00", "to": "10:01"}]}))
}

#[test]
fn a_closed_window_keeps_the_weight_and_tells_when_it_rises() {
    let story = until_eleven().at_first_step().later(6).round().later(60).round();
    assert_eq!(story.rollout().step, 1);
    let waiting = story.clone().later(6 * 86_400);
    assert_eq!(waiting.decide().writes, []);
    insta::assert_snapshot!(story.story);
    let monday = story.later(7 * 86_400 - 3_600).rounds(1).canary_ready(2).rounds(1);
    assert_eq!(monday.rollout().step, 2);
}

#[test]
fn a_rollback_does_not_wait_for_a_window() {
    let waiting = until_eleven().at_first_step().later(66).rounds(1).later(3_600);
    assert_eq!(waiting.canary_crashes(None).rounds(1).split("shop-ingress-v2"), None);
}

#[test]
fn a_freeze_says_why_and_until_when() {
    let freeze = json!({"freezes": [{"from": "2026-01-05T10:01", "to": "2026-01-07T08:00", "reason": "stocktaking"}]});
    insta::assert_snapshot!(world().spec(freeze).at_first_step().later(66).round().story);
}

#[test]
fn a_wait_for_a_window_does_not_count_against_the_deadline_of_the_next_pods() {
    let opened = until_eleven()
        .at_first_step()
        .later(66)
        .rounds(1)
        .later(7 * 86_400 - 3_600)
        .rounds(1);
    assert_eq!(opened.later(599).rounds(1).rollout().stage, Stage::Stepping);
}

#[test]
fn a_time_zone_that_does_not_exist_stalls_a_new_release_and_holds_a_running_one() {
    let madird = json!({"windows": [{"timeZone": "Europe/Madird"}]});
    let stalled = world().spec(madird.clone()).decide();
    assert_eq!(stalled.status.phase, Some(Phase::Stalled));
    insta::assert_snapshot!(stalled.status.message.unwrap());
    let running = world().at_first_step().spec(madird).later(66).decide();
    assert_eq!((running.writes.len(), running.status.phase), (0, Some(Phase::Holding)));
}

#[test]
fn interruptions_of_a_step_count_together_against_its_deadline() {
    let mut flapping = world().at_first_step();
    for _ in 0..9 {
        flapping = flapping
            .canary_ready(0)
            .rounds(1)
            .later(66)
            .canary_ready(1)
            .rounds(1)
            .later(10);
    }
    assert_eq!(flapping.rollout().stage, Stage::Stepping);
    let last = flapping.canary_ready(0).rounds(1).later(6).round();
    assert_eq!(last.rollout().stage, Stage::RollingBack);
    insta::assert_snapshot!(last.rollout().detail.clone().unwrap());
}

#[test]
fn a_canary_of_somebody_else_that_appears_midway_holds_the_weight() {
    let mut foreign = ingress("theirs", "theirs");
    foreign["metadata"]["annotations"] =
        json!({"nginx.ingress.kubernetes.io/canary": "true", "nginx.ingress.kubernetes.io/canary-weight": "50"});
    foreign["spec"]["rules"][0]["host"] = json!("shop-ingress.example");
    let held = world().at_first_step().with(foreign).later(66).decide();
    assert_eq!(
        phase_and_reason(&held),
        (Some(Phase::Holding), "ForeignCanary".to_owned())
    );
    assert_eq!(held.writes, []);
    insta::assert_snapshot!(held.status.message.unwrap());
}

#[test]
fn a_route_of_somebody_else_to_version_2_that_appears_midway_holds_the_weight() {
    let held = world()
        .at_first_step()
        .with(ingress("theirs", "shop-v2"))
        .later(66)
        .decide();
    assert_eq!(
        phase_and_reason(&held),
        (Some(Phase::Holding), "CanaryServiceReferenced".to_owned())
    );
}

#[test]
fn pods_that_an_autoscaler_took_from_version_1_count_for_the_canary() {
    let scaled_down = world().at_first_step().stable(|d| d["spec"]["replicas"] = json!(2));
    let world = scaled_down.later(66).rounds(1);
    assert_eq!(
        world.objects[&(Kind::Deployment, "shop-v2".to_owned())]["spec"]["replicas"],
        2,
        "half of 4"
    );
}

#[test]
fn a_changed_schedule_raises_no_weight_while_paused_or_outside_of_a_window() {
    let closed = json!([{"days": ["Sun"], "from": "09:00", "to": "10:00"}]);
    for held in [json!({"paused": true}), json!({"windows": closed})] {
        let mut world = world()
            .at_first_step()
            .spec(held.clone())
            .steps(&[("25", "1m")])
            .rounds(1);
        assert_eq!(world.split("shop-ingress-v2").unwrap().weight.to_string(), "10");
        assert_eq!(world.clone().later(3_600).decide().writes, []);
        world = world
            .later(3_600)
            .spec(json!({"paused": null, "windows": null}))
            .rounds(1);
        assert_eq!(
            world.split("shop-ingress-v2").unwrap().weight.to_string(),
            "25",
            "{held}"
        );
    }
}

#[test]
fn a_changed_schedule_raises_no_weight_before_there_are_pods_for_it() {
    let world = world().at_first_step().later(9).steps(&[("100", "1m")]);
    assert!(writes(&world)[0].contains(r#""replicas":4"#), "{:?}", writes(&world));
    let waiting = world.rounds(1);
    assert_eq!(waiting.clone().canary_ready(3).decide().writes, []);
    let ready = waiting.clone().later(599).canary_ready(4).rounds(1);
    assert_eq!(ready.split("shop-ingress-v2").unwrap().weight.to_string(), "100");
    assert_eq!(waiting.later(600).rounds(1).rollout().stage, Stage::RollingBack);
}

#[test]
fn a_schedule_that_changes_before_there_is_an_ingress_still_begins_at_weight_0() {
    let begun = world().steps(&[("0", "1m"), ("10", "1m")]).begun();
    let routed = begun.steps(&[("50", "1m")]).canary_ready(1).rounds(1);
    assert_eq!(routed.split("shop-ingress-v2").unwrap().weight.to_string(), "0");
}

#[test]
fn a_weight_that_somebody_raised_is_not_where_a_changed_schedule_goes_on() {
    let steps = |hold| [("10", hold), ("20", "1m"), ("80", "1m")];
    let world = world().steps(&steps("1m")).at_first_step().live_split("80", 1);
    let changed = world.steps(&steps("2m")).rounds(1);
    assert_eq!(changed.rollout().step, 1);
    assert_eq!(changed.split("shop-ingress-v2").unwrap().weight.to_string(), "10");
}
