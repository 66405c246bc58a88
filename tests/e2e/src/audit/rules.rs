//! The rules, each by its number in the list of what must hold: S1, S3 to S12 as far as writes alone can tell, and L3.

mod doubts;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use self::doubts::Doubt;
use super::{Entry, Judged, text};
use crate::release::{COMMAND, LABEL};

/// How long a weight takes to reach the controllers (`--settle`), by a clock that is being put right.
const SETTLE: SignedDuration = SignedDuration::from_millis(6_000 * 99 / 100);
/// By how much what others did may be known later than it was done: what was decided on may have been so a moment before.
const LATE: SignedDuration = SignedDuration::from_secs(3);
/// From a release's end on: in the first seconds somebody's wish may still be under way; then there is nothing to write.
const IDLE: std::ops::Range<SignedDuration> = SignedDuration::from_secs(5)..SignedDuration::from_secs(60);

const NGINX: &str = "/metadata/annotations/nginx.ingress.kubernetes.io~1canary";
const WEIGHT: &str = "nginx.ingress.kubernetes.io/canary-weight";

pub fn judge(entries: &[Entry]) -> Judged {
    let mut court = Court::default();
    for entry in entries {
        court.take(entry);
    }
    court.judged
}

#[derive(Default)]
struct Court {
    judged: Judged,
    spaces: BTreeMap<String, Space>,
    leading: Leading,
}

/// Who leads, by Lease.
#[derive(Default)]
struct Leading {
    /// The process that wrote a Lease last, unless it gave it up or somebody took the Lease away.
    holder: BTreeMap<String, String>,
    /// The Lease of a process.
    lease: BTreeMap<String, String>,
}

/// A namespace as the writes left it.
#[derive(Default)]
struct Space {
    objects: BTreeMap<(String, String), Value>,
    releases: BTreeMap<String, Release>,
    /// How many ready endpoints a Service had, and since when.
    ready: BTreeMap<String, Vec<(Timestamp, usize)>>,
    /// When a person last wrote something here.
    touched: Option<Timestamp>,
    /// Changes of canary Ingresses that may have been made.
    doubted: BTreeMap<String, Entry>,
    /// Canary Ingresses whose deletion may have been done.
    perhaps_gone: BTreeMap<String, Doubt>,
}

/// What is remembered of a release beside its objects.
#[derive(Default)]
struct Release {
    specs: Vec<Value>,
    /// When each canary Ingress got the weight it has.
    since: BTreeMap<String, Timestamp>,
    drained: Option<Timestamp>,
    exposed: bool,
    /// When the operator itself took the last weight away.
    withdrawn: Option<Timestamp>,
    replaced: bool,
    ended: Option<Timestamp>,
    paused: Option<Timestamp>,
}

impl Court {
    fn take(&mut self, entry: &Entry) {
        if entry.resource == "leases" {
            self.leading.take(entry);
            return;
        }
        let space = self.spaces.entry(entry.namespace.clone()).or_default();
        if entry.resource == "ingresses" {
            self.judged.broken.extend(space.settle_deletion(entry));
        }
        if entry.verb == "get" {
            return;
        }
        let mut broken = Vec::new();
        if entry.is_operators && entry.resource == "ingresses" {
            space.settle(entry);
        }
        if entry.is_operators {
            let mut look = |what| *self.judged.looked.entry(what).or_default() += 1;
            look("writes");
            if !was_left_unread(entry) && !names_its_version(entry) {
                broken.push("S9: it is bound to no version".to_owned());
            }
            // One that comes late and is refused did no harm: the version that it names is the last fence.
            if entry.done {
                broken.extend(self.leading.fault(&entry.process));
                broken.extend(space.faults(entry, &mut look));
            }
        }
        if entry.done {
            if !entry.is_operators {
                space.take_away(entry);
            }
            space.apply(entry);
            if entry.resource == "canaryreleases" {
                space.settle_told();
            }
        } else if entry.in_doubt {
            space.doubt(entry);
        }
        self.judged
            .broken
            .extend(broken.into_iter().map(|what| tell(&what, entry)));
    }
}

/// What is broken, and by what.
fn tell(what: &str, entry: &Entry) -> String {
    let Entry {
        at,
        verb,
        resource,
        namespace,
        name,
        ..
    } = entry;
    format!("{what} ({at}: {verb} {resource} {namespace}/{name})")
}

