//! A `CanaryRelease`: written, and read back as its users read it.

use std::{cell::Cell, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    namespace::Namespace,
    process::{attempt, output_of_input, until},
    watch::{Seen, Watch},
};

/// The resource, as `kubectl` knows it without doubt.
pub const RESOURCE: &str = "canaryreleases.canary-operator.dev";

/// Label on everything the operator made for a release.
pub const LABEL: &str = "canary-operator.dev/release";

/// Annotation with which people tell the operator what to do once.
pub const COMMAND: &str = "canary-operator.dev/command";

const CANARY: &str = "nginx.ingress.kubernetes.io/canary";
const CANARY_WEIGHT: &str = "nginx.ingress.kubernetes.io/canary-weight";

/// The parts of `status` that users look at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Which generation of the spec this answers.
    pub observed_generation: i64,
    /// One word.
    pub phase: String,
    /// Why it waits, and until when.
    pub message: String,
    /// Such as `2/5`.
    pub step: String,
    /// The weight in force.
    pub weight: String,
    /// Which version 2 this is about.
    pub revision: String,
    /// Where the release stands.
    pub rollout: Option<Rollout>,
    /// When the next step is due.
    pub next_advance_at: Option<Timestamp>,
    /// Image of version 1.
    pub stable_image: String,
    /// Image of version 2.
    pub canary_image: String,
    /// The canary's pods.
    pub canary_pods: Option<CanaryPods>,
    /// Where the checks stand.
    pub checks: Vec<Check>,
    /// The last releases, newest first.
    pub history: Vec<HistoryEntry>,
    /// The conditions.
    pub conditions: Vec<Condition>,
}

impl Status {
    /// The condition of this type where it is true.
    #[must_use]
    pub fn holds(&self, kind: &str) -> Option<&Condition> {
        self.condition(kind).filter(|condition| condition.status == "True")
    }

    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// What is being done; empty before a release starts.
    #[must_use]
    pub fn stage(&self) -> &str {
        self.rollout.as_ref().map_or("", |rollout| &rollout.stage)
    }

    /// The check of this name.
    #[must_use]
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }

    /// Whether the release waits for this reason, which `Ready` gives.
    #[must_use]
    pub fn waits_for(&self, reason: &str) -> bool {
        self.condition("Ready").is_some_and(|ready| ready.reason == reason)
    }

    /// Whether the release waits for somebody's approval.
    #[must_use]
    pub fn awaits_approval(&self) -> bool {
        self.phase == "Paused" && self.waits_for("AwaitingApproval")
    }
}

/// Where a release stands, as in `status.rollout`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// What is being done.
    pub stage: String,
}

/// The canary's pods, as in `status.canaryPods`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CanaryPods {
    /// Ready ones.
    pub ready: i32,
    /// Wanted ones.
    pub desired: i32,
    /// Why one does not run.
    pub reason: String,
    /// The last line it wrote.
    pub log: String,
}

/// An element of `status.checks`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// What the last window said: `Pass`, `Breach`, `NoData` or `Error`.
    pub verdict: String,
    /// The verdict in words.
    pub message: String,
    /// What the comparison with version 1 has gathered, one for each kind of failure.
    pub evidence: Vec<Evidence>,
}

/// An element of `status.checks[].evidence`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Evidence {
    /// Requests to version 2 that were judged.
    pub canary: u64,
    /// Those of them that failed.
    pub canary_failed: u64,
}

/// An element of `status.conditions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, as a word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Since when, to the second.
    pub last_transition_time: Option<Timestamp>,
}

/// An element of `status.history`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HistoryEntry {
    /// How it ended.
    pub outcome: String,
    /// Why, as a word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Image of version 1.
    pub stable_image: String,
    /// Image of version 2.
    pub canary_image: String,
    /// The weights that were in force.
    pub reached: Vec<Reached>,
}

impl HistoryEntry {
    /// The weights that were in force, in order.
    #[must_use]
    pub fn weights(&self) -> Vec<String> {
        self.reached.iter().map(Reached::weight).collect()
    }
}

/// An element of `status.history[].reached`.
#[derive(Clone, Debug, Deserialize)]
pub struct Reached {
    /// An integer, or a decimal as a string.
    weight: Value,
    /// Since when, to the second.
    pub at: Timestamp,
}

