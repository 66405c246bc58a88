//! What a release costs.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    exercise::{RELEASE, manifest, release_of_v3},
    load::Tally,
    process::until,
    release::{RESOURCE, Release},
    scene::{Outcome, Scene, play},
    watch::Watch,
};

// Limits with room for a busy machine; what was measured is printed.

/// Requests for one release of five steps, from `kubectl apply` to `Promoted`.
const MOST_REQUESTS: u64 = 63;
/// Requests in the minute after it ended.
const MOST_WHEN_IDLE: u64 = 12;
/// From `CrashLoopBackOff` in the pod's status to `RolledBack` in the release's.
const LONGEST_TO_ROLL_BACK: Duration = Duration::from_secs(15);
/// Resident memory at its peak, in MiB.
const MOST_MEMORY: f64 = 64.0;

const IDLE: Duration = Duration::from_secs(60);

#[test]
fn a_release_costs_few_requests_and_a_crash_ends_it_at_once() -> Outcome {
    play("budget", |scene| {
        let host = scene.host();
        App::of_the_exercise(&host)?
            .without_rate_limit()
            .with_readiness_probe()
            .with_replicas(2)
            .deploy(&scene.namespace)?;
        no_other_releases(scene)?;
        let mut table = Vec::new();
        release_of_five_steps(scene, &host, &mut table)?;
        let crash = time_to_roll_back(scene)?;
        table.push((
            "from CrashLoopBackOff seen to RolledBack seen",
            format!("{:.1} s", crash.as_secs_f64()),
        ));
        let memory = scene.operator.resident_mib()?;
        if let Some((now, peak)) = memory {
            table.push((
                "resident memory now, at its peak",
                format!("{now:.1} MiB, {peak:.1} MiB"),
            ));
        }
        let rows: Vec<_> = table
            .iter()
            .map(|(what, value)| format!("  {what:<55} {value}\n"))
            .collect();
        // Written past the test harness, which swallows what a passing test prints.
        write!(io::stderr(), "\nWhat a release costs:\n{}", rows.concat())?;
        ensure!(
            crash <= LONGEST_TO_ROLL_BACK,
            "the rollback took {crash:?} after CrashLoopBackOff was seen"
        );
        ensure!(
            memory.is_none_or(|(_, peak)| peak <= MOST_MEMORY),
            "the operator's memory is {memory:?} MiB"
        );
        Ok(())
    })
}

/// Five steps of 10 s with two pods each, at 50 requests a second; then a minute in which nothing happens.
fn release_of_five_steps(scene: &Scene, host: &str, table: &mut Vec<(&'static str, String)>) -> Result<()> {
    let pod = scene.operator.until_ready(Duration::from_secs(30), |_| true)?;
    let mut object = release_of_v3(&[(10, "10s"), (20, "10s"), (30, "10s"), (40, "10s"), (50, "10s")]);
    object["spec"]["canary"]["replicas"] = 2.into();
    let load = scene.load(host, 50, Duration::from_secs(400))?;

    let before = scene.operator.requests()?;
    let begin = Instant::now();
    let release = Release::apply(&scene.namespace, &object)?;
    release.until_phase("Promoted", Duration::from_secs(300))?;
    let took = begin.elapsed();
    let at_the_end = scene.operator.requests()?;
    let tally = Tally::of(&load.stop()?);

    // Not a wait for something: the minute itself is what is measured.
    std::thread::sleep(IDLE);
    let after_a_minute = scene.operator.requests()?;
    let same_pod = scene.operator.until_ready(Duration::from_secs(30), |_| true)?;
    ensure!(
        same_pod == pod,
        "the operator was restarted, so its counters are not to be compared: {pod:?}, {same_pod:?}"
    );

    let (release, idle) = (at_the_end.since(&before), after_a_minute.since(&at_the_end));
    table.push((
        "five steps of 10 s, applied to Promoted",
        format!("{:.1} s", took.as_secs_f64()),
    ));
    table.push(("requests to the API server meanwhile", release.total().to_string()));
    table.push(("requests in the minute after", idle.total().to_string()));
    table.push(("answers to users meanwhile", tally.to_string()));
    write!(
        io::stderr(),
        "\nRequests of one release (verb, resource and code in the order of their labels' names):\n{}\n",
        release.table()
    )?;
    tally.all_well("during the five steps")?;
    ensure!(
        release.total() > 0,
        "the operator's counters stood still during a release, so they count nothing"
    );
    ensure!(
        release.total() <= MOST_REQUESTS,
        "one release took {} requests:\n{}",
        release.total(),
        release.table()
    );
    ensure!(
        idle.total() <= MOST_WHEN_IDLE,
        "the minute after a release took {} requests:\n{}",
        idle.total(),
        idle.table()
    );
    Ok(())
}

/// A release of the crashing version 2, in a namespace where version 3 has just been promoted.
fn time_to_roll_back(scene: &Scene) -> Result<Duration> {
    let pods = Watch::start(&scene.namespace, &["pods"])?;
    pods.until("a pod is seen", Duration::from_secs(30), |seen| {
        (!seen.is_empty()).then_some(())
    })?;
    let mut object = manifest(RELEASE)?;
    object["metadata"]["name"] = "crashing".into();
    scene
        .namespace
        .ask(&["delete", RESOURCE, "challenge-app", "--wait", "--timeout=60s"])?;
    let release = Release::apply(&scene.namespace, &object)?;
    let rolled_back = release.until_phase("RolledBack", Duration::from_secs(90))?;
    let visible = pods.until("CrashLoopBackOff is seen", Duration::from_secs(1), |seen| {
        let crashing = |pod: &&canary_e2e::watch::Seen| {
            pod.object["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        };
        seen.iter().find(crashing).map(|pod| pod.at)
    });
    let visible = visible.context("the release was rolled back for a crash that no pod shows")?;
    Ok(Duration::try_from(rolled_back.at.duration_since(visible)).unwrap_or_default())
}

/// The counters are for all releases together, and earlier runs may still be clearing up.
fn no_other_releases(scene: &Scene) -> Result<()> {
    until("there is no release in the cluster", Duration::from_secs(120), || {
        let others = scene
            .cluster
            .ask(&["get", RESOURCE, "--all-namespaces", "--output=name"])?;
        Ok(if others.is_empty() { Ok(()) } else { Err(others) })
    })
}