impl Leading {
    fn take(&mut self, entry: &Entry) {
        let lease = format!("{}/{}", entry.namespace, entry.name);
        if !entry.done {
            return;
        }
        if entry.is_operators && !text(&entry.response, "/spec/holderIdentity").is_empty() {
            self.lease.insert(entry.process.clone(), lease.clone());
            self.holder.insert(lease, entry.process.clone());
        } else {
            self.holder.remove(&lease);
        }
    }

    /// S8
    fn fault(&self, process: &str) -> Option<String> {
        let Some(lease) = self.lease.get(process) else {
            return Some(format!("S8: {process} writes and never led"));
        };
        let holder = self.holder.get(lease).map_or("nobody", String::as_str);
        (holder != process).then(|| format!("S8: {process} writes while {holder} holds the Lease {lease}"))
    }
}

/// What was not done, and whose body the log does not have: it was refused before anybody read that, by an API server, for one,
/// that has just started and does not know yet who is granted what (soak). It did nothing, and what it named is not known.
fn was_left_unread(entry: &Entry) -> bool {
    !entry.done && entry.request.is_null()
}

/// S9: what moves traffic or touches anybody's objects is bound to what was read.
fn names_its_version(entry: &Entry) -> bool {
    let told = |path| !text(&entry.request, path).is_empty();
    match &*entry.verb {
        "create" => true,
        "delete" if entry.resource == "ingresses" => {
            told("/preconditions/uid") && told("/preconditions/resourceVersion")
        }
        "delete" => told("/preconditions/uid"),
        _ => told("/metadata/resourceVersion"),
    }
}

