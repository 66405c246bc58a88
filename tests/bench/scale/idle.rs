//! Releases that are over: how they are made, and what they cost.

use crate::{
    fake::{self, Requests},
    operator::{Operator, Usage},
};
use canary_operator::{
    cluster::{Contact, Term},
    controller,
    rehearse::{
        ApiServer, Key, Resource, World,
        clock::VirtualClock,
        json::{items, text},
        play::settings,
        world::{DEFINITION, runtime},
    },
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};

/// Of one namespace.
pub const RELEASES: usize = 100;
/// Where they are played.
const PLAYED: &str = "team-000";
/// In which the lease is.
pub const LEASE_NAMESPACE: &str = "canary-operator";
const SETTLE: Duration = Duration::from_secs(6);

/// An application that is released.
pub fn application(namespace: &str, name: &str) -> [Value; 3] {
    let metadata = json!({"name": name, "namespace": namespace});
    [
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "containers": [{"name": "web", "image": format!("{name}:v1"), "ports": [{"containerPort": 8080}]}]}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {
            "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": {
            "ingressClassName": "nginx", "rules": [{"host": format!("{name}.{namespace}.example"), "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": name, "port": {"number": 80}}}}]}}]}}),
    ]
}

/// A release of it.
pub fn release(namespace: &str, name: &str, spec: &Value) -> Value {
    let mut release = json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    release["spec"]["target"] = json!({"deployment": name});
    release["spec"]["canary"] = json!({"image": format!("{name}:v2")});
    release
}

/// A namespace whose releases the real controller has all played to their ends, in virtual time.
pub fn played() -> Vec<Value> {
    runtime().unwrap().block_on(async {
        let mut world = World::new(1);
        let spec = json!({"steps": [{"weight": 10, "hold": "30s"}, {"weight": 50, "hold": "30s"}]});
        let names: Vec<_> = (0..RELEASES).map(|number| format!("web-{number:02}")).collect();
        for object in names.iter().flat_map(|name| application(PLAYED, name)) {
            world.apply(object).unwrap();
        }
        world.traffic(10 * RELEASES as u32, Duration::from_secs(1));
        world.pass(Duration::from_secs(60)).await;
        let clock = Arc::new(world.server.clock());
        let settings = settings(
            &world.server,
            &world.nginx,
            SETTLE,
            Duration::from_secs(1),
            &Term::unlimited(),
            &Contact::new(clock.clone()),
            clock,
        );
        world.spawn(controller::run(settings.unwrap(), None, std::future::pending()));
        for name in &names {
            world.apply(release(PLAYED, name, &spec)).unwrap();
        }
        let over = |release: &Arc<Value>| {
            text(release, "/status/rollout/outcome") == "Promoted" && items(release, "/metadata/finalizers").is_empty()
        };
        let releases = Resource::new("canary-operator.dev", "canaryreleases");
        let ended = world
            .run_until(Duration::from_secs(1800), |world| {
                world.server.list(&releases, PLAYED).iter().all(over)
            })
            .await;
        ended.unwrap();
        // The last pods end, too.
        world.pass(Duration::from_secs(60)).await;
        world.server.with(|store| {
            let here = store.all().filter(|(key, _)| key.namespace == PLAYED);
            let kept = here.filter(|(key, _)| key.resource.plural != "events");
            kept.map(|(_, object)| (**object).clone()).collect()
        })
    })
}

/// So many ended releases with all that belongs to them: the played namespace again and again.
pub fn copies(played: &[Value], releases: usize) -> impl Iterator<Item = Value> {
    let namespaces = releases.div_ceil(RELEASES);
    let last = releases - (namespaces - 1) * RELEASES;
    (0..namespaces).flat_map(move |number| {
        let most = if number + 1 == namespaces { last } else { RELEASES };
        let kept = move |object: &&Value| text(object, "/kind") != "CanaryRelease" || index(object) < most;
        played.iter().filter(kept).map(move |object| copy(object, number))
    })
}

