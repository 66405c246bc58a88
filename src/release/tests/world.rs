//! One app, `shop`, its release to `shop:v2`, and what rounds make of them.

use super::super::{Decision, Kind, Op, Settling, decide, to_judge};
use crate::{
    analysis::{Judged, Side, Span, Status},
    api::{ANNOTATION_COMMAND, CanaryRelease, CheckStatus, FINALIZER, Phase, Rollout, Verdict, Weight},
    cluster::Outages,
    observe::{Class, Failure, Observed, Survey, Workload},
    rehearse::server::patch::{PatchKind, apply},
    render::{owned_by, promotion_patch},
    routing::{IngressNginx, Routing, Split},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::networking::v1::Ingress,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::ResourceExt;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub const SETTLE: Duration = Duration::from_secs(6);
pub const UID: &str = "uid-release";

/// Everything that `decide` may look at, and the story told so far.
#[derive(Clone, Debug)]
pub struct World {
    pub release: CanaryRelease,
    pub objects: BTreeMap<(Kind, String), Value>,
    pub ready: BTreeMap<String, usize>,
    pub failure: Option<(Failure, Option<String>)>,
    pub merge_refused: Option<String>,
    pub merge_unasked: bool,
    pub rivals: Vec<String>,
    pub busy: BTreeMap<String, String>,
    pub survey: Option<Survey>,
    pub judged: Judged,
    /// Changes what every check says that the spec asks for: that it has just passed.
    pub verdict: Option<fn(&mut CheckStatus)>,
    pub may_play: bool,
    pub now: Timestamp,
    pub led_since: Timestamp,
    pub outages: Outages,
    pub story: String,
    versions: u64,
}

/// Four pods of `shop:v1`, ready behind Service `shop` and Ingress `shop-ingress`; a release to `shop:v2` at 10 and 50 %.
pub fn world() -> World {
    let release = json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease",
        "metadata": {"name": "shop", "namespace": "default", "uid": UID, "generation": 1, "resourceVersion": "1"},
        "spec": {"target": {"deployment": "shop"}, "canary": {"image": "shop:v2", "suffix": "-v2"},
            "steps": [{"weight": 10, "hold": "1m"}, {"weight": 50, "hold": "1m"}]}});
    World {
        release: serde_json::from_value(release).unwrap(),
        objects: BTreeMap::new(),
        ready: BTreeMap::new(),
        failure: None,
        merge_refused: None,
        merge_unasked: false,
        rivals: Vec::new(),
        busy: BTreeMap::new(),
        judged: Judged::default(),
        verdict: Some(|_| ()),
        survey: Some(Survey {
            classes: BTreeMap::from([("nginx".to_owned(), Class::Of("k8s.io/ingress-nginx".to_owned()))]),
            ..Default::default()
        }),
        may_play: true,
        now: "2026-01-05T10:00:00Z".parse().unwrap(),
        led_since: Timestamp::MIN,
        outages: Outages::default(),
        story: String::new(),
        versions: 1,
    }
    .with(deployment("shop", "shop:v1", 4))
    .with(service("shop", json!({"app": "shop"})))
    .with(ingress("shop-ingress", "shop"))
    .stable_ready(4)
    .stable_rolled_out()
}

pub fn deployment(name: &str, image: &str, replicas: i32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "web", "image": image}]}}}})
}

pub fn service(name: &str, selector: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": 80, "targetPort": 8080}]}})
}

