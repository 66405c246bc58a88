//! One release from beginning to end.

use crate::faults::{Kill, Killer};
use canary_operator::{
    controller,
    rehearse::{
        Key, World,
        actors::behaviour::Behaviour,
        json::{int, items, text},
        nginx::{Outcome, SimRequest},
        play::settings,
        server::{intercept::Record, store::Version},
        world::runtime,
    },
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub const NAMESPACE: &str = "default";
pub const HOST: &str = "shop.example";
pub const SETTLE: Duration = Duration::from_secs(6);
/// How long the kubelet takes to start a killed operator again.
pub const RESTART: Duration = Duration::from_secs(2);
pub const LIMIT: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Three steps, promoted.
    Good,
    /// Five steps, for counting.
    FiveSteps,
    /// Steps below one percent.
    Fractions,
    /// Version 2 crashes at its start.
    CrashLoop,
    /// Version 2 crashes after half a minute.
    CrashMidway,
    /// The release is deleted at its second step.
    Deleted,
    /// The image is changed at the second step.
    Superseded,
}

/// What was seen of a release.
pub struct Run {
    pub scenario: Scenario,
    pub seed: u64,
    pub kill: Option<Kill>,
    pub killed: bool,
    pub log: Vec<Arc<Version>>,
    pub records: Vec<Record>,
    /// Requests that a pod of version 2 answered.
    pub canary_answers: usize,
    /// Requests that were answered with an error, and when.
    pub failed: Vec<(Timestamp, u16)>,
    pub ended_at: Option<Timestamp>,
    pub release: Option<Arc<Value>>,
    pub stable: Option<Arc<Value>>,
}

pub fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "shop"}}, "template": {"metadata": {"labels": {"app": "shop"}}, "spec": {
            "containers": [{"name": "frontend", "image": "shop:v1", "ports": [{"containerPort": 8080}]}]}}}})
}

pub fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop-service"}, "spec": {
        "selector": {"app": "shop"}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

pub fn ingress() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "shop-ingress"}, "spec": {
        "ingressClassName": "nginx", "rules": [{"host": HOST, "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "shop-service", "port": {"number": 80}}}}]}}]}})
}

impl Scenario {
    pub fn weights(self) -> Vec<Value> {
        match self {
            Self::FiveSteps => [10, 20, 30, 40, 50].map(Value::from).to_vec(),
            Self::Fractions => vec![json!("0.01"), json!("0.5"), json!(5)],
            _ => [10, 25, 50].map(Value::from).to_vec(),
        }
    }

    pub fn release(self) -> Value {
        let steps: Vec<_> = self
            .weights()
            .into_iter()
            .map(|weight| json!({"weight": weight, "hold": "20s"}))
            .collect();
        json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "shop"}, "spec": {
            "target": {"deployment": "shop"}, "canary": {"image": "shop:v2", "suffix": "-v2"}, "steps": steps, "progressDeadline": "5m"}})
    }

    pub fn behaviour(self) -> Behaviour {
        match self {
            Self::CrashLoop => {
                Behaviour::crash_loop("Traceback\nModuleNotFoundError: No module named 'flask_limiter'\n")
            }
            Self::CrashMidway => Behaviour::crash_after(Duration::from_secs(40), "out of luck\n"),
            _ => Behaviour::healthy(),
        }
    }
}

pub fn release_key() -> Key {
    Key::release(NAMESPACE, "shop")
}

pub fn step_of(world: &World) -> String {
    world
        .server
        .get(&release_key())
        .map(|r| text(&r, "/status/step").to_owned())
        .unwrap_or_default()
}

/// The end: promoted or rolled back with nothing left to guard, or gone.
pub fn over(world: &World, generation: i64) -> bool {
    world.server.get(&release_key()).is_none_or(|release| {
        int(&release, "/status/observedGeneration") == Some(generation)
            && text(&release, "/status/rollout/stage") == "Ended"
            && items(&release, "/metadata/finalizers").is_empty()
    })
}

