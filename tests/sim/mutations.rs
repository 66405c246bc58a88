//! Deliberate bugs, each of which some property has to catch: a property that never fails proves nothing.

use crate::{
    lab::{Lab, canary, lab_with},
    properties,
    scenario::Scenario,
    sweep::{AWAY, DEAF, away, on_threads},
};
use canary_operator::{
    api::{Stage, Verdict},
    controller::Settings,
    observe::Observed,
    rehearse::{
        World,
        actors::behaviour::Answers,
        nginx::{Scrapes, Watched},
    },
    release::{Decide, Decision, Kind, Op, Write, decide},
    routing::Routing,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

struct Mutation {
    /// What is wrong.
    bug: &'static str,
    decide: Decide,
    /// How what catches it begins.
    caught_by: &'static str,
}

const MUTATIONS: [Mutation; 14] = [
    Mutation {
        bug: "writes name no resourceVersion",
        decide: |seen, routing, settle, now| {
            let mut decision = decide(seen, routing, settle, now);
            for write in &mut decision.writes {
                match &mut write.op {
                    Op::Merge { version, .. } | Op::StrategicMerge { version, .. } => version.clear(),
                    Op::Delete { version, .. } => *version = None,
                    Op::Create(_) => {}
                }
            }
            decision
        },
        caught_by: "S9",
    },
    Mutation {
        bug: "nobody waits until nginx knows a weight",
        decide: |seen, routing, _, now| decide(seen, routing, Duration::ZERO, now),
        caught_by: "S5",
    },
    Mutation {
        bug: "the stable Deployment is replaced at once when promotion begins",
        decide: |seen, routing, settle, now| {
            let promoting = seen
                .release
                .rollout()
                .is_some_and(|rollout| rollout.stage == Stage::Promoting);
            let mut seen = seen.clone();
            seen.judged.met.iter_mut().for_each(|met| met.stable = Timestamp::MIN);
            decide(&seen, routing, if promoting { Duration::ZERO } else { settle }, now)
        },
        caught_by: "S6",
    },
    Mutation {
        bug: "version 2's pods go before its traffic",
        decide: pods_first,
        caught_by: "S5",
    },
    Mutation {
        bug: "harm is not looked at",
        decide: |seen, routing, settle, now| {
            let mut seen = seen.clone();
            seen.judged.harm = None;
            for check in &mut seen.judged.checks {
                check.verdict = Some(Verdict::Pass);
                check.breaches = 0;
            }
            decide(&seen, routing, settle, now)
        },
        caught_by: "S1",
    },
    Mutation {
        bug: "missing data passes",
        decide: |seen, routing, settle, now| {
            let mut seen = seen.clone();
            for check in &mut seen.judged.checks {
                check.verdict = Some(Verdict::Pass);
            }
            decide(&seen, routing, settle, now)
        },
        caught_by: "S2",
    },
    Mutation {
        bug: "the verdict on an earlier step is good enough",
        decide: |seen, routing, settle, now| {
            let mut seen = seen.clone();
            let step = seen.release.rollout().map_or(0, |rollout| rollout.step);
            for check in &mut seen.judged.checks {
                if check.step < step || check.verdict == Some(Verdict::NoData) {
                    (check.step, check.at, check.verdict) = (step, Some(Time(now)), Some(Verdict::Pass));
                }
            }
            decide(&seen, routing, settle, now)
        },
        caught_by: "S2",
    },
    Mutation {
        bug: "endpoints that are not ready count",
        decide: |seen, routing, settle, now| {
            let mut seen = seen.clone();
            let services: Vec<_> = seen.services.iter().filter_map(|s| s.metadata.name.clone()).collect();
            seen.ready = services.into_iter().map(|name| (name, 10)).collect();
            decide(&seen, routing, settle, now)
        },
        caught_by: "S4",
    },
    Mutation {
        bug: "the finalizer goes before what it guards",
        decide: |seen, routing, settle, now| Decision {
            release_finalizer: true,
            ..decide(seen, routing, settle, now)
        },
        caught_by: "S5",
    },
    Mutation {
        bug: "the weight is twice what the spec says",
        decide: |seen, routing, settle, now| {
            let mut decision = decide(seen, routing, settle, now);
            for write in decision.writes.iter_mut().filter(|write| write.kind == Kind::Ingress) {
                let (Op::Create(body) | Op::Merge { patch: body, .. }) = &mut write.op else {
                    continue;
                };
                let weight = "/metadata/annotations/nginx.ingress.kubernetes.io~1canary-weight";
                if let Some(weight) = body.pointer_mut(weight)
                    && let Some(number) = weight.as_str().and_then(|w| w.parse::<u32>().ok())
                {
                    *weight = json!((number * 2).min(100).to_string());
                }
            }
            decision
        },
        caught_by: "S7",
    },
    Mutation {
        bug: "a pause is ignored",
        decide: |seen, routing, settle, now| {
            let mut seen = seen.clone();
            let mut release = (*seen.release).clone();
            release.spec.paused = Default::default();
            seen.release = Arc::new(release);
            decide(&seen, routing, settle, now)
        },
        caught_by: "S11",
    },
    Mutation {
        bug: "the canary Ingress is left behind",
        decide: |seen, routing, settle, now| {
            let mut decision = decide(seen, routing, settle, now);
            let removes = |write: &Write| write.kind == Kind::Ingress && matches!(write.op, Op::Delete { .. });
            decision.writes.retain(|write| !removes(write));
            decision
        },
        caught_by: "L1",
    },
    Mutation {
        bug: "everybody hears of everything at once",
        decide: |seen, routing, settle, now| {
            let mut seen = seen.clone();
            seen.outages = Default::default();
            decide(&seen, routing, settle, now)
        },
        caught_by: "requests failed",
    },
    Mutation {
        bug: "nobody asks who still leads requests to version 2",
        decide: |seen, routing, settle, now| {
            let mut seen = seen.clone();
            seen.judged.met.iter_mut().for_each(|met| met.canary = Timestamp::MIN);
            decide(&seen, routing, settle, now)
        },
        caught_by: "requests failed",
    },
];

fn pods_first(seen: &Observed, routing: &dyn Routing, settle: Duration, now: Timestamp) -> Decision {
    let mut decision = decide(seen, routing, settle, now);
    let ending = (decision.status.rollout.as_ref())
        .is_some_and(|rollout| matches!(rollout.stage, Stage::RollingBack | Stage::Finishing));
    if let Some(deployment) = seen.own_deployments.first().filter(|_| ending) {
        let removed = Write {
            kind: Kind::Deployment,
            name: canary().name,
            op: Op::Delete {
                uid: deployment.uid.clone(),
                version: None,
            },
            why: "a deliberate bug".to_owned(),
        };
        decision.writes.insert(0, removed);
    }
    decision
}

/// What the releases are put through.
#[derive(Clone, Copy, Debug)]
enum Trial {
    /// A scenario as it is.
    Of(Scenario),
    /// Version 2 answers a fifth of its requests with errors.
    Harm,
    /// There is no request at all.
    Silence,
    /// The requests end at the second step.
    FallsSilent,
    /// Somebody pauses the release at its first step.
    Paused,
    /// Somebody aborts the release right after nobody reached the API server, and no controller tells its metrics.
    Away,
    /// Somebody aborts it while ingress-nginx is cut off.
    Deaf,
}

const TRIALS: [Trial; 10] = [
    Trial::Of(Scenario::Good),
    Trial::Of(Scenario::CrashMidway),
    Trial::Of(Scenario::Deleted),
    Trial::Of(Scenario::Superseded),
    Trial::Harm,
    Trial::Silence,
    Trial::FallsSilent,
    Trial::Paused,
    Trial::Away,
    Trial::Deaf,
];

/// Everything that is found wrong.
fn findings(trial: Trial, decide: Decide) -> Vec<String> {
    let run = lab_with(
        |settings| Settings { decide, ..settings },
        async |lab| undergo(trial, lab).await,
    );
    let mut found = properties::broken(&run);
    let highest = |allowed: &[&str]| {
        let weights: BTreeSet<_> = run.weights().into_iter().collect();
        weights.into_iter().find(|weight| !allowed.contains(&weight.as_str()))
    };
    let rises = match trial {
        Trial::Away | Trial::Deaf => None,
        Trial::Of(scenario) => {
            let (outcome, image) = scenario.end();
            let end = (run.outcome(), run.stable_image());
            if end != (outcome.map(str::to_owned), image.to_owned()) {
                found.push(format!("L1: it ends as {end:?}"));
            }
            None
        }
        Trial::Harm => highest(&["0", "10"]).map(|w| format!("S1: the weight rises to {w} though version 2 fails")),
        Trial::Silence => highest(&["0", "10"]).map(|w| format!("S2: the weight rises to {w} without any data")),
        Trial::FallsSilent => highest(&["0", "10", "25"]).map(|w| format!("S2: the weight rises to {w} on old data")),
        Trial::Paused => highest(&["0", "10"]).map(|w| format!("S11: the weight rises to {w} while paused")),
    };
    found.extend(rises);
    found
}

async fn undergo(trial: Trial, lab: &Lab) {
    let scenario = match trial {
        Trial::Of(scenario) => scenario,
        _ => Scenario::Good,
    };
    scenario.prepare(lab).await;
    match trial {
        Trial::Harm => lab.world.image_answers("shop:v2", Answers::failing(0.2)),
        Trial::Silence => lab.silent(),
        _ => {}
    }
    lab.start(scenario);
    let story = async {
        match trial {
            Trial::Of(_) => {
                // Whoever never comes to its end is told by that.
                let _ = lab
                    .world
                    .run_until(Duration::from_secs(900), |_| scenario.over(lab))
                    .await;
                lab.pass(120).await;
                return;
            }
            Trial::FallsSilent => {
                lab.step("2/3").await;
                lab.silent();
            }
            Trial::Paused => {
                lab.step("1/3").await;
                lab.edit_release(|release| release["spec"]["paused"] = json!(true));
            }
            Trial::Away | Trial::Deaf => {
                lab.step("2/3").await;
                let World { server, nginx, .. } = &lab.world;
                match trial {
                    Trial::Away => {
                        away(server, nginx, AWAY);
                        nginx.scrapes(Scrapes::Say(String::new()));
                    }
                    _ => nginx.deafen(&Watched::ALL, DEAF),
                }
                lab.pass(5).await;
                lab.command("abort", "");
            }
            Trial::Harm | Trial::Silence => {}
        }
        lab.pass(180).await;
        lab.delete(&crate::scenario::release_key());
        lab.pass(200).await;
    };
    tokio::select! {
        biased;
        () = scenario.people(lab) => {}
        () = story => {}
    }
}

#[test]
fn each_deliberate_bug_is_caught_by_a_property() {
    let correct: Decide = decide;
    let sound = on_threads(&TRIALS, |trial| {
        findings(*trial, correct)
            .into_iter()
            .map(|line| format!("{trial:?}: {line}"))
            .collect()
    });
    assert!(sound.is_empty(), "without a bug: {}", sound.join("\n"));
    let missed = on_threads(&MUTATIONS, |mutation| {
        let mut found = Vec::new();
        for trial in TRIALS {
            let play = std::panic::AssertUnwindSafe(|| findings(trial, mutation.decide));
            found.extend(
                std::panic::catch_unwind(play).unwrap_or_else(|_| vec!["L1: it never comes to pass".to_owned()]),
            );
            if let Some(line) = found.iter().find(|line| line.starts_with(mutation.caught_by)) {
                println!("{}: caught in {trial:?} by {line}", mutation.bug);
                return Vec::new();
            }
        }
        vec![format!(
            "{} is not caught by {}, but: {found:?}",
            mutation.bug, mutation.caught_by
        )]
    });
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