impl Space {
    fn object(&self, resource: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(resource.to_owned(), name.to_owned()))
    }

    /// The canary Ingresses of a release.
    fn canaries<'a>(&'a self, release: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let ours = move |object: &Value| release_of(object) == release;
        let ingresses = self.objects.iter().filter(|((resource, _), _)| resource == "ingresses");
        ingresses
            .filter(move |(_, object)| ours(object))
            .map(|((_, name), object)| (&**name, object))
    }

    /// The share of a release's requests that goes to version 2: that of the Ingress which sends it the most.
    fn weight(&self, release: &str) -> f64 {
        self.canaries(release)
            .map(|(_, ingress)| weight(ingress))
            .fold(0.0, f64::max)
    }

    /// Whose target this Deployment is.
    fn released_by(&self, deployment: &str) -> Option<&str> {
        let is_target = |(key, object): &(&(String, String), &Value)| {
            key.0 == "canaryreleases" && {
                let frozen = text(object, "/status/rollout/deployment");
                [frozen, text(object, "/spec/target/deployment")].contains(&deployment)
            }
        };
        self.objects.iter().find(is_target).map(|(key, _)| &*key.1)
    }

    fn apply(&mut self, entry: &Entry) {
        let key = (entry.resource.clone(), entry.name.clone());
        let response = &entry.response;
        let is_going = !response["metadata"]["deletionTimestamp"].is_null();
        let is_gone = match &*entry.verb {
            "delete" => !(is_going && is_held(response)),
            _ => is_going && !is_held(response),
        };
        if entry.is_persons {
            self.touched = Some(entry.at);
        }
        if entry.resource == "canaryreleases" {
            self.remember(entry, is_gone);
        }
        if is_gone {
            self.objects.remove(&key);
        } else if !response["metadata"]["name"].is_null() {
            self.objects.insert(key, response.clone());
        }
        if entry.resource == "endpointslices" {
            self.count_endpoints(entry);
        }
    }

    /// What was in doubt was done or not once something else is written.
    fn settle(&mut self, entry: &Entry) {
        self.settle_told();
        self.doubted.remove(&entry.name);
        if entry.in_doubt && entry.verb == "patch" {
            self.doubted.insert(entry.name.clone(), entry.clone());
        }
    }

    /// What was in doubt was done where the status has told its weight since; it is judged by what it led to.
    fn settle_told(&mut self) {
        for (name, mut doubted) in std::mem::take(&mut self.doubted) {
            let Some((release, response)) = self.told(&doubted) else {
                self.doubted.insert(name, doubted);
                continue;
            };
            let before = self.object("ingresses", &name).cloned();
            doubted.response = response;
            self.note_weight(&doubted, &release, before.as_ref());
            self.apply(&doubted);
        }
    }

    /// The release whose status tells that this was done, and the Ingress as it is then.
    fn told(&self, doubted: &Entry) -> Option<(String, Value)> {
        let mut ingress = self.object("ingresses", &doubted.name)?.clone();
        let (release, was) = (release_of(&ingress).to_owned(), weight(&ingress));
        let status = self.object("canaryreleases", &release)?;
        let told: f64 = text(status, "/status/weight").parse().ok()?;
        let sent = match &doubted.request {
            // The log does not have what was sent where that was never answered: what is told now, and was not before.
            Value::Null if !same(told, was) => &json!({"metadata": {"annotations": {WEIGHT: told.to_string()}}}),
            Value::Null => return None,
            sent => sent,
        };
        json_patch::merge(&mut ingress, sent);
        same(told, weight(&ingress)).then_some((release, ingress))
    }

    fn remember(&mut self, entry: &Entry, is_gone: bool) {
        if is_gone {
            self.releases.remove(&entry.name);
            return;
        }
        let before = self.object("canaryreleases", &entry.name).cloned().unwrap_or_default();
        let (release, now) = (self.releases.entry(entry.name.clone()).or_default(), &entry.response);
        if release.specs.last() != Some(&now["spec"]) && now["spec"].is_object() {
            release.specs.push(now["spec"].clone());
        }
        release.paused = match now["spec"]["paused"].as_bool() {
            Some(true) => release.paused.or(Some(entry.at)),
            _ => None,
        };
        let begun = |object: &Value| text(object, "/status/rollout/startedAt").to_owned();
        if begun(&before) != begun(now) {
            (release.replaced, release.withdrawn) = (false, None);
        }
        if !entry.is_operators || text(now, "/status/rollout/stage") != "Ended" {
            release.ended = None;
        } else if ["Promoted", "RolledBack"].contains(&text(now, "/status/phase")) {
            release.ended = release.ended.or(Some(entry.at));
        }
    }

    fn count_endpoints(&mut self, entry: &Entry) {
        const SERVICE: &str = "/metadata/labels/kubernetes.io~1service-name";
        let Some(service) = self
            .object("endpointslices", &entry.name)
            .or(Some(&entry.response))
            .map(|slice| text(slice, SERVICE).to_owned())
            .filter(|service| !service.is_empty())
        else {
            return;
        };
        let slices = self
            .objects
            .iter()
            .filter(|((resource, _), slice)| resource == "endpointslices" && text(slice, SERVICE) == service);
        let ready = slices
            .flat_map(|(_, slice)| slice["endpoints"].as_array().into_iter().flatten())
            .filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .count();
        self.ready.entry(service).or_default().push((entry.at, ready));
    }

    /// The most ready endpoints that a Service had around `at`; none where nothing is known of it.
    fn ready(&self, service: &str, at: Timestamp) -> Option<usize> {
        let counts = self.ready.get(service)?;
        let begun = counts.partition_point(|(since, _)| *since < at - LATE);
        counts[begun.saturating_sub(1)..].iter().map(|(_, ready)| *ready).max()
    }

    /// What an operator's write breaks, with the namespace as it was before.
    fn faults(&mut self, entry: &Entry, look: &mut impl FnMut(&'static str)) -> Vec<String> {
        let labelled =
            |object: &Value| text(object, &format!("/metadata/labels/{}", LABEL.replace('/', "~1"))).to_owned();
        let before = self.object(&entry.resource, &entry.name).cloned();
        let owner = [before.as_ref(), Some(&entry.response)]
            .into_iter()
            .flatten()
            .map(labelled)
            .find(|owner| !owner.is_empty());
        let mut faults = Vec::new();
        match (&*entry.resource, &owner) {
            ("canaryreleases", _) => {
                look("statuses");
                faults.extend(self.of_status(entry, before.as_ref()));
            }
            ("ingresses", Some(release)) => {
                look("canary Ingresses");
                faults.extend(self.of_ingress(entry, release, before.as_ref()));
                self.note_weight(entry, release, before.as_ref());
            }
            ("deployments" | "services", Some(release)) => {
                look("canary Deployments and Services");
                faults.extend(self.of_canary(entry, release, before.as_ref()));
            }
            ("deployments", None) => {
                look("stable Deployments");
                faults.extend(self.of_stable(entry));
            }
            // The record of an object that was there before the log began tells nothing of whose it is.
            (_, None) if entry.verb == "delete" && before.is_none() => {}
            (_, None) => faults.push("S12: the object is somebody else's".to_owned()),
            _ => {}
        }
        let name = match &*entry.resource {
            "canaryreleases" => Some(entry.name.clone()),
            _ => owner.or_else(|| self.released_by(&entry.name).map(str::to_owned)),
        };
        if let Some(release) = name.and_then(|name| self.releases.get(&name))
            && let Some(ended) = release.ended
            && IDLE.contains(&entry.at.duration_since(ended))
            && self.touched.is_none_or(|touched| touched < ended)
            && !release.specs.iter().any(|spec| spec["rollback"]["keepFor"].is_string())
        {
            faults.push(format!("L3: the release ended at {ended}"));
        }
        faults
    }

    fn of_status(&mut self, entry: &Entry, before: Option<&Value>) -> Vec<String> {
        let mut faults = Vec::new();
        let status = |object: &Value| object["status"].clone();
        if entry.subresource == "status" && before.is_some_and(|before| status(before) == status(&entry.response)) {
            faults.push("L3: the status is written again as it was".to_owned());
        }
        let ended = text(&entry.response, "/status/rollout/stage") == "Ended";
        if entry.subresource == "status" && ended {
            let left: Vec<_> = self.canaries(&entry.name).map(|(name, _)| name).collect();
            if !left.is_empty() {
                faults.push(format!("S10: the release ends and leaves {}", left.join(", ")));
            }
            self.excuse(entry, &entry.name, |name, _| {
                Some(format!("S10: the release ends and leaves {name}"))
            });
        }
        faults
    }

    fn of_ingress(&self, entry: &Entry, release: &str, before: Option<&Value>) -> Vec<String> {
        let mut faults = Vec::new();
        let deletes = entry.verb == "delete";
        let was = before.map_or(0.0, weight);
        let now = if deletes { 0.0 } else { weight(&entry.response) };
        let known = self.releases.get(release);
        let object = self.object("canaryreleases", release).cloned().unwrap_or_default();
        let specs = known.map(|known| &*known.specs).unwrap_or_default();
        if !specs.is_empty() && !allowed(specs).any(|weight| same(weight, now)) && now > 0.0 && now < 100.0 {
            faults.push(format!("S7: the weight {now} is of no step"));
        }
        let leads = !deletes && exposes(&entry.response);
        if leads && (now > was || !before.is_some_and(exposes)) {
            for service in services(&entry.response)
                .into_iter()
                .chain([text(&object, "/status/rollout/service")])
            {
                if self.ready(service, entry.at) == Some(0) {
                    faults.push(format!(
                        "S4: the weight rises to {now}, and the Service {service} has no endpoint"
                    ));
                }
            }
            if let Some(other) = self.overlap(entry, release) {
                faults.push(format!(
                    "S3: {other} leads requests of the same host and path elsewhere"
                ));
            }
        }
        if now > was {
            if known
                .and_then(|known| known.paused)
                .is_some_and(|since| entry.at.duration_since(since) > LATE)
            {
                faults.push(format!(
                    "S11: the weight rises from {was} to {now} while the release is paused"
                ));
            }
            if text(&object, "/status/phase") == "RollingBack" {
                faults.push(format!(
                    "S1: the weight rises from {was} to {now} while the release is rolled back"
                ));
            }
            if let Some(withdrawn) = known.and_then(|known| known.withdrawn) {
                faults.push(format!(
                    "S1: the weight {now} comes back, which was taken away at {withdrawn}"
                ));
            }
            if was > 0.0
                && let Some(since) = known.and_then(|known| known.since.get(&entry.name))
            {
                let recorded: f64 = text(&object, "/status/weight").parse().unwrap_or(-1.0);
                if !same(recorded, was) {
                    faults.push(format!(
                        "S1: the weight rises to {now}, and the status tells {recorded} instead of {was}"
                    ));
                }
                let skips = object["status"]["rollout"]["skipSteps"] == true
                    || text(
                        &object,
                        &format!("/metadata/annotations/{}", COMMAND.replace('/', "~1")),
                    )
                    .starts_with("promote");
                let hold = (!skips).then(|| hold(specs, was)).flatten().unwrap_or_default();
                let (need, held) = ((hold * 99 / 100) + SETTLE, entry.at.duration_since(*since));
                if !skips && held < need {
                    faults.push(format!(
                        "S1: the weight rises from {was} to {now} after {held:#} instead of {need:#}"
                    ));
                }
            }
        }
        let promoted = known.is_some_and(|known| known.replaced);
        let turned = ["RolledBack", "Aborted"].contains(&text(&object, "/status/rollout/outcome"));
        let goes = !object["metadata"]["deletionTimestamp"].is_null();
        if deletes && promoted && !turned && !goes {
            let stable = self.object("deployments", text(&object, "/status/rollout/deployment"));
            if stable.is_some_and(|stable| !rolled_out(stable)) {
                faults.push("S6: requests return to a stable Deployment that has not rolled out".to_owned());
            }
        }
        faults
    }

    /// Another canary Ingress with a host and path of this one's.
    fn overlap(&self, entry: &Entry, release: &str) -> Option<String> {
        let ours = routes(&entry.response);
        let others = self.objects.iter().filter(|((resource, name), object)| {
            resource == "ingresses" && *name != entry.name && exposes(object) && release_of(object) != release
        });
        let mut overlapping = others.filter(|(_, object)| routes(object).iter().any(|route| ours.contains(route)));
        overlapping.next().map(|((_, name), _)| name.clone())
    }

    fn note_weight(&mut self, entry: &Entry, release: &str, before: Option<&Value>) {
        let deletes = entry.verb == "delete";
        let leads = !deletes && exposes(&entry.response);
        let others = self
            .canaries(release)
            .any(|(name, object)| name != entry.name && exposes(object));
        let release = self.releases.entry(release.to_owned()).or_default();
        let now = if deletes { 0.0 } else { weight(&entry.response) };
        // One that was in doubt may have been done before what was answered meanwhile.
        let latest = |known: Option<Timestamp>| known.max(Some(entry.at));
        if !before.is_some_and(|before| same(weight(before), now)) {
            release.since.insert(entry.name.clone(), entry.at);
        }
        if deletes {
            release.since.remove(&entry.name);
            if entry.is_operators && before.is_some_and(exposes) {
                release.withdrawn = latest(release.withdrawn);
            }
        }
        if leads {
            (release.exposed, release.drained) = (true, None);
        } else if before.is_some_and(exposes) && !others {
            release.drained = latest(release.withdrawn);
        }
    }

    /// S5
    fn of_canary(&mut self, entry: &Entry, release: &str, before: Option<&Value>) -> Vec<String> {
        let replicas = |object: &Value| object["spec"]["replicas"].as_u64().unwrap_or(1);
        let deletes = entry.verb == "delete";
        let share = self.weight(release).max(self.weight_in_doubt(release).unwrap_or(0.0)) / 100.0;
        let shrinks = before
            .is_some_and(|before| entry.resource == "deployments" && replicas(&entry.response) < replicas(before));
        if !deletes && !shrinks {
            return Vec::new();
        }
        let leading = self
            .canaries(release)
            .find(|(_, ingress)| exposes(ingress))
            .map(|(name, _)| name.to_owned());
        // Pods beyond those that the share needs may go again where all could not be had.
        let stable = self
            .object("canaryreleases", release)
            .and_then(|object| self.object("deployments", text(object, "/status/rollout/deployment")));
        let need = stable.map_or(1, replicas) as f64 * share;
        if !deletes && share > 0.0 && replicas(&entry.response) as f64 >= need.ceil() {
            return Vec::new();
        }
        let still_led = |name: &str| format!("S5: version 2 goes while {name} leads to it");
        if let Some(leading) = leading {
            return vec![still_led(&leading)];
        }
        self.excuse(entry, release, |name, ingress| {
            exposes(ingress).then(|| still_led(name))
        });
        let known = self.releases.entry(release.to_owned()).or_default();
        if known.exposed
            && known
                .drained
                .is_none_or(|drained| entry.at.duration_since(drained) < SETTLE)
        {
            return vec![format!(
                "S5: version 2 goes before nginx can know: drained at {:?}",
                known.drained
            )];
        }
        Vec::new()
    }

    /// S6, and S12 of what is nobody's canary.
    fn of_stable(&mut self, entry: &Entry) -> Vec<String> {
        let Some(release) = self.released_by(&entry.name).map(str::to_owned) else {
            return vec!["S12: the Deployment is somebody else's".to_owned()];
        };
        let mut faults = Vec::new();
        let spec = entry.request["spec"].as_object();
        let others: Vec<_> = spec
            .into_iter()
            .flat_map(|spec| spec.keys())
            .filter(|key| *key != "template")
            .collect();
        if entry.verb != "patch" || !others.is_empty() {
            faults.push(format!("S12: more than its template is written: {others:?}"));
        }
        let object = self.object("canaryreleases", &release).cloned().unwrap_or_default();
        let shifts = text(&object, "/spec/promotion/shiftTraffic") != "Never"
            && text(&object, "/status/rollout/unshifted").is_empty();
        let known = self.releases.get(&release);
        for (name, ingress) in self.canaries(&release).filter(|_| shifts) {
            let since = known.and_then(|known| known.since.get(name));
            if weight(ingress) < 100.0 {
                faults.push(format!(
                    "S6: the stable Deployment is replaced while {name} has the weight {}",
                    weight(ingress)
                ));
            } else if since.is_some_and(|since| entry.at.duration_since(*since) < SETTLE) {
                faults.push(format!(
                    "S6: the stable Deployment is replaced before nginx can know who carries its requests: {since:?}"
                ));
            }
        }
        let perhaps_all = self.weight_in_doubt(&release).is_some_and(|weight| weight >= 100.0);
        if shifts && self.canaries(&release).next().is_none() && !perhaps_all {
            faults.push("S6: the stable Deployment is replaced while no canary Ingress is there".to_owned());
        }
        self.releases.entry(release).or_default().replaced = true;
        faults
    }
}

