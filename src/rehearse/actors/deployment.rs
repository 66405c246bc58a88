//! The Deployment and ReplicaSet controllers in one: templates to ReplicaSets to pods, and the status of it all.

use super::{
    Queue,
    conditions::{conditions_of, set_condition},
    rollout::{self, Bounds, Set},
};
use crate::rehearse::{
    ApiServer, Key, Resource,
    clock::stamp,
    json::{condition, int, is_ending, is_true, items, remove, set, text},
    server::{
        error::ApiError,
        store::{DeleteOptions, Version},
    },
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Runs for ever.
pub async fn run(server: ApiServer) {
    let mut queue = Queue::new(&server, Duration::from_millis(100));
    loop {
        for key in queue.next(|v| concerned(&server, v).into_iter().collect()).await {
            let again = Reconcile::of(&server, &key).and_then(|mut r| r.run());
            queue.again(&key, again);
        }
    }
}

/// The Deployment that a change is about.
fn concerned(server: &ApiServer, version: &Version) -> Option<Key> {
    let namespace = &version.key.namespace;
    match (
        version.key.resource.group.as_str(),
        version.key.resource.plural.as_str(),
    ) {
        ("apps", "deployments") => Some(version.key.clone()),
        ("apps", "replicasets") => Some(Key::deployment(namespace, owner(&version.object, "Deployment")?)),
        ("", "pods") => {
            let set = Key::new("apps", "replicasets", namespace, owner(&version.object, "ReplicaSet")?);
            let set = server.get(&set)?;
            Some(Key::deployment(namespace, owner(&set, "Deployment")?))
        }
        _ => None,
    }
}

fn owner<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let owners = items(object, "/metadata/ownerReferences");
    owners
        .iter()
        .find(|o| text(o, "/kind") == kind)
        .map(|o| text(o, "/name"))
}

fn owned_by(object: &Value, owner: &Value) -> bool {
    items(object, "/metadata/ownerReferences")
        .iter()
        .any(|o| text(o, "/uid") == text(owner, "/metadata/uid"))
}

/// A ReplicaSet with its pods.
struct Replicas {
    key: Key,
    object: Arc<Value>,
    pods: Vec<(Key, Arc<Value>)>,
}

impl Replicas {
    fn replicas(&self) -> i64 {
        int(&self.object, "/spec/replicas").unwrap_or(0)
    }

    fn alive(&self) -> impl Iterator<Item = &(Key, Arc<Value>)> {
        self.pods
            .iter()
            .filter(|(_, p)| !is_ending(p) && !matches!(text(p, "/status/phase"), "Failed" | "Succeeded"))
    }
}

/// One look at one Deployment.
struct Reconcile<'a> {
    server: &'a ApiServer,
    key: &'a Key,
    deployment: Arc<Value>,
    refusal: Option<ApiError>,
    again: Option<Duration>,
}

impl<'a> Reconcile<'a> {
    fn of(server: &'a ApiServer, key: &'a Key) -> Option<Self> {
        let deployment = server.get(key).filter(|d| !is_ending(d))?;
        Some(Self {
            server,
            key,
            deployment,
            refusal: None,
            again: None,
        })
    }

    fn run(&mut self) -> Option<Duration> {
        let hash = template_hash(&self.deployment);
        let paused = self.deployment.pointer("/spec/paused") == Some(&json!(true));
        if !paused && !self.sets().iter().any(|s| is_new(s, &hash)) {
            self.create_set(&hash);
        }
        let sets = self.sets();
        let bounds = Bounds::of(&self.deployment);
        let views: Vec<Set> = sets.iter().map(|s| self.view(s, &hash)).collect();
        if !paused {
            for (set, replicas) in sets.iter().zip(rollout::next(bounds, &views)) {
                self.server.edit(&set.key, |o| {
                    crate::rehearse::json::set(o, "/spec/replicas", json!(replicas))
                });
            }
        }
        for set in self.sets() {
            self.sync_pods(&set);
        }
        self.write_status(&hash, bounds);
        self.again
    }

