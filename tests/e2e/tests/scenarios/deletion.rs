//! Deleting a release while it runs.

use std::time::Duration;

use anyhow::{Result, ensure};
use canary_e2e::{
    app::App,
    exercise::release_of_v3,
    load::{Tally, sent_between},
    namespace::Namespace,
    process::until,
    release::Release,
    scene::{Outcome, play},
};
use jiff::Timestamp;
use serde_json::Value;

use crate::common::{nothing_of_the_canary_left, splits};

#[test]
fn deletion_in_the_middle_of_a_step_returns_all_traffic_without_a_failed_request() -> Outcome {
    play("deletion", |scene| {
        let namespace = &scene.namespace;
        let host = scene.host();
        App::of_the_exercise(&host)?
            .without_rate_limit()
            .with_readiness_probe()
            .with_replicas(2)
            .deploy(namespace)?;
        let (names_before, stable_before) = (names(namespace)?, stable(namespace)?);
        let load = scene.load(&host, 50, Duration::from_secs(300))?;

        let release = Release::apply(namespace, &release_of_v3(&[(50, "600s")]))?;
        let live = release.until_live("50", Duration::from_secs(600), Duration::from_secs(90))?;
        load.until("200 answers at weight 50", Duration::from_secs(30), |answers| {
            sent_between(answers, live.at, Timestamp::MAX).count() >= 200
        })?;
        let deleted = Timestamp::now();
        release.delete(Duration::from_secs(90))?;
        let gone = Timestamp::now();

        load.until("200 answers after the deletion", Duration::from_secs(30), |answers| {
            sent_between(answers, gone, Timestamp::MAX).count() >= 200
        })?;
        nothing_of_the_canary_left(namespace)?;
        let answers = load.stop()?;
        Tally::of(&answers).all_well("from before the release until after its deletion")?;
        splits(
            &Tally::of(sent_between(&answers, live.at, deleted)),
            "v3",
            50,
            "before the deletion",
        )?;
        let after = Tally::of(sent_between(&answers, gone, Timestamp::MAX));
        ensure!(
            after.from("v1") == after.total,
            "after the deletion, not all is version 1: {after}"
        );

        // Names of pods included: version 1's own never changed.
        until(
            "the namespace holds what it held before",
            Duration::from_secs(60),
            || {
                let now = names(namespace)?;
                Ok(if now == names_before {
                    Ok(())
                } else {
                    Err(format!("{now:?} instead of {names_before:?}"))
                })
            },
        )?;
        let stable_after = stable(namespace)?;
        ensure!(
            stable_after == stable_before,
            "version 1's objects are\n{stable_after:?}\ninstead of\n{stable_before:?}"
        );
        Ok(())
    })
}

/// Names of everything in the namespace that has to do with releases.
fn names(namespace: &Namespace) -> Result<Vec<String>> {
    namespace.names(
        "canaryreleases.canary-operator.dev,deployments,replicasets,pods,services,endpointslices,ingresses",
        "",
    )
}

/// What users wrote about version 1.
fn stable(namespace: &Namespace) -> Result<Vec<[Value; 3]>> {
    let objects = [
        "deployment/challenge-app",
        "service/app-service",
        "ingress/challenge-app-ingress",
    ];
    let parts = objects.map(|object| {
        let object = namespace.get(&[object])?;
        let metadata = &object["metadata"];
        Ok([
            object["spec"].clone(),
            metadata["labels"].clone(),
            metadata["annotations"].clone(),
        ])
    });
    parts.into_iter().collect()
}