impl Reached {
    /// The weight as people write it.
    #[must_use]
    pub fn weight(&self) -> String {
        self.weight
            .as_str()
            .map_or_else(|| self.weight.to_string(), str::to_owned)
    }
}

/// A release at one moment.
#[derive(Clone, Debug)]
pub struct Moment {
    /// When it was seen.
    pub at: Timestamp,
    /// Generation of its spec.
    pub generation: i64,
    /// Its status, where it has one.
    pub status: Status,
}

impl Moment {
    fn of(seen: &Seen) -> Result<Self> {
        let status = match &seen.object["status"] {
            Value::Null => Status::default(),
            status => Status::deserialize(status).with_context(|| format!("cannot read the status {status}"))?,
        };
        Ok(Self {
            at: seen.at,
            generation: seen.object["metadata"]["generation"].as_i64().unwrap_or_default(),
            status,
        })
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let Status {
            phase,
            step,
            weight,
            message,
            ..
        } = &self.status;
        format!("{phase} step {step} weight {weight}: {message}")
    }
}

/// When the weight's hold begins to count, where this weight is in force.
#[must_use]
pub fn live_at(moment: &Moment, weight: &str, hold: Duration) -> Option<Timestamp> {
    let due = moment
        .status
        .next_advance_at
        .filter(|_| moment.status.weight == weight)?;
    // The time is told to the second, so that it may be up to a second early.
    Some(due - hold + Duration::from_secs(1))
}

/// The release as it is now, asked anew: a watch does not outlive the API server. Nothing where nobody answers.
pub fn asked(namespace: &Namespace, name: &str) -> Result<Option<Moment>> {
    let ended = attempt(
        &mut namespace.kubectl(&["get", RESOURCE, name, "--output=json", "--request-timeout=5s"]),
        "",
    )?;
    if !ended.success {
        return Ok(None);
    }
    let seen = Seen {
        at: Timestamp::now(),
        gone: false,
        object: serde_json::from_str(&ended.stdout)?,
    };
    Moment::of(&seen).map(Some)
}

/// Waits so for a moment for which `wanted` holds.
pub fn asked_until(
    namespace: &Namespace,
    name: &str,
    what: &str,
    within: Duration,
    wanted: impl Fn(&Moment) -> bool,
) -> Result<Moment> {
    until(what, within, || {
        Ok(match asked(namespace, name)? {
            Some(moment) if wanted(&moment) => Ok(moment),
            Some(moment) => Err(moment.line()),
            None => Err("the API server does not answer".to_owned()),
        })
    })
}

/// A release under observation, from before it exists.
///
/// The waits follow one another: each starts at the moment the one before found, so that a state that lasts a
/// blink is not missed. Only moments in which the status answers the spec applied last are considered.
pub struct Release<'a> {
    namespace: &'a Namespace,
    name: String,
    watch: Watch,
    generation: Cell<i64>,
    /// How many changes of the watch the waits have left behind.
    passed: Cell<usize>,
}

/// The phases in which nothing more happens by itself.
const LAST_PHASES: [&str; 3] = ["Promoted", "RolledBack", "Stalled"];

impl<'a> Release<'a> {
    /// Observes the release `name`, and then applies it.
    pub fn apply(namespace: &'a Namespace, object: &Value) -> Result<Self> {
        let name = object["metadata"]["name"]
            .as_str()
            .context("the release has no name")?
            .to_owned();
        let watch = Watch::start(
            namespace,
            &[RESOURCE, &format!("--field-selector=metadata.name={name}")],
        )?;
        let release = Self {
            namespace,
            name,
            watch,
            generation: Cell::new(0),
            passed: Cell::new(0),
        };
        release.apply_again(object)?;
        Ok(release)
    }

    /// Applies an edited version.
    pub fn apply_again(&self, object: &Value) -> Result<()> {
        let mut command = self
            .namespace
            .kubectl(&["apply", "--request-timeout=30s", "--output=json", "-f", "-"]);
        let applied: Value = serde_json::from_str(&output_of_input(&mut command, &object.to_string())?)?;
        let generation = applied["metadata"]["generation"]
            .as_i64()
            .context("the applied release has no generation")?;
        self.generation.set(generation);
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every moment seen so far.
    pub fn moments(&self) -> Result<Vec<Moment>> {
        self.watch.seen().iter().map(Moment::of).collect()
    }

    /// The moment seen last.
    pub fn latest(&self) -> Result<Option<Moment>> {
        self.watch.still_runs()?;
        self.watch.look(|seen| seen.last().map(Moment::of)).transpose()
    }

    /// Waits for a moment for which `wanted` holds; an error at once where the release ends otherwise before.
    pub fn until(&self, what: &str, within: Duration, wanted: impl Fn(&Moment) -> bool) -> Result<Moment> {
        self.until_unless(what, within, &LAST_PHASES, wanted)
    }

    /// The same for a release that is stalled and about to be helped.
    pub fn until_even_from_stalled(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Moment) -> bool,
    ) -> Result<Moment> {
        self.until_unless(what, within, &["Promoted", "RolledBack"], wanted)
    }

