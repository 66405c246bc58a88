//! The operator dies while a release runs.

use std::time::Duration;

use anyhow::{Context, ensure};
use canary_e2e::{
    app::App,
    exercise::release_of_v3,
    load::{Tally, sent_between, splits},
    release::{Release, nothing_of_the_canary_left, watch_ingresses, weight_stood_still, weights},
    scene::{Outcome, play},
};
use jiff::Timestamp;

const HOLD: Duration = Duration::from_secs(25);
/// For the settle time after a weight was written, and for an operator that starts.
const SLACK: Duration = Duration::from_secs(20);
const TO_COME_BACK: Duration = Duration::from_secs(60);

#[test]
fn a_release_ends_as_if_the_operator_had_not_been_killed_twice() -> Outcome {
    play("operator-killed", |scene| {
        let namespace = &scene.namespace;
        let host = scene.host();
        App::of_the_exercise(&host)?
            .without_rate_limit()
            .with_readiness_probe()
            .deploy(namespace)?;
        let ingresses = watch_ingresses(namespace)?;
        let load = scene.load(&host, 50, Duration::from_secs(400))?;
        let hold = format!("{}s", HOLD.as_secs());
        let release = Release::apply(namespace, &release_of_v3(&[(30, &hold), (60, &hold)]))?;

        release.until_live("30", HOLD, Duration::from_secs(60))?;
        let deleted = Timestamp::now();
        scene.operator.delete_pod_by_force(TO_COME_BACK)?;
        let back = Timestamp::now();
        weight_stood_still(&ingresses, deleted, back, "while the operator's pod was gone")?;

        release.until_live("60", HOLD, Duration::from_secs(60))?;
        let killed = Timestamp::now();
        let reached_it = scene.operator.kill_process(TO_COME_BACK)?;
        let back_again = Timestamp::now();
        ensure!(
            reached_it || scene.cluster.on_node("true", &[]).is_none(),
            "the operator's process was not killed"
        );
        weight_stood_still(&ingresses, killed, back_again, "while the operator's process was gone")?;

        let promoted = release.until_phase("Promoted", Duration::from_secs(200))?;
        nothing_of_the_canary_left(namespace)?;
        let answers = load.stop()?;
        Tally::of(&answers).all_well("while the operator was killed twice")?;
        for (from, to, weight) in [(deleted, back, 30), (killed, back_again, 60)] {
            let meanwhile = Tally::of(sent_between(&answers, from, to));
            splits(&meanwhile, "v3", weight, "while the operator was gone")?;
        }

        let entry = promoted.status.history.first().context("status.history is empty")?;
        ensure!(
            promoted.status.history.len() == 1,
            "one release became several: {:?}",
            promoted.status.history
        );
        ensure!(entry.outcome == "Promoted", "status.history begins with {entry:?}");
        let [thirty, sixty, ..] = &entry.reached[..] else {
            anyhow::bail!("the timeline is {:?}", entry.weights())
        };
        ensure!(
            (&*thirty.weight(), &*sixty.weight()) == ("30", "60"),
            "the timeline is {:?}",
            entry.weights()
        );
        // Both times are told to the second.
        let held = sixty.at.duration_since(thirty.at).unsigned_abs() + Duration::from_secs(1);
        ensure!(
            (HOLD..HOLD + SLACK).contains(&held),
            "the weight 30 was in force for {held:?} with a hold of {HOLD:?}"
        );

        let weights = weights(&ingresses)?;
        let steps: Vec<_> = weights
            .iter()
            .filter(|weight| !["0", "100", "-"].contains(&weight.as_str()))
            .collect();
        ensure!(
            steps == ["30", "60"] && weights.iter().filter(|w| *w == "-").count() == 1,
            "the canary Ingress carried {weights:?}"
        );
        Ok(())
    })
}
