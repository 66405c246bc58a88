//! Requests that reach version 2 by header or cookie.

use super::world::*;
use crate::{api::Stage, release::Kind};
use serde_json::json;

fn for_testers() -> World {
    world().spec(json!({
        "traffic": {"header": {"name": "X-Canary", "value": "yes"}, "cookie": "canary"},
        "steps": [{"weight": 0, "hold": "1m"}, {"weight": 10, "hold": "1m"}],
    }))
}

#[test]
fn testers_reach_version_2_at_weight_0_and_go_on_to_during_the_steps() {
    let story = for_testers().begun().canary_ready(1).round().later(66).round();
    insta::assert_snapshot!(story.story);
}

#[test]
fn pods_that_only_testers_reached_outlive_the_ingress_by_the_settle_time_too() {
    let world = for_testers()
        .begun()
        .canary_ready(1)
        .rounds(1)
        .canary_crashes(None)
        .rounds(1);
    assert_eq!(world.rollout().stage, Stage::RollingBack);
    assert_eq!(
        world.owned(),
        ["Deployment shop-v2", "Service shop-v2"],
        "the Ingress goes first"
    );
    assert_eq!(world.clone().later(5).decide().writes, []);
    assert_eq!(world.later(6).rounds(1).owned(), [""; 0]);
}

#[test]
fn testers_that_the_user_changes_are_changed_without_a_hold() {
    let world = for_testers().begun().canary_ready(1).rounds(1).later(30);
    let changed = world.spec(json!({"traffic": {"header": {"value": "no"}}}));
    insta::assert_snapshot!(changed.round().story);
}

#[test]
fn a_header_that_somebody_else_adds_is_taken_back_and_told() {
    let world = world()
        .at_first_step()
        .later(10)
        .edit(Kind::Ingress, "shop-ingress-v2", |i| {
            i["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-by-header"] = json!("X-Me");
        });
    insta::assert_snapshot!(world.round().story);
}
