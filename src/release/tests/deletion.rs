//! The release itself is deleted.

use super::{tell::writes, world::*};
use crate::release::Kind;
use serde_json::json;

/// Where a release may be deleted.
fn stages() -> [(&'static str, World); 6] {
    [
        ("begun", world().begun()),
        ("at weight 0", world().routed()),
        ("at the first step", world().at_first_step()),
        ("at the last step", world().at_last_step()),
        ("promoting", world().promoting()),
        ("rolling back", world().at_first_step().canary_crashes(None).rounds(1)),
    ]
}

#[test]
fn deletion_midway_takes_the_traffic_away_first_and_lets_go_last() {
    let story = world()
        .at_first_step()
        .later(10)
        .when("the release is deleted")
        .deleted()
        .round()
        .when("settled")
        .later(6)
        .round()
        .when("everything is gone")
        .round();
    assert!(!story.guarded());
    insta::assert_snapshot!(story.story);
}

#[test]
fn deletion_at_any_stage_leaves_nothing_and_never_a_stuck_finalizer() {
    for (stage, world) in stages() {
        let gone = world.deleted().rounds(1).later(6).rounds(1).rounds(1);
        assert_eq!(gone.owned(), [""; 0], "{stage}");
        assert!(!gone.guarded(), "{stage}");
    }
}

#[test]
fn deletion_at_any_stage_keeps_the_pods_as_long_as_an_ingress_leads_to_them() {
    for (stage, world) in stages() {
        let world = world.deleted();
        if world
            .objects
            .contains_key(&(Kind::Ingress, "shop-ingress-v2".to_owned()))
        {
            let writes = writes(&world);
            assert_eq!(writes.len(), 1, "{stage}: {writes:?}");
            assert!(
                writes[0].starts_with("delete Ingress shop-ingress-v2 as seen"),
                "{stage}: {writes:?}"
            );
        }
    }
}

#[test]
fn deletion_while_version_1_is_replaced_waits_for_it_but_not_for_ever() {
    let world = world().finishing().deleted();
    assert_eq!(writes(&world), [""; 0]);
    let rolled_out = world.clone().rounds(1).stable_rolled_out().rounds(1).later(6);
    assert!(writes(&rolled_out)[0].starts_with("delete Ingress shop-ingress-v2 as seen"));
    let gone = rolled_out.rounds(1).later(6).rounds(1).rounds(1);
    assert_eq!((gone.owned(), gone.guarded()), (vec![], false));
    let never = world.rounds(1).later(120);
    assert!(writes(&never)[0].starts_with("delete Ingress shop-ingress-v2 as seen"));
}

#[test]
fn deletion_of_a_release_that_never_began_lets_go_at_once() {
    let decision = world().deleted().decide();
    assert!(decision.release_finalizer && decision.writes.is_empty() && !decision.watching);
}

#[test]
fn deletion_that_takes_too_long_lets_go_and_says_who_cleans_up() {
    let stuck = world().at_first_step().deleted().rounds(1).with_stuck_ingress();
    assert!(stuck.clone().later(155).rounds(1).guarded());
    insta::assert_snapshot!(stuck.later(156).round().story);
}

impl World {
    /// A foreign finalizer keeps the canary Ingress.
    fn with_stuck_ingress(self) -> Self {
        let mut stuck = world()
            .at_first_step()
            .objects
            .remove(&(Kind::Ingress, "shop-ingress-v2".to_owned()))
            .unwrap();
        stuck["metadata"]["deletionTimestamp"] = json!("2026-01-05T10:00:00Z");
        self.with(stuck)
    }
}
