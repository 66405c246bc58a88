//! The cluster around the planner: what is stored, what a cache shows of it, pods, endpoints and nginx.

use crate::objects::{Object, TICK, now};
use canary_operator::{
    rehearse::{
        json::{int, text},
        server::patch::{PatchKind, apply},
    },
    release::Kind,
    routing::{IngressNginx, Routing},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fmt,
    sync::{LazyLock, Mutex},
};

pub const SHOP: &str = "shop";
pub const CANARY: &str = "shop-v2";

/// Which of the two versions something is of.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Side {
    Stable,
    Canary,
}

/// What is stored, and what the operator's cache shows of it where that is not the same: at most one version older.
#[derive(Clone, Hash, PartialEq, Eq)]
pub struct Tracked<T> {
    pub now: T,
    pub seen: Option<T>,
}

impl<T: Clone + PartialEq> Tracked<T> {
    pub fn of(now: T) -> Self {
        Self { now, seen: None }
    }

    pub fn shown(&self) -> &T {
        self.seen.as_ref().unwrap_or(&self.now)
    }

    pub fn is_stale(&self) -> bool {
        self.seen.is_some()
    }

    /// Somebody else's write: the cache may show it only later.
    pub fn changed(&mut self, to: T, lags: bool) {
        if self.now == to {
            return;
        }
        let before = std::mem::replace(&mut self.now, to);
        self.seen = lags.then_some(before);
    }

    pub fn catch_up(&mut self) {
        self.seen = None;
    }
}

impl<T: fmt::Debug> fmt::Debug for Tracked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seen {
            None => write!(f, "{:?}", self.now),
            Some(seen) => write!(f, "{:?} (the cache shows {seen:?})", self.now),
        }
    }
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Restarted again and again: nothing but another version helps.
    Failing,
    Starting,
    Ready,
}

/// A pod, by the image that it runs.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    pub version: u8,
    pub health: Health,
}

/// A Deployment with its pods. Its status follows from these.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Deployment {
    /// Without status.
    pub object: Object,
    /// Whether the Deployment controller has seen the newest spec.
    pub observed: bool,
    pub pods: Vec<Pod>,
}

/// What a status says: pods, of the newest template, and available.
pub type Counts = [usize; 3];

impl Deployment {
    pub fn new(object: Object) -> Self {
        Self {
            object,
            observed: false,
            pods: Vec::new(),
        }
    }

    pub fn replicas(&self) -> usize {
        usize::try_from(int(self.object.value(), "/spec/replicas").unwrap_or(1)).unwrap()
    }

    /// The number in the image's tag.
    pub fn version(&self) -> u8 {
        let image = text(self.object.value(), "/spec/template/spec/containers/0/image");
        image.trim_start_matches("shop:v").parse().unwrap()
    }

    pub fn count(&self, health: Health) -> usize {
        self.pods.iter().filter(|pod| pod.health == health).count()
    }

    pub fn ready(&self) -> usize {
        self.count(Health::Ready)
    }

    pub fn counts(&self) -> Counts {
        let version = self.version();
        let updated = self.pods.iter().filter(|pod| pod.version == version).count();
        [self.pods.len(), updated, self.ready()]
    }

    pub fn rolled_out(&self) -> bool {
        self.observed && self.counts() == [self.replicas(); 3]
    }

    /// As the API server tells it.
    pub fn render(object: &Object, observed: bool, counts: Counts, version: &str) -> Value {
        let mut value = crate::objects::versioned(object.value(), version);
        let generation = int(&value, "/metadata/generation").unwrap_or(1);
        value["status"] = json!({"observedGeneration": if observed { generation } else { generation - 1 },
            "replicas": counts[0], "updatedReplicas": counts[1], "availableReplicas": counts[2]});
        value
    }

