//! Objects as the API server stores them, in a form that states can be made of: what differs only in names of versions, in
//! moments long past or in words for people is the same.

use canary_operator::{
    api::conditions::READY,
    rehearse::json::{int, items, map, remove, set, text},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock},
};

/// The unit of time: as long as a written weight may take to reach nginx.
pub const TICK: SignedDuration = SignedDuration::from_secs(30);

/// The present of every state: time passes by moments moving into the past.
pub fn now() -> Timestamp {
    Timestamp::from_second(1_767_600_000).unwrap()
}

/// The moment so many ticks ago.
pub fn ago(ticks: i32) -> Timestamp {
    now() - TICK * ticks
}

/// JSON with a digest, by which it is compared.
#[derive(Clone)]
pub struct Object(Arc<(u64, Value)>);

impl Object {
    pub fn new(value: Value) -> Self {
        Self(Arc::new((digest(&value.to_string()), value)))
    }

    pub fn value(&self) -> &Value {
        &self.0.1
    }

    /// The object with another value.
    pub fn with(&self, change: impl FnOnce(&mut Value)) -> Self {
        let mut value = self.value().clone();
        change(&mut value);
        Self::new(value)
    }
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.0.0 == other.0.0
    }
}

impl Eq for Object {}

impl Hash for Object {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.0);
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.value())
    }
}

