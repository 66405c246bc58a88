//! The operator dies after any of its writes: the API server's answer has come, and nobody learns of it.

use std::{
    fs,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use canary_e2e::{
    app::App,
    audit::Log,
    cluster::Cluster,
    load::{Load, Tally},
    local::{Away, CLOCK_OFFSET, DIE_AFTER_WRITE, Nest},
    namespace::Namespace,
    release::{COMMAND, RESOURCE, Release, nothing_of_the_canary_left, watch_ingresses, weights},
    scene::{Outcome, play},
    trial::tell,
};
use serde_json::{Value, json};

/// From the application of a release until its end, however many processes it takes.
const LONGEST: Duration = Duration::from_secs(300);
const RATE: u32 = 20;
/// Releases beside each other: they mostly wait.
const AT_ONCE: usize = 8;

/// What is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version2 {
    /// It is promoted.
    Good,
    /// Somebody aborts it in its second step.
    Aborted,
    /// Every fifth of its answers is an error: it is rolled back.
    Failing,
}

/// How long the operators of a release live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// To the end.
    Whole,
    /// The first dies after this write of its own.
    Until(u64),
    /// Each dies after its first write.
    OneWrite,
    /// To the end, and the wall clock is set by so many seconds in the middle of the first step.
    Set(i64),
}

/// How a release ended.
#[derive(Debug, PartialEq, Eq)]
struct End {
    outcome: String,
    reason: String,
    weights: Vec<String>,
}

impl Version2 {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Aborted => "aborted",
            Self::Failing => "failing",
        }
    }

    fn spec(self, app: &App) -> Value {
        let steps = match self {
            Self::Good => json!([{"weight": 20, "hold": "2s"}, {"weight": 50, "hold": "2s"}]),
            Self::Aborted => json!([{"weight": 20, "hold": "2s"}, {"weight": 50, "hold": "10m"}]),
            Self::Failing => json!([{"weight": 50, "hold": "60s"}]),
        };
        let mut release = app.release_of_v3(json!({"steps": steps}));
        if self == Self::Failing {
            release["spec"]["canary"] = app.version_three(&[("ERROR_RATE", "0.2")]);
        }
        release
    }

    fn end(self) -> End {
        let (outcome, reason, weights): (_, _, &[&str]) = match self {
            Self::Good => ("Promoted", "Promoted", &["20", "50", "100"]),
            Self::Aborted => ("Aborted", "Aborted", &["20", "50"]),
            Self::Failing => ("RolledBack", "ErrorRegression", &["50"]),
        };
        End {
            outcome: outcome.to_owned(),
            reason: reason.to_owned(),
            weights: weights.iter().map(|weight| (*weight).to_owned()).collect(),
        }
    }
}

/// At which weight somebody interferes with a release: with its clock, or with itself.
fn meddles(version: Version2, life: Life) -> Option<&'static str> {
    match (version, life) {
        (_, Life::Set(_)) => Some("20"),
        (Version2::Aborted, _) => Some("50"),
        _ => None,
    }
}

/// What a release took.
#[derive(Clone, Copy, Debug)]
struct Played {
    /// How often its operators died.
    deaths: u64,
    /// How many writes they made, by the audit log.
    writes: usize,
}

