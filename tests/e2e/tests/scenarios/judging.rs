//! Version 2 is judged by how it answers, beside version 1 under the same traffic.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    exercise::{RELEASE_MENDED, manifest},
    load::{Answer, Request, sent_between},
    prometheus::{Prometheus, SECURED},
    release::{Release, nothing_of_the_canary_left},
    scene::{Outcome, play},
    trial::{Env, Exposure, RATE, TO_BE_LIVE, TO_END, quiet, says, tell, trial},
};
use jiff::Timestamp;
use serde_json::{Value, json};

const LONGEST: Duration = Duration::from_secs(400);
/// The slowest three of a hundred answers are 300 ms late.
const SLOWER: &Env = &[("LATENCY_MS", "300"), ("LATENCY_RATE", "0.03")];

fn step(weight: u32, hold: &str) -> Value {
    json!({"weight": weight, "hold": hold})
}

/// One step at 50 %, and this analysis in windows of 5 s.
fn half(hold: &str, analysis: Value) -> Value {
    let mut spec = json!({"steps": [step(50, hold)], "analysis": {"interval": "5s"}});
    if let (Some(whole), Value::Object(analysis)) = (spec["analysis"].as_object_mut(), analysis) {
        whole.extend(analysis);
    }
    spec
}

fn checks(check: Value) -> Value {
    json!({"checks": [check]})
}

#[test]
fn two_failures_in_a_hundred_are_found_before_the_plan_ends() -> Outcome {
    let spec = json!({"steps": [step(10, "30s"), step(20, "30s"), step(50, "30s")]});
    trial("two-percent", (&[], &[("ERROR_RATE", "0.02")]), spec, |trial, load| {
        trial.rolled_back("ErrorRegression", &["failed"])?;
        let Exposure {
            length,
            requests,
            failed,
        } = Exposure::since(Timestamp::UNIX_EPOCH, load)?;
        tell(&format!(
            "2 % failures at 10, 20 and 50 % of {RATE} requests a second, 30 s each: {requests} requests met version 2 in \
             {:.1} s, {failed} of them failed",
            length.as_secs_f64(),
        ))
    })
}

#[test]
fn a_version_whose_slowest_hundredth_is_late_breaks_its_bound_and_is_rolled_back() -> Outcome {
    let spec = half(
        "60s",
        checks(json!({"name": "p99", "latency": {"quantile": 0.99, "max": "250ms"}})),
    );
    trial("slow-bound", (&[], SLOWER), spec, |trial, _| {
        let ended = trial.rolled_back("Latency", &["250ms", "in 2 windows in a row"])?;
        let check = ended.status.check("p99").context("status.checks has no p99")?;
        ensure!(check.verdict == "Breach", "the check is {check:?}");
        trial.never_beyond("50")
    })
}

#[test]
fn a_version_that_is_late_oftener_than_version_one_is_rolled_back() -> Outcome {
    let spec = half("60s", checks(json!({"name": "slow", "latencyRegression": {}})));
    trial("slow-regression", (&[], SLOWER), spec, |trial, load| {
        trial.rolled_back("LatencyRegression", &["took longer than"])?;
        let Exposure { length, requests, .. } = Exposure::since(Timestamp::UNIX_EPOCH, load)?;
        tell(&format!(
            "3 % of the answers 300 ms late at 50 % of {RATE} requests a second: {requests} requests met version 2 in {:.1} s",
            length.as_secs_f64()
        ))
    })
}

#[test]
fn a_version_that_fails_no_oftener_than_version_one_is_promoted() -> Outcome {
    let spec = half("20s", json!({}));
    trial(
        "same-failures",
        (&[("ERROR_RATE", "0.01")], &[]),
        spec,
        |trial, load| {
            trial.promoted()?;
            let met = Exposure::since(Timestamp::UNIX_EPOCH, load)?;
            ensure!(met.failed > 0, "nothing was put up with: {met:?}");
            Ok(())
        },
    )
}

/// The number that stands between these words.
fn number_between(before: &str, after: &str, message: &str) -> Result<usize> {
    let number = message.split(before).nth(1).and_then(|rest| rest.split(after).next());
    let number = number.and_then(|number| number.replace(',', "").parse().ok());
    number.with_context(|| format!("no number stands between {before:?} and {after:?}: {message}"))
}

#[test]
fn what_nginx_answers_itself_is_not_held_against_version_two_and_is_told() -> Outcome {
    play("rate-limited", |scene| {
        let host = scene.host();
        App::of_the_exercise(&host)?
            .with_readiness_probe()
            .deploy(&scene.namespace)?;
        let mut object = manifest(RELEASE_MENDED)?;
        object["spec"]["steps"][0]["hold"] = "20s".into();
        // The exercise's Ingress lets 175 a minute pass, and as many at once.
        let load = scene.load(&host, RATE, LONGEST)?;
        load.until("nginx turns requests away", TO_BE_LIVE, |answers| {
            let turned_away = answers
                .iter()
                .filter(|answer| answer.code == 503 && answer.version.is_none());
            turned_away.count() > 50
        })?;
        let applied = Timestamp::now();
        let release = Release::apply(&scene.namespace, &object)?;
        let promoted = release.until_phase("Promoted", TO_END)?;
        let told = number_between("nginx answered ", " requests itself", &promoted.status.message)?;
        let moments = release.moments()?;
        let at_stage = |stage| {
            moments
                .iter()
                .find(|moment| moment.status.stage() == stage)
                .map(|moment| moment.at)
        };
        let (from, to) = at_stage("Stepping")
            .zip(at_stage("Promoting"))
            .context("there were no steps")?;
        let turned_away = |from, to| {
            let nginx = |answer: &&Answer| answer.code == 503 && answer.version.is_none();
            load.look(|answers| sent_between(answers, from, to).filter(nginx).count())
        };
        // Counting begins before the steps and ends with them or after; nginx loses some whenever it is reloaded.
        let (least, most) = (turned_away(from, to) / 2, turned_away(applied, promoted.at));
        ensure!(
            (least..=most).contains(&told),
            "nginx turned away between {least} and {most}, and the message says: {}",
            promoted.status.message
        );
        load.still_runs()?;
        nothing_of_the_canary_left(&scene.namespace)
    })
}