pub fn play(scenario: Scenario, seed: u64, kill: Option<Kill>) -> Run {
    runtime().unwrap().block_on(async move {
        let world = World::new(seed);
        for manifest in [deployment(), service(), ingress()] {
            world.apply(manifest).unwrap();
        }
        world.image_behaves("shop:v2", scenario.behaviour());
        world.pass(Duration::from_secs(30)).await;
        let fired = Arc::new(AtomicBool::new(false));
        if let Some(kill) = kill {
            world.server.intercept(Killer { kill, writes: 0.into(), fired: fired.clone() });
        }
        world.apply(scenario.release()).unwrap();
        let operator = world.server.named("operator");
        let (mut canary_answers, mut failed, mut ended_at) = (0, Vec::new(), None);
        let life = async {
            loop {
                tokio::select! {
                    biased;
                    () = operator.crashed("operator") => tokio::time::sleep(RESTART).await,
                    () = controller::run(settings(&operator, SETTLE).unwrap(), None, std::future::pending()) => panic!("the controller ended"),
                }
            }
        };
        let user = async {
            let mut generation = 1;
            if matches!(scenario, Scenario::Deleted | Scenario::Superseded) {
                world.run_until(LIMIT, |w| step_of(w) == "2/3").await.unwrap();
                if scenario == Scenario::Deleted {
                    world.server.delete(&release_key(), &Default::default()).unwrap();
                } else {
                    world.server.edit(&release_key(), |release| release["spec"]["canary"]["image"] = json!("shop:v3"));
                    generation = 2;
                }
            }
            world.run_until(LIMIT, |w| over(w, generation)).await.unwrap_or_else(|error| {
                panic!("{scenario:?} {kill:?} not over {error}: {:#}", world.server.get(&release_key()).unwrap_or_default())
            });
            ended_at = Some(world.now());
            // Quiet after the end is part of the end.
            world.pass(Duration::from_secs(120)).await;
        };
        let traffic = async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                match world.nginx.request(NAMESPACE, &SimRequest::to(HOST, "/")) {
                    Outcome::Stable { .. } => {}
                    Outcome::Canary { .. } => canary_answers += 1,
                    Outcome::Status(code) => failed.push((world.now(), code)),
                }
            }
        };
        tokio::select! {
            biased;
            () = user => {}
            () = life => {}
            () = traffic => {}
        }
        Run {
            scenario,
            seed,
            kill,
            killed: fired.load(Ordering::SeqCst),
            log: world.server.log(),
            records: world.server.records().into_iter().filter(|record| &*record.client == "operator").collect(),
            canary_answers,
            failed,
            ended_at,
            release: world.server.get(&release_key()),
            stable: world.server.get(&Key::deployment(NAMESPACE, "shop")),
        }
    })
}

impl Run {
    pub fn outcome(&self) -> Option<String> {
        self.release
            .as_ref()
            .map(|release| text(release, "/status/rollout/outcome").to_owned())
    }

    pub fn message(&self) -> String {
        self.release
            .as_ref()
            .map(|release| text(release, "/status/message").to_owned())
            .unwrap_or_default()
    }

    pub fn history(&self) -> Vec<String> {
        let release = self.release.clone().unwrap_or_default();
        items(&release, "/status/history")
            .iter()
            .map(|entry| text(entry, "/outcome").to_owned())
            .collect()
    }

    pub fn stable_image(&self) -> String {
        self.stable
            .as_ref()
            .map(|stable| text(stable, "/spec/template/spec/containers/0/image").to_owned())
            .unwrap_or_default()
    }

    /// Weights that the canary Ingress carried, in order, without repeats.
    pub fn weights(&self) -> Vec<String> {
        let mut weights: Vec<String> = Vec::new();
        for version in self.log.iter().filter(|v| crate::properties::is_canary_ingress(v)) {
            let weight = crate::properties::weight(&version.object).to_string();
            if weights.last() != Some(&weight) {
                weights.push(weight);
            }
        }
        weights
    }

    /// Every request of the operator, one a line.
    pub fn trace(&self) -> String {
        let line = |r: &Record| {
            format!(
                "{} {} {}{} {} -> {} {}",
                r.at,
                r.verb,
                r.resource,
                r.subresource,
                r.name,
                r.code,
                if r.verb == "watch" || r.verb == "list" {
                    Value::Null
                } else {
                    (*r.body).clone()
                }
            )
        };
        self.records.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
