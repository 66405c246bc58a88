//! What no decision may do, whatever is seen and whatever is remembered.

use super::world::*;
use crate::{
    api::{Outcome, Phase, Stage, Weight},
    release::{Kind, Op, Write, schedule_hash},
    routing::{IngressNginx, Routing},
};
use kube::ResourceExt;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use std::{sync::LazyLock, time::Duration};

/// A canary Ingress: gone, or with a weight, a step, and being deleted or not.
type Live = Option<(u32, u32, bool)>;

/// How the cluster and the memory of the operator deviate from a release under way.
#[derive(Clone, Debug)]
struct Deviation {
    stage: Option<Stage>,
    step: u32,
    exposed: bool,
    outcome: Option<Outcome>,
    phase: Option<Phase>,
    weight_age: Option<u64>,
    drained_age: Option<u64>,
    stable_age: Option<u64>,
    waiting_age: u64,
    weights: Vec<u32>,
    new_schedule: bool,
    new_intent: bool,
    deleted_ago: Option<u64>,
    ingresses: usize,
    missing_stable_ingress: bool,
    /// The canary Ingresses, where they are not as the stage left them.
    live: [Option<Live>; 2],
    canary: Option<(i32, bool)>,
    canary_service: Option<bool>,
    stable_image: Option<&'static str>,
    stable_replicas: i32,
    stable_rolled_out: bool,
    stable_paused: bool,
    ready: (usize, usize),
    crashes: bool,
    merge_refused: bool,
    merge_unasked: bool,
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(select(vec![0u32, 10, 30, 50, 100]), 1..4).prop_map(|mut weights| {
        weights.sort_unstable();
        weights
    })
}

fn ago() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(select(vec![0u64, 3, 6, 66, 700]))
}

/// What is mostly as it should be, and sometimes anything.
fn mostly<T: Clone + std::fmt::Debug + 'static>(usual: T, any: Vec<T>) -> impl Strategy<Value = T> {
    prop_oneof![4 => Just(usual), 1 => select(any)]
}

fn live() -> impl Strategy<Value = Option<Live>> {
    let any = (
        select(vec![0u32, 10, 30, 50, 100]),
        0u32..5,
        proptest::bool::weighted(0.2),
    );
    proptest::option::weighted(0.3, proptest::option::weighted(0.7, any))
}

fn deviation() -> impl Strategy<Value = Deviation> {
    use Stage::{Ended, Finishing, Preparing, Promoting, RollingBack, Stepping};
    let stages = select(vec![
        Preparing,
        Stepping,
        Stepping,
        Promoting,
        Promoting,
        Finishing,
        RollingBack,
        Ended,
    ]);
    let outcomes = select(vec![
        Outcome::Promoted,
        Outcome::RolledBack,
        Outcome::Aborted,
        Outcome::Superseded,
    ]);
    let phases = select(vec![
        Phase::Pending,
        Phase::Progressing,
        Phase::Holding,
        Phase::Promoting,
        Phase::Stalled,
    ]);
    let memory = (
        proptest::option::weighted(0.95, stages),
        0u32..5,
        any::<bool>(),
        proptest::option::of(outcomes),
        proptest::option::of(phases),
    );
    let times = (ago(), ago(), ago(), select(vec![0u64, 599, 600, 700]));
    let asked = (
        weights(),
        proptest::bool::weighted(0.2),
        proptest::bool::weighted(0.1),
        proptest::option::weighted(0.1, select(vec![0u64, 60, 200])),
    );
    let routes = (1usize..3, proptest::bool::weighted(0.1), [live(), live()]);
    let canary = (
        mostly(
            Some((4, false)),
            vec![None, Some((1, false)), Some((2, false)), Some((4, true))],
        ),
        mostly(Some(false), vec![None, Some(true)]),
    );
    let stable = (
        mostly(Some("shop:v1"), vec![None, Some("shop:v2"), Some("shop:v9")]),
        mostly(4, vec![0, 1, 8]),
        any::<bool>(),
        proptest::bool::weighted(0.1),
    );
    let answers = (
        (mostly(4, vec![0, 1, 3]), mostly(4, vec![0, 1, 3])),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.1),
    );
    (memory, times, asked, routes, canary, stable, answers).prop_map(
        |(memory, times, asked, routes, canary, stable, answers)| Deviation {
            stage: memory.0,
            step: memory.1,
            exposed: memory.2,
            outcome: memory.3,
            phase: memory.4,
            weight_age: times.0,
            drained_age: times.1,
            stable_age: times.2,
            waiting_age: times.3,
            weights: asked.0,
            new_schedule: asked.1,
            new_intent: asked.2,
            deleted_ago: asked.3,
            ingresses: routes.0,
            missing_stable_ingress: routes.1,
            live: routes.2,
            canary: canary.0,
            canary_service: canary.1,
            stable_image: stable.0,
            stable_replicas: stable.1,
            stable_rolled_out: stable.2,
            stable_paused: stable.3,
            ready: answers.0,
            crashes: answers.1,
            merge_refused: answers.2,
            merge_unasked: answers.3,
        },
    )
}