    /// The ReplicaSets of the Deployment, by name.
    fn sets(&self) -> Vec<Replicas> {
        let namespace = &self.key.namespace;
        let pods = self.server.with(|s| s.list(&Resource::new("", "pods"), namespace));
        let all = self
            .server
            .with(|s| s.list(&Resource::new("apps", "replicasets"), namespace));
        let mine = all
            .into_iter()
            .filter(|(_, o)| owned_by(o, &self.deployment) && !is_ending(o));
        mine.map(|(key, object)| {
            let pods = pods.iter().filter(|(_, p)| owned_by(p, &object)).cloned().collect();
            Replicas { key, object, pods }
        })
        .collect()
    }

    fn view(&mut self, set: &Replicas, hash: &str) -> Set {
        let available = set.alive().filter(|(_, p)| self.available(p)).count();
        let as_count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        Set {
            replicas: set.replicas(),
            pods: as_count(set.pods.len()),
            available: as_count(available),
            is_new: is_new(set, hash),
        }
    }

    /// Ready for `minReadySeconds`; remembers when a pod will be.
    fn available(&mut self, pod: &Value) -> bool {
        let clock = self.server.clock();
        let patience = int(&self.deployment, "/spec/minReadySeconds")
            .and_then(|s| u64::try_from(s).ok())
            .unwrap_or(0);
        let Some(ready) = condition(pod, "Ready").filter(|c| text(c, "/status") == "True") else {
            return false;
        };
        let from = clock.age_at(text(ready, "/lastTransitionTime")) + Duration::from_secs(patience);
        if patience > 0 && from > clock.elapsed() {
            self.wake(from);
            return false;
        }
        true
    }

    fn wake(&mut self, age: Duration) {
        self.again = Some(self.again.map_or(age, |a| a.min(age)));
    }

