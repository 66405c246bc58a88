//! The planner itself, `release::decide`, told what the model's caches show. What it says is remembered: it is pure.

use crate::{
    cluster::{self, CANARY, Cluster, Counts, Deployment, Health, SHOP},
    objects::{Object, TICK, digest, normal, now, versioned},
};
use canary_operator::{
    analysis::Judged,
    api::{
        ANNOTATION_COMMAND, ANNOTATION_SINCE, CanaryRelease, CheckStatus, FINALIZER, LABEL_REVISION, Stage, Verdict,
    },
    observe::{Class, Observed, Survey, Workload},
    rehearse::{
        json::text,
        server::patch::{PatchKind, apply},
    },
    release::{Decision, Kind, Op, Settling, Write, at_rest, decide, intent, to_judge},
    render::promotion_patch,
    routing::IngressNginx,
};
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::Ingress},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex},
    time::Duration,
};

/// The newest version of every object, and the one before.
pub const NEWEST: &str = "2";
const BEFORE: &str = "1";

/// As long as a tick.
fn settle() -> Duration {
    TICK.try_into().unwrap()
}

fn settling() -> Settling {
    Settling {
        time: settle(),
        outages: Default::default(),
    }
}

/// The planner, or one with a mistake that the model has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planner {
    Real,
    /// Does not wait until nginx knows.
    Hasty,
    /// Writes whatever it wrote to last first.
    Backwards,
    /// Names no version in its patches.
    Unversioned,
    /// Takes missing data for a pass.
    Trusting,
    /// Takes one ready pod for as many as it asked for, and none for one.
    Blind,
    /// Never takes its finalizer off.
    Clinging,
    /// Forgets when the canary Ingress was deleted.
    Forgetful,
    /// Does not read since when the canary Ingress leads requests as it does.
    Dateless,
    /// Does not know which Ingresses it has written before.
    Unaware,
}

/// What the judge says at a look.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing new.
    Silent,
    NoData,
    Pass,
    Harm,
}

/// One look, in the terms of the model.
#[derive(Clone, Hash, PartialEq, Eq)]
struct Look {
    release: Object,
    stable: Option<(Object, bool, Counts)>,
    canary: Option<(Object, bool, Counts)>,
    service: Option<Object>,
    ingress: Option<Object>,
    ready: [usize; 2],
    failing: bool,
    stale: [bool; 5],
    judgement: Judgement,
}

/// One thing that a round does, in order.
#[derive(Clone, Debug)]
pub enum Step {
    Write(Write),
    Status,
    ReleaseFinalizer,
    RemoveCommand,
}

/// What was decided, and what it rests on.
#[derive(Debug)]
pub struct Decided {
    pub digest: u64,
    pub decision: Decision,
    pub steps: Vec<Step>,
    pub status: Value,
    pub judgement: Judgement,
    pub ready: [usize; 2],
    pub failing: bool,
    pub paused: bool,
    /// Whether version 1's Deployment was seen to have rolled out.
    pub rolled_out: bool,
    /// Pods of version 1, as seen.
    pub replicas: usize,
    /// Whether the release was seen at its newest version.
    pub current: bool,
}

impl PartialEq for Decided {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Decided {}

impl Hash for Decided {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

/// A release as read, and what follows from it alone.
pub struct Read {
    pub release: Arc<CanaryRelease>,
    pub at_rest: bool,
    /// Whether the judge is asked about a weight that is live.
    pub judged: bool,
    intent: String,
}

/// The planner with its memory.
pub struct Mind {
    planner: Planner,
    decisions: Mutex<HashMap<Look, Arc<Decided>>>,
    releases: Mutex<HashMap<(Object, bool), Arc<Read>>>,
    workloads: Mutex<HashMap<(Object, bool, Counts, bool), Workload>>,
    services: Mutex<HashMap<(Object, bool), Arc<Service>>>,
    ingresses: Mutex<HashMap<(Object, bool), Arc<Ingress>>>,
    stable: (Arc<Service>, Arc<Ingress>),
}

/// An object as its type says, read once.
fn typed<T: DeserializeOwned>(known: &Mutex<HashMap<(Object, bool), Arc<T>>>, object: &Object, stale: bool) -> Arc<T> {
    let mut known = known.lock().unwrap();
    let read = known.entry((object.clone(), stale));
    read.or_insert_with(|| Arc::new(owned(versioned(object.value(), version(stale)))))
        .clone()
}

fn owned<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn version(stale: bool) -> &'static str {
    if stale { BEFORE } else { NEWEST }
}

impl Mind {
    pub fn new(planner: Planner) -> Self {
        Self {
            planner,
            decisions: Mutex::default(),
            releases: Mutex::default(),
            workloads: Mutex::default(),
            services: Mutex::default(),
            ingresses: Mutex::default(),
            stable: (Arc::new(owned(cluster::service())), Arc::new(owned(cluster::ingress()))),
        }
    }

    /// How many different looks there were.
    pub fn looks(&self) -> usize {
        self.decisions.lock().unwrap().len()
    }