/// Whose canary this is; empty where it is nobody's.
fn release_of(object: &Value) -> &str {
    text(object, "/metadata/labels/canary-operator.dev~1release")
}

/// Whether somebody's finalizer keeps it from going.
fn is_held(object: &Value) -> bool {
    let held = object["metadata"]["finalizers"].as_array();
    held.is_some_and(|held| !held.is_empty())
}

fn annotation<'a>(ingress: &'a Value, rest: &str) -> &'a str {
    text(ingress, &format!("{NGINX}{rest}"))
}

fn weight(ingress: &Value) -> f64 {
    let number = |rest: &str| annotation(ingress, rest).parse::<f64>().ok();
    100.0 * number("-weight").unwrap_or(0.0) / number("-weight-total").unwrap_or(100.0)
}

/// Whether it leads anybody to version 2: by weight, header or cookie.
fn exposes(ingress: &Value) -> bool {
    annotation(ingress, "") == "true"
        && (weight(ingress) > 0.0
            || ["-by-header", "-by-cookie"]
                .iter()
                .any(|rest| !annotation(ingress, rest).is_empty()))
}

fn same(one: f64, other: f64) -> bool {
    (one - other).abs() < 1e-6
}

/// A weight or a number as people write it.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn allowed(specs: &[Value]) -> impl Iterator<Item = f64> {
    specs.iter().flat_map(|spec| match spec["steps"].as_array() {
        Some(steps) => steps.iter().filter_map(|step| number(&step["weight"])).collect(),
        None => ramp(&spec["ramp"]),
    })
}