#[test]
fn without_requests_a_release_is_held_and_goes_on_when_they_come() -> Outcome {
    quiet("no-traffic", (&[], &[]), json!({"steps": [step(50, "5s")]}), |trial| {
        trial.held_unanalysed("NoData")?;
        trial.never_beyond("50")?;
        let load = trial.load()?;
        trial.promoted()?;
        load.still_runs()
    })
}

#[test]
fn requests_that_do_not_divide_as_the_weight_says_hold_a_release_and_end_it_at_its_deadline() -> Outcome {
    let spec = json!({
        "traffic": {"header": {"name": "X-Canary"}},
        "steps": [step(50, "120s")],
        "progressDeadline": "10s",
        "analysis": {"checks": []},
    });
    quiet("split-differs", (&[], &[]), spec, |trial| {
        // Clients that keep away from version 2, whatever the weight is.
        let away = Request::to(&trial.host).header("X-Canary", "never");
        let load = trial.scene.load(away, RATE, LONGEST)?;
        let held = trial.held("TrafficSplitDiffers")?;
        says(&held.status.message, &["0 of", "50%", "usual causes", "rollback at"])?;
        let split = held.status.condition("TrafficSplitVerified");
        ensure!(
            split.is_some_and(|split| split.status == "False"),
            "TrafficSplitVerified is {split:?}"
        );
        trial.never_beyond("50")?;
        trial.rolled_back("TrafficSplitDiffers", &["usual causes", "spec.progressDeadline"])?;
        load.still_runs()
    })
}

/// Requests a second to version 2, by a query of one's own.
const REQUESTS: &str = r#"sum(rate(nginx_ingress_controller_requests{namespace="{{ namespace }}",ingress=~"{{ ingress }}",canary=~"{{ canary }}"}[{{ interval }}]))"#;

/// Failures are compared, and the query gives at least one request a second and at most so many; all by this Prometheus, in
/// windows that three of its rounds fall into.
fn by_prometheus(server: &str, most: u32) -> Value {
    let checks = json!([
        {"name": "errors", "errorRegression": {}},
        {"name": "requests", "prometheus": {"query": REQUESTS, "min": 1, "max": most}},
    ]);
    let analysis = json!({"interval": "15s", "source": "prometheus", "prometheus": server, "checks": checks});
    json!({"steps": [step(50, "20s")], "analysis": analysis})
}

#[test]
fn a_prometheus_decides_as_the_controllers_themselves_do() -> Outcome {
    let failing: &Env = &[("ERROR_RATE", "0.2")];
    trial(
        "by-prometheus",
        (&[], failing),
        by_prometheus("steady", 1_000),
        |trial, load| {
            let prometheus = Prometheus::start(trial.scene.cluster, "steady")?;
            trial.rolled_back("ErrorRegression", &["failed"])?;

            // Another version, and more requests reach it than its bound allows.
            let mut object = trial.object.clone();
            let env = "/spec/canary/template/spec/containers/0/env/0";
            *object.pointer_mut(env).context("version 2 has no environment")? = json!({"name": "RUN", "value": "2"});
            object["spec"]["analysis"] = by_prometheus("steady", 2)["analysis"].clone();
            trial.release.apply_again(&object)?;
            trial.rolled_back("QueryResult", &["requests", "in 2 windows in a row"])?;

            // A third, and none of its bounds is broken.
            *object.pointer_mut(env).context("version 2 has no environment")? = json!({"name": "RUN", "value": "3"});
            object["spec"]["analysis"] = trial.object["spec"]["analysis"].clone();
            trial.release.apply_again(&object)?;
            trial.release.until_phase("Promoted", TO_END)?;
            load.still_runs()?;
            prometheus.remove()
        },
    )
}

#[test]
fn without_its_prometheus_a_release_is_held_and_goes_on_when_that_is_back() -> Outcome {
    let mut spec = by_prometheus("stopped", 1_000);
    // Long enough that Prometheus and its pod are gone well before the step could end.
    spec["steps"] = json!([step(50, "60s")]);
    trial("prometheus-stopped", (&[], &[]), spec, |trial, load| {
        let prometheus = Prometheus::start(trial.scene.cluster, "stopped")?;
        trial.release.until("a window has passed", TO_END, |moment| {
            moment.status.checks.iter().any(|check| check.verdict == "Pass")
        })?;
        prometheus.stop()?;
        let held = trial.held_unanalysed("AnalysisError")?;
        says(&held.status.message, &["Prometheus", "stopped"])?;
        trial.stays_held("AnalysisError", "50", load)?;
        prometheus.start_again()?;
        trial.promoted()?;
        prometheus.remove()
    })
}

#[test]
fn a_prometheus_that_takes_only_the_operators_certificate_is_asked_over_tls() -> Outcome {
    trial(
        "prometheus-tls",
        (&[], &[]),
        by_prometheus(SECURED, 1_000),
        |trial, load| {
            let prometheus = Prometheus::start(trial.scene.cluster, SECURED)?;
            trial.promoted()?;
            load.still_runs()?;
            prometheus.remove()
        },
    )
}