    /// One look of the Deployment controller: pods are replaced one by one, and none that serves goes before another does.
    fn sync(&self) -> Self {
        let (wanted, version) = (self.replicas(), self.version());
        let mut next = self.clone();
        next.observed = true;
        let is_new = |pod: &Pod| pod.version == version;
        let old = |pods: &[Pod]| pods.iter().filter(|pod| !is_new(pod)).count();
        let surge = usize::from(old(&next.pods) > 0);
        while next.pods.iter().filter(|pod| is_new(pod)).count() < wanted && next.pods.len() < wanted + surge {
            next.pods.push(Pod {
                version,
                health: Health::Starting,
            });
        }
        while let Some(at) = next
            .pods
            .iter()
            .position(|pod| !is_new(pod) && (pod.health != Health::Ready || next.ready() > wanted))
        {
            next.pods.remove(at);
        }
        next.pods.sort_unstable();
        // Those that are not ready go first.
        while old(&next.pods) == 0 && next.pods.len() > wanted {
            next.pods.remove(0);
        }
        next
    }

    fn turn(&self, from: Health, to: Health) -> Option<Self> {
        let newest = self.version();
        let mut next = self.clone();
        let of = |pods: &[Pod], newer: bool| {
            pods.iter()
                .position(|pod| pod.health == from && (pod.version == newest) == newer)
        };
        let at = of(&next.pods, true).or_else(|| of(&next.pods, false))?;
        next.pods[at].health = to;
        next.pods.sort_unstable();
        Some(next)
    }
}

/// What nginx knows.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct Nginx {
    /// Percent of the requests that it sends to version 2.
    pub weight: u8,
    /// Whether it may still send version 1's requests to a pod that a rollout took away.
    pub gone: bool,
}

/// Everything outside of the operator.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Cluster {
    pub release: Tracked<Option<Object>>,
    pub stable: Tracked<Option<Deployment>>,
    pub canary: Tracked<Option<Deployment>>,
    pub service: Tracked<Option<Object>>,
    pub ingress: Tracked<Option<Object>>,
    /// Ready endpoints that are published: of version 1's Service, and of version 2's.
    pub endpoints: [usize; 2],
    pub nginx: Nginx,
}

/// Objects that are written, as bits.
pub fn bit(kind: Kind, name: &str) -> u8 {
    match (kind, name) {
        (Kind::CanaryRelease, _) => 1,
        (Kind::Deployment, SHOP) => 2,
        (Kind::Deployment, _) => 4,
        (Kind::Service, _) => 8,
        (Kind::Ingress, _) => 16,
    }
}

/// Percent of the requests that a canary Ingress sends to version 2.
pub fn weight(ingress: Option<&Object>) -> u8 {
    static KNOWN: LazyLock<Mutex<HashMap<Object, u8>>> = LazyLock::new(Mutex::default);
    let Some(ingress) = ingress else { return 0 };
    let mut known = KNOWN.lock().unwrap();
    *known.entry(ingress.clone()).or_insert_with(|| {
        let live = serde_json::from_value(ingress.value().clone()).unwrap();
        let weight = IngressNginx::default().split(&live).weight;
        weight.to_string().parse().unwrap_or(u8::MAX)
    })
}

/// The API server's object after a patch; a changed spec is another generation, of which only that matters.
pub fn patched(object: &Object, kind: PatchKind, patch: &Value) -> Object {
    object.with(|value| {
        let before = value["spec"].clone();
        apply(kind, value, patch).unwrap();
        if value["spec"] != before && value.pointer("/metadata/generation").is_some() {
            value["metadata"]["generation"] = json!(2);
        }
    })
}

impl Cluster {
    pub fn deployment(&self, side: Side) -> Option<&Deployment> {
        match side {
            Side::Stable => self.stable.now.as_ref(),
            Side::Canary => self.canary.now.as_ref(),
        }
    }

    pub fn set_deployment(&mut self, side: Side, to: Option<Deployment>, lags: bool) {
        match side {
            Side::Stable => self.stable.changed(to, lags),
            Side::Canary => self.canary.changed(to, lags),
        }
    }

