//! The exercise "70/30".

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    exercise::{HOST, RELEASE, RELEASE_MENDED, image, manifest},
    load::{Answer, Load, Tally, sent_between},
    namespace::Namespace,
    release::{Moment, Release},
    scene::{Outcome, play},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::common::{nothing_of_the_canary_left, splits, watch_ingresses, weight_stood_still, weights};

/// Of both manifests.
const HOLD: Duration = Duration::from_secs(40);
const TO_CRASH: Duration = Duration::from_secs(60);
const TO_BE_LIVE: Duration = Duration::from_secs(60);
const TO_PROMOTE: Duration = Duration::from_secs(150);
const LONGEST: Duration = Duration::from_secs(400);

#[test]
fn a_crashing_version_gets_no_request_and_mended_it_gets_thirty_percent_and_then_all() -> Outcome {
    play("seventy-thirty", |scene| {
        let namespace = &scene.namespace;
        let exercise = App::of_the_exercise(HOST)?;
        exercise.deploy(namespace)?;
        let before = namespace.get(&["deployment", "challenge-app"])?;
        let ingresses = watch_ingresses(namespace)?;
        // 2 a second, because the exercise's Ingress lets 175 a minute pass and the 99 must fit in beside them.
        let load = scene.load(HOST, 2, LONGEST)?;

        let applied = Timestamp::now();
        let release = Release::apply(namespace, &manifest(RELEASE)?)?;
        let rolled_back = release.until_phase("RolledBack", TO_CRASH)?;
        ensure!(
            rolled_back.at.duration_since(applied).unsigned_abs() <= TO_CRASH,
            "the rollback came after {TO_CRASH:?}"
        );
        names_the_reason(&rolled_back)?;
        // Without a readiness probe a pod is ready for the moment before it crashes, so that a canary Ingress may be
        // made; at weight 0 no request follows it.
        let weights = weights(&ingresses)?;
        ensure!(
            weights.iter().all(|weight| weight == "0" || weight == "-"),
            "pods that crash were given a weight: {weights:?}"
        );
        load.until_answers(load.answers().len() + 4, Duration::from_secs(10))?;
        let tally = Tally::of(&load.answers());
        tally.all_well("while version 2 crashed")?;
        ensure!(
            tally.from("v1") == tally.total,
            "requests did not reach version 1 alone: {tally}"
        );
        nothing_of_the_canary_left(namespace)?;

        release.apply_again(&manifest(RELEASE_MENDED)?)?;
        let live = release.until_live("30", HOLD, TO_BE_LIVE)?;
        for object in [
            "deployment/challenge-app-v2",
            "service/app-service-v2",
            "ingress/challenge-app-ingress-v2",
        ] {
            namespace
                .ask(&["get", object])
                .with_context(|| format!("{object} should be there"))?;
        }
        let (heads, row) = release.columns()?;
        ensure!(
            heads == ["NAME", "PHASE", "STEP", "WEIGHT", "STABLE", "CANARY", "MESSAGE", "AGE"],
            "the columns are {heads:?}"
        );
        for word in ["challenge-app", "Progressing", "1/1", "30", &image("v1"), &image("v2")] {
            ensure!(row.contains(word), "the row does not say {word}: {row}");
        }

        // Together with the constant traffic 7 a second for 20 s: less than the 175 that may come at once.
        let answers = Load::exactly(scene.cluster, HOST, 5, 99)?;
        weight_stood_still(&ingresses, live.at, Timestamp::now(), "while the 99 requests were sent")?;
        let tally = Tally::of(&answers);
        tally.all_well("of the exercise's 99")?;
        splits(&tally, "v2", 30, "of the exercise's 99")?;

        promotes_unnoticed(&release, load)?;
        carries_version_two(namespace, &before)
    })
}