/// An object of the played namespace in another one, with a uid of its own wherever that is named, and with what an API
/// server and `kubectl apply` put on it besides.
fn copy(object: &Value, number: usize) -> Value {
    let text = object.to_string();
    let text = text.replace(PLAYED, &format!("team-{number:03}"));
    let mut copy: Value = serde_json::from_str(&text.replace("-4000-8000-", &format!("-4{number:03}-8000-"))).unwrap();
    let written = |manager: &str, part: &str| {
        json!({"manager": manager, "operation": "Update", "apiVersion": copy["apiVersion"], "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {format!("f:{part}"): fields(&copy[part])}})
    };
    let managed = json!([
        written("kubectl-client-side-apply", "spec"),
        written("canary-operator", "status")
    ]);
    let applied = json!({"apiVersion": copy["apiVersion"], "kind": copy["kind"], "spec": copy["spec"]}).to_string();
    copy["metadata"]["managedFields"] = managed;
    copy["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = json!(applied);
    copy
}

/// Names of fields as `managedFields` has them.
fn fields(value: &Value) -> Value {
    let mut fields = json!({});
    for (name, value) in value.as_object().into_iter().flatten() {
        fields[format!("f:{name}")] = self::fields(value);
    }
    for item in value.as_array().into_iter().flatten() {
        if let Some(kind) = item.get("type") {
            let mut of = self::fields(item);
            of["."] = json!({});
            fields[format!("k:{}", json!({"type": kind}))] = of;
        }
    }
    fields
}

fn index(release: &Value) -> usize {
    let name = text(release, "/metadata/name");
    name.rsplit_once('-').unwrap().1.parse().unwrap()
}

/// An API server with so many ended releases and an operator that has seen them.
pub struct Idle {
    pub releases: usize,
    pub server: ApiServer,
    pub operator: Operator,
    /// Until it led and had listed all releases.
    pub settled: Duration,
    began: (Timestamp, Usage),
}

/// What they cost.
pub struct Cost {
    pub releases: usize,
    pub settled: Duration,
    /// In which it was measured.
    pub minutes: f64,
    pub requests: Requests,
    /// Seconds of processor time a minute.
    pub cpu: f64,
    pub usage: Usage,
}

impl Idle {
    /// Waits until it is settled.
    pub async fn start(dir: &Path, played: &[Value], releases: usize) -> Self {
        let server = ApiServer::new(VirtualClock::starting_at(Timestamp::now()), 1);
        server.define(&DEFINITION);
        server.restore(copies(played, releases));
        let name = format!("idle-{releases}");
        let kubeconfig = fake::serve(&server, dir, &name).await;
        let mut operator = Operator::start(dir, &name, &kubeconfig, &["--lease-namespace", LEASE_NAMESPACE]);
        let settled = operator.settled().await;
        let began = (server.clock().now(), operator.usage());
        Self {
            releases,
            server,
            operator,
            settled,
            began,
        }
    }

    /// Since it was settled.
    pub fn cost(&self) -> Cost {
        let (since, before) = &self.began;
        let (now, usage) = (self.server.clock().now(), self.operator.usage());
        Cost {
            releases: self.releases,
            settled: self.settled,
            minutes: (usage.at - before.at).as_secs_f64() / 60.0,
            requests: Requests::between(&self.server.records(), *since, now),
            cpu: usage.cpu_a_minute(before),
            usage,
        }
    }

    /// Ends this operator, applies a new release, and starts another: how long until its first decision is
    /// written, and how many seconds of processor time that took.
    pub async fn start_again(self, dir: &Path) -> (Duration, f64) {
        let Self { server, operator, .. } = self;
        drop(operator);
        let (namespace, name) = ("team-000", "fresh");
        server.restore([json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"}})]);
        let spec = json!({"steps": [{"weight": 10, "hold": "30s"}]});
        let [deployment, service, ingress] = application(namespace, name);
        for object in [deployment, service, ingress, release(namespace, name, &spec)] {
            server.create(object).unwrap();
        }
        // The one that was killed holds it still: how long another waits for that is a matter of leases.
        let lease = Key::new("coordination.k8s.io", "leases", LEASE_NAMESPACE, "canary-operator");
        server.delete(&lease, &Default::default()).unwrap();
        let kubeconfig = fake::serve(&server, dir, "start").await;
        let mut changes = server.subscribe();
        let began = server.clock().now();
        let operator = Operator::start(dir, "start", &kubeconfig, &["--lease-namespace", LEASE_NAMESPACE]);
        loop {
            let changed = changes.next().await;
            if let Some(first) = changed
                .iter()
                .find(|version| version.key == Key::release(namespace, name))
            {
                return (first.at.duration_since(began).unsigned_abs(), operator.usage().cpu);
            }
        }
    }
}