const INGRESSES: [&str; 2] = ["shop-ingress", "api-ingress"];
const DELETING: &str = "2026-01-05T09:00:00Z";

/// A release whose canary Ingresses, one or two, were just made.
static UNBENT: LazyLock<[World; 2]> = LazyLock::new(|| {
    let routed = |world: World| world.begun().canary_ready(4).rounds(1).later(3600);
    [routed(world()), routed(world().with(ingress(INGRESSES[1], "shop")))]
});

/// A release under way, bent by the deviation.
fn bent(how: &Deviation) -> World {
    let steps = how.weights.iter().map(|w| json!({"weight": w, "hold": "1m"}));
    let mut world = UNBENT[how.ingresses - 1].clone();
    world = world.spec(json!({"steps": steps.collect::<Vec<_>>()}));
    for (name, live) in INGRESSES.iter().zip(how.live).take(how.ingresses) {
        let name = format!("{name}-v2");
        let expected = match how.stage {
            Some(Stage::Promoting | Stage::Finishing) => (100, u32::try_from(how.weights.len()).unwrap() + 1),
            _ => (
                how.weights.get(how.step.wrapping_sub(1) as usize).copied().unwrap_or(0),
                how.step,
            ),
        };
        world = match live.unwrap_or(Some((expected.0, expected.1, false))) {
            None => world.without(Kind::Ingress, &name),
            Some((weight, step, deleting)) => world.edit(Kind::Ingress, &name, |i| {
                let annotations = &mut i["metadata"]["annotations"];
                annotations["nginx.ingress.kubernetes.io/canary-weight"] = json!(weight.to_string());
                annotations["canary-operator.dev/step"] = json!(step.to_string());
                if deleting {
                    i["metadata"]["deletionTimestamp"] = json!(DELETING);
                }
            }),
        };
    }
    if how.missing_stable_ingress {
        world = world.without(Kind::Ingress, INGRESSES[0]);
    }
    world = bend_deployments(world, how);
    world = match how.canary_service {
        None => world.without(Kind::Service, "shop-v2"),
        Some(true) => world.edit(Kind::Service, "shop-v2", |s| {
            s["metadata"]["deletionTimestamp"] = json!(DELETING)
        }),
        Some(false) => world,
    };
    world = world.canary_ready(how.ready.0).stable_ready(how.ready.1);
    if how.crashes {
        world = world.canary_crashes(None);
    }
    world.merge_unasked = how.merge_unasked;
    world.merge_refused = how.merge_refused.then(|| "refused".to_owned());
    bend_memory(world, how)
}