#[test]
fn without_the_rate_limit_two_thousand_requests_split_and_none_notices_the_promotion() -> Outcome {
    play("seventy-thirty-fast", |scene| {
        let namespace = &scene.namespace;
        let host = scene.host();
        App::of_the_exercise(&host)?
            .without_rate_limit()
            .with_readiness_probe()
            .deploy(namespace)?;
        let before = namespace.get(&["deployment", "challenge-app"])?;
        let ingresses = watch_ingresses(namespace)?;
        let load = scene.load(&host, 50, LONGEST)?;

        let release = Release::apply(namespace, &manifest(RELEASE_MENDED)?)?;
        let live = release.until_live("30", HOLD, TO_BE_LIVE)?;
        let answers = Load::exactly(scene.cluster, &host, 100, 2_000)?;
        weight_stood_still(
            &ingresses,
            live.at,
            Timestamp::now(),
            "while the 2,000 requests were sent",
        )?;
        let tally = Tally::of(&answers);
        tally.all_well("of the 2,000")?;
        splits(&tally, "v2", 30, "of the 2,000")?;

        promotes_unnoticed(&release, load)?;
        carries_version_two(namespace, &before)
    })
}

/// The rollback says what a person would have had to dig for.
fn names_the_reason(rolled_back: &Moment) -> Result<()> {
    let status = &rolled_back.status;
    for words in [
        "CrashLoopBackOff",
        "ModuleNotFoundError: No module named 'flask_limiter'",
    ] {
        ensure!(
            status.message.contains(words),
            "status.message does not say {words}: {}",
            status.message
        );
    }
    let condition = status.holds("RolledBack").context("there is no condition RolledBack")?;
    ensure!(
        condition.reason == "CrashLoopBackOff",
        "the condition RolledBack gives the reason {}",
        condition.reason
    );
    let entry = status.history.first().context("status.history is empty")?;
    ensure!(
        (&*entry.outcome, &*entry.reason) == ("RolledBack", "CrashLoopBackOff"),
        "status.history begins with {entry:?}"
    );
    ensure!(
        entry.reached.is_empty(),
        "weights were in force for pods that crash: {:?}",
        entry.weights()
    );
    Ok(())
}

/// From promotion's start to its end, and a little beyond, not one of the constant requests fails or waits.
fn promotes_unnoticed(release: &Release<'_>, load: Load) -> Result<()> {
    let promoting = release.until_phase("Promoting", Duration::from_secs(90))?;
    let promoted = release.until_phase("Promoted", TO_PROMOTE)?;
    // Until well after the end: what the clean-up broke would show only now.
    load.until(
        "answers came 5 s after the promotion",
        Duration::from_secs(30),
        |answers: &[Answer]| {
            answers
                .last()
                .is_some_and(|last| last.sent > promoted.at + Duration::from_secs(5))
        },
    )?;
    let answers = load.stop()?;
    Tally::of(sent_between(&answers, promoting.at, promoted.at)).all_well("during the promotion")?;
    Tally::of(&answers).all_well("during the whole release")?;
    let after = Tally::of(sent_between(&answers, promoted.at, Timestamp::MAX));
    ensure!(
        after.total > 0 && after.from("v2") == after.total,
        "after the promotion, not all is version 2: {after}"
    );
    let entry = promoted.status.history.first().context("status.history is empty")?;
    ensure!(entry.outcome == "Promoted", "status.history begins with {entry:?}");
    Ok(())
}

/// Version 1's Deployment is what it was with version 2's image, command and arguments, and nothing else is left.
fn carries_version_two(namespace: &Namespace, before: &Value) -> Result<()> {
    nothing_of_the_canary_left(namespace)?;
    let after = namespace.get(&["deployment", "challenge-app"])?;
    let mut expected = before["spec"].clone();
    let container = &mut expected["template"]["spec"]["containers"][0];
    container["image"] = image("v2").into();
    container["command"] = json!(["python"]);
    container["args"] = json!(["app.py"]);
    ensure!(
        after["spec"] == expected,
        "the Deployment's spec is\n{}\ninstead of\n{expected}",
        after["spec"]
    );
    let labels = |deployment: &Value| deployment["metadata"]["labels"].clone();
    ensure!(
        labels(&after) == labels(before),
        "the Deployment's labels are {} instead of {}",
        labels(&after),
        labels(before)
    );
    Ok(())
}