fn ramp(ramp: &Value) -> Vec<f64> {
    let (Some(from), Some(by), Some(to)) = (number(&ramp["from"]), number(&ramp["by"]), number(&ramp["to"])) else {
        return Vec::new();
    };
    let steps = (0..=100_u32).map(|step| from + f64::from(step) * by);
    steps.take_while(|weight| *weight < to).chain([to]).collect()
}

/// The shortest time that any of these specs holds this weight.
fn hold(specs: &[Value], weight: f64) -> Option<SignedDuration> {
    let of_spec = |spec: &Value| {
        let held = match spec["steps"].as_array() {
            Some(steps) => {
                let at = steps
                    .iter()
                    .filter(|step| number(&step["weight"]).is_some_and(|step| same(step, weight)));
                at.map(|step| text(step, "/hold").parse().unwrap_or_default()).min()
            }
            None => text(spec, "/ramp/every").parse().ok(),
        };
        held.unwrap_or_default()
    };
    specs.iter().map(of_spec).min()
}

fn services(ingress: &Value) -> Vec<&str> {
    let paths = ingress["spec"]["rules"].as_array().into_iter().flatten();
    let paths = paths.flat_map(|rule| rule["http"]["paths"].as_array().into_iter().flatten());
    paths
        .map(|path| text(path, "/backend/service/name"))
        .filter(|name| !name.is_empty())
        .collect()
}

fn routes(ingress: &Value) -> Vec<(&str, &str)> {
    let rules = ingress["spec"]["rules"].as_array().into_iter().flatten();
    rules
        .flat_map(|rule| {
            let paths = rule["http"]["paths"].as_array().into_iter().flatten();
            paths.map(move |path| (text(rule, "/host"), text(path, "/path")))
        })
        .collect()
}

fn rolled_out(deployment: &Value) -> bool {
    let number = |path: &str| deployment.pointer(path).and_then(Value::as_i64).unwrap_or_default();
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    number("/status/observedGeneration") >= number("/metadata/generation")
        && ["updatedReplicas", "availableReplicas", "replicas"]
            .iter()
            .all(|count| number(&format!("/status/{count}")) == wanted)
}
