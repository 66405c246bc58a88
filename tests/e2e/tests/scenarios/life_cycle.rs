//! What people do to a release while it runs, under constant traffic to pods that exit at once when they are told to:
//! no request fails, and none waits for a second.

use std::{env, time::Duration};

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    exercise::image,
    load::{Load, Tally, sent_between},
    process::{Ended, attempt, until},
    release::{Event, HistoryEntry, LABEL, Moment, Release},
    scene::{Outcome, Scene, play},
    stats::binomial_bounds,
    watch::Watch,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::common::{nothing_of_the_canary_left, splits, watch_ingresses, weights};

const HOLD: Duration = Duration::from_secs(10);
/// Of a step that is left before its hold is over.
const LONG: Duration = Duration::from_secs(600);
const TO_BE_LIVE: Duration = Duration::from_secs(90);
const TO_PROMOTE: Duration = Duration::from_secs(150);

/// A release under constant traffic.
struct Stage<'a> {
    scene: &'a Scene,
    app: App,
    object: Value,
    ingresses: Watch,
    load: Load,
    release: Release<'a>,
}

/// Starts the traffic, then a release of version 3 with these steps; plays `story`; after that, until the end and a
/// little beyond, no request may have failed.
fn under_traffic(name: &str, steps: Value, story: impl FnOnce(&Stage<'_>) -> Result<()>) -> Outcome {
    under_traffic_with(name, json!({"steps": steps}), story)
}

/// The same with more than steps.
fn under_traffic_with(name: &str, spec: Value, story: impl FnOnce(&Stage<'_>) -> Result<()>) -> Outcome {
    play(name, |scene| {
        let host = scene.host();
        let app = App::new("shop", &host).with_replicas(2).with_env("ON_TERM", "exit");
        app.deploy(&scene.namespace)?;
        let ingresses = watch_ingresses(&scene.namespace)?;
        let load = scene.load(&host, 50, Duration::from_secs(600))?;
        let object = app.release_of_v3(spec);
        let release = Release::apply(&scene.namespace, &object)?;
        let stage = Stage {
            scene,
            app,
            object,
            ingresses,
            load,
            release,
        };
        story(&stage)?;
        nothing_of_the_canary_left(&scene.namespace)?;
        // What the clean-up broke would show only now.
        stage.wait_for_answers(Timestamp::now() + Duration::from_secs(3))?;
        Tally::of(&stage.load.stop()?).all_well("from before the release until after its end")
    })
}

fn hold(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

impl Stage<'_> {
    /// What the operator's binary says as `kubectl canary VERB`.
    fn kubectl_canary(&self, verb: &str) -> Result<Ended> {
        let binary = env::var("OPERATOR_BINARY").context("OPERATOR_BINARY names no binary: run tests/on-cluster")?;
        let namespace = self.scene.namespace.name();
        let args = [verb, self.release.name(), "--namespace", namespace];
        attempt(&mut self.scene.cluster.beside(&binary, &args), "")
    }

    /// Waits until requests sent at that time are answered.
    fn wait_for_answers(&self, at: Timestamp) -> Result<()> {
        let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
        self.load.until(
            &format!("requests sent at {at} are answered"),
            left + Duration::from_secs(15),
            |answers| answers.last().is_some_and(|last| last.sent > at),
        )
    }

    /// `command/REVISION` for the release as it is now.
    fn command(&self, command: &str) -> Result<()> {
        let moment = self.release.latest()?.context("the release was not seen")?;
        self.release.command(&format!("{command}/{}", moment.status.revision))
    }

    /// From `at` on, every answer is of `version`.
    fn all_of(&self, version: &str, at: Timestamp, during: &str) -> Result<()> {
        self.wait_for_answers(at + Duration::from_secs(3))?;
        let tally = self
            .load
            .look(|answers| Tally::of(sent_between(answers, at, Timestamp::MAX)));
        ensure!(tally.total > 0, "there were no requests {during}");
        splits(&tally, version, 100, during)
    }

    /// The stable Deployment runs this image.
    fn stable_runs(&self, tag: &str) -> Result<()> {
        let deployment = self.scene.namespace.get(&["deployment", self.app.name()])?;
        let runs = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
        ensure!(
            *runs == image(tag),
            "the stable Deployment runs {runs} instead of {tag}"
        );
        Ok(())
    }
}

fn newest(moment: &Moment) -> Result<&HistoryEntry> {
    moment.status.history.first().context("status.history is empty")
}

fn ended_as(moment: &Moment, outcome: &str) -> Result<()> {
    let entry = newest(moment)?;
    ensure!(
        entry.outcome == outcome,
        "status.history begins with {entry:?}, not with {outcome}"
    );
    Ok(())
}

#[test]
fn a_weight_is_proven_by_the_requests_that_the_controllers_counted() -> Outcome {
    under_traffic("proven", json!([{"weight": 30, "hold": hold(LONG)}]), |stage| {
        let proven = stage.release.until("the weight is proven", TO_BE_LIVE, |moment| {
            let live = moment.status.holds("WeightLive");
            live.is_some_and(|live| live.reason == "Counted") && moment.status.holds("TrafficSplitVerified").is_some()
        })?;
        let live = proven.status.holds("WeightLive").context("WeightLive")?;
        let numbers: Vec<u32> = live.message.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [hits, total] = numbers[..] else {
            anyhow::bail!("WeightLive says {}", live.message)
        };
        let (low, high) = binomial_bounds(total, 0.3);
        ensure!((low..=high).contains(&hits), "WeightLive says {}", live.message);
        stage.command("abort")?;
        stage.release.until_phase("RolledBack", TO_PROMOTE)?;
        Ok(())
    })
}

#[test]
fn kubectl_canary_gives_a_command_for_what_runs_now_and_prints_the_answer() -> Outcome {
    let steps = json!([{"weight": 50, "approval": true}, {"weight": 80, "hold": hold(LONG)}]);
    under_traffic("kubectl-canary", steps, |stage| {
        stage.release.until_awaiting_approval("1/2", TO_BE_LIVE)?;
        let approved = stage.kubectl_canary("approve")?;
        ensure!(
            approved.success,
            "approve failed: {}{}",
            approved.stdout,
            approved.stderr
        );
        ensure!(
            approved.stdout.contains("step 1 is approved"),
            "approve said {}",
            approved.stdout
        );
        stage.release.until_live("80", LONG, TO_BE_LIVE)?;
        let retried = stage.kubectl_canary("retry")?;
        ensure!(
            !retried.success && retried.stdout.contains("changes nothing: the release is under way"),
            "retry said {}{}",
            retried.stdout,
            retried.stderr
        );
        // Somebody's command that the operator may not have answered yet is let go first.
        stage.release.command("retry/0000000000")?;
        let aborted = stage.kubectl_canary("abort")?;
        ensure!(aborted.success, "abort failed: {}{}", aborted.stdout, aborted.stderr);
        let ended = stage.release.until_phase("RolledBack", TO_PROMOTE)?;
        let entry = ended.status.history.first().context("status.history is empty")?;
        ensure!(entry.outcome == "Aborted", "status.history begins with {entry:?}");
        Ok(())
    })
}

#[test]
fn a_release_aborted_at_a_step_gives_all_traffic_back() -> Outcome {
    under_traffic("abort", json!([{"weight": 50, "hold": hold(LONG)}]), |stage| {
        stage.release.until_live("50", LONG, TO_BE_LIVE)?;
        stage.command("abort")?;
        let aborted = stage.release.until("it is recorded as aborted", TO_BE_LIVE, |moment| {
            newest(moment).is_ok_and(|entry| entry.outcome == "Aborted")
        })?;
        stage.all_of("v1", aborted.at, "after the abort")?;
        stage.stable_runs("v1")
    })
}

#[test]
fn an_aborted_release_starts_again_by_the_command_for_it_alone() -> Outcome {
    under_traffic("retry", json!([{"weight": 50, "hold": hold(LONG)}]), |stage| {
        let first = stage.release.until_live("50", LONG, TO_BE_LIVE)?;
        stage.command("abort")?;
        let aborted = stage.release.until("it is recorded as aborted", TO_BE_LIVE, |moment| {
            newest(moment).is_ok_and(|entry| entry.outcome == "Aborted")
        })?;
        stage.all_of("v1", aborted.at, "after the abort")?;
        // For another release than this one.
        stage.release.command("retry/0000000000")?;
        until("an event tells of the command that is ignored", TO_BE_LIVE, || {
            let events = stage.release.events()?;
            let ignored =
                |event: &Event| event.reason == "CommandIgnored" && event.note.contains(&first.status.revision);
            Ok(if events.iter().any(ignored) {
                Ok(())
            } else {
                Err(format!("{events:?}"))
            })
        })?;
        stage.command("retry")?;
        stage
            .release
            .until_even_from_the_end("it starts again", TO_BE_LIVE, |moment| {
                moment.status.stage() == "Preparing"
            })?;
        let second = stage.release.until_live("50", LONG, TO_BE_LIVE)?;
        stage.wait_for_answers(second.at + Duration::from_secs(5))?;
        let again = stage
            .load
            .look(|answers| Tally::of(sent_between(answers, second.at, Timestamp::MAX)));
        splits(&again, "v3", 50, "after the release started again")?;
        stage.release.delete(TO_BE_LIVE)?;
        stage.all_of("v1", Timestamp::now(), "after the deletion")
    })
}

#[test]
fn a_version_that_crashes_is_kept_without_traffic_for_a_look_and_goes_with_its_release() -> Outcome {
    let spec = json!({
        "canary": {"image": image("v2")},
        "steps": [{"weight": 50, "hold": "1s"}],
        "rollback": {"keepFor": "10m"},
    });
    under_traffic_with("keep-for", spec, |stage| {
        let begun = Timestamp::now();
        stage.release.until_phase("RolledBack", TO_BE_LIVE)?;
        let left = stage.scene.namespace.names("deployments,services,ingresses", LABEL)?;
        ensure!(
            left == ["deployment.apps/shop-canary"],
            "after the rollback there are {left:?}"
        );
        stage.release.delete(TO_BE_LIVE)?;
        stage.all_of("v1", begun, "while version 2 crashed")
    })
}

#[test]
fn a_deployment_that_is_kept_elsewhere_is_awaited_until_it_carries_version_two() -> Outcome {
    let spec = json!({"steps": [{"weight": 50, "hold": "1s"}], "promotion": {"mode": "AwaitStable"}});
    under_traffic_with("await-stable", spec, |stage| {
        let waiting = stage
            .release
            .until("it waits for the Deployment", TO_PROMOTE, |moment| {
                moment
                    .status
                    .condition("Ready")
                    .is_some_and(|ready| ready.reason == "AwaitingStable")
            })?;
        ensure!(
            waiting.status.message.contains("Deployment shop") && waiting.status.message.contains(&image("v3")),
            "it does not say what it waits for: {}",
            waiting.line()
        );
        stage.all_of("v3", waiting.at, "while the Deployment was awaited")?;
        stage.stable_runs("v1")?;
        let changed = format!("shop={}", image("v3"));
        stage
            .scene
            .namespace
            .ask(&["set", "image", "deployment/shop", &changed])?;
        let promoted = stage.release.until_phase("Promoted", TO_PROMOTE)?;
        ended_as(&promoted, "Promoted")?;
        stage.all_of("v3", promoted.at, "after the promotion")
    })
}

#[test]
fn a_release_promoted_at_its_first_step_skips_the_others() -> Outcome {
    let steps = json!([{"weight": 10, "hold": hold(LONG)}, {"weight": 50, "hold": hold(LONG)}]);
    under_traffic("promote-now", steps, |stage| {
        stage.release.until_live("10", LONG, TO_BE_LIVE)?;
        stage.command("promote")?;
        let promoted = stage.release.until_phase("Promoted", TO_PROMOTE)?;
        ended_as(&promoted, "Promoted")?;
        stage.all_of("v3", promoted.at, "after the promotion")?;
        stage.stable_runs("v3")?;
        let weights = weights(&stage.ingresses)?;
        ensure!(
            !weights.contains(&"50".to_owned()),
            "the canary Ingress carried {weights:?}"
        );
        Ok(())
    })
}

#[test]
fn a_paused_release_keeps_its_weight_until_it_is_resumed() -> Outcome {
    let steps = json!([{"weight": 20, "hold": hold(HOLD)}, {"weight": 50, "hold": hold(HOLD)}]);
    under_traffic("pause", steps, |stage| {
        let live = stage.release.until_live("20", HOLD, TO_BE_LIVE)?;
        let mut paused = stage.object.clone();
        paused["spec"]["paused"] = true.into();
        stage.release.apply_again(&paused)?;
        stage.release.until_phase("Paused", Duration::from_secs(30))?;
        // Well after the next step was due.
        let due = live.at + HOLD;
        stage.wait_for_answers(due + Duration::from_secs(10))?;
        let weights_so_far = weights(&stage.ingresses)?;
        ensure!(
            weights_so_far.last().is_some_and(|last| last == "20"),
            "while paused the canary Ingress carried {weights_so_far:?}"
        );
        let meanwhile = stage
            .load
            .look(|answers| Tally::of(sent_between(answers, live.at, Timestamp::MAX)));
        splits(&meanwhile, "v3", 20, "while paused")?;
        stage.release.apply_again(&stage.object)?;
        stage.release.until_live("50", HOLD, TO_BE_LIVE)?;
        let promoted = stage.release.until_phase("Promoted", TO_PROMOTE)?;
        ended_as(&promoted, "Promoted")?;
        stage.all_of("v3", promoted.at, "after the promotion")
    })
}

#[test]
fn another_image_mid_way_gives_the_traffic_back_and_starts_at_the_first_step() -> Outcome {
    let steps = json!([{"weight": 30, "hold": hold(HOLD)}, {"weight": 60, "hold": hold(LONG)}]);
    under_traffic("supersede", steps, |stage| {
        let first = stage.release.until_live("60", LONG, TO_BE_LIVE)?;
        let mut other = stage.object.clone();
        let container = json!({"name": "shop", "command": ["python"], "args": ["app.py"]});
        other["spec"]["canary"] = json!({"image": image("v2"), "template": {"spec": {"containers": [container]}}});
        other["spec"]["steps"][1]["hold"] = hold(HOLD).into();
        let asked = Timestamp::now();
        stage.release.apply_again(&other)?;
        let second = stage.release.until_live("30", HOLD, TO_BE_LIVE)?;
        ensure!(
            second.status.revision != first.status.revision,
            "the other image has the same revision {}",
            second.status.revision
        );
        ended_as(&second, "Superseded")?;
        let promoted = stage.release.until_phase("Promoted", TO_PROMOTE)?;
        ended_as(&promoted, "Promoted")?;
        stage.all_of("v2", promoted.at, "after the promotion")?;
        stage.stable_runs("v2")?;
        // Version 3 had left before version 2 came.
        let late = stage
            .load
            .look(|answers| Tally::of(sent_between(answers, second.at, Timestamp::MAX)));
        ensure!(late.from("v3") == 0, "after the other image had its weight: {late}");
        let weights = weights(&stage.ingresses)?;
        ensure!(
            weights == ["0", "30", "60", "-", "0", "30", "60", "100", "-"],
            "the canary Ingress carried {weights:?} from before {asked}"
        );
        Ok(())
    })
}

#[test]
fn another_schedule_mid_way_goes_on_where_the_weight_does_not_fall() -> Outcome {
    under_traffic("schedule", json!([{"weight": 30, "hold": hold(LONG)}]), |stage| {
        stage.release.until_live("30", LONG, TO_BE_LIVE)?;
        let mut other = stage.object.clone();
        other["spec"]["steps"] = json!([
            {"weight": 10, "hold": hold(LONG)},
            {"weight": 20, "hold": hold(LONG)},
            {"weight": 40, "hold": hold(HOLD)},
        ]);
        stage.release.apply_again(&other)?;
        let live = stage.release.until_live("40", HOLD, TO_BE_LIVE)?;
        ensure!(live.status.step == "3/3", "the step is {}", live.line());
        let promoted = stage.release.until_phase("Promoted", TO_PROMOTE)?;
        ensure!(
            promoted.status.history.len() == 1,
            "one release became several: {:?}",
            promoted.status.history
        );
        stage.all_of("v3", promoted.at, "after the promotion")?;
        let weights = weights(&stage.ingresses)?;
        ensure!(
            weights == ["0", "30", "40", "100", "-"],
            "the canary Ingress carried {weights:?}"
        );
        Ok(())
    })
}

/// Deletes the release once `moment` is reached; then all is `version`, and the stable Deployment runs it.
fn deleted(name: &str, steps: Value, version: &'static str, moment: impl FnOnce(&Stage<'_>) -> Result<()>) -> Outcome {
    under_traffic(name, steps, |stage| {
        moment(stage)?;
        stage.release.delete(TO_PROMOTE)?;
        stage.all_of(version, Timestamp::now(), "after the deletion")?;
        stage.stable_runs(version)
    })
}

fn short() -> Value {
    json!([{"weight": 50, "hold": "1s"}])
}

#[test]
fn deletion_while_version_two_is_prepared() -> Outcome {
    deleted("delete-preparing", short(), "v1", |stage| {
        stage.release.until_stage("Preparing", TO_BE_LIVE)?;
        Ok(())
    })
}

#[test]
fn deletion_while_all_traffic_is_shifted_for_the_promotion() -> Outcome {
    deleted("delete-promoting", short(), "v1", |stage| {
        stage.release.until_stage("Promoting", TO_BE_LIVE)?;
        stage.release.until("all traffic is shifted", TO_BE_LIVE, |moment| {
            moment.status.weight == "100"
        })?;
        Ok(())
    })
}

#[test]
fn deletion_while_version_one_is_replaced() -> Outcome {
    deleted("delete-finishing", short(), "v3", |stage| {
        stage.release.until_stage("Finishing", TO_PROMOTE)?;
        Ok(())
    })
}

#[test]
fn deletion_while_the_traffic_returns_after_an_abort() -> Outcome {
    let steps = json!([{"weight": 50, "hold": hold(LONG)}]);
    deleted("delete-rolling-back", steps, "v1", |stage| {
        stage.release.until_live("50", LONG, TO_BE_LIVE)?;
        stage.command("abort")?;
        stage.release.until_stage("RollingBack", TO_BE_LIVE)?;
        Ok(())
    })
}