fn bend_deployments(world: World, how: &Deviation) -> World {
    let world = match how.canary {
        None => world.without(Kind::Deployment, "shop-v2"),
        Some((replicas, deleting)) => world.edit(Kind::Deployment, "shop-v2", |d| {
            d["spec"]["replicas"] = json!(replicas);
            if deleting {
                d["metadata"]["deletionTimestamp"] = json!(DELETING);
            }
        }),
    };
    let Some(image) = how.stable_image else {
        return world.without(Kind::Deployment, "shop");
    };
    let world = world.stable(|d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
        d["spec"]["replicas"] = json!(how.stable_replicas);
        d["spec"]["paused"] = json!(how.stable_paused);
    });
    if how.stable_rolled_out {
        world.stable_rolled_out()
    } else {
        world.stable(|d| d["status"] = json!({}))
    }
}

fn bend_memory(mut world: World, how: &Deviation) -> World {
    let ago = |seconds: Option<u64>| seconds.map(|seconds| world.ago(seconds));
    let times = (
        ago(how.weight_age),
        ago(how.drained_age),
        ago(how.stable_age),
        world.ago(how.waiting_age),
    );
    if how.new_intent {
        world = world.spec(json!({"canary": {"image": "shop:v3"}}));
    }
    world.release.status.as_mut().unwrap().phase = how.phase;
    let spec = world.release.spec.clone();
    world = world.remember(|r| {
        (r.weight_since, r.drained_since, r.stable_since, r.waiting_since) = times;
        (r.step, r.exposed, r.outcome) = (how.step, how.exposed, how.outcome);
        if !how.new_schedule {
            r.schedule = schedule_hash(&spec);
        }
        if let Some(stage) = how.stage {
            r.stage = stage;
        }
    });
    if how.stage.is_none() {
        world.release.status = None;
    }
    if let Some(seconds) = how.deleted_ago {
        world.now -= Duration::from_secs(seconds);
        world = world.deleted();
        world.now += Duration::from_secs(seconds);
    }
    world
}

fn weight_of(ingress: &Value) -> Weight {
    IngressNginx::default()
        .split(&serde_json::from_value(ingress.clone()).unwrap())
        .weight
}

/// The weight that an Ingress expresses before and after a write.
fn weights_of(world: &World, write: &Write) -> Option<(Weight, Weight)> {
    let live = world.objects.get(&(write.kind, write.name.clone()));
    let before = live.map_or(Weight::ZERO, weight_of);
    let after = match &write.op {
        Op::Create(new) => weight_of(new),
        Op::Merge { patch, .. } => {
            let mut new = live?.clone();
            json_patch::merge(&mut new, patch);
            weight_of(&new)
        }
        _ => Weight::ZERO,
    };
    Some((before, after))
}

