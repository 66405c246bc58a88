//! Controllers that hear late of what was written.

use super::{tell::writes, world::*};
use crate::{
    analysis::Met,
    api::{Phase, Stage},
    cluster::{Outage, Outages},
    release::{Kind, Op},
};
use jiff::Timestamp;
use serde_json::json;
use std::time::Duration;

impl World {
    /// The API server was out of reach for so long until now.
    fn after_an_outage_of(mut self, seconds: u64) -> Self {
        let (since, until) = (self.ago(seconds).0, self.now);
        self.outages = [Outage { since, until }].into_iter().collect();
        self
    }

    /// All controllers have just answered, and this is what they counted for the first time.
    fn met(mut self, change: impl FnOnce(&mut Met, Timestamp)) -> Self {
        let met = self.judged.met.get_or_insert(Met::nobody_since(self.now));
        met.known = self.now;
        change(met, self.now);
        self
    }

    fn meeting_version_2(self) -> Self {
        self.met(|met, now| met.canary = now)
    }

    fn meeting_version_1(self) -> Self {
        self.met(|met, now| met.stable = now)
    }

    fn meeting_nobody(self) -> Self {
        self.met(|_, _| ())
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

    fn weight(&self) -> String {
        self.split("shop-ingress-v2").unwrap().weight.to_string()
    }

    /// How many pods version 2's Deployment is asked for.
    fn asked_for(&self) -> i64 {
        let canary = &self.objects[&(Kind::Deployment, "shop-v2".to_owned())];
        canary["spec"]["replicas"].as_i64().unwrap()
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
        world
            .message()
            .contains("version 2's pods stay until no request has met them for 3 s, at the latest until 10:0"),
        "{}",
        world.message()
    );
    let quiet = world.later(3);
    assert_eq!(writes(&quiet), [""; 0], "nobody has looked");
    assert_eq!(writes(&quiet.meeting_nobody()).len(), 2);
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
    assert!(told.message().contains("at the earliest"), "{}", told.message());
    let world = told.later(9).meeting_version_1();
    assert!(!world.replaces());
    let world = world.rounds(1);
    assert!(
        world
            .message()
            .contains("Deployment shop is next when no request has met it for some seconds"),
        "{}",
        world.message()
    );
    assert!(!world.clone().later(2).meeting_nobody().replaces());
    assert!(!world.clone().later(3).replaces(), "nobody has looked");
    assert!(world.later(3).meeting_nobody().replaces());
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
fn silence_is_what_was_heard_since_the_settle_time() {
    let world = world().drained().later(3).meeting_nobody().later(4);
    assert_eq!(writes(&world), [""; 0]);
    assert_eq!(writes(&world.meeting_nobody()).len(), 2);
}

#[test]
fn where_nobody_counts_requests_nobody_is_waited_for() {
    assert_eq!(writes(&world().drained().later(6)).len(), 2);
}

#[test]
fn a_weight_does_not_rise_after_an_outage_until_every_watch_is_back() {
    let world = world().at_first_step().later(65).after_an_outage_of(3).rounds(1);
    assert!(
        world.message().contains("; 50% at 10:0"),
        "told before the step ends: {}",
        world.message()
    );
    let world = world.later(59).canary_ready(2).rounds(2);
    assert_eq!((world.rollout().step, world.phase()), (1, Phase::Holding));
    assert!(
        world
            .message()
            .contains("ingress-nginx may hear of new and lost endpoints as late as that"),
        "{}",
        world.message()
    );
    let world = world.later(1).rounds(2);
    assert_eq!(world.rollout().step, 2);
}

#[test]
fn nor_does_it_for_a_command_or_for_promotion() {
    let world = world().at_first_step().command("promote", "").canary_ready(4);
    let early = world.later(9).after_an_outage_of(3).rounds(3);
    assert_eq!(early.rollout().step, 1);
    assert_eq!(early.weight(), "10");
    assert_eq!(early.later(60).rounds(3).weight(), "100");
}

#[test]
fn a_rollback_after_an_outage_waits_for_nobody() {
    let world = world().at_first_step().later(9).after_an_outage_of(3);
    let world = world.canary_crashes(None).rounds(1);
    assert_eq!(world.owned(), ["Deployment shop-v2", "Service shop-v2"]);
}

#[test]
fn pods_that_are_not_to_be_had_are_taken_away_only_when_every_watch_is_back() {
    let world = world().at_last_step().later(66).rounds(1).quota_exceeded();
    let early = world.after_an_outage_of(3).rounds(1);
    assert!(
        early.message().contains("ingress-nginx may hear"),
        "{}",
        early.message()
    );
    assert_eq!(early.asked_for(), 4);
    assert_eq!(early.later(60).rounds(1).asked_for(), 2);
}

#[test]
fn version_1_gets_its_template_back_under_its_traffic_only_when_every_watch_is_back() {
    let never = json!({"promotion": {"shiftTraffic": "Never"}, "progressDeadline": "5m"});
    let world = world().spec(never).at_last_step().later(66).rounds(2);
    assert_eq!(world.rollout().stage, Stage::Finishing);
    let early = world.later(300).after_an_outage_of(3).rounds(1);
    assert_eq!(early.rollout().stage, Stage::Finishing);
    let late = early.later(60).rounds(1);
    assert_eq!(late.rollout().stage, Stage::RollingBack);
}

#[test]
fn a_deletion_waits_for_its_strays_before_it_calls_itself_overdue() {
    let mut world = world()
        .at_first_step()
        .deleted()
        .rounds(1)
        .later(4)
        .meeting_version_2()
        .rounds(1);
    for _ in 0..60 {
        world = world.later(2).meeting_version_2().rounds(1);
    }
    assert_eq!(world.owned(), ["Deployment shop-v2", "Service shop-v2"]);
    assert!(world.guarded());
    let mut world = world.later(4).meeting_version_2();
    for _ in 0..2 {
        assert!(world.decide().notes.iter().all(|note| note.reason != "CleanupOverdue"));
        world = world.rounds(1);
    }
    assert!(!world.guarded());
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
    assert!(world.message().contains("promotion at 10:0"), "{}", world.message());
    let world = world.later(59);
    assert!(!world.replaces());
    assert!(world.later(1).rounds(1).replaces());
}

#[test]
fn where_version_2_carries_everything_promotion_begins_at_once_and_version_1s_pods_stay_until_every_watch_is_back() {
    let full = json!({"steps": [{"weight": 100, "hold": "1m"}]});
    let routed = world().spec(full).begun().canary_ready(4).rounds(1);
    let stepping = routed.later(6).rounds(1);
    assert_eq!(stepping.weight(), "100");
    let world = stepping.later(66).after_an_outage_of(3).rounds(2);
    assert_eq!(world.rollout().stage, Stage::Promoting);
    let world = world.later(59);
    assert!(!world.replaces());
    assert!(world.later(1).replaces());
}

#[test]
fn an_operator_that_starts_over_tells_no_other_time_than_the_one_before() {
    let waits = [
        world().promoting(),
        world().finishing().stable_rolled_out().rounds(1),
        world().drained().later(1).after_an_outage_of(1).rounds(1),
    ];
    for mut world in waits {
        let before = world.message();
        assert!(before.contains("10:0"), "{before}");
        world = world.later(4).led_by_a_clock_off_by(0).rounds(1);
        assert_eq!(world.message(), before);
    }
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
            outages: Outages::default(),
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
