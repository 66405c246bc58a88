//! A ramp.

use std::time::Duration;

use anyhow::{Context, ensure};
use canary_e2e::{
    app::App,
    exercise::{image, release},
    load::Tally,
    release::Release,
    scene::{Outcome, play},
};
use serde_json::json;

use crate::common::{mentions, nothing_of_the_canary_left, watch_ingresses, weights};

const EVERY: Duration = Duration::from_secs(10);
const STEPS: [&str; 5] = ["10", "20", "30", "40", "50"];

#[test]
fn a_ramp_from_ten_to_fifty_promotes_by_itself_and_leaves_its_timeline() -> Outcome {
    play("ramp", |scene| {
        let namespace = &scene.namespace;
        let host = scene.host();
        App::of_the_exercise(&host)?
            .without_rate_limit()
            .with_readiness_probe()
            .deploy(namespace)?;
        let ingresses = watch_ingresses(namespace)?;
        let load = scene.load(&host, 20, Duration::from_secs(400))?;

        let ramp = json!({
            "target": {"deployment": "challenge-app"},
            "canary": {"image": image("v3")},
            "ramp": {"from": 10, "by": 10, "to": 50, "every": format!("{}s", EVERY.as_secs())},
        });
        let release = Release::apply(namespace, &release(ramp))?;
        for (number, weight) in (1..).zip(STEPS) {
            let live = release.until_live(weight, EVERY, Duration::from_secs(60))?;
            let step = format!("{number}/{}", STEPS.len());
            ensure!(
                live.status.step == step,
                "at the weight {weight} the step is {} instead of {step}",
                live.status.step
            );
        }
        let promoted = release.until_phase("Promoted", Duration::from_secs(150))?;
        Tally::of(&load.stop()?).all_well("during the ramp")?;

        let entry = promoted.status.history.first().context("status.history is empty")?;
        ensure!(entry.outcome == "Promoted", "status.history begins with {entry:?}");
        let reached: Vec<_> = entry
            .reached
            .iter()
            .filter(|reached| reached.weight() != "100")
            .collect();
        ensure!(
            reached.iter().map(|reached| reached.weight()).eq(STEPS),
            "the timeline is {:?}",
            entry.weights()
        );
        for pair in reached.windows(2) {
            let [from, to] = pair else { continue };
            // Both times are told to the second.
            let held = to.at.duration_since(from.at).unsigned_abs() + Duration::from_secs(1);
            ensure!(
                held >= EVERY,
                "the weight {} was in force for {held:?}, not for {EVERY:?}",
                from.weight()
            );
        }

        let events = release.events()?;
        let raised: Vec<_> = events.iter().filter(|event| event.reason == "WeightChanged").collect();
        for (event, weight) in raised.iter().zip(STEPS) {
            ensure!(
                mentions(&event.note, weight),
                "an event should tell of the weight {weight}: {event:?}"
            );
        }
        ensure!(
            raised.len() >= STEPS.len(),
            "the events tell of fewer than {} weights: {events:?}",
            STEPS.len()
        );
        ensure!(
            events.iter().any(|event| event.reason == "Promoted"),
            "no event tells of the promotion: {events:?}"
        );

        let weights = weights(&ingresses)?;
        let rising: Vec<_> = weights
            .iter()
            .filter(|weight| !["0", "100", "-"].contains(&weight.as_str()))
            .collect();
        ensure!(
            rising == STEPS.iter().collect::<Vec<_>>(),
            "the canary Ingress carried {weights:?}"
        );
        ensure!(
            weights.last().is_some_and(|last| last == "-"),
            "the canary Ingress is not gone: {weights:?}"
        );
        nothing_of_the_canary_left(namespace)
    })
}