    pub fn set_release(&mut self, to: Option<Object>, lags: bool) {
        self.release.changed(to, lags);
    }

    /// What the Deployment controller makes of a Deployment; nothing where that is as it is.
    pub fn synced(&self, side: Side) -> Option<Deployment> {
        let before = self.deployment(side)?;
        let after = before.sync();
        (after != *before).then_some(after)
    }

    /// Whether a rollout takes away pods that served.
    pub fn takes_away(&self, side: Side, after: &Deployment) -> bool {
        let served = |deployment: &Deployment| {
            let newest = after.version();
            let old = deployment.pods.iter().filter(|pod| pod.version != newest);
            old.filter(|pod| pod.health == Health::Ready).count()
        };
        side == Side::Stable
            && self
                .deployment(side)
                .is_some_and(|before| served(before) > served(after))
    }

    pub fn turned(&self, side: Side, from: Health, to: Health) -> Option<Deployment> {
        self.deployment(side)?.turn(from, to)
    }

    /// Ready pods behind a Service.
    pub fn serving(&self, side: Side) -> usize {
        let there = side == Side::Stable || self.service.now.is_some();
        self.deployment(side).filter(|_| there).map_or(0, Deployment::ready)
    }

    pub fn publish(&mut self) {
        self.endpoints = [self.serving(Side::Stable), self.serving(Side::Canary)];
    }

    pub fn nginx_syncs(&mut self) {
        self.nginx = Nginx {
            weight: weight(self.ingress.now.as_ref()),
            gone: false,
        };
    }

    pub fn catch_up(&mut self) {
        self.release.catch_up();
        self.stable.catch_up();
        self.canary.catch_up();
        self.service.catch_up();
        self.ingress.catch_up();
    }

    pub fn is_stale(&self) -> bool {
        let [release, stable, canary, service, ingress] = self.stale();
        release || stable || canary || service || ingress
    }

    pub fn stale(&self) -> [bool; 5] {
        [
            self.release.is_stale(),
            self.stable.is_stale(),
            self.canary.is_stale(),
            self.service.is_stale(),
            self.ingress.is_stale(),
        ]
    }

    /// Whether anything of the canary is stored.
    pub fn has_canary(&self) -> bool {
        self.canary.now.is_some() || self.service.now.is_some() || self.ingress.now.is_some()
    }
}

/// One or two pods of `shop:v1`, ready behind Service `shop` and its Ingress.
pub fn stable(replicas: usize) -> Deployment {
    let object = Object::new(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": SHOP, "namespace": "default", "uid": "uid-shop", "generation": 2},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": SHOP}},
            "template": {"metadata": {"labels": {"app": SHOP}}, "spec": {"containers": [{"name": "web", "image": "shop:v1"}]}}}}));
    let pod = Pod {
        version: 1,
        health: Health::Ready,
    };
    Deployment {
        object,
        observed: true,
        pods: vec![pod; replicas],
    }
}

pub fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": SHOP, "namespace": "default", "uid": "uid-service", "resourceVersion": "1"},
        "spec": {"selector": {"app": SHOP}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

pub fn ingress() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "shop-ingress", "namespace": "default", "uid": "uid-ingress", "resourceVersion": "1"},
        "spec": {"ingressClassName": "nginx", "rules": [{"host": "shop.example", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": SHOP, "port": {"number": 80}}}}]}}]}})
}

/// A release to `shop:v2`: half of the requests for a tick, judged, then everything.
pub fn release(steps: &Value) -> Object {
    let seconds = TICK.as_secs();
    crate::objects::normal(
        json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease",
        "metadata": {"name": SHOP, "namespace": "default", "uid": "uid-release", "generation": 1,
            "creationTimestamp": now().to_string()},
        "spec": {"target": {"deployment": SHOP}, "canary": {"image": "shop:v2", "suffix": "-v2"},
            "progressDeadline": format!("{}s", 2 * seconds), "steps": steps}}),
    )
}