    /// The same for a release that has ended and was told to start again.
    pub fn until_even_from_the_end(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Moment) -> bool,
    ) -> Result<Moment> {
        self.until_unless(what, within, &[], wanted)
    }

    fn until_unless(
        &self,
        what: &str,
        within: Duration,
        ends: &[&str],
        wanted: impl Fn(&Moment) -> bool,
    ) -> Result<Moment> {
        let found = self
            .watch
            .until(what, within, |seen| self.next(seen, what, ends, &wanted).transpose());
        found.and_then(|found| found).with_context(|| {
            let last = self.watch.look(|seen| seen.last().map(Moment::of));
            format!(
                "the release's last state: {}",
                last.map_or_else(
                    || "none".to_owned(),
                    |last| last.map_or_else(|error| error.to_string(), |moment| moment.line())
                )
            )
        })
    }

    /// The same without waiting: the next moment for which `wanted` holds, if it has come already.
    pub fn poll(&self, what: &str, wanted: impl Fn(&Moment) -> bool) -> Result<Option<Moment>> {
        self.watch.still_runs()?;
        self.watch.look(|seen| self.next(seen, what, &LAST_PHASES, &wanted))
    }

    /// Goes on through `seen` to the next moment for which `wanted` holds.
    fn next(
        &self,
        seen: &[Seen],
        what: &str,
        ends: &[&str],
        wanted: &impl Fn(&Moment) -> bool,
    ) -> Result<Option<Moment>> {
        let generation = self.generation.get();
        while let Some(next) = seen.get(self.passed.get()) {
            let moment = Moment::of(next)?;
            if moment.generation >= generation && moment.status.observed_generation >= generation {
                if wanted(&moment) {
                    return Ok(Some(moment));
                }
                if next.gone || ends.contains(&moment.status.phase.as_str()) {
                    let end = if next.gone { "is gone" } else { "ended" };
                    bail!("the release {end} before {what}: {}", moment.line());
                }
            }
            self.passed.set(self.passed.get() + 1);
        }
        Ok(None)
    }

    /// Waits for this phase.
    pub fn until_phase(&self, phase: &str, within: Duration) -> Result<Moment> {
        self.until(&format!("the phase is {phase}"), within, |moment| {
            moment.status.phase == phase
        })
    }

    /// Waits until this weight is in force and has had its time to reach every ingress controller; the moment is when
    /// its hold began to count.
    ///
    /// The operator tells when the next step is due, and a hold counts only from when the weight is live: so it is
    /// live `hold` before that.
    pub fn until_live(&self, weight: &str, hold: Duration, within: Duration) -> Result<Moment> {
        let written = self.until(&format!("the weight {weight} is in force"), within, |moment| {
            live_at(moment, weight, hold).is_some()
        })?;
        let at = live_at(&written, weight, hold).unwrap_or(written.at);
        thread::sleep(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        Ok(Moment { at, ..written })
    }

    /// Waits until this is being done.
    pub fn until_stage(&self, stage: &str, within: Duration) -> Result<Moment> {
        self.until(&format!("the stage is {stage}"), within, |moment| {
            moment.status.stage() == stage
        })
    }

    /// Waits until this step, such as `1/4`, waits for approval.
    pub fn until_awaiting_approval(&self, step: &str, within: Duration) -> Result<Moment> {
        self.until(&format!("step {step} awaits approval"), within, |moment| {
            moment.status.step == step && moment.status.awaits_approval()
        })
    }

    /// Approves the step that waits at `moment`.
    pub fn approve(&self, moment: &Moment) -> Result<()> {
        let (step, _) = moment.status.step.split_once('/').context("there is no step")?;
        self.command(&format!("approve/{}/{step}", moment.status.revision))
    }

    /// Gives the operator a command, such as `abort/REVISION`, and waits until it has taken it.
    pub fn command(&self, command: &str) -> Result<()> {
        let annotation = format!("{COMMAND}={command}");
        self.namespace
            .ask(&["annotate", RESOURCE, &self.name, "--overwrite", &annotation])?;
        until(
            &format!("the operator takes the command {command}"),
            Duration::from_secs(30),
            || {
                let object = self.namespace.get(&[RESOURCE, &self.name])?;
                Ok(match object["metadata"]["annotations"][COMMAND].as_str() {
                    None => Ok(()),
                    Some(left) => Err(format!("the annotation {left} is still there")),
                })
            },
        )
    }

    /// What `kubectl get canaryrelease` shows: the heads of the columns, and the row.
    pub fn columns(&self) -> Result<(Vec<String>, String)> {
        let shown = self.namespace.ask(&["get", RESOURCE, &self.name])?;
        let mut lines = shown.lines();
        let (Some(heads), Some(row)) = (lines.next(), lines.next()) else {
            bail!("kubectl get shows only: {shown}")
        };
        Ok((heads.split_whitespace().map(str::to_owned).collect(), row.to_owned()))
    }

    /// The operator's events about this release, oldest first.
    pub fn events(&self) -> Result<Vec<Event>> {
        events(self.namespace, &self.name)
    }

    /// Deletes it, and waits until it is gone.
    pub fn delete(&self, within: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        crate::process::output(
            &mut self
                .namespace
                .kubectl(&["delete", RESOURCE, &self.name, "--wait", &timeout]),
        )?;
        Ok(())
    }
}

