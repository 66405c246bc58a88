//! What must hold after every write, whatever happened before it.

use crate::scenario::{NAMESPACE, Run, SETTLE, Scenario};
use canary_operator::{
    api::{LABEL_REVISION, Weight},
    rehearse::{
        Key,
        json::{int, items, text},
        server::{
            intercept::Record,
            store::{ChangeKind, Version},
        },
    },
    routing::{IngressNginx, Routing},
};
use jiff::Timestamp;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

type Objects = BTreeMap<Key, Arc<Value>>;

pub fn is_canary_ingress(version: &Version) -> bool {
    version.key == Key::ingress(NAMESPACE, "shop-ingress-v2")
}

pub fn weight(ingress: &Value) -> Weight {
    IngressNginx::default()
        .split(&serde_json::from_value(ingress.clone()).unwrap())
        .weight
}

/// Whether a canary Ingress leads anybody to version 2: by weight, header or cookie.
fn exposes(ingress: &Value) -> bool {
    IngressNginx::default().exposes(&serde_json::from_value(ingress.clone()).unwrap())
}

fn ready(objects: &Objects, service: &str) -> usize {
    let slices = objects
        .iter()
        .filter(|(key, _)| key.resource.plural == "endpointslices");
    let of_service = slices.filter(|(_, slice)| text(slice, "/metadata/labels/kubernetes.io~1service-name") == service);
    of_service
        .flat_map(|(_, slice)| items(slice, "/endpoints"))
        .filter(|endpoint| endpoint.pointer("/conditions/ready") == Some(&Value::Bool(true)))
        .count()
}

fn is_promoted(deployment: Option<&Arc<Value>>) -> bool {
    deployment.is_some_and(|d| text(d, "/spec/template/spec/containers/0/image") != "shop:v1")
}

fn rolled_out(deployment: &Value) -> bool {
    let count = |name: &str| int(deployment, &format!("/status/{name}")).unwrap_or(0);
    let wanted = int(deployment, "/spec/replicas").unwrap_or(1);
    count("updatedReplicas") == wanted
        && count("availableReplicas") == wanted
        && count("replicas") == wanted
        && int(deployment, "/status/observedGeneration") >= int(deployment, "/metadata/generation")
}

/// Whether version 2's pods have crashed, or cannot answer.
fn fails(objects: &Objects) -> bool {
    let crashed = |pod: &Value| {
        text(pod, "/metadata/labels/app") == "shop-v2"
            && int(pod, "/status/containerStatuses/0/restartCount").is_some_and(|n| n > 0)
    };
    ready(objects, "shop-service-v2") == 0 || objects.iter().any(|(k, o)| k.resource.plural == "pods" && crashed(o))
}

/// How long a deletion of the release has been under way.
fn deleting_for(objects: &Objects, now: Timestamp) -> Option<i64> {
    let release = objects.get(&Key::release(NAMESPACE, "shop"))?;
    let since: Timestamp = text(release, "/metadata/deletionTimestamp").parse().ok()?;
    Some(now.duration_since(since).as_secs())
}

/// Fails where a property does not hold.
pub fn sound(run: &Run) {
    let broken = broken(run);
    assert!(
        broken.is_empty(),
        "{:?}, seed {}, {:?}:\n{}\n{}",
        run.scenario,
        run.seed,
        run.kill,
        broken.join("\n"),
        run.trace()
    );
}

/// Fails where a canary Ingress that was deleted was there again, leading anybody or not.
pub fn stays_away(run: &Run) {
    let ingresses = run.log.iter().filter(|version| is_canary_ingress(version));
    let mut from_then = ingresses.skip_while(|version| version.change != ChangeKind::Deleted);
    assert!(from_then.next().is_some(), "it was never deleted:\n{}", run.trace());
    assert!(from_then.next().is_none(), "it came back:\n{}", run.trace());
}

