//! Releases that progress all at once, some of which go wrong.

use crate::{
    fake::{self, Requests},
    idle::{LEASE_NAMESPACE, application, release},
    operator::{Operator, Usage},
};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use canary_operator::rehearse::{
    Key, Resource, World,
    actors::behaviour::Answers,
    clock::VirtualClock,
    json::{int, is_true, text},
    nginx::Nginx,
    server::store::{ChangeKind, Version},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::TcpListener;

/// All at once.
pub const RELEASES: usize = 200;
const NAMESPACES: usize = 20;
/// So many of them go wrong, all at the same moment.
pub const FAILING: usize = 20;
/// Requests a second, of each release.
pub const TRAFFIC: u32 = 50;
/// How long after a write its weight is taken to be live: what the operator is told.
const SETTLE: Duration = Duration::from_secs(6);
/// Percent and seconds of each step of the good ones.
const STEPS: [(u32, u64); 6] = [(5, 10), (10, 12), (15, 15), (20, 20), (25, 25), (30, 30)];
/// The weight that the others keep until they fail.
const EXPOSED: u32 = 40;
/// So many failures of version 2 in a row prove harm beyond doubt at that weight.
const PROOF: u64 = 12;
/// How long it is measured what they cost.
const MEASURED: Duration = Duration::from_secs(60);
/// Something that takes longer will never be.
const PATIENCE: Duration = Duration::from_secs(180);
const CONTROLLER: &str = "ingress-nginx-controller-0";
const CANARY_WEIGHT: &str = "/metadata/annotations/nginx.ingress.kubernetes.io~1canary-weight";

/// What came of it.
pub struct Progress {
    pub requests: Requests,
    /// In which they were counted.
    pub minutes: f64,
    /// Seconds of processor time a minute.
    pub cpu: f64,
    pub usage: Usage,
    /// Rounds a minute, and milliseconds of each.
    pub rounds: (f64, f64),
    /// Bytes of the controller's last answer.
    pub exposition: usize,
    /// How long after they were due weights were written.
    pub late: Vec<Duration>,
    /// From the answer that proved harm to the deletion of the canary Ingress.
    pub reactions: Vec<Duration>,
}

/// What the controller answered when.
#[derive(Default)]
struct Answered {
    bytes: usize,
    /// When an answer first had enough failures of version 2 behind the Ingress of this namespace and name.
    proven: BTreeMap<(String, String), Timestamp>,
}

#[derive(Clone)]
struct Controller {
    nginx: Nginx,
    clock: VirtualClock,
    answered: Arc<Mutex<Answered>>,
}

async fn metrics(State(controller): State<Controller>) -> Result<String, StatusCode> {
    let text = controller
        .nginx
        .exposition(CONTROLLER)
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let mut failures = BTreeMap::<_, u64>::new();
    let requests = "nginx_ingress_controller_requests{";
    for line in text.lines().filter_map(|line| line.strip_prefix(requests)) {
        let line = format!(",{line}");
        let label = |name: &str| {
            line.split(&format!(",{name}=\""))
                .nth(1)
                .and_then(|rest| rest.split('"').next())
        };
        let of_version_2 = label("canary").is_some_and(|canary| !canary.is_empty());
        if of_version_2 && label("status") == Some("500") {
            let ingress = [label("namespace"), label("ingress")].map(|label| label.unwrap().to_owned());
            let value = line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            *failures.entry(ingress.into()).or_default() += value as u64;
        }
    }
    let mut answered = controller.answered.lock().unwrap();
    answered.bytes = text.len();
    for (ingress, _) in failures.into_iter().filter(|(_, failures)| *failures >= PROOF) {
        answered.proven.entry(ingress).or_insert_with(|| controller.clock.now());
    }
    Ok(text)
}

fn place(number: usize) -> (String, String) {
    (format!("team-{:02}", number % NAMESPACES), format!("web-{number:03}"))
}

fn fails(number: usize) -> bool {
    number < FAILING
}

fn spec(number: usize) -> Value {
    let steps: Vec<_> = if fails(number) {
        vec![json!({"weight": EXPOSED, "hold": "10m"})]
    } else {
        let steps = STEPS.iter();
        steps
            .map(|(weight, hold)| json!({"weight": weight, "hold": format!("{hold}s")}))
            .collect()
    };
    json!({"steps": steps, "analysis": {"interval": "5s"}})
}

fn canary_weight(ingress: &Value) -> Option<u32> {
    text(ingress, CANARY_WEIGHT).parse().ok()
}

/// Plays them.
pub async fn progress(dir: &Path) -> Progress {
    let clock = VirtualClock::starting_at(Timestamp::now());
    let world = World::with_clock(clock, 1);
    let server = world.server.clone();
    // The controller's metrics are on this machine.
    world.kubelet(|kubelet| kubelet.node = "127.0.0.1".to_owned());
    let edited = server.edit(&Key::pod("ingress-nginx", CONTROLLER), |pod| {
        pod["spec"]["hostNetwork"] = json!(true);
    });
    edited.unwrap();
    let controller = Controller {
        nginx: world.nginx.clone(),
        clock,
        answered: Arc::default(),
    };
    let answered = controller.answered.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let app = Router::new().route("/metrics", get(metrics)).with_state(controller);
    tokio::spawn(async move { axum::serve(listener, app).await });
    for number in 0..RELEASES {
        let (namespace, name) = place(number);
        for object in application(&namespace, &name) {
            world.apply(object).unwrap();
        }
    }
    let deployments = Resource::new("apps", "deployments");
    let available = |deployment: &Arc<Value>| int(deployment, "/status/availableReplicas") == Some(2);
    let up = world.run_until(PATIENCE, |world| {
        is_true(
            &world.server.get(&Key::pod("ingress-nginx", CONTROLLER)).unwrap(),
            "Ready",
        ) && world.server.list(&deployments, "").iter().all(available)
    });
    up.await.unwrap();
    world.traffic(TRAFFIC * RELEASES as u32, Duration::from_secs(1));

    let kubeconfig = fake::serve(&server, dir, "progress").await;
    let arguments = ["--lease-namespace", LEASE_NAMESPACE, "--controller-metrics-port", &port];
    let mut operator = Operator::start(dir, "progress", &kubeconfig, &arguments);
    operator.settled().await;
    for number in 0..RELEASES {
        let (namespace, name) = place(number);
        server.create(release(&namespace, &name, &spec(number))).unwrap();
    }
    // All of them are on their way when each has a weight.
    let ingresses = Resource::new("networking.k8s.io", "ingresses");
    let weighted = |ingress: &&Arc<Value>| canary_weight(ingress).is_some_and(|weight| weight > 0);
    let started = world.run_until(PATIENCE, |world| {
        world.server.list(&ingresses, "").iter().filter(weighted).count() == RELEASES
    });
    started.await.unwrap();
    let rounds = |operator: &Operator| {
        ["count", "sum"].map(|what| operator.metric(&format!("canary_operator_round_duration_seconds_{what}")))
    };
    let (from, before, rounds_before) = (clock.now(), operator.usage(), rounds(&operator));
    world.pass(MEASURED).await;
    let (to, usage, rounds_after) = (clock.now(), operator.usage(), rounds(&operator));
    let minutes = (usage.at - before.at).as_secs_f64() / 60.0;
    let [count, sum] = [0, 1].map(|n| rounds_after[n] - rounds_before[n]);

    for (_, name) in (0..RELEASES).filter(|number| fails(*number)).map(place) {
        world.image_answers(&format!("{name}:v2"), Answers::failing(1.0));
    }
    let deleted = |number: usize| {
        let (namespace, name) = place(number);
        server.get(&canary(&namespace, &name)).is_none()
    };
    let gone = world.run_until(PATIENCE, |_| (0..FAILING).all(deleted));
    gone.await.unwrap();
    let log = server.log();
    let answered = answered.lock().unwrap();
    let reactions = (0..FAILING).map(place).map(|(namespace, name)| {
        let key = canary(&namespace, &name);
        let deletion = log
            .iter()
            .find(|version| version.key == key && version.change == ChangeKind::Deleted)
            .unwrap();
        // What the operator saw earlier than what is proof in any case was proof enough.
        let proven = answered.proven.get(&(namespace, name)).copied().unwrap_or(deletion.at);
        Duration::try_from(deletion.at.duration_since(proven)).unwrap_or_default()
    });
    let mut reactions: Vec<_> = reactions.collect();
    reactions.sort();
    Progress {
        requests: Requests::between(&server.records(), from, to),
        minutes,
        cpu: usage.cpu_a_minute(&before),
        usage,
        rounds: (count / minutes, sum / count * 1000.0),
        exposition: answered.bytes,
        late: late(&log),
        reactions,
    }
}

fn canary(namespace: &str, name: &str) -> Key {
    Key::ingress(namespace, &format!("{name}-canary"))
}

/// By how much weights were written later than the write before, the settle time and the step's hold after it allow.
fn late(log: &[Arc<Version>]) -> Vec<Duration> {
    let mut last = BTreeMap::<&Key, (u32, Timestamp)>::new();
    let mut late = Vec::new();
    for version in log.iter().filter(|version| version.key.resource.plural == "ingresses") {
        let Some(weight) = canary_weight(&version.object) else {
            continue;
        };
        let Some((before, at)) = last.insert(&version.key, (weight, version.at)) else {
            continue;
        };
        if before == weight {
            // Not a step: it is as old as it was.
            last.insert(&version.key, (before, at));
            continue;
        }
        let hold = STEPS.iter().find(|(weight, _)| *weight == before);
        if let Some((_, hold)) = hold {
            let due = at + SignedDuration::try_from(SETTLE + Duration::from_secs(*hold)).unwrap();
            late.push(Duration::try_from(version.at.duration_since(due)).unwrap_or_default());
        }
    }
    late.sort();
    late
}
