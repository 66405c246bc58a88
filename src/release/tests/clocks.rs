//! Another process leads, by a clock that differs from that of the one before.

use super::{tell::writes, world::*};
use crate::{
    api::{Phase, Stage},
    release::Kind,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const HOUR: i64 = 3600;

#[test]
fn pods_outlive_their_traffic_by_the_settle_time_whichever_clock_goes_on() {
    for seconds in [-HOUR, -1, 1, 10, HOUR] {
        let world = world().at_first_step().canary_crashes(None).rounds(1);
        assert_eq!(world.owned(), ["Deployment shop-v2", "Service shop-v2"]);
        let world = world.later(2).led_by_a_clock_off_by(seconds);
        for second in 0..4 {
            let soon = world.clone().later(second);
            assert_eq!(writes(&soon), [""; 0], "{second} s after a clock off by {seconds} s");
        }
        let world = world.rounds(1).later(6);
        assert_eq!(writes(&world).len(), 2, "by a clock off by {seconds} s");
    }
}

#[test]
fn version_1_is_not_replaced_before_the_controllers_know_whichever_clock_goes_on() {
    for seconds in [-HOUR, HOUR] {
        let world = world().promoting().led_by_a_clock_off_by(seconds);
        assert_eq!(writes(&world), [""; 0], "by a clock off by {seconds} s");
        let world = world.rounds(1).later(6).rounds(1);
        assert_eq!(world.rollout().stage, Stage::Finishing, "by a clock off by {seconds} s");
    }
}

#[test]
fn requests_do_not_return_to_version_1s_pods_before_the_controllers_know_them() {
    for seconds in [-HOUR, HOUR] {
        let world = world().finishing().stable_rolled_out().rounds(1);
        let world = world.led_by_a_clock_off_by(seconds);
        assert_eq!(writes(&world), [""; 0], "by a clock off by {seconds} s");
        let world = world.rounds(1).later(6);
        assert_eq!(writes(&world).len(), 1, "by a clock off by {seconds} s");
    }
}

#[test]
fn a_step_whose_begin_lies_ahead_is_held_from_now() {
    let world = world().at_first_step().led_by_a_clock_off_by(-HOUR).rounds(1);
    assert_eq!(world.rollout().weight_since, Some(world.ago(0)));
    let held = world.clone().later(65).rounds(1);
    assert_eq!((held.rollout().step, held.phase()), (1, Phase::Progressing));
    let world = world.later(66).rounds(1).canary_ready(2).rounds(1);
    assert_eq!(world.rollout().step, 2);
}

#[test]
fn a_deadline_that_would_begin_in_an_hour_begins_now() {
    let world = world().begun().led_by_a_clock_off_by(-HOUR).rounds(1);
    assert_eq!(world.rollout().waiting_since, world.ago(0));
    let world = world.later(600).rounds(1);
    assert_eq!(world.rollout().reason.as_deref(), Some("ProgressDeadlineExceeded"));
}

#[test]
fn a_deletion_is_not_cut_short_by_a_clock_that_is_ahead() {
    let mut world = world().at_first_step().deleted().rounds(1);
    assert!(world.guarded());
    assert!(world.split("shop-ingress-v2").is_none());
    world = world.led_by_a_clock_off_by(HOUR).rounds(1);
    assert!(world.guarded(), "the garbage collector would take the pods at once");
    assert!(world.objects.contains_key(&(Kind::Deployment, "shop-v2".to_owned())));
}

#[test]
fn a_deadline_is_not_over_at_once_by_a_clock_that_is_ahead() {
    let preparing = world().begun().led_by_a_clock_off_by(HOUR).rounds(1);
    assert_eq!(preparing.rollout().stage, Stage::Preparing);
    let finishing = world().finishing().led_by_a_clock_off_by(HOUR).rounds(1);
    assert_eq!(finishing.rollout().stage, Stage::Finishing);
    let late = preparing.later(600).rounds(1);
    assert_eq!(late.rollout().reason.as_deref(), Some("ProgressDeadlineExceeded"));
}

#[test]
fn a_pass_of_who_led_before_or_of_the_future_does_not_raise_the_weight() {
    for at in ["2026-01-05T10:01:00Z", "2026-01-05T10:01:20Z"] {
        let mut world = world().at_first_step().later(60).rounds(1).led_by_a_clock_off_by(0);
        for check in &mut world.release.status.as_mut().unwrap().checks {
            check.at = Some(Time(at.parse().unwrap()));
        }
        let world = world.canary_ready(2).later(6);
        let old = world.clone().unjudged().rounds(2);
        assert_eq!(old.rollout().step, 1, "passed at {at}");
        assert_eq!(world.rounds(2).rollout().step, 2);
    }
}
