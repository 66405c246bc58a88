//! The examples do what their comments say.

use super::world::*;
use crate::api::{Phase, Stage, Weight};
use serde_json::Value;
use std::path::Path;

/// An example's schedule, testers, windows and so on, for the app of these tests with all the pods that a release may ask for.
fn example(name: &str) -> World {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("manifests/examples")
        .join(name);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut spec = documents[0]["spec"].clone();
    let whole = spec.as_object_mut().unwrap();
    whole.remove("target");
    whole.remove("canary");
    world().spec(spec).begun().canary_ready(4).rounds(1).later(6).rounds(1)
}

fn message(world: &World) -> &str {
    let status = world.release.status.as_ref().unwrap();
    status.message.as_deref().unwrap()
}

#[test]
fn testers_go_first_and_two_steps_wait_for_approval() {
    let first = example("testers.yaml");
    assert_eq!((first.rollout().step, first.phase()), (1, Phase::Paused));
    assert_eq!(first.split("shop-ingress-v2").unwrap().weight, Weight::ZERO);
    assert!(message(&first).contains("only requests with header X-Canary: yes or cookie canary=always"));
    let last = first
        .command("approve", "/1")
        .rounds(2)
        .later(306)
        .rounds(2)
        .later(606)
        .rounds(2);
    assert_eq!((last.rollout().step, last.phase()), (3, Phase::Paused));
    assert_eq!(
        last.command("approve", "/3").rounds(2).rollout().stage,
        Stage::Promoting
    );
}

#[test]
fn a_release_of_several_days_goes_on_in_office_hours_only() {
    let hours = |hours: u64| hours * 3600 + 6;
    // Monday, 10 o'clock; the last step's time is over on Wednesday night.
    let steps = example("office-hours.yaml")
        .later(hours(4))
        .rounds(2)
        .later(hours(24))
        .rounds(2);
    let last = steps.later(hours(24)).rounds(2).later(hours(8)).rounds(2);
    assert_eq!((last.rollout().step, last.phase()), (4, Phase::Holding));
    let told = "promotion at 08:00:00Z: outside spec.windows (next opens Thu 2026-01-08 09:00 Europe/Madrid)";
    assert!(message(&last).contains(told), "{}", message(&last));
}

#[test]
fn the_commit_is_waited_for() {
    let steps = example("gitops.yaml").later(606).rounds(2).later(606).rounds(2);
    let waiting = steps.later(6).rounds(2);
    assert_eq!(
        (waiting.rollout().stage, waiting.phase()),
        (Stage::Promoting, Phase::Promoting)
    );
    assert!(message(&waiting).contains("until Deployment shop itself carries version 2"));
    assert_eq!(waiting.later(86_400).decide().writes, []);
}
