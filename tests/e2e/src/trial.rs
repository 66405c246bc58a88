//! Version 1 of an application and a release of its version 3, judged under constant traffic.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    app::App,
    load::{Load, Tally, sent_between},
    release::{Moment, Release, nothing_of_the_canary_left, watch_ingresses, weights},
    scene::{Outcome, Scene, play},
    watch::Watch,
};

/// Requests a second.
pub const RATE: u32 = 50;
/// A version's time to get its first weight.
pub const TO_BE_LIVE: Duration = Duration::from_secs(90);
/// A release's time from its last step to its end.
pub const TO_END: Duration = Duration::from_secs(150);
const LONGEST: Duration = Duration::from_secs(600);
/// For which a release that is held is watched.
const HELD: Duration = Duration::from_secs(10);

/// Variables in a version's environment.
pub type Env = [(&'static str, &'static str)];

/// A release under way.
pub struct Trial<'a> {
    /// Where it is played.
    pub scene: &'a Scene,
    /// Host of version 1's Ingress.
    pub host: String,
    /// The release as it was applied.
    pub object: Value,
    /// Everything that happens to the Ingresses.
    pub ingresses: Watch,
    /// The release.
    pub release: Release<'a>,
}

/// Plays a release of version 3 without traffic: version 1 has the first environment, version 3 the second on top.
pub fn quiet(name: &str, (v1, v2): (&Env, &Env), spec: Value, story: impl FnOnce(&Trial<'_>) -> Result<()>) -> Outcome {
    play(name, |scene| {
        let host = scene.host();
        let app = App::new("shop", &host);
        let app = v1.iter().fold(app, |app, (name, value)| app.with_env(name, value));
        app.deploy(&scene.namespace)?;
        let ingresses = watch_ingresses(&scene.namespace)?;
        let mut object = app.release_of_v3(spec);
        object["spec"]["canary"] = app.version_three(v2);
        let trial = Trial {
            scene,
            release: Release::apply(&scene.namespace, &object)?,
            host,
            object,
            ingresses,
        };
        story(&trial)?;
        nothing_of_the_canary_left(&scene.namespace)
    })
}

/// The same with [`RATE`] requests a second from the start to the end.
pub fn trial(
    name: &str,
    versions: (&Env, &Env),
    spec: Value,
    story: impl FnOnce(&Trial<'_>, &Load) -> Result<()>,
) -> Outcome {
    quiet(name, versions, spec, |trial| {
        let load = trial.load()?;
        story(trial, &load)?;
        load.still_runs()
    })
}

impl Trial<'_> {
    /// [`RATE`] requests a second.
    pub fn load(&self) -> Result<Load> {
        self.scene.load(&self.host, RATE, LONGEST)
    }

    /// Waits for the rollback for this reason; the history's message says these words.
    pub fn rolled_back(&self, reason: &str, words: &[&str]) -> Result<Moment> {
        let ended = self.release.until_phase("RolledBack", TO_END)?;
        let entry = ended.status.history.first().context("status.history is empty")?;
        ensure!(
            (&*entry.outcome, &*entry.reason) == ("RolledBack", reason),
            "status.history begins with {entry:?}"
        );
        says(&entry.message, words)?;
        Ok(ended)
    }

    /// Waits for the promotion.
    pub fn promoted(&self) -> Result<Moment> {
        let ended = self.release.until_phase("Promoted", TO_END)?;
        let history = &ended.status.history;
        let outcomes: Vec<_> = history.iter().map(|entry| &*entry.outcome).collect();
        ensure!(outcomes == ["Promoted"], "status.history is {history:?}");
        Ok(ended)
    }

    /// Waits until the release is held for this reason.
    pub fn held(&self, reason: &str) -> Result<Moment> {
        self.release
            .until(&format!("it is held for {reason}"), TO_END, |moment| {
                moment.status.phase == "Holding" && moment.status.waits_for(reason)
            })
    }

    /// The same, and the condition `Analysed` says that it is not known whether version 2 is sound, for this reason.
    pub fn held_unanalysed(&self, reason: &str) -> Result<Moment> {
        let held = self.held(reason)?;
        let analysed = held
            .status
            .condition("Analysed")
            .context("there is no condition Analysed")?;
        ensure!(
            (&*analysed.status, &*analysed.reason) == ("Unknown", reason),
            "Analysed is {analysed:?}"
        );
        Ok(held)
    }

    /// Waits for requests long after the release was held for this reason at this weight; an error where it is not any more.
    pub fn stays_held(&self, reason: &str, weight: &str, load: &Load) -> Result<()> {
        let long_after = Timestamp::now() + HELD;
        load.until("requests have come for a while", TO_END, |answers| {
            answers.last().is_some_and(|last| last.sent > long_after)
        })?;
        let latest = self.release.latest()?.context("the release was not seen")?;
        ensure!(
            latest.status.phase == "Holding" && latest.status.waits_for(reason),
            "it is held no longer: {}",
            latest.line()
        );
        self.never_beyond(weight)
    }

    /// An error where the canary Ingress carried another weight than 0 and this one so far.
    pub fn never_beyond(&self, weight: &str) -> Result<()> {
        let all = weights(&self.ingresses)?;
        let others: Vec<_> = all
            .iter()
            .filter(|seen| !["0", weight, "-"].contains(&&***seen))
            .collect();
        ensure!(
            others.is_empty() && all.iter().any(|seen| seen == weight),
            "the canary Ingress carried {all:?} instead of {weight} alone"
        );
        Ok(())
    }
}

/// An error where the message lacks some of these words.
pub fn says(message: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|words| !message.contains(**words)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not in: {message}");
    Ok(())
}

/// What requests met version 3.
#[derive(Clone, Debug)]
pub struct Exposure {
    /// From when the first of them was sent until the last was.
    pub length: Duration,
    /// All of them.
    pub requests: u32,
    /// Those that failed.
    pub failed: u32,
}

impl Exposure {
    /// Of the requests sent since `from`.
    pub fn since(from: Timestamp, load: &Load) -> Result<Self> {
        load.look(|answers| {
            let since = sent_between(answers, from, Timestamp::MAX);
            let met: Vec<_> = since.filter(|answer| answer.version.as_deref() == Some("v3")).collect();
            let sent = || met.iter().map(|answer| answer.sent);
            let (first, last) = sent().min().zip(sent().max()).context("no request met version 3")?;
            let tally = Tally::of(met.iter().copied());
            Ok(Self {
                length: last.duration_since(first).unsigned_abs(),
                requests: tally.total,
                failed: tally.failed,
            })
        })
    }
}

/// For people: past the test harness, which swallows what a passing test prints.
pub fn tell(measured: &str) -> Result<()> {
    Ok(writeln!(io::stderr(), "MEASURED: {measured}")?)
}
