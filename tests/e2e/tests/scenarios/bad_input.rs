//! Mistakes: refused when they are applied, or told by a `Stalled` condition.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    exercise::release_of_v3,
    namespace::Namespace,
    release::{LABEL, Moment, Release},
    scene::{Outcome, play},
};
use serde_json::{Value, json};

/// A mistake, what to change in a good release to make it, and what the refusal says.
type Mistake = (&'static str, fn(&mut Value), &'static [&'static str]);

const WEIGHT: &str = "a weight is an integer from 0 to 100, or a decimal string of up to four places such as \"0.01\"";
const DURATION: &str = "a duration is numbers with units and no sign, such as 30s, 5m or 1h30m";
const ONE_SCHEDULE: &str = "set either steps or ramp, exactly one of them";

const MISTAKES: &[Mistake] = &[
    (
        "weights falling",
        |r| steps(r, json!([step("30"), step("20")])),
        &["spec.steps", "weights may not fall from one step to the next"],
    ),
    (
        "decimal weights falling",
        |r| steps(r, json!([step("0.02"), step("0.01")])),
        &["spec.steps", "weights may not fall"],
    ),
    (
        "a weight over 100",
        |r| steps(r, json!([{"weight": 101, "hold": "1m"}])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a decimal weight over 100",
        |r| steps(r, json!([step("100.1")])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a negative weight",
        |r| steps(r, json!([{"weight": -1, "hold": "1m"}])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a word as a weight",
        |r| steps(r, json!([step("thirty")])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a percent sign",
        |r| steps(r, json!([step("30%")])),
        &["spec.steps[0].weight", WEIGHT],
    ),
    (
        "a weight as a float",
        |r| steps(r, json!([{"weight": 0.5, "hold": "1m"}])),
        &["spec.steps[0].weight", "integer"],
    ),
    (
        "a negative hold",
        |r| steps(r, json!([{"weight": 30, "hold": "-5s"}])),
        &["spec.steps[0].hold", DURATION],
    ),
    (
        "a hold without a unit",
        |r| steps(r, json!([{"weight": 30, "hold": "5"}])),
        &["spec.steps[0].hold", DURATION],
    ),
    (
        "a step that waits for nothing",
        |r| steps(r, json!([{"weight": 30}])),
        &["spec.steps[0]", "a step needs hold, or approval: true"],
    ),
    (
        "no steps in the list",
        |r| steps(r, json!([])),
        &["spec.steps", "should have at least 1 items"],
    ),
    (
        "both steps and ramp",
        |r| r["spec"]["ramp"] = ramp("10", "10", "50"),
        &[ONE_SCHEDULE],
    ),
    ("neither steps nor ramp", |r| remove(r, "steps"), &[ONE_SCHEDULE]),
    (
        "a ramp that stands still",
        |r| only_ramp(r, ramp("10", "0", "50")),
        &["spec.ramp", "ramp.by must be more than 0"],
    ),
    (
        "a ramp downwards",
        |r| only_ramp(r, ramp("50", "10", "10")),
        &["spec.ramp", "ramp.from may not exceed ramp.to"],
    ),
    (
        "no version 2",
        |r| r["spec"]["canary"] = json!({}),
        &["spec.canary", "set canary.image, canary.template or both"],
    ),
    (
        "a container without an image",
        |r| r["spec"]["canary"] = json!({"container": "frontend", "template": {}}),
        &["spec.canary", "set canary.image too"],
    ),
    (
        "a suffix without a dash",
        |r| r["spec"]["canary"]["suffix"] = "v2".into(),
        &["spec.canary.suffix", "suffix starts with a dash"],
    ),
    ("no target", |r| remove(r, "target"), &["spec.target", "Required value"]),
    (
        "a misspelt field",
        |r| r["spec"]["stepz"] = json!([]),
        &["unknown field \"spec.stepz\""],
    ),
    (
        "a name that is too long for a label",
        |r| r["metadata"]["name"] = "a".repeat(64).into(),
        &["metadata.name may have at most 63 characters"],
    ),
];

fn step(weight: &str) -> Value {
    json!({"weight": weight, "hold": "1m"})
}

fn steps(release: &mut Value, steps: Value) {
    release["spec"]["steps"] = steps;
}

fn ramp(from: &str, by: &str, to: &str) -> Value {
    json!({"from": from, "by": by, "to": to, "every": "1m"})
}

fn remove(release: &mut Value, field: &str) {
    if let Some(spec) = release["spec"].as_object_mut() {
        spec.remove(field);
    }
}

fn only_ramp(release: &mut Value, ramp: Value) {
    remove(release, "steps");
    release["spec"]["ramp"] = ramp;
}

#[test]
fn mistakes_are_refused_when_applied_with_a_sentence() -> Outcome {
    play("bad-input", |scene| {
        // Otherwise a cluster that refuses everything would pass.
        scene
            .namespace
            .apply(&[release_of_v3(&[(30, "1m"), (30, "0"), (60, "1h30m")])])?;
        let mut faults = Vec::new();
        for (mistake, make, sentences) in MISTAKES {
            let mut release = release_of_v3(&[(30, "1m")]);
            release["metadata"]["name"] = "mistaken".into();
            make(&mut release);
            match scene.namespace.apply_in_vain(&release)? {
                None => faults.push(format!("{mistake}: was accepted")),
                Some(refusal) => {
                    let missing: Vec<_> = sentences
                        .iter()
                        .filter(|sentence| !refusal.contains(**sentence))
                        .collect();
                    if !missing.is_empty() {
                        faults.push(format!("{mistake}: {missing:?} is not in: {refusal}"));
                    }
                }
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    })
}

const TO_STALL: Duration = Duration::from_secs(30);
const TO_GO_ON: Duration = Duration::from_secs(60);

#[test]
fn an_unknown_target_stalls_and_its_coming_mends_it() -> Outcome {
    play("unknown-target", |scene| {
        let namespace = &scene.namespace;
        let exercise = App::of_the_exercise(&scene.host())?;
        let release = Release::apply(namespace, &release_of_v3(&[(30, "10m")]))?;
        stalls(namespace, &release, &["challenge-app", "Deployment"])?;
        exercise.deploy(namespace)?;
        goes_on(&release)
    })
}

#[test]
fn two_services_that_match_stall_it_and_naming_one_mends_it() -> Outcome {
    play("two-services", |scene| {
        let namespace = &scene.namespace;
        let exercise = App::of_the_exercise(&scene.host())?;
        exercise.deploy(namespace)?;
        let (mut service, mut ingress) = (exercise.service.clone(), exercise.ingresses[0].clone());
        service["metadata"]["name"] = "second-service".into();
        ingress["metadata"]["name"] = "second-ingress".into();
        ingress["spec"]["rules"][0]["host"] = format!("second.{}", scene.host()).into();
        ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] = "second-service".into();
        namespace.apply(&[service, ingress])?;

        let mut object = release_of_v3(&[(30, "10m")]);
        let release = Release::apply(namespace, &object)?;
        stalls(
            namespace,
            &release,
            &["app-service", "second-service", "spec.target.service"],
        )?;
        object["spec"]["target"]["service"] = "app-service".into();
        release.apply_again(&object)?;
        goes_on(&release)
    })
}

#[test]
fn a_missing_ingress_stalls_it_and_its_coming_mends_it() -> Outcome {
    play("no-ingress", |scene| {
        let namespace = &scene.namespace;
        let exercise = App::of_the_exercise(&scene.host())?;
        exercise.deploy(namespace)?;
        namespace.ask(&["delete", "ingress", "challenge-app-ingress"])?;
        let release = Release::apply(namespace, &release_of_v3(&[(30, "10m")]))?;
        stalls(namespace, &release, &["app-service", "Ingress"])?;
        namespace.apply(std::slice::from_ref(&exercise.ingresses[0]))?;
        goes_on(&release)
    })
}

/// The condition `Stalled` names these things, and nothing of a canary was made.
fn stalls(namespace: &Namespace, release: &Release<'_>, names: &[&str]) -> Result<()> {
    let stalled = release.until("Stalled is True", TO_STALL, |moment| {
        moment.status.holds("Stalled").is_some()
    })?;
    let condition = stalled.status.holds("Stalled").context("Stalled")?;
    for name in names {
        ensure!(
            condition.message.contains(name),
            "the condition Stalled does not say {name}: {condition:?}"
        );
        ensure!(
            stalled.status.message.contains(name),
            "status.message does not say {name}: {}",
            stalled.line()
        );
    }
    ensure!(
        stalled.status.phase == "Stalled",
        "the phase is not Stalled: {}",
        stalled.line()
    );
    let made = namespace.names("deployments,services,ingresses", LABEL)?;
    ensure!(made.is_empty(), "a stalled release made {made:?}");
    Ok(())
}

/// The release goes on by itself now that the mistake is mended.
fn goes_on(release: &Release<'_>) -> Result<()> {
    let past_the_stall = |moment: &Moment| moment.status.holds("Stalled").is_none() && !moment.status.weight.is_empty();
    release.until_even_from_stalled("the release goes on", TO_GO_ON, past_the_stall)?;
    Ok(())
}

#[test]
fn every_mistake_is_one() -> Result<()> {
    let good = release_of_v3(&[(30, "1m")]);
    for (mistake, make, _) in MISTAKES {
        let mut release = good.clone();
        make(&mut release);
        ensure!(release != good, "{mistake} changes nothing");
    }
    Ok(())
}