pub fn ingress(name: &str, service: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name},
        "spec": {"ingressClassName": "nginx", "rules": [{"host": format!("{name}.example"), "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"number": 80}}}}]}}]}})
}

fn kind(object: &Value) -> Kind {
    match object["kind"].as_str().unwrap() {
        "Deployment" => Kind::Deployment,
        "Service" => Kind::Service,
        "Ingress" => Kind::Ingress,
        other => panic!("no {other} here"),
    }
}

fn crash(reason: &str, exit_code: Option<i32>, message: &str) -> Failure {
    Failure {
        pod: "shop-v2-1".to_owned(),
        container: "web".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        exit_code,
        ran: exit_code.is_some(),
    }
}

// === What the world is like

impl World {
    /// Adds an object, or puts it in place of the one with its name.
    pub fn with(mut self, mut object: Value) -> Self {
        let key = (kind(&object), object["metadata"]["name"].as_str().unwrap().to_owned());
        object["metadata"]["namespace"] = json!("default");
        object["metadata"]["uid"] = json!(format!("uid-{:?}-{}", key.0, key.1));
        object["metadata"]["resourceVersion"] = json!(self.next_version());
        self.objects.insert(key, object);
        self
    }

    pub fn without(mut self, kind: Kind, name: &str) -> Self {
        self.objects.remove(&(kind, name.to_owned()));
        self
    }

    /// Somebody else changes an object.
    pub fn edit(mut self, kind: Kind, name: &str, change: impl FnOnce(&mut Value)) -> Self {
        let version = self.next_version();
        let object = self.objects.get_mut(&(kind, name.to_owned())).unwrap();
        change(object);
        object["metadata"]["resourceVersion"] = json!(version);
        self
    }

    pub fn stable(self, change: impl FnOnce(&mut Value)) -> Self {
        self.edit(Kind::Deployment, "shop", change)
    }

    /// The user changes the release's spec, as a merge patch.
    pub fn spec(mut self, patch: Value) -> Self {
        let mut release = json!(self.release);
        json_patch::merge(&mut release["spec"], &patch);
        self.release = serde_json::from_value(release).unwrap();
        self.release.metadata.generation = self.release.metadata.generation.map(|g| g + 1);
        self.release.metadata.resource_version = Some(self.next_version());
        self
    }

    pub fn steps(self, steps: &[(&str, &str)]) -> Self {
        let steps: Vec<_> = steps
            .iter()
            .map(|(weight, hold)| json!({"weight": weight, "hold": hold}))
            .collect();
        self.spec(json!({"steps": steps}))
    }

    pub fn ready(mut self, service: &str, endpoints: usize) -> Self {
        self.ready.insert(service.to_owned(), endpoints);
        self
    }

    pub fn stable_ready(self, endpoints: usize) -> Self {
        self.ready("shop", endpoints)
    }

    pub fn canary_ready(self, endpoints: usize) -> Self {
        self.ready("shop-v2", endpoints)
    }

    /// The Deployment controller has done its work on version 1's Deployment.
    pub fn stable_rolled_out(self) -> Self {
        self.stable(|d| {
            let replicas = d["spec"]["replicas"].clone();
            d["status"] = json!({"observedGeneration": d["metadata"]["generation"], "replicas": replicas,
                "updatedReplicas": replicas, "availableReplicas": replicas});
        })
    }

    pub fn canary_crashes(mut self, log: Option<&str>) -> Self {
        let failure = crash("CrashLoopBackOff", Some(1), "back-off 10s restarting failed container");
        self.failure = Some((failure, log.map(str::to_owned)));
        self
    }

    pub fn canary_image_missing(mut self) -> Self {
        let failure = crash("ImagePullBackOff", None, "Back-off pulling image \"shop:v2\"");
        self.failure = Some((failure, None));
        self
    }

    pub fn quota_exceeded(self) -> Self {
        self.edit(Kind::Deployment, "shop-v2", |d| {
            d["status"]["conditions"] =
                json!([{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods=4"}]);
        })
    }

    /// The user deletes the release; its finalizer keeps it.
    pub fn deleted(mut self) -> Self {
        self.release.metadata.deletion_timestamp = Some(Time(self.now));
        self
    }

    pub fn later(mut self, seconds: u64) -> Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    /// Another process leads from now on, by a clock that is wrong by so many seconds.
    pub fn led_by_a_clock_off_by(mut self, seconds: i64) -> Self {
        self.now += jiff::SignedDuration::from_secs(seconds);
        self.led_since = self.now;
        self
    }

    /// The user writes a command for the revision that is being released.
    pub fn command(self, verb: &str, rest: &str) -> Self {
        let text = format!("{verb}/{}{rest}", self.revision());
        self.annotated(&text)
    }

    pub fn annotated(mut self, text: &str) -> Self {
        let annotations = self.release.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_COMMAND.to_owned(), text.to_owned());
        self.release.metadata.resource_version = Some(self.next_version());
        self
    }

    pub fn command_annotation(&self) -> Option<&String> {
        self.release.annotations().get(ANNOTATION_COMMAND)
    }

    pub fn revision(&self) -> String {
        self.release.status.as_ref().unwrap().revision.clone().unwrap()
    }

    pub fn phase(&self) -> Phase {
        self.release.status.as_ref().unwrap().phase.unwrap()
    }

    /// The live canary Ingress carries another split than the status knows.
    pub fn live_split(self, weight: &str, step: u32) -> Self {
        let (weight, total) = weight.parse::<Weight>().unwrap().ratio();
        self.edit(Kind::Ingress, "shop-ingress-v2", |i| {
            i["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-weight"] = json!(weight.to_string());
            i["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-weight-total"] = json!(total.to_string());
            i["metadata"]["annotations"]["canary-operator.dev/step"] = json!(step.to_string());
        })
    }

    /// What the operator remembers of where the release stands.
    pub fn remember(mut self, change: impl FnOnce(&mut Rollout)) -> Self {
        change(self.release.status.as_mut().unwrap().rollout.as_mut().unwrap());
        self
    }

    /// The controllers counted these requests in the last seconds.
    pub fn counted(mut self, seconds: u64, stable: u64, canary: u64) -> Self {
        let side = |requests| Side {
            requests: BTreeMap::from([(Status::Code(200), requests)]),
            answered: BTreeMap::from([(Status::Code(200), requests)]),
            ..Side::default()
        };
        self.judged.live = Some(Span {
            since: self.now - Duration::from_secs(seconds),
            until: self.now,
            stable: side(stable),
            canary: side(canary),
        });
        self
    }

    /// What every check says from now on.
    pub fn checks(mut self, verdict: fn(&mut CheckStatus)) -> Self {
        self.verdict = Some(verdict);
        self
    }

    /// Nothing has been judged, and nothing is.
    pub fn unjudged(mut self) -> Self {
        self.verdict = None;
        self
    }

    /// What the judge says now.
    fn judgement(&self) -> Judged {
        let seen: Vec<_> = self
            .of(Kind::Ingress)
            .map(|o| Arc::new(serde_json::from_value(o).unwrap()))
            .collect();
        let settling = Settling {
            time: SETTLE,
            outages: self.outages.clone(),
        };
        let asked = to_judge(&self.release, &seen, &IngressNginx::default(), &settling);
        let (Some(change), Some(asked)) = (self.verdict, asked) else {
            return self.judged.clone();
        };
        let step = asked.in_force.map(|in_force| in_force.step);
        let check = |rule: &crate::analysis::Rule| {
            let mut check = CheckStatus {
                name: rule.check.name.clone(),
                asked: rule.asked.clone(),
                verdict: step.map(|_| Verdict::Pass),
                step: step.unwrap_or_default(),
                message: step.map(|_| format!("{} is well", rule.check.name)),
                value: None,
                limit: None,
                requests: None,
                at: step.map(|_| Time(self.now)),
                breaches: 0,
                error_since: None,
                evidence: Vec::new(),
            };
            if step.is_some() {
                change(&mut check);
            }
            check
        };
        Judged {
            checks: asked.rules.checks.iter().map(check).collect(),
            ..self.judged.clone()
        }
    }

    fn of(&self, wanted: Kind) -> impl Iterator<Item = Value> + '_ {
        let all = self.objects.iter().filter(move |((kind, _), _)| *kind == wanted);
        all.map(|(_, object)| object.clone())
    }

    pub fn ago(&self, seconds: u64) -> MicroTime {
        MicroTime(self.now - Duration::from_secs(seconds))
    }

    fn next_version(&mut self) -> String {
        self.versions += 1;
        self.versions.to_string()
    }
}

// === What is seen and done

impl World {
    pub fn seen(&self) -> Observed {
        let of = |wanted: Kind| self.of(wanted);
        let workload = |object: Value| Workload::read(&serde_json::from_value(object).unwrap()).unwrap();
        let stable = self
            .objects
            .get(&(Kind::Deployment, self.release.spec.target.deployment.clone()));
        let merged = stable.filter(|_| !self.merge_unasked).map(|stable| {
            let canary = &self.release.spec.canary;
            let mut merged = stable.clone();
            let patch = promotion_patch(canary, canary.container.as_deref().unwrap_or("web"));
            apply(PatchKind::Strategic, &mut merged, &patch).unwrap();
            self.merge_refused.clone().map_or(Ok(merged), Err)
        });
        Observed {
            release: Arc::new(self.release.clone()),
            may_play: self.may_play,
            stable: stable.cloned().map(workload),
            services: of(Kind::Service)
                .map(|o| Arc::new(serde_json::from_value(o).unwrap()))
                .collect(),
            ingresses: of(Kind::Ingress)
                .map(|o| Arc::new(serde_json::from_value(o).unwrap()))
                .collect(),
            own_deployments: of(Kind::Deployment).filter(owned).map(workload).collect(),
            deployment_names: of(Kind::Deployment)
                .map(|d| d["metadata"]["name"].as_str().unwrap().to_owned())
                .collect(),
            ready: self.ready.clone(),
            failure: self.failure.clone(),
            merged,
            rivals: self.rivals.clone(),
            busy: self.busy.clone(),
            survey: self.survey.clone(),
            servers: vec!["main".to_owned()],
            judged: self.judgement(),
            drained_since: None,
            led_since: self.led_since,
            outages: self.outages.clone(),
        }
    }

    pub fn decide(&self) -> Decision {
        decide(&self.seen(), &IngressNginx::default(), SETTLE, self.now)
    }

    /// One round: decided, told, and performed.
    pub fn round(mut self) -> Self {
        let decision = self.decide();
        let told = super::tell::tell(&self, &decision);
        self.story.push_str(&told);
        self.perform(&decision)
    }

    /// As many rounds, untold.
    pub fn rounds(mut self, count: usize) -> Self {
        for _ in 0..count {
            let decision = self.decide();
            self = self.perform(&decision);
        }
        self
    }

    /// The API server answers something else to what is asked before a start.
    pub fn survey(mut self, change: impl FnOnce(&mut Survey)) -> Self {
        change(self.survey.as_mut().unwrap());
        self
    }

    /// The operator decides, performs the first `writes` of its writes, and dies.
    pub fn dies_after(self, writes: usize) -> Self {
        let decision = self.decide();
        decision.writes[..writes]
            .iter()
            .fold(self, |world, write| world.write(write))
    }

    /// A line of the story.
    pub fn when(mut self, what: &str) -> Self {
        self.story.push_str(&format!("\n== {what}\n"));
        self
    }

    /// The operator dies before it takes the annotation off, each time.
    pub fn rounds_keeping_the_annotation(mut self, count: usize) -> Self {
        for _ in 0..count {
            let decision = Decision {
                answered: false,
                ..self.decide()
            };
            self = self.perform(&decision);
        }
        self
    }

    fn perform(self, decision: &Decision) -> Self {
        let mut world = decision.writes.iter().fold(self, |world, write| world.write(write));
        // As stored: what JSON cannot carry is lost.
        let stored = serde_json::to_value(&decision.status).unwrap();
        world.release.status = Some(serde_json::from_value(stored).unwrap());
        world.release.metadata.resource_version = Some(world.next_version());
        if decision.release_finalizer {
            world
                .release
                .metadata
                .finalizers
                .get_or_insert_default()
                .retain(|f| f != FINALIZER);
        }
        if decision.answered {
            let annotations = world.release.metadata.annotations.get_or_insert_default();
            annotations.remove(ANNOTATION_COMMAND);
        }
        world
    }

    /// What the API server does with a write, and that it would not refuse it.
    fn write(mut self, write: &super::super::Write) -> Self {
        let key = (write.kind, write.name.clone());
        match &write.op {
            Op::Create(object) => {
                assert!(!self.objects.contains_key(&key), "{key:?} exists already");
                return self.with(object.clone());
            }
            Op::Merge { version, patch } if write.kind == Kind::CanaryRelease => {
                assert_eq!(
                    Some(version),
                    self.release.metadata.resource_version.as_ref(),
                    "{key:?}"
                );
                let mut release = json!(self.release);
                json_patch::merge(&mut release, patch);
                self.release = serde_json::from_value(release).unwrap();
            }
            Op::Merge { version, patch } => {
                assert_eq!(
                    self.objects[&key]["metadata"]["resourceVersion"],
                    json!(version),
                    "{key:?}"
                );
                return self.edit(write.kind, &write.name, |object| {
                    json_patch::merge(object, patch);
                    if let (Some(_), Some(generation)) = (patch.get("spec"), object["metadata"]["generation"].as_i64())
                    {
                        object["metadata"]["generation"] = json!(generation + 1);
                    }
                });
            }
            Op::StrategicMerge { version, patch } => {
                assert_eq!(
                    self.objects[&key]["metadata"]["resourceVersion"],
                    json!(version),
                    "{key:?}"
                );
                return self.edit(write.kind, &write.name, |object| {
                    apply(PatchKind::Strategic, object, patch).unwrap();
                    let generation = object["metadata"]["generation"].as_i64().unwrap();
                    object["metadata"]["generation"] = json!(generation + 1);
                });
            }
            Op::Delete { uid, version } => {
                let object = self.objects.remove(&key).unwrap();
                assert_eq!(object["metadata"]["uid"], json!(uid), "{key:?}");
                if let Some(version) = version {
                    assert_eq!(object["metadata"]["resourceVersion"], json!(version), "{key:?}");
                }
            }
        }
        self
    }

    /// What the named Ingress expresses.
    pub fn split(&self, name: &str) -> Option<Split> {
        let object = self.objects.get(&(Kind::Ingress, name.to_owned()))?;
        let ingress: Ingress = serde_json::from_value(object.clone()).unwrap();
        Some(IngressNginx::default().split(&ingress))
    }

    pub fn rollout(&self) -> &Rollout {
        self.release.status.as_ref().unwrap().rollout.as_ref().unwrap()
    }

    /// Names of what the release owns, in the order of kinds.
    pub fn owned(&self) -> Vec<String> {
        let own = self.objects.iter().filter(|(_, object)| owned(object));
        own.map(|((kind, name), _)| format!("{kind:?} {name}")).collect()
    }

    pub fn guarded(&self) -> bool {
        self.release.finalizers().iter().any(|f| f == FINALIZER)
    }
}

fn owned(object: &Value) -> bool {
    owned_by(&serde_json::from_value(object["metadata"].clone()).unwrap(), UID)
}

// === Where a release may stand

impl World {
    /// Deployment and Service of version 2 exist, its pods are not ready.
    pub fn begun(self) -> Self {
        self.rounds(1)
    }

    /// The canary Ingress exists at weight 0.
    pub fn routed(self) -> Self {
        self.begun().canary_ready(1).rounds(1)
    }

    /// The first step's weight was just written.
    pub fn at_first_step(self) -> Self {
        self.routed().later(6).rounds(1)
    }

    /// The last step's weight was just written.
    pub fn at_last_step(self) -> Self {
        self.at_first_step().later(66).rounds(1).canary_ready(2).rounds(1)
    }

    /// The canary carries everything, since just now.
    pub fn promoting(self) -> Self {
        self.at_last_step().later(66).rounds(1).canary_ready(4).rounds(1)
    }

    /// Version 1's Deployment has version 2's template, since just now.
    pub fn finishing(self) -> Self {
        self.promoting().later(6).rounds(1)
    }

    pub fn rolled_back(self) -> Self {
        self.begun().canary_crashes(None).rounds(1).canary_recovers().rounds(1)
    }

    pub fn canary_recovers(mut self) -> Self {
        self.failure = None;
        self
    }
}