    pub fn read(&self, release: &Object, stale: bool) -> Arc<Read> {
        let mut known = self.releases.lock().unwrap();
        let read = known.entry((release.clone(), stale)).or_insert_with(|| {
            let read: CanaryRelease = owned(versioned(release.value(), version(stale)));
            let live = to_judge(&read, &[], &IngressNginx::default(), &settling())
                .and_then(|asked| asked.in_force)
                .is_some_and(|in_force| in_force.live <= now());
            Arc::new(Read {
                at_rest: at_rest(&read, now()).is_some(),
                judged: live,
                intent: intent(&read.spec),
                release: Arc::new(read),
            })
        });
        read.clone()
    }

    fn workload(&self, of: &(Object, bool, Counts), stale: bool) -> Workload {
        let (object, observed, counts) = of;
        let mut known = self.workloads.lock().unwrap();
        let key = (object.clone(), *observed, *counts, stale);
        let workload = known.entry(key).or_insert_with(|| {
            let value = Deployment::render(object, *observed, *counts, version(stale));
            Workload::read(&owned(value)).unwrap()
        });
        workload.clone()
    }

    /// One round up to its first write; nothing where the release is gone or at rest, or the API server is asked first
    /// what version 2's template is and refuses, for the Deployment is not the one that was seen.
    pub fn look(&self, cluster: &Cluster, judgement: Judgement) -> Option<Arc<Decided>> {
        let object = cluster.release.shown().clone()?;
        let read = self.read(&object, cluster.release.is_stale());
        if read.at_rest {
            return None;
        }
        let rollout = read.release.rollout();
        let stage = rollout.map(|rollout| rollout.stage);
        let renewed = rollout.is_none_or(|rollout| rollout.intent != read.intent);
        let ended = stage.is_none_or(|stage| stage == Stage::Ended);
        let lacks = cluster.canary.shown().is_none() || cluster.service.shown().is_none();
        let asks = (ended && renewed) || (stage == Some(Stage::Preparing) && lacks);
        let spec = |deployment: &Option<Deployment>| deployment.as_ref().map(|d| d.object.clone());
        if asks && spec(&cluster.stable.now) != spec(cluster.stable.shown()) {
            return None;
        }
        let seen = |deployment: &Option<Deployment>| {
            let deployment = deployment.as_ref()?;
            Some((deployment.object.clone(), deployment.observed, deployment.counts()))
        };
        let pods_fail = |canary: &Deployment| {
            let revision = read.release.status.as_ref().and_then(|status| status.revision.as_ref());
            let label = LABEL_REVISION.replace('/', "~1");
            let of = text(
                canary.object.value(),
                &format!("/spec/template/metadata/labels/{label}"),
            );
            canary.count(Health::Failing) > 0 && revision.map(String::as_str) == Some(of)
        };
        let watched = stage.is_some_and(|stage| !matches!(stage, Stage::Ended | Stage::RollingBack)) && !renewed;
        let look = Look {
            release: object,
            stable: seen(cluster.stable.shown()),
            canary: seen(cluster.canary.shown()),
            service: cluster.service.shown().clone(),
            ingress: cluster.ingress.shown().clone(),
            ready: cluster.endpoints,
            failing: watched && cluster.canary.shown().as_ref().is_some_and(pods_fail),
            stale: cluster.stale(),
            judgement,
        };
        if let Some(known) = self.decisions.lock().unwrap().get(&look) {
            return Some(known.clone());
        }
        let decided = Arc::new(self.decide(&look, &read));
        self.decisions.lock().unwrap().insert(look, decided.clone());
        Some(decided)
    }

    fn decide(&self, look: &Look, read: &Read) -> Decided {
        let mut seen = self.observed(look, read);
        let mut wait = settle();
        match self.planner {
            Planner::Hasty => wait = Duration::ZERO,
            Planner::Unaware => {
                let status = Arc::make_mut(&mut seen.release).status.as_mut();
                if let Some(rollout) = status.and_then(|status| status.rollout.as_mut()) {
                    rollout.expressed = None;
                }
            }
            Planner::Dateless => seen.ingresses.iter_mut().for_each(|ingress| {
                Arc::make_mut(ingress).annotations_mut().remove(ANNOTATION_SINCE);
            }),
            Planner::Trusting if look.judgement == Judgement::NoData => {
                seen.judged = judged(read, &seen.ingresses, Judgement::Pass);
            }
            Planner::Blind => {
                if let Some(ready) = seen.ready.get_mut(CANARY) {
                    *ready = 2;
                }
            }
            _ => {}
        }
        let mut decision = decide(&seen, &IngressNginx::default(), wait, now());
        match self.planner {
            Planner::Backwards => decision.writes.reverse(),
            Planner::Clinging => decision.release_finalizer = false,
            Planner::Unversioned => decision.writes.iter_mut().for_each(|write| {
                if let Op::Merge { version, .. } | Op::StrategicMerge { version, .. } = &mut write.op {
                    version.clear();
                }
            }),
            Planner::Forgetful => {
                if let Some(rollout) = &mut decision.status.rollout {
                    rollout.drained_since = None;
                }
            }
            _ => {}
        }
        let status = serde_json::to_value(&decision.status).unwrap();
        let mut told = look.release.value().clone();
        told["status"] = status.clone();
        let mut steps: Vec<_> = decision.writes.iter().cloned().map(Step::Write).collect();
        let told = normal(told);
        if told != look.release {
            steps.push(Step::Status);
        }
        let taken = decision.writes.iter().any(|write| write.kind == Kind::CanaryRelease);
        let guarded = taken || read.release.finalizers().iter().any(|f| f == FINALIZER);
        if decision.release_finalizer && guarded {
            steps.push(Step::ReleaseFinalizer);
        }
        if decision.answered && read.release.annotations().contains_key(ANNOTATION_COMMAND) {
            steps.push(Step::RemoveCommand);
        }
        let stable = seen.stable.as_ref();
        let rolled_out = stable.is_some_and(Workload::rolled_out);
        let replicas = stable.map_or(1, |stable| usize::try_from(stable.replicas).unwrap());
        let facts = (
            look.judgement,
            read.release.spec.paused,
            look.ready,
            look.stale,
            look.failing,
            rolled_out,
            replicas,
        );
        Decided {
            digest: digest(&(format!("{steps:?}{facts:?}"), &told)),
            steps,
            status,
            judgement: look.judgement,
            ready: look.ready,
            failing: look.failing,
            paused: read.release.spec.paused,
            rolled_out,
            replicas,
            current: !look.stale[0],
            decision,
        }
    }