/// Every property that does not hold, in words; empty for a sound run.
pub fn broken(run: &Run) -> Vec<String> {
    let mut broken = Vec::new();
    let mut objects = Objects::new();
    let mut drained: Option<Timestamp> = None;
    let mut exposed = false;
    let mut full_since: Option<Timestamp> = None;
    // A clock that is put right runs this much faster.
    let settle = jiff::SignedDuration::try_from(SETTLE).unwrap() * 99 / 100;
    let stable = Key::deployment(NAMESPACE, "shop");
    let ingress = Key::ingress(NAMESPACE, "shop-ingress-v2");
    let allowed: Vec<Weight> = run
        .scenario
        .weights()
        .into_iter()
        .map(|w| serde_json::from_value(w).unwrap())
        .chain([Weight::ZERO, Weight::FULL])
        .collect();
    for version in &run.log {
        let before = objects.get(&version.key).cloned();
        if version.change == ChangeKind::Deleted {
            objects.remove(&version.key);
        } else {
            objects.insert(version.key.clone(), version.object.clone());
        }
        let mut fail = |property: &str, what: String| {
            broken.push(format!("{property} at {} ({}): {what}", version.at, version.key))
        };
        if is_canary_ingress(version) {
            let now = if version.change == ChangeKind::Deleted {
                Weight::ZERO
            } else {
                weight(&version.object)
            };
            let was = before.as_deref().map_or(Weight::ZERO, weight);
            let leads = version.change != ChangeKind::Deleted && exposes(&version.object);
            if leads && (now > was || !before.as_deref().is_some_and(exposes)) {
                if ready(&objects, "shop-service-v2") == 0 {
                    fail("S4", format!("weight {now} without a ready endpoint of version 2"));
                }
                if ready(&objects, "shop-service") == 0 {
                    fail("S4", format!("weight {now} without a ready endpoint of version 1"));
                }
                exposed = true;
                let replicas = objects.get(&stable).and_then(|d| int(d, "/spec/replicas")).unwrap_or(1);
                let (have, need) = (
                    ready(&objects, "shop-service-v2"),
                    now.pods_of(i32::try_from(replicas).unwrap()),
                );
                if have < usize::try_from(need).unwrap() {
                    fail(
                        "S4",
                        format!("weight {now} with {have} ready endpoints of version 2, of {need} for that share"),
                    );
                }
            }
            full_since = (now == Weight::FULL).then(|| full_since.unwrap_or(version.at));
            if !allowed.contains(&now) {
                fail("S7", format!("weight {now} is of no step"));
            }
            if version.change == ChangeKind::Deleted {
                drained = Some(version.at);
                let there = objects.get(&stable).is_some_and(|d| rolled_out(d));
                let in_time = deleting_for(&objects, version.at).is_none_or(|seconds| seconds < 120);
                if (is_promoted(objects.get(&stable)) || was == Weight::FULL) && !there && !fails(&objects) && in_time {
                    fail(
                        "S6",
                        format!("traffic returns from {was}% to the stable Deployment before it has rolled out"),
                    );
                }
            } else if leads {
                drained = None;
            } else if before.as_deref().is_some_and(exposes) {
                drained = Some(version.at);
            }
        }
        if version.key == stable
            && is_promoted(Some(&version.object))
            && !is_promoted(before.as_ref())
            && before.is_some()
        {
            let carried = objects.get(&ingress).map_or(Weight::ZERO, |i| weight(i));
            if full_since.is_some_and(|at| version.at.duration_since(at) < settle) {
                fail(
                    "S6",
                    "the stable Deployment is replaced before nginx can know who carries its requests".to_owned(),
                );
            }
            if carried != Weight::FULL && !run.scenario.is_replaced_while_it_serves() {
                fail(
                    "S6",
                    format!("the stable Deployment is replaced while version 2 carries {carried}%"),
                );
            }
        }
        let canary = Key::deployment(NAMESPACE, "shop-v2");
        let shrinks = |old: &Value| {
            version.change == ChangeKind::Deleted || int(&version.object, "/spec/replicas") < int(old, "/spec/replicas")
        };
        // Pods beyond those that the share needs may go again where all could not be had.
        let led = objects.get(&ingress).map_or(Weight::ZERO, |ingress| weight(ingress));
        let replicas = objects.get(&stable).and_then(|d| int(d, "/spec/replicas")).unwrap_or(1);
        let need = i64::from(led.pods_of(i32::try_from(replicas).unwrap()));
        let leads = objects.get(&ingress).is_some_and(|ingress| exposes(ingress));
        let spare = version.change != ChangeKind::Deleted
            && led > Weight::ZERO
            && int(&version.object, "/spec/replicas").is_some_and(|replicas| replicas >= need);
        if version.key == canary && before.as_deref().is_some_and(shrinks) && !spare {
            if leads {
                fail(
                    "S5",
                    "version 2's pods go while a canary Ingress leads to them".to_owned(),
                );
            }
            let settled = drained.is_some_and(|at| version.at.duration_since(at) >= settle);
            if exposed && !settled {
                fail(
                    "S5",
                    format!("version 2's pods go before nginx can know: drained at {drained:?}"),
                );
            }
            exposed = false;
        }
    }
    broken.extend(
        run.records
            .iter()
            .filter(|r| r.is_write() && !names_its_version(r))
            .map(|r| format!("S9: {} {} {} without a version", r.verb, r.resource, r.name)),
    );
    for key in objects.keys() {
        if key.name.contains("-v2") && ["deployments", "services", "ingresses"].contains(&key.resource.plural.as_str())
        {
            broken.push(format!("S10: {key} is left"));
        }
    }
    let release = objects.get(&Key::release(NAMESPACE, "shop"));
    if run.scenario == Scenario::Deleted && release.is_some() {
        broken.push("S10: the release is stuck".to_owned());
    }
    let failed = if run.scenario.is_replaced_while_it_serves() {
        &run.lost
    } else {
        &run.failed
    };
    if !run.scenario.fails_requests() && !failed.is_empty() {
        broken.push(format!("requests failed: {failed:?}"));
    }
    let stalled =
        |v: &&Arc<Version>| v.key == Key::release(NAMESPACE, "shop") && text(&v.object, "/status/phase") == "Stalled";
    if run.scenario == Scenario::Retried
        && let Some(version) = run.log.iter().find(stalled)
    {
        broken.push(format!(
            "stalled at {}: {}",
            version.at,
            text(&version.object, "/status/message")
        ));
    }
    broken.extend(idle_writes(run));
    broken.extend(led_again(run));
    if run.scenario == Scenario::Testers && run.canary_answers > 0 && run.tester_answers == 0 {
        broken.push("no tester ever reached version 2".to_owned());
    }
    broken
}