/// The same in every run for the same.
pub fn digest(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// The object as it is read, at one of two versions: the newest, or the one before that.
pub fn versioned(value: &Value, version: &str) -> Value {
    let mut value = value.clone();
    set(&mut value, "/metadata/resourceVersion", json!(version));
    value
}

/// The moments of whole ticks, as they are written: to the second, and to the microsecond.
static MOMENTS: LazyLock<HashMap<String, i32>> = LazyLock::new(|| {
    let written = |ticks| {
        let second = ago(ticks).to_string();
        let micros = second.replace('Z', ".000000Z");
        [(second, ticks), (micros, ticks)]
    };
    (-10..10).flat_map(written).collect()
});

/// How many ticks ago; negative for what is to come.
pub fn age(at: &str) -> i32 {
    MOMENTS.get(at).copied().unwrap_or_else(|| {
        let at: Timestamp = at.parse().unwrap();
        let seconds = now().duration_since(at).as_secs();
        i32::try_from(seconds.div_euclid(TICK.as_secs())).unwrap()
    })
}

/// The moment so many ticks ago, as it is written.
fn written(ticks: i32) -> Value {
    static WRITTEN: LazyLock<Vec<Value>> =
        LazyLock::new(|| (-10..10).map(|ticks| json!(ago(ticks).to_string())).collect());
    WRITTEN[usize::try_from(ticks + 10).unwrap()].clone()
}

/// Every moment that decisions read, with how many ticks of it make a difference.
fn moments(release: &Value) -> Vec<(String, i32)> {
    let stage = text(release, "/status/rollout/stage");
    let deleting = release.pointer("/metadata/deletionTimestamp").is_some();
    let aborted = text(release, "/status/rollout/outcome") == "Aborted";
    let mut moments = vec![
        // Two minutes' patience, and the settle time where nothing was recorded.
        ("/metadata/deletionTimestamp".to_owned(), 5),
        // The progress deadline; a deletion counts its patience and a settle time from here.
        (
            "/status/rollout/waitingSince".to_owned(),
            if deleting || aborted { 5 } else { 2 },
        ),
        // Settle time, hold, and one more: late verdicts. Verdicts themselves are of no use before that.
        (
            "/status/rollout/weightSince".to_owned(),
            if stage == "Stepping" { 4 } else { 1 },
        ),
        ("/status/rollout/interruptedSince".to_owned(), 2),
        ("/status/rollout/drainedSince".to_owned(), 1),
        ("/status/rollout/stableSince".to_owned(), 1),
    ];
    let checks = items(release, "/status/checks").len();
    moments.extend((0..checks).map(|n| (format!("/status/checks/{n}/at"), 3)));
    moments
}

/// The release a tick later.
pub fn older(release: &Object) -> Object {
    let mut value = release.value().clone();
    for (at, _) in moments(&value) {
        if let Some(moment) = value.pointer(&at).and_then(Value::as_str) {
            let older = written(age(moment) + 1);
            put(&mut value, &at, older);
        }
    }
    normal(value)
}

fn put(value: &mut Value, at: &str, to: Value) {
    if let Some(there) = value.pointer_mut(at) {
        *there = to;
    }
}

/// Where a canary Ingress says since when it leads requests as it does.
const SINCE: &str = "/metadata/annotations/canary-operator.dev~1since";

/// The canary Ingress a tick later.
pub fn older_ingress(ingress: &Object) -> Object {
    match ingress.value().pointer(SINCE).and_then(Value::as_str) {
        Some(since) => {
            let older = written((age(since) + 1).min(4));
            ingress.with(|value| put(value, SINCE, older))
        }
        None => ingress.clone(),
    }
}

/// The canary Ingress without what the release's status says as well, or later.
pub fn without_recorded_since(ingress: &Object, release: &Object) -> Object {
    let at = |object: &Object, at: &str| object.value().pointer(at).and_then(Value::as_str).map(age);
    let recorded = at(release, "/status/rollout/weightSince");
    match (at(ingress, SINCE), recorded) {
        (Some(written), Some(recorded)) if recorded <= written => ingress.with(|value| drop(remove(value, SINCE))),
        _ => ingress.clone(),
    }
}

/// The release without what no decision rests on.
pub fn normal(mut release: Value) -> Object {
    for gone in [
        "/metadata/resourceVersion",
        "/metadata/managedFields",
        "/status/message",
        "/status/step",
        "/status/weight",
        "/status/nextAdvanceAt",
        "/status/stableImage",
        "/status/canaryImage",
        "/status/canaryPods",
        "/status/verdicts",
        "/status/history",
        "/status/rollout/commands",
        "/status/rollout/warnings",
        "/status/rollout/power",
        "/status/rollout/reason",
        "/status/rollout/detail",
    ] {
        remove(&mut release, gone);
    }
    if map(&release, "/metadata/annotations").is_some_and(serde_json::Map::is_empty) {
        remove(&mut release, "/metadata/annotations");
    }
    // Only whether the status is of the newest spec matters.
    let current = int(&release, "/metadata/generation") == int(&release, "/status/observedGeneration");
    set(&mut release, "/metadata/generation", json!(if current { 1 } else { 2 }));
    if release.get("status").is_some() {
        set(&mut release, "/status/observedGeneration", json!(1));
        normal_status(&mut release);
    }
    for (at, most) in moments(&release) {
        if let Some(moment) = release.pointer(&at).and_then(Value::as_str) {
            let clamped = written(age(moment).min(most));
            put(&mut release, &at, clamped);
        }
    }
    Object::new(release)
}

fn normal_status(release: &mut Value) {
    let mut told: Vec<Value> = items(release, "/status/conditions").to_vec();
    told.retain(|condition| text(condition, "/type") == READY);
    for condition in &mut told {
        // The reasons that the next round asks for.
        let read = [
            "ScalingCanary",
            "AwaitingVersion1",
            "RollbackStuck",
            "CanaryIngressChanged",
        ];
        let reason = Some(text(condition, "/reason")).filter(|reason| read.contains(reason));
        *condition = json!({"type": READY, "status": "False", "reason": reason.unwrap_or("Other"), "message": "",
            "lastTransitionTime": written(0)});
    }
    set(release, "/status/conditions", Value::Array(told));
    let stage = text(release, "/status/rollout/stage").to_owned();
    if stage.is_empty() {
        return;
    }
    set(release, "/status/rollout/startedAt", written(0));
    let reached: Vec<Value> = items(release, "/status/rollout/reached").to_vec();
    let reached = reached
        .iter()
        .map(|reached| json!({"weight": reached["weight"], "at": written(0)}))
        .collect();
    set(release, "/status/rollout/reached", Value::Array(reached));
    if text(release, "/status/rollout/interruptedFor") == "0s" {
        remove(release, "/status/rollout/interruptedFor");
    }
    let of_a_step = ["interruptedSince", "interruptedFor", "approved"];
    let of_traffic = [
        "weightSince",
        "expressed",
        "proven",
        "step",
        "reached",
        "unshifted",
        "promotedRevision",
    ];
    let of_an_end = ["drainedSince", "stableSince", "exposed", "capacity"];
    let unread: Vec<&str> = match stage.as_str() {
        "Finishing" => of_a_step.to_vec(),
        "RollingBack" => [&of_a_step[..], &of_traffic].concat(),
        "Ended" => [&of_a_step[..], &of_traffic, &of_an_end].concat(),
        _ => Vec::new(),
    };
    for field in unread {
        remove(release, &format!("/status/rollout/{field}"));
    }
    if stage == "Finishing" {
        remove(release, "/status/rollout/expressed");
    }
    if stage == "Ended" {
        set(release, "/status/rollout/waitingSince", written(0));
    }
    if !["Stepping", "Promoting"].contains(&stage.as_str()) {
        remove(release, "/status/checks");
    }
    let checks = items(release, "/status/checks").len();
    for n in 0..checks {
        for field in ["message", "value", "limit", "requests", "evidence"] {
            remove(release, &format!("/status/checks/{n}/{field}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_moves_into_the_past_until_it_makes_no_difference() {
        let release = normal(
            json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "rollout": {
            "stage": "RollingBack", "drainedSince": ago(0).to_string(), "waitingSince": ago(-1).to_string()}}}),
        );
        let once = older(&release);
        assert_eq!(text(once.value(), "/status/rollout/drainedSince"), ago(1).to_string());
        assert_ne!(release, once);
        let thrice = older(&older(&once));
        assert_eq!(thrice, older(&thrice));
    }
}