fn version(op: &Op) -> Option<&str> {
    match op {
        Op::Merge { version, .. } | Op::StrategicMerge { version, .. } => Some(version),
        Op::Delete { version, .. } => version.as_deref(),
        Op::Create(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn a_weight_is_only_raised_while_both_versions_have_endpoints(how in deviation()) {
        let world = bent(&how);
        let decision = world.decide();
        for write in decision.writes.iter().filter(|w| w.kind == Kind::Ingress) {
            let (before, after) = weights_of(&world, write).unwrap();
            prop_assert!(after <= before || (how.ready.0 > 0 && how.ready.1 > 0), "{before} to {after}: {write:?}");
        }
    }

    #[test]
    fn every_change_names_the_object_as_it_was_seen(how in deviation()) {
        let world = bent(&how);
        for write in world.decide().writes {
            let live = world.objects.get(&(write.kind, write.name.clone()));
            let seen = if write.kind == Kind::CanaryRelease {
                world.release.resource_version()
            } else {
                live.map(|live| live["metadata"]["resourceVersion"].as_str().unwrap().to_owned())
            };
            match &write.op {
                Op::Create(_) => prop_assert!(live.is_none(), "{write:?} exists"),
                Op::Delete { uid, version } => {
                    prop_assert_eq!(json!(uid), live.unwrap()["metadata"]["uid"].clone());
                    prop_assert!(version.is_some() || write.kind != Kind::Ingress, "{write:?}");
                }
                _ => {}
            }
            if let Some(decided) = version(&write.op) {
                prop_assert!(!decided.is_empty(), "{write:?}");
                prop_assert_eq!(Some(decided.to_owned()), seen, "{:?}", write);
            }
        }
    }

    #[test]
    fn pods_and_their_service_outlive_every_canary_ingress(how in deviation()) {
        let world = bent(&how);
        let owned = world.owned();
        let routed = owned.iter().any(|object| object.starts_with("Ingress"));
        for write in world.decide().writes {
            if let Op::Delete { .. } = write.op {
                prop_assert!(owned.contains(&format!("{:?} {}", write.kind, write.name)), "not ours: {write:?}");
                prop_assert!(write.kind == Kind::Ingress || !routed, "{write:?}");
            }
        }
    }

    #[test]
    fn pods_that_had_requests_outlive_the_ingress_by_the_settle_time(how in deviation()) {
        let routed = how.stage.is_some_and(|stage| stage != Stage::Preparing && stage != Stage::Ended);
        let guarded = how.exposed && routed;
        let settled = how.drained_age.is_some_and(|age| age >= SETTLE.as_secs());
        for write in bent(&how).decide().writes {
            let of_pods = write.kind != Kind::Ingress && matches!(write.op, Op::Delete { .. });
            prop_assert!(!of_pods || settled || !guarded, "{write:?}");
        }
    }

    #[test]
    fn requests_do_not_return_in_the_round_that_gives_version_1_its_template_back(how in deviation()) {
        let writes = bent(&how).decide().writes;
        let back = writes.iter().any(|w| w.kind == Kind::Deployment && w.name == "shop" && matches!(w.op, Op::Merge { .. }));
        let returns = writes.iter().any(|w| w.kind == Kind::Ingress && matches!(w.op, Op::Delete { .. }));
        // A canary that fails or has no pods carries nothing worth keeping.
        let sound = how.ready.0 > 0 && !how.crashes && how.canary.is_some();
        let full = bent(&how).split("shop-ingress-v2").is_some_and(|split| split.weight == Weight::FULL);
        prop_assert!(!(back && returns && sound && full), "{writes:?}");
    }

    #[test]
    fn version_1_is_only_changed_while_the_canary_carries_everything_since_the_settle_time(how in deviation()) {
        let world = bent(&how);
        let decision = world.decide();
        let rollout = decision.status.rollout.as_ref();
        for write in decision.writes {
            let users = write.kind == Kind::Deployment && write.name == "shop";
            prop_assert!(users || !matches!(write.op, Op::StrategicMerge { .. }), "{write:?}");
            // Version 1's template is given back where version 2 did not roll out.
            let back = matches!(write.op, Op::Merge { .. }) && how.stable_image == Some("shop:v2");
            if !users || back || rollout.is_some_and(|r| r.unshifted.is_some()) {
                continue;
            }
            prop_assert!(matches!(write.op, Op::StrategicMerge { .. }), "{write:?}");
            prop_assert!(how.weight_age.is_some_and(|age| age >= SETTLE.as_secs()), "not settled");
            // Where version 1's Ingress is gone there is no traffic either.
            let gone = usize::from(how.missing_stable_ingress);
            for name in INGRESSES.iter().take(how.ingresses).skip(gone) {
                let live = world.split(&format!("{name}-v2")).map(|split| split.weight);
                prop_assert_eq!(live, Some(Weight::FULL), "{}", name);
            }
        }
    }
}

#[test]
fn a_time_at_the_end_of_time_is_waited_for_without_a_panic() {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    let worlds = [world().at_first_step(), world().promoting(), world().finishing()];
    for edge in [jiff::Timestamp::MAX, jiff::Timestamp::MIN] {
        for world in worlds.clone() {
            let skewed = world.remember(|r| {
                r.weight_since = Some(MicroTime(edge));
                r.stable_since = Some(MicroTime(edge));
                r.waiting_since = MicroTime(edge);
            });
            let _ = skewed.stable_rolled_out().decide();
        }
    }
}
