//! The exercise "Protect production": `message` and `credit` side by side, four replicas each. Version 2 is reached first
//! by testers alone, then by one request in ten thousand, and at last it is all there is.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    ab::ab,
    app::App,
    exercise::image,
    load::{Load, Request, Tally},
    process::until,
    release::Release,
    scene::{Outcome, Scene, play},
    stats::{FALSE_ALARM, binomial_bounds},
    watch::Seen,
};
use serde_json::json;

use crate::common::{nothing_of_the_canary_left, splits, watch_ingresses};

const REPLICAS: u32 = 4;
/// Requests, of which one in ten thousand reaches version 2: between 2 and 35 of them, and neither none nor one in a
/// thousand. They take half a minute.
const ENOUGH: u32 = 150_000;
const HOLD: Duration = Duration::from_secs(15);
const TO_BE_LIVE: Duration = Duration::from_secs(90);
const TO_PROMOTE: Duration = Duration::from_secs(180);

#[test]
fn message_reaches_testers_then_one_request_in_ten_thousand_then_everyone_beside_credit() -> Outcome {
    play("protect-production", |scene| {
        let namespace = &scene.namespace;
        let host = |name: &str| format!("{name}.{}", scene.host());
        let apps = ["message", "credit"].map(|name| {
            App::new(name, &host(name))
                .with_replicas(REPLICAS)
                .with_env("ON_TERM", "exit")
                // Version 1 lacks what version 2 brings.
                .with_env("VERSION_ENDPOINT", "no")
        });
        let [message, credit] = &apps;
        for app in &apps {
            app.deploy(namespace)?;
            every_replica_answers(scene, app, "v1")?;
        }
        let ingresses = watch_ingresses(namespace)?;
        let load = Load::in_turns(
            scene.cluster,
            &apps.each_ref().map(|app| Request::to(&host(app.name()))),
            50,
            Duration::from_secs(600),
        )?;

        let version_two = |name: &str| {
            let container = json!({"name": name, "env": [{"name": "VERSION_ENDPOINT", "value": "yes"}]});
            json!({"image": image("v3"), "template": {"spec": {"containers": [container]}}})
        };
        let hold = format!("{}s", HOLD.as_secs());
        let message_release = Release::apply(
            namespace,
            &message.release_of_v3(json!({
                "canary": version_two("message"),
                "traffic": {"header": {"name": "X-Canary", "value": "yes"}},
                "steps": [
                    {"weight": 0, "approval": true},
                    // Too few requests for a verdict: people look, and approve.
                    {"weight": "0.01", "approval": true, "analysis": {"noData": "pass"}},
                    {"weight": 1, "approval": true},
                    {"weight": 30, "hold": hold},
                ],
            })),
        )?;
        let credit_release = Release::apply(
            namespace,
            &credit.release_of_v3(json!({
                "canary": version_two("credit"),
                "steps": [{"weight": 30, "hold": hold}],
            })),
        )?;

        let everyone = Request::to(&host("message")).path("/version");
        let tester = everyone.clone().header("X-Canary", "yes");
        let only_testers_have_it = |during: &str, count: u32| {
            let counted = ab(scene.cluster, &tester, count)?;
            ensure!(
                counted.with_page == count,
                "{} of {count} requests with the header reached version 2 {during}",
                counted.with_page
            );
            anyhow::Ok(())
        };

        let testers = message_release.until_awaiting_approval("1/4", TO_BE_LIVE)?;
        ensure!(testers.status.weight == "0", "testers alone: {}", testers.line());
        only_testers_have_it("at weight 0", 1_000)?;
        for request in [everyone.clone(), everyone.clone().header("X-Canary", "no")] {
            let counted = ab(scene.cluster, &request, 1_000)?;
            ensure!(
                counted.with_page == 0,
                "{} of 1,000 requests of {request} reached version 2 at weight 0",
                counted.with_page
            );
        }

        message_release.approve(&testers)?;
        let few = message_release.until_awaiting_approval("2/4", TO_BE_LIVE)?;
        ensure!(few.status.weight == "0.01", "one in ten thousand: {}", few.line());
        share(scene, &everyone, ENOUGH, 0.01)?;
        only_testers_have_it("at weight 0.01", 500)?;

        message_release.approve(&few)?;
        let more = message_release.until_awaiting_approval("3/4", TO_BE_LIVE)?;
        share(scene, &everyone, 5_000, 1.0)?;

        message_release.approve(&more)?;
        message_release.until_live("30", HOLD, TO_BE_LIVE)?;
        share(scene, &everyone, 2_000, 30.0)?;

        for (app, release) in apps.iter().zip([&message_release, &credit_release]) {
            release.until_phase("Promoted", TO_PROMOTE)?;
            carried_by_version_two(scene, app)?;
            every_replica_answers(scene, app, "v3")?;
        }
        nothing_of_the_canary_left(namespace)?;
        let answers = load.stop()?;
        Tally::of(&answers).all_well("while message and credit were released")?;

        let mut annotated = annotated_weights(&ingresses.finish()?);
        annotated.dedup();
        let expected = ["0 of 100", "1 of 10000", "1 of 100", "30 of 100", "100 of 100"];
        ensure!(
            annotated == expected,
            "the Ingress message-canary carried {annotated:?}"
        );
        Ok(())
    })
}