    fn create_set(&mut self, hash: &str) {
        let revision = 1 + self.sets().iter().map(|s| revision(&s.object)).max().unwrap_or(0);
        let mut template = self.deployment.pointer("/spec/template").cloned().unwrap_or_default();
        set(&mut template, &format!("/metadata/labels/{HASH_LABEL}"), json!(hash));
        let mut selector = self.deployment.pointer("/spec/selector").cloned().unwrap_or_default();
        set(&mut selector, &format!("/matchLabels/{HASH_LABEL}"), json!(hash));
        let object = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": format!("{}-{hash}", self.key.name), "namespace": self.key.namespace,
                "labels": template.pointer("/metadata/labels"), "annotations": {REVISION: revision.to_string()},
                "ownerReferences": [owner_reference(&self.deployment)],
            },
            "spec": {"replicas": 0, "selector": selector, "template": template},
        });
        self.refusal = self.server.create(object).err();
        if self
            .refusal
            .as_ref()
            .is_some_and(|refusal| refusal.reason == "AlreadyExists")
        {
            // The set of a Deployment of this name that was deleted is still being collected: another name is taken.
            self.refusal = None;
            let collisions = int(&self.deployment, "/status/collisionCount").unwrap_or(0) + 1;
            self.server
                .edit(self.key, |o| set(o, "/status/collisionCount", json!(collisions)));
        }
    }

    fn sync_pods(&mut self, set: &Replicas) {
        let wanted = usize::try_from(set.replicas()).unwrap_or(0);
        let mut alive: Vec<_> = set.alive().cloned().collect();
        for _ in alive.len()..wanted {
            if let Err(refusal) = self.server.create(pod_of(set)) {
                self.refusal = Some(refusal);
                break;
            }
        }
        // Pods that are not ready go first, then the youngest.
        alive.sort_by_key(|(key, p)| {
            (
                !is_true(p, "Ready"),
                std::cmp::Reverse(text(p, "/metadata/creationTimestamp").to_string()),
                key.clone(),
            )
        });
        alive.sort_by_key(|(_, p)| is_true(p, "Ready"));
        for (key, _) in alive.iter().take(alive.len().saturating_sub(wanted)) {
            // Only a pod that is already gone refuses, which is what was wanted.
            let _ = self.server.delete(key, &DeleteOptions::default());
        }
    }

    fn write_status(&mut self, hash: &str, bounds: Bounds) {
        let mut status = json!({"observedGeneration": self.deployment.pointer("/metadata/generation")});
        if let Some(collisions) = self
            .server
            .get(self.key)
            .and_then(|d| int(&d, "/status/collisionCount"))
        {
            set(&mut status, "/collisionCount", json!(collisions));
        }
        let (mut total, mut updated, mut ready, mut available) = (0, 0, 0, 0);
        for rs in self.sets() {
            let (alive, view) = (rs.alive().count(), self.view(&rs, hash));
            let of_set = rs.alive().filter(|(_, p)| is_true(p, "Ready")).count();
            total += alive;
            ready += of_set;
            available += usize::try_from(view.available).unwrap_or(0);
            updated += if view.is_new { alive } else { 0 };
            let counts = json!({"observedGeneration": rs.object.pointer("/metadata/generation"), "replicas": alive, "fullyLabeledReplicas": alive,
                "readyReplicas": of_set, "availableReplicas": view.available});
            self.server.edit(&rs.key, |o| set(o, "/status", counts));
        }
        let missing = usize::try_from(bounds.desired).unwrap_or(0).saturating_sub(available);
        for (field, count) in [
            ("replicas", total),
            ("updatedReplicas", updated),
            ("readyReplicas", ready),
            ("availableReplicas", available),
            ("unavailableReplicas", missing),
        ] {
            if count > 0 {
                set(&mut status, &format!("/{field}"), json!(count));
            }
        }
        let conditions = self.conditions(&status, bounds);
        set(&mut status, "/conditions", Value::Array(conditions));
        let revision = self
            .sets()
            .iter()
            .filter(|s| is_new(s, hash))
            .map(|s| revision(&s.object))
            .max();
        self.server.edit(self.key, |o| {
            // A Deployment that was made paused has no revision yet.
            if let Some(revision) = revision {
                let at = format!("/metadata/annotations/{}", REVISION.replace('/', "~1"));
                set(o, &at, json!(revision.to_string()));
            }
            set(o, "/status", status);
        });
    }

    fn conditions(&mut self, status: &Value, bounds: Bounds) -> Vec<Value> {
        let clock = self.server.clock();
        let now = stamp(clock.now());
        let old = self.deployment.clone();
        let mut out = conditions_of(&old);
        let count = |of: &Value, field: &str| int(of, field).unwrap_or(0);
        let available = count(status, "/availableReplicas");
        if available >= bounds.desired - bounds.unavailable {
            set_condition(
                &mut out,
                "Available",
                true,
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
                &now,
            );
        } else {
            set_condition(
                &mut out,
                "Available",
                false,
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
                &now,
            );
        }
        match &self.refusal {
            // The message names a pod that never was; the first one stands, or each attempt would be a change.
            Some(_) if condition(&old, "ReplicaFailure").is_some() => {}
            Some(refusal) => set_condition(&mut out, "ReplicaFailure", true, "FailedCreate", &refusal.message, &now),
            None => out.retain(|c| text(c, "/type") != "ReplicaFailure"),
        }
        let name = &self.key.name;
        let complete = count(status, "/updatedReplicas") == bounds.desired
            && count(status, "/replicas") == bounds.desired
            && available == bounds.desired;
        let before = condition(&old, "Progressing");
        let grew = |field: &str| count(status, field) > count(&old, &format!("/status{field}"));
        let old_pods =
            |of: &Value, at: &str| count(of, &format!("{at}/replicas")) - count(of, &format!("{at}/updatedReplicas"));
        let moved = grew("/updatedReplicas")
            || grew("/readyReplicas")
            || grew("/availableReplicas")
            || old_pods(status, "") < old_pods(&old, "/status");
        let new_spec = int(&old, "/status/observedGeneration") != int(&old, "/metadata/generation");
        let updated = before.map_or(now.as_str(), |c| text(c, "/lastUpdateTime")).to_string();
        let done = before.is_some_and(|c| text(c, "/reason") == "NewReplicaSetAvailable");
        let mut touched = updated.clone();
        if complete {
            let message = format!("ReplicaSet of Deployment \"{name}\" has successfully progressed.");
            if !done {
                touched.clone_from(&now);
            }
            set_condition(&mut out, "Progressing", true, "NewReplicaSetAvailable", &message, &now);
        } else if before.is_none() || moved || new_spec {
            touched.clone_from(&now);
            set_condition(
                &mut out,
                "Progressing",
                true,
                "ReplicaSetUpdated",
                &format!("ReplicaSet of Deployment \"{name}\" is progressing."),
                &now,
            );
        } else if !done {
            let seconds = int(&old, "/spec/progressDeadlineSeconds")
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(600);
            let deadline = clock.age_at(&updated) + Duration::from_secs(seconds);
            if clock.elapsed() >= deadline {
                let message = format!("ReplicaSet of Deployment \"{name}\" has timed out progressing.");
                set_condition(
                    &mut out,
                    "Progressing",
                    false,
                    "ProgressDeadlineExceeded",
                    &message,
                    &now,
                );
            } else {
                self.wake(deadline);
            }
        }
        for progressing in out.iter_mut().filter(|c| text(c, "/type") == "Progressing") {
            set(progressing, "/lastUpdateTime", json!(touched));
        }
        if !self.is_timed_out(&out) && !complete && !done {
            let seconds = int(&old, "/spec/progressDeadlineSeconds")
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(600);
            self.wake(clock.age_at(&touched) + Duration::from_secs(seconds));
        }
        if self.refusal.is_some() {
            // The ReplicaSet controller tries again, for a quota may be raised.
            self.wake(clock.elapsed() + Duration::from_secs(10));
        }
        out
    }

    fn is_timed_out(&self, conditions: &[Value]) -> bool {
        conditions
            .iter()
            .any(|c| text(c, "/reason") == "ProgressDeadlineExceeded")
    }
}