/// An event about a release.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it was recorded.
    pub at: Timestamp,
    /// Why, as a word.
    pub reason: String,
    /// What happened, for people.
    pub note: String,
    /// How often it happened.
    pub count: u64,
}

impl Event {
    /// Reads an `events.k8s.io/v1` Event.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // eventTime where the writer uses the new interface, the old fields where not.
        let times = [
            &object["eventTime"],
            &object["deprecatedFirstTimestamp"],
            &object["metadata"]["creationTimestamp"],
        ];
        let at = times
            .iter()
            .find_map(|time| time.as_str()?.parse().ok())
            .unwrap_or_default();
        let count = object["series"]["count"]
            .as_u64()
            .or(object["deprecatedCount"].as_u64())
            .unwrap_or(1)
            .max(1);
        Self {
            at,
            reason: text(&object["reason"]),
            note: text(&object["note"]),
            count,
        }
    }
}

/// How `kubectl get` is asked for the events about the release `name`.
#[must_use]
pub fn event_args(name: &str) -> [String; 2] {
    [
        "events.events.k8s.io".to_owned(),
        format!("--field-selector=regarding.kind=CanaryRelease,regarding.name={name}"),
    ]
}

fn events(namespace: &Namespace, name: &str) -> Result<Vec<Event>> {
    let args = event_args(name);
    let list = namespace.get(&args.each_ref().map(String::as_str))?;
    let mut events: Vec<_> = list["items"].as_array().into_iter().flatten().map(Event::of).collect();
    events.sort_by_key(|event| event.at);
    Ok(events)
}

/// What a canary Ingress said, and when that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSeen {
    /// When it was seen.
    pub at: Timestamp,
    /// Name of the Ingress.
    pub ingress: String,
    /// Its weight; none once it is gone.
    pub weight: Option<String>,
}

/// The canary Ingresses in everything a watch of Ingresses saw: each change of a weight, in order.
#[must_use]
pub fn weights_seen(seen: &[Seen]) -> Vec<WeightSeen> {
    let mut weights: Vec<WeightSeen> = Vec::new();
    for change in seen.iter().filter(|change| change.annotation(CANARY) == Some("true")) {
        let weight = (!change.gone).then(|| change.annotation(CANARY_WEIGHT).unwrap_or("0").to_owned());
        let before = weights.iter().rfind(|earlier| earlier.ingress == change.name());
        if before.is_none_or(|before| before.weight != weight) {
            weights.push(WeightSeen {
                at: change.at,
                ingress: change.name().to_owned(),
                weight,
            });
        }
    }
    weights
}

/// A watch of the namespace's Ingresses that has begun to see: the stable one is there already.
pub fn watch_ingresses(namespace: &Namespace) -> Result<Watch> {
    let watch = Watch::start(namespace, &["ingresses"])?;
    watch.until("the stable Ingress is seen", Duration::from_secs(30), |seen| {
        (!seen.is_empty()).then_some(())
    })?;
    Ok(watch)
}