/// Plays one release in a namespace of its own.
fn released(cluster: &'static Cluster, version: Version2, life: Life) -> Result<Played> {
    let scenario = match life {
        Life::Whole => format!("{}-whole", version.name()),
        Life::Until(write) => format!("{}-{write}", version.name()),
        Life::OneWrite => format!("{}-one", version.name()),
        Life::Set(by) => format!("{}-clock-{}", version.name(), if by < 0 { "back" } else { "forward" }),
    };
    let namespace = Namespace::create(cluster, &scenario)?;
    let host = format!("{}.test", namespace.name());
    let app = App::new("shop", &host);
    app.deploy(&namespace)?;
    let nest = Nest::in_namespace(&namespace)?;
    let ingresses = watch_ingresses(&namespace)?;
    let load = Load::start(cluster, &host, RATE, LONGEST + Duration::from_secs(60))?;
    let release = Release::apply(&namespace, &version.spec(&app))?;

    let dies_after = |write: u64| match write {
        0 => nest.start(&[]),
        write => nest.start(&[(DIE_AFTER_WRITE, &write.to_string())]),
    };
    let offset = nest.file("clock");
    let mut operator = match life {
        Life::Whole => dies_after(0),
        Life::Until(write) => dies_after(write),
        Life::OneWrite => dies_after(1),
        Life::Set(_) => nest.start(&[(CLOCK_OFFSET, &*offset.to_string_lossy())]),
    }?;
    let (deadline, mut deaths, mut meddled) = (Instant::now() + LONGEST, 0, false);
    let ended = loop {
        if operator.has_died()? {
            deaths += 1;
            nest.free_the_lease()?;
            operator = dies_after(u64::from(life == Life::OneWrite))?;
        }
        let over = |phase: &str| ["Promoted", "RolledBack"].contains(&phase);
        let to_meddle = |weight: &str| !meddled && meddles(version, life) == Some(weight);
        let wanted = release.poll("the release has ended", |moment| {
            over(&moment.status.phase) || to_meddle(&moment.status.weight)
        })?;
        match (wanted, life) {
            (Some(moment), _) if over(&moment.status.phase) => break moment,
            (Some(_), Life::Set(by)) => {
                fs::write(&offset, by.to_string())?;
                meddled = true;
            }
            (Some(moment), _) => {
                let abort = format!("{COMMAND}=abort/{}", moment.status.revision);
                namespace.ask(&["annotate", RESOURCE, release.name(), &abort])?;
                meddled = true;
            }
            (None, _) => {}
        }
        ensure!(
            Instant::now() < deadline,
            "{} deaths, and it has not ended after {LONGEST:?}: {:?}",
            deaths,
            release.latest()?.map(|moment| moment.line())
        );
        thread::sleep(Duration::from_millis(20));
    };
    nothing_of_the_canary_left(&namespace)?;

    let entry = ended.status.history.first().context("status.history is empty")?;
    let end = End {
        outcome: entry.outcome.clone(),
        reason: entry.reason.clone(),
        weights: entry.weights(),
    };
    let expected = version.end();
    // Whoever died between the canary Ingress's deletion and the status took the verdict with him.
    let expected = match &*end.reason {
        "CanaryIngressGone" if version == Version2::Failing && deaths > 0 => End {
            reason: end.reason.clone(),
            ..expected
        },
        _ => expected,
    };
    ensure!(
        end == expected && ended.status.history.len() == 1,
        "it ended as {:?}",
        ended.status.history
    );
    let shown: Vec<_> = weights(&ingresses)?
        .into_iter()
        .filter(|weight| weight != "0")
        .collect();
    ensure!(
        shown[..shown.len().saturating_sub(1)] == end.weights && shown.last().is_some_and(|last| last == "-"),
        "the canary Ingress carried {shown:?}"
    );
    let answers = load.stop()?;
    let tally = match version {
        Version2::Good | Version2::Aborted => Tally::of(&answers),
        // Its own failures are what it is rolled back for.
        Version2::Failing => Tally::of(answers.iter().filter(|answer| answer.version.as_deref() != Some("v3"))),
    };
    tally.all_well("from before the release until after its end")?;
    if let Life::Set(_) = life {
        let log = operator.stop(Duration::from_secs(30))?;
        ensure!(
            log.contains("the machine's clock was set"),
            "the operator's clock was not set: {log}"
        );
    }
    let mut writes = 0;
    if let Some(log) = Log::of(cluster)? {
        let log = log.within(namespace.name());
        log.judged()
            .all_well(&["canary Ingresses", "canary Deployments and Services", "statuses"])?;
        writes = log.of_operators().count();
    }
    // The chart's operator will see it off.
    namespace.delete()?;
    Ok(Played { deaths, writes })
}

#[test]
fn a_release_ends_as_if_nothing_had_happened_though_the_operator_dies_after_every_write() -> Outcome {
    play("every-write", |scene| {
        let _away = Away::send(scene.cluster)?;
        let jobs = [Version2::Good, Version2::Aborted].map(|version| (version, Life::OneWrite));
        for ((version, _), played) in all(scene.cluster, &jobs, jobs.len())? {
            tell(&format!(
                "{version:?}: {} writes, {} deaths",
                played.writes, played.deaths
            ))?;
            ensure!(played.deaths >= 10, "{} deaths prove little", played.deaths);
        }
        Ok(())
    })
}

/// The time that passes is told by the API server's audit log: of a hold that ends an hour early, that knows.
#[test]
fn a_wall_clock_that_is_set_by_an_hour_neither_hastens_nor_delays_a_release() -> Outcome {
    play("clock", |scene| {
        let _away = Away::send(scene.cluster)?;
        let jobs = [3_600, -3_600].map(|by| (Version2::Good, Life::Set(by)));
        all(scene.cluster, &jobs, jobs.len()).map(drop)
    })
}

#[test]
#[ignore = "a quarter of an hour: make e2e-long"]
fn a_release_ends_as_if_nothing_had_happened_wherever_the_operator_dies_once() -> Outcome {
    play("some-write", |scene| {
        let _away = Away::send(scene.cluster)?;
        let whole = [Version2::Good, Version2::Aborted, Version2::Failing].map(|version| (version, Life::Whole));
        let mut jobs = Vec::new();
        for ((version, _), played) in all(scene.cluster, &whole, whole.len())? {
            tell(&format!("{version:?}: {} writes", played.writes))?;
            ensure!(played.writes >= 10, "{version:?} takes only {} writes", played.writes);
            jobs.extend((1..=played.writes).map(|write| (version, Life::Until(write as u64))));
        }
        let all = all(scene.cluster, &jobs, AT_ONCE)?;
        // When pods become ready is not the same every time, and a write more or less with it.
        let spared = all.iter().filter(|(_, played)| played.deaths != 1).count();
        tell(&format!("{} releases, in {spared} of which nobody died", all.len()))?;
        ensure!(
            spared <= jobs.len() / 10,
            "in {spared} of {} releases nobody died",
            jobs.len()
        );
        Ok(())
    })
}

type Job = (Version2, Life);

/// Plays these releases, so many at the same time.
fn all(cluster: &'static Cluster, jobs: &[Job], at_once: usize) -> Result<Vec<(Job, Played)>> {
    let (left, done, faults) = (Mutex::new(jobs.iter()), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((version, life)) = next(&left) {
                    match released(cluster, *version, *life) {
                        Ok(played) => push(&done, ((*version, *life), played)),
                        Err(error) => push(&faults, format!("{version:?}, {life:?}: {error:#}")),
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn next<T>(left: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    left.lock().unwrap_or_else(PoisonError::into_inner).next()
}

fn push<T>(list: &Mutex<Vec<T>>, element: T) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(element);
}
