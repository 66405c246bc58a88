//! Controllers that hear late of what was written.

use super::{tell::writes, world::*};
use crate::{
    api::Stage,
    cluster::Outage,
    release::{Kind, Op},
};
use serde_json::json;
use std::time::Duration;

impl World {
    /// The API server was out of reach for so long until now.
    fn after_an_outage_of(mut self, seconds: u64) -> Self {
        let (since, until) = (self.ago(seconds).0, self.now);
        self.outage = Some(Outage { since, until });
        self
    }

    /// Requests to version 2 have just been counted.
    fn meeting_version_2(mut self) -> Self {
        self.judged.led.canary = Some(self.now);
        self
    }

    /// Requests to version 1 have just been counted.
    fn meeting_version_1(mut self) -> Self {
        self.judged.led.stable = Some(self.now);
        self
    }

    /// Version 2 has crashed at the first step, and its canary Ingress is gone since just now.
    fn drained(self) -> Self {
        let world = self.at_first_step().canary_crashes(None).rounds(1);
        assert_eq!(world.owned(), ["Deployment shop-v2", "Service shop-v2"]);
        world
    }

    fn message(&self) -> String {
        let status = self.release.status.as_ref().unwrap();
        status.message.clone().unwrap_or_default()
    }

    /// Whether this round replaces version 1.
    fn replaces(&self) -> bool {
        let mut written = self.decide().writes.into_iter();
        written.any(|write| write.kind == Kind::Deployment && matches!(write.op, Op::StrategicMerge { .. }))
    }
}

#[test]
fn pods_stay_after_an_outage_until_every_watch_is_back() {
    let mut world = world().drained().later(4).after_an_outage_of(3).rounds(1);
    assert!(
        world
            .message()
            .contains("the API server was out of reach until 10:00:10Z, and ingress-nginx may hear of this as late as 10:01:10Z: its pods stay until then"),
        "{}",
        world.message()
    );
    for _ in 0..11 {
        world = world.later(5).rounds(1);
        assert_eq!(writes(&world), [""; 0]);
    }
    let world = world.later(5);
    assert_eq!(writes(&world).len(), 2);
}

#[test]
fn an_outage_that_began_after_the_settle_time_keeps_no_pods() {
    let world = world().drained().later(9).after_an_outage_of(3);
    assert_eq!(writes(&world).len(), 2);
}

#[test]
fn a_deletion_after_an_outage_leaves_nothing_to_the_garbage_collector_before_every_watch_is_back() {
    let world = world().at_first_step().deleted().rounds(1);
    let mut world = world.later(150).after_an_outage_of(149);
    for _ in 0..11 {
        world = world.rounds(1).later(5);
        assert!(world.guarded());
    }
    let world = world.later(5).rounds(2);
    assert!(!world.guarded());
}

#[test]
fn version_1_is_replaced_and_requests_return_to_it_only_when_every_watch_is_back() {
    let late = |world: &World| {
        world
            .clone()
            .rounds(1)
            .message()
            .contains("; the API server was out of reach until 10:0")
    };
    let world = world().promoting().later(4).after_an_outage_of(3);
    assert!(late(&world));
    assert_eq!(writes(&world.clone().later(59)), [""; 0]);
    let world = world.later(60).rounds(1);
    assert_eq!(world.rollout().stage, Stage::Finishing);
    let world = world.stable_rolled_out().rounds(1).later(4).after_an_outage_of(3);
    assert!(late(&world));
    assert_eq!(writes(&world.clone().later(59)), [""; 0]);
    assert_eq!(writes(&world.later(60)).len(), 1);
}

#[test]
fn a_hold_begins_when_every_watch_is_back() {
    let world = world().at_first_step().later(2).after_an_outage_of(1).rounds(1);
    let world = world.later(66).rounds(1);
    assert_eq!(world.rollout().step, 1);
    let world = world.later(54).rounds(1).canary_ready(2).rounds(1);
    assert_eq!(world.rollout().step, 2);
}

#[test]
fn pods_stay_while_a_controller_still_leads_requests_to_them() {
    let mut world = world().drained().later(5);
    for _ in 0..20 {
        world = world.later(2).meeting_version_2().rounds(1);
        assert_eq!(writes(&world), [""; 0]);
    }
    assert!(
        world.message().contains("still leads requests to its pods"),
        "{}",
        world.message()
    );
    let quiet = world.later(3);
    assert_eq!(writes(&quiet).len(), 2);
}

#[test]
fn pods_do_not_stay_for_ever_for_requests_that_somebody_else_leads_to_them() {
    let world = world().drained().later(125).meeting_version_2();
    assert_eq!(writes(&world), [""; 0]);
    let world = world.later(1).meeting_version_2();
    assert_eq!(writes(&world).len(), 2);
}

#[test]
fn version_1_is_not_replaced_while_a_controller_still_leads_requests_to_it() {
    let told = world().promoting().later(8).meeting_version_1().rounds(1);
    assert!(!told.message().contains("controller"), "{}", told.message());
    let world = told.later(9).meeting_version_1();
    assert!(!world.replaces());
    let world = world.rounds(1);
    assert!(
        world
            .message()
            .contains("no ingress-nginx controller leads requests there"),
        "{}",
        world.message()
    );
    assert!(!world.clone().later(2).replaces());
    assert!(world.later(3).replaces());
}

#[test]
fn who_chooses_version_1_keeps_it_from_being_replaced_for_two_minutes_at_most() {
    let testers = json!({"traffic": {"cookie": "canary"}});
    let world = world()
        .spec(testers)
        .promoting()
        .later(17)
        .meeting_version_1()
        .rounds(1);
    assert!(
        world.message().contains("at the latest at 10:04:24Z"),
        "{}",
        world.message()
    );
    let world = world.later(106).meeting_version_1().rounds(1);
    assert!(!world.replaces());
    assert!(world.later(4).meeting_version_1().replaces());
}

#[test]
fn version_1_is_not_replaced_under_its_traffic_until_every_watch_is_back() {
    let never = json!({"promotion": {"shiftTraffic": "Never"}});
    let world = world()
        .spec(never)
        .at_last_step()
        .later(66)
        .after_an_outage_of(3)
        .rounds(1);
    assert!(
        world
            .message()
            .contains("and serves while it is replaced: the API server was out of reach until 10:0"),
        "{}",
        world.message()
    );
    let world = world.later(59);
    assert!(!world.replaces());
    assert!(world.later(1).replaces());
}

#[test]
fn requests_are_counted_until_nothing_is_led_to_version_2() {
    use crate::{
        release::{Settling, to_judge},
        routing::IngressNginx,
    };
    let counted = |world: &World| {
        let settling = Settling {
            time: Duration::from_secs(6),
            outage: None,
        };
        let asked = to_judge(
            &world.release,
            &world.seen().ingresses,
            &IngressNginx::default(),
            &settling,
        );
        asked.map(|asked| (asked.rules.checks.len(), asked.in_force.is_some(), asked.closely))
    };
    let stepping = world().at_first_step().rounds(1);
    assert_eq!(counted(&stepping), Some((1, true, false)));
    let promoting = counted(&world().promoting());
    assert_eq!(promoting, Some((1, true, true)), "version 1's pods wait for it");
    assert_eq!(counted(&world().drained()), Some((0, false, true)));
    assert_eq!(counted(&world().finishing()), Some((0, false, false)));
    assert_eq!(
        counted(&world().begun().canary_crashes(None).rounds(1)),
        None,
        "it never met any"
    );
    let stored = world().spec(json!({"analysis": {"source": "prometheus"}})).drained();
    assert_eq!(counted(&stored), None, "it would tell too late");
}