/// Canary Ingresses that the operator took away and made anew for the same version, though nobody had asked for another attempt
/// meanwhile.
fn led_again(run: &Run) -> Vec<String> {
    let of_canary = |record: &&Record| record.resource.plural == "ingresses" && record.is_write();
    let asked_between = |from: u64, to: u64| {
        let said = |release: &Option<Arc<Value>>| {
            let command = "/metadata/annotations/canary-operator.dev~1command";
            (release.as_ref()).map(|r| (int(r, "/metadata/generation"), text(r, command).to_owned()))
        };
        let between = |v: &&Arc<Version>| (from..=to).contains(&v.resource_version);
        let releases = run.log.iter().filter(|v| v.key == Key::release(NAMESPACE, "shop"));
        releases
            .filter(between)
            .any(|v| said(&v.previous) != said(&Some(v.object.clone())))
    };
    let left = |version: u64| {
        run.log
            .iter()
            .find(|v| v.resource_version == version && is_canary_ingress(v))
    };
    // An edit may be older than a weight that was on its way: the version tells what was asked for when it was led there.
    let revision = |version: u64| {
        let pods = Key::deployment(NAMESPACE, "shop-v2");
        let made = run
            .log
            .iter()
            .rfind(|v| v.key == pods && v.resource_version <= version)?;
        let label = format!("/spec/template/metadata/labels/{}", LABEL_REVISION.replace('/', "~1"));
        Some(text(&made.object, &label).to_owned())
    };
    let (mut broken, mut led, mut taken) = (Vec::new(), None, false);
    for record in run.records.iter().filter(of_canary) {
        let Some(version) = record.applied else { continue };
        let leads = record.verb != "delete" && left(version).is_some_and(|v| exposes(&v.object));
        let again = |since: u64| revision(since) == revision(version) && !asked_between(since, version);
        if leads && taken && led.is_some_and(again) {
            broken.push(format!(
                "S2 at {}: what was taken away leads to version 2 again",
                record.at
            ));
        }
        taken |= record.verb == "delete" && led.is_some();
        if leads {
            (led, taken) = (Some(version), false);
        }
    }
    broken
}

/// Writes of a status that says nothing new.
fn idle_writes(run: &Run) -> Vec<String> {
    let stored = |record: &&Record| record.subresource == "status" && record.is_write() && record.applied.is_some();
    let statuses: Vec<_> = run.records.iter().filter(stored).collect();
    let pairs = statuses.windows(2).filter(|pair| pair[0].name == pair[1].name);
    pairs
        .filter(|pair| pair[0].body.pointer("/status") == pair[1].body.pointer("/status"))
        .map(|pair| format!("L3 at {}: the status is written again as it was", pair[1].at))
        .collect()
}

/// S9: what moves traffic or touches the user's objects is bound to what was read.
fn names_its_version(record: &Record) -> bool {
    let body = &record.body;
    match record.verb {
        "create" => true,
        "delete" if record.resource.plural == "ingresses" => !text(body, "/preconditions/resourceVersion").is_empty(),
        "delete" => !text(body, "/preconditions/uid").is_empty(),
        _ => !text(body, "/metadata/resourceVersion").is_empty(),
    }
}
