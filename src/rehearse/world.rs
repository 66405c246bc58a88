//! One world: API server, actors and clock, from a seed.

use super::{
    actors::{
        self,
        behaviour::{Answers, Behaviour},
        clients::Load,
        kubelet::Settings,
    },
    clock::VirtualClock,
    json::items,
    nginx::{Nginx, controller_pod, model::CONTROLLER},
    server::{ApiServer, error::ApiError},
};
use crate::api::CanaryRelease;
use jiff::Timestamp;
use kube::CustomResourceExt;
use serde_json::{Value, json};
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// A cluster in memory. Must be made, and lives, inside a runtime, which is deterministic where it is of [`runtime`];
/// dropping it ends its tasks.
pub struct World {
    /// The API server.
    pub server: ApiServer,
    /// ingress-nginx.
    pub nginx: Nginx,
    settings: watch::Sender<Settings>,
    traffic: watch::Sender<Load>,
    tasks: JoinSet<()>,
}

/// The CustomResourceDefinition of releases. Generated once: worlds are many.
pub static DEFINITION: LazyLock<Value> =
    LazyLock::new(|| serde_json::to_value(CanaryRelease::crd()).unwrap_or(Value::Null));

/// The runtime in which a world is deterministic: one thread, and a clock that jumps when nothing is left to do.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
}

/// A condition did not come true in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not within {0:?}")]
pub struct TimedOut(pub Duration);

impl World {
    /// A world with an IngressClass and a controller of ingress-nginx, and nothing else.
    pub fn new(seed: u64) -> Self {
        Self::with_clock(VirtualClock::new(), seed)
    }

    /// The same by another clock. In a runtime whose clock is not paused it runs in real time.
    pub fn with_clock(clock: VirtualClock, seed: u64) -> Self {
        // kube's watcher jitters its back-off with the thread's generator.
        fastrand::seed(seed);
        let server = ApiServer::new(clock, seed);
        server.define(&DEFINITION);
        let (settings, seen) = watch::channel(Settings::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(actors::deployment::run(server.clone()));
        tasks.spawn(actors::kubelet::run(server.clone(), seen.clone()));
        tasks.spawn(actors::endpoints::run(server.clone()));
        tasks.spawn(actors::garbage::run(server.clone()));
        let nginx = Nginx::new(server.clone(), seen, seed.wrapping_add(1));
        tasks.spawn(nginx.clone().run());
        let (traffic, wanted) = watch::channel(Load::default());
        tasks.spawn(actors::clients::run(nginx.clone(), wanted));
        let world = Self {
            server,
            nginx,
            settings,
            traffic,
            tasks,
        };
        let class = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "nginx"}, "spec": {"controller": CONTROLLER}});
        for object in [class, controller_pod("ingress-nginx-controller-0")] {
            // Nothing can refuse the first objects of an empty store.
            let _ = world.apply(object);
        }
        world
    }

    /// A client of the API server, without a retry layer.
    pub fn client(&self) -> kube::Client {
        self.server.client()
    }

    /// The present.
    pub fn now(&self) -> Timestamp {
        self.server.clock().now()
    }

    /// How long the world has existed.
    pub fn elapsed(&self) -> Duration {
        self.server.clock().elapsed()
    }

    /// Creates or merges an object, or each item of a List.
    pub fn apply(&self, manifest: Value) -> Result<Arc<Value>, ApiError> {
        let mut last = Arc::new(Value::Null);
        if manifest.get("items").is_some() {
            for item in items(&manifest, "/items") {
                last = self.server.apply(item.clone())?;
            }
            return Ok(last);
        }
        self.server.apply(manifest)
    }

    /// Changes how pods behave, from now on.
    pub fn kubelet(&self, change: impl FnOnce(&mut Settings)) {
        self.settings.send_modify(change);
    }

    /// Pods with a container of this image behave so from now on.
    pub fn image_behaves(&self, image: &str, behaviour: Behaviour) {
        self.kubelet(|s| s.behaviours.image(image, behaviour));
    }

    /// Pods with a container of this image answer so from now on.
    pub fn image_answers(&self, image: &str, answers: Answers) {
        self.kubelet(|s| s.behaviours.answers(image, answers));
    }

    /// From now on clients send so many plain requests a second, divided evenly among the locations of all Ingresses, all
    /// at once after each `interval`: what is looked at seldom need not come oftener.
    pub fn traffic(&self, per_second: u32, interval: Duration) {
        self.traffic.send_replace(Load { per_second, interval });
    }

    /// Runs a future, such as a controller, as one more part of the world.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        self.tasks.spawn(task)
    }

    /// Lets virtual time pass.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Waits until `condition` holds, looking after every change and every second; answers how long that took.
    pub async fn run_until(
        &self,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> Result<Duration, TimedOut> {
        let from = Instant::now();
        let mut changes = self.server.subscribe();
        while !condition(self) {
            if from.elapsed() >= limit {
                return Err(TimedOut(limit));
            }
            let tick = Instant::now() + Duration::from_secs(1);
            // A tick without a change is as good a moment to look.
            let _ = timeout_at(tick.min(from + limit), changes.next()).await;
        }
        Ok(from.elapsed())
    }
}

#[cfg(test)]
pub(crate) mod tests;
