//! How soon a bad version 2 is found, and what the judge is made of: the controllers' counters, over a network.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    controllers,
    load::Load,
    metrics::Counts,
    release::{Evidence, Moment, nothing_of_the_canary_left},
    scene::Outcome,
    trial::{Env, Exposure, TO_BE_LIVE, Trial, tell, trial},
};
use jiff::Timestamp;
use serde_json::json;

/// How often the same release is played.
const RUNS: usize = 5;
/// From the first request that meets version 2 until the last.
const LONGEST_EXPOSURE: Duration = Duration::from_secs(10);
/// In which the operator sends nothing about a release that is over.
const IDLE: Duration = Duration::from_secs(15);

#[test]
fn a_version_that_fails_every_fifth_request_is_met_by_requests_for_ten_seconds() -> Outcome {
    let failing: &Env = &[("ERROR_RATE", "0.2")];
    let spec = json!({"steps": [{"weight": 10, "hold": "2m"}, {"weight": 50, "hold": "2m"}]});
    trial("one-in-five", (&[], failing), spec, |trial, load| {
        let mut met = vec![found(trial, load, Timestamp::UNIX_EPOCH)?];
        for run in 1..RUNS {
            let begun = Timestamp::now();
            let mut object = trial.object.clone();
            let env = &mut object["spec"]["canary"]["template"]["spec"]["containers"][0]["env"];
            let env = env.as_array_mut().context("version 2 has no environment")?;
            env.push(json!({"name": "RUN", "value": run.to_string()}));
            trial.release.apply_again(&object)?;
            met.push(found(trial, load, begun)?);
        }
        stands_still(trial)?;
        let row = |met: &Exposure| {
            format!(
                "{:.1} s ({} of {} failed)",
                met.length.as_secs_f64(),
                met.failed,
                met.requests
            )
        };
        let rows: Vec<_> = met.iter().map(row).collect();
        tell(&format!(
            "20 % failures at 10 % of 50 requests a second: version 2 was met for {}",
            rows.join(", ")
        ))?;
        met.sort_by_key(|met| met.length);
        let median = met.get(RUNS / 2).map(|met| met.length).context("no run")?;
        ensure!(median <= LONGEST_EXPOSURE, "the median is {median:?}");
        Ok(())
    })
}

/// Waits for the rollback; what requests met version 2 until then.
fn found(trial: &Trial<'_>, load: &Load, since: Timestamp) -> Result<Exposure> {
    trial.rolled_back("ErrorRegression", &["failed"])?;
    trial.never_beyond("10")?;
    nothing_of_the_canary_left(&trial.scene.namespace)?;
    Exposure::since(since, load)
}

/// The operator sends no request to the API server; that its watches begin anew is no request about a release.
fn stands_still(trial: &Trial<'_>) -> Result<()> {
    let before = trial.scene.operator.requests()?;
    // Not a wait for something: the silence itself is what is measured.
    std::thread::sleep(IDLE);
    let since: Counts = trial.scene.operator.requests()?.since(&before);
    ensure!(
        since.total() == 0,
        "after the rollback the operator sent\n{}",
        since.table()
    );
    Ok(())
}

#[test]
fn ingress_controllers_that_restart_in_the_middle_of_a_window_change_no_verdict() -> Outcome {
    let same: &Env = &[("ERROR_RATE", "0.01")];
    // Long enough that a pass is told before the step's end.
    let spec = json!({"steps": [{"weight": 50, "hold": "60s"}], "analysis": {"interval": "10s"}});
    trial("restart", (same, &[]), spec, |trial, _| {
        let passed = |moment: &Moment| {
            moment
                .status
                .check("errors")
                .is_some_and(|check| check.verdict == "Pass")
        };
        trial.release.until("a window has passed", TO_BE_LIVE, passed)?;
        // The same pod with counters that begin at zero, and then another one.
        controllers::kill(trial.scene.cluster)?;
        controllers::delete(trial.scene.cluster)?;
        trial.promoted()?;
        Ok(())
    })
}

#[test]
fn controllers_that_do_not_tell_what_they_counted_hold_a_release_until_they_do() -> Outcome {
    let spec = json!({"steps": [{"weight": 50, "hold": "10s"}], "analysis": {"interval": "5s"}});
    trial("cut-off", (&[], &[]), spec, |trial, load| {
        trial.release.until("the weight is written", TO_BE_LIVE, |moment| {
            moment.status.weight == "50"
        })?;
        let Some(cut) = controllers::cut_off_metrics(trial.scene.cluster)? else {
            return Ok(());
        };
        let held = trial.held_unanalysed("AnalysisError")?;
        ensure!(
            held.status.message.contains("ingress-nginx-controller"),
            "the message names no controller: {}",
            held.status.message
        );
        trial.stays_held("AnalysisError", "50", load)?;
        drop(cut);
        trial.promoted()?;
        Ok(())
    })
}

// Reloads of nginx for others would take the requests that wait with them, uncounted.
#[test]
fn a_version_that_never_answers_is_rolled_back_when_clients_give_up() -> Outcome {
    // Longer than clients wait, and as long as nginx does.
    let hangs: &Env = &[("LATENCY_MS", "60000")];
    trial(
        "hangs",
        (&[], hangs),
        json!({"steps": [{"weight": 20, "hold": "2m"}]}),
        |trial, _| {
            trial.rolled_back("ErrorRegression", &["failed"])?;
            trial.never_beyond("20")
        },
    )
}

#[test]
fn what_was_gathered_against_a_version_survives_the_death_of_the_operator() -> Outcome {
    let spec = json!({"steps": [{"weight": 20, "hold": "600s"}], "analysis": {"interval": "5s"}});
    trial("judge-killed", (&[], &[("ERROR_RATE", "0.02")]), spec, |trial, load| {
        let gathered = |moment: &Moment| {
            let check = moment.status.check("errors");
            check
                .and_then(|check| check.evidence.first().cloned())
                .unwrap_or_default()
        };
        let before = trial
            .release
            .until("the status tells of a failure", TO_BE_LIVE, |moment| {
                gathered(moment).canary_failed > 0
            })?;
        trial.scene.operator.kill_process(TO_BE_LIVE)?;
        let after = trial.rolled_back("ErrorRegression", &["failed"])?;
        let (before, after): (Evidence, Evidence) = (gathered(&before), gathered(&after));
        ensure!(
            after.canary > before.canary && after.canary_failed > before.canary_failed,
            "{before:?} was gathered before the operator was killed, and {after:?} in the end"
        );
        let Exposure { requests, failed, .. } = Exposure::since(Timestamp::UNIX_EPOCH, load)?;
        tell(&format!(
            "the operator killed in the middle: {requests} requests met version 2, {failed} of them failed; {} and {} were \
             weighed, {} and {} of them before the operator was killed",
            after.canary, after.canary_failed, before.canary, before.canary_failed
        ))
    })
}