    fn observed(&self, look: &Look, read: &Read) -> Observed {
        let [_, stable_stale, canary_stale, service_stale, ingress_stale] = look.stale;
        let mut services = vec![self.stable.0.clone()];
        services.extend(look.service.iter().map(|s| typed(&self.services, s, service_stale)));
        let mut ingresses = vec![self.stable.1.clone()];
        ingresses.extend(look.ingress.iter().map(|i| typed(&self.ingresses, i, ingress_stale)));
        let own = look.canary.iter().map(|canary| self.workload(canary, canary_stale));
        let merged = look.stable.as_ref().map(|(object, observed, counts)| {
            let mut merged = Deployment::render(object, *observed, *counts, version(stable_stale));
            let patch = promotion_patch(&read.release.spec.canary, "web");
            apply(PatchKind::Strategic, &mut merged, &patch).unwrap();
            Ok(merged)
        });
        let names = [
            look.stable.as_ref().map(|_| SHOP.to_owned()),
            look.canary.as_ref().map(|_| CANARY.to_owned()),
        ];
        let class = Class::Of("k8s.io/ingress-nginx".to_owned());
        Observed {
            release: read.release.clone(),
            may_play: true,
            stable: look.stable.as_ref().map(|stable| self.workload(stable, stable_stale)),
            services,
            own_deployments: own.collect(),
            deployment_names: names.into_iter().flatten().collect(),
            ready: BTreeMap::from([(SHOP.to_owned(), look.ready[0]), (CANARY.to_owned(), look.ready[1])]),
            failure: look.failing.then(|| (crash(), None)),
            merged,
            rivals: Vec::new(),
            busy: BTreeMap::new(),
            survey: Some(Survey {
                classes: BTreeMap::from([("nginx".to_owned(), class)]),
                ..Default::default()
            }),
            servers: Vec::new(),
            judged: judged(read, &ingresses, look.judgement),
            drained_since: None,
            led_since: jiff::Timestamp::MIN,
            outages: Default::default(),
            ingresses,
        }
    }
}

fn crash() -> canary_operator::observe::Failure {
    canary_operator::observe::Failure {
        pod: "shop-v2-1".to_owned(),
        container: "web".to_owned(),
        reason: "CrashLoopBackOff".to_owned(),
        message: String::new(),
        exit_code: Some(1),
        ran: true,
    }
}

/// What the judge says of everything that it is asked for.
fn judged(read: &Read, ingresses: &[Arc<Ingress>], judgement: Judgement) -> Judged {
    let asked = to_judge(&read.release, ingresses, &IngressNginx::default(), &settling());
    let verdict = match judgement {
        Judgement::Silent => return Judged::default(),
        Judgement::NoData => Verdict::NoData,
        Judgement::Pass => Verdict::Pass,
        Judgement::Harm => Verdict::Breach,
    };
    let Some((asked, step)) = asked.and_then(|asked| Some((asked.rules, asked.in_force?.step))) else {
        return Judged::default();
    };
    let checks: Vec<_> = asked
        .checks
        .iter()
        .map(|rule| CheckStatus {
            name: rule.check.name.clone(),
            asked: rule.asked.clone(),
            verdict: Some(verdict),
            step,
            message: None,
            value: None,
            limit: None,
            requests: None,
            at: Some(Time(now())),
            breaches: 0,
            error_since: None,
            evidence: Vec::new(),
        })
        .collect();
    let harm = checks.first().map(|check| check.name.clone());
    Judged {
        harm: harm.filter(|_| judgement == Judgement::Harm),
        checks,
        ..Judged::default()
    }
}