/// What the canary Ingress of `message` said, change by change.
fn annotated_weights(seen: &[Seen]) -> Vec<String> {
    let said = |seen: &Seen, name: &str| {
        let key = format!("nginx.ingress.kubernetes.io/{name}");
        seen.annotation(&key).map(str::to_owned)
    };
    let of_message = seen.iter().filter(|seen| seen.name() == "message-canary" && !seen.gone);
    of_message
        .map(|seen| {
            let total = said(seen, "canary-weight-total");
            let weight = said(seen, "canary-weight").unwrap_or_default();
            format!("{weight} of {}", total.as_deref().unwrap_or("100"))
        })
        .collect()
}

/// Each of the app's pods, and no other, answers.
fn every_replica_answers(scene: &Scene, app: &App, version: &str) -> Result<()> {
    let request = app.answers_at.first().context("it answers nowhere")?;
    let pods = app.pods(&scene.namespace)?;
    ensure!(pods.len() == REPLICAS as usize, "{} has the pods {pods:?}", app.name());
    // nginx learns of them one by one.
    until("every replica answers", Duration::from_secs(30), || {
        // Of 200 random picks among four, one is left out once in 10^24.
        let answers = Load::exactly(scene.cluster, request.clone(), 200, 200)?;
        let tally = Tally::of(&answers);
        tally.all_well("to every replica")?;
        splits(&tally, version, 100, "to every replica")?;
        let answered: BTreeSet<_> = answers.into_iter().filter_map(|answer| answer.pod).collect();
        Ok(if answered == pods {
            Ok(())
        } else {
            Err(format!(
                "{answered:?} answered for {}, whose pods are {pods:?}",
                app.name()
            ))
        })
    })
}

/// `ab` finds version 2 behind this share of `count` requests.
fn share(scene: &Scene, request: &Request, count: u32, percent: f64) -> Result<()> {
    // One log at a time in memory.
    const AT_ONCE: u32 = 25_000;
    let (low, high) = binomial_bounds(count, percent / 100.0);
    let (mut sent, mut reached) = (0, 0);
    while sent < count {
        let counted = ab(scene.cluster, request, AT_ONCE.min(count - sent))?;
        sent += counted.total;
        reached += counted.with_page;
    }
    ensure!(
        (low..=high).contains(&reached),
        "{reached} of {count} requests reached version 2; at {percent} % fewer than {low} or more than {high} come about by \
         chance once in {:.0}",
        1.0 / FALSE_ALARM
    );
    Ok(())
}

/// All replicas run version 2 and are ready, and none of version 1 is left.
fn carried_by_version_two(scene: &Scene, app: &App) -> Result<()> {
    let what = format!("{} has {REPLICAS} replicas of version 2 alone", app.name());
    until(&what, Duration::from_secs(60), || {
        let pods = scene
            .namespace
            .get(&["pods", "--selector", &format!("app={}", app.name())])?;
        let images: Vec<_> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pod| {
                let ready = pod["status"]["containerStatuses"][0]["ready"].as_bool();
                let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
                (image.to_owned(), ready.unwrap_or_default())
            })
            .collect();
        let all = images.len() == REPLICAS as usize && images.iter().all(|pod| *pod == (image("v3"), true));
        Ok(if all { Ok(()) } else { Err(format!("{images:?}")) })
    })
}