/// The weights that canary Ingresses carried one after another, `-` for gone.
pub fn weights(watch: &Watch) -> Result<Vec<String>> {
    watch.still_runs()?;
    Ok(weights_seen(&watch.seen())
        .into_iter()
        .map(|seen| seen.weight.unwrap_or_else(|| "-".to_owned()))
        .collect())
}

/// Waits until nothing that the operator made for a release is left.
pub fn nothing_of_the_canary_left(namespace: &Namespace) -> Result<()> {
    const KINDS: &str = "deployments,replicasets,pods,services,endpointslices,ingresses";
    // The garbage collector and the kubelet take their time after the Deployment has gone.
    until("nothing of the canary is left", Duration::from_secs(60), || {
        let left = namespace.names(KINDS, LABEL)?;
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join(", ")) })
    })
}

/// An error where a canary Ingress changed its weight between these times.
pub fn weight_stood_still(watch: &Watch, from: Timestamp, to: Timestamp, during: &str) -> Result<()> {
    watch.still_runs()?;
    let changed = |seen: &WeightSeen| (from..=to).contains(&seen.at);
    let changes: Vec<_> = weights_seen(&watch.seen()).into_iter().filter(changed).collect();
    ensure!(changes.is_empty(), "the weight changed {during}: {changes:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ingress(canary: bool, weight: &str, gone: bool) -> Seen {
        let annotations = if canary {
            json!({CANARY: "true", CANARY_WEIGHT: weight})
        } else {
            json!({})
        };
        let object = json!({"metadata": {"name": "app-canary", "annotations": annotations}});
        Seen {
            at: Timestamp::UNIX_EPOCH,
            gone,
            object,
        }
    }

    #[test]
    fn only_changes_of_canary_weights_are_told() {
        let seen = [
            ingress(false, "", false),
            ingress(true, "0", false),
            ingress(true, "30", false),
            ingress(true, "30", false),
            ingress(true, "30", true),
        ];
        let weights: Vec<_> = weights_seen(&seen).into_iter().map(|seen| seen.weight).collect();
        assert_eq!(weights, [Some("0".to_owned()), Some("30".to_owned()), None]);
    }

    #[test]
    fn a_status_is_read_with_weights_of_both_kinds() {
        let object = json!({"metadata": {"generation": 2}, "status": {
            "observedGeneration": 2, "phase": "Promoted", "weight": "0",
            "conditions": [{"type": "Ready", "status": "True", "reason": "Promoted", "message": "", "lastTransitionTime": "2026-03-01T10:00:00Z"}],
            "history": [{"outcome": "Promoted", "reason": "StepsDone", "message": "…", "reached": [
                {"weight": "0.01", "at": "2026-03-01T10:00:00Z"}, {"weight": 30, "at": "2026-03-01T10:00:20Z"}]}],
        }});
        let moment = Moment::of(&Seen {
            at: Timestamp::UNIX_EPOCH,
            gone: false,
            object,
        })
        .unwrap();
        assert_eq!(moment.status.history[0].weights(), ["0.01", "30"]);
        assert!(moment.status.holds("Ready").is_some() && moment.status.holds("Stalled").is_none());
    }

    #[test]
    fn a_weight_is_live_its_hold_before_the_next_step_is_due() {
        let object =
            json!({"metadata": {"generation": 1}, "status": {"weight": "30", "nextAdvanceAt": "2026-03-01T10:01:00Z"}});
        let moment = Moment::of(&Seen {
            at: Timestamp::UNIX_EPOCH,
            gone: false,
            object,
        })
        .unwrap();
        assert_eq!(
            live_at(&moment, "30", Duration::from_secs(40)),
            Some("2026-03-01T10:00:21Z".parse().unwrap())
        );
        assert_eq!(live_at(&moment, "60", Duration::from_secs(40)), None);
    }

    #[test]
    fn a_release_without_a_status_is_read_too() {
        let object = json!({"metadata": {"generation": 1}});
        let moment = Moment::of(&Seen {
            at: Timestamp::UNIX_EPOCH,
            gone: false,
            object,
        })
        .unwrap();
        assert_eq!((moment.generation, moment.status.observed_generation), (1, 0));
    }
}