fn is_new(set: &Replicas, hash: &str) -> bool {
    text(&set.object, &format!("/metadata/labels/{HASH_LABEL}")) == hash
}

fn revision(object: &Value) -> u64 {
    text(
        object,
        &format!("/metadata/annotations/{}", REVISION.replace('/', "~1")),
    )
    .parse()
    .unwrap_or(0)
}

/// The ownerReference that makes `owner` the controller of an object.
pub fn owner_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": text(owner, "/apiVersion"), "kind": text(owner, "/kind"), "name": text(owner, "/metadata/name"),
        "uid": text(owner, "/metadata/uid"), "controller": true, "blockOwnerDeletion": true,
    })
}

fn pod_of(set: &Replicas) -> Value {
    let mut pod = set.object.pointer("/spec/template").cloned().unwrap_or_default();
    remove(&mut pod, "/metadata/creationTimestamp");
    for (at, value) in [
        ("/apiVersion", json!("v1")),
        ("/kind", json!("Pod")),
        ("/metadata/generateName", json!(format!("{}-", set.key.name))),
        ("/metadata/namespace", json!(set.key.namespace)),
        ("/metadata/ownerReferences", json!([owner_reference(&set.object)])),
    ] {
        crate::rehearse::json::set(&mut pod, at, value);
    }
    pod
}

/// A name for a pod template: equal templates, equal names (FNV-1a in the alphabet of pod names), but for collisions.
pub fn template_hash(deployment: &Value) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut template = deployment.pointer("/spec/template").unwrap_or(&Value::Null).to_string();
    if let Some(collisions) = int(deployment, "/status/collisionCount") {
        template.push_str(&collisions.to_string());
    }
    let mut hash = template.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let base = ALPHABET.len() as u64;
    let mut out = String::new();
    for _ in 0..9 {
        let digit = usize::try_from(hash % base).unwrap_or(0);
        out.extend(ALPHABET.get(digit).map(|b| char::from(*b)));
        hash /= base;
    }
    out
}
