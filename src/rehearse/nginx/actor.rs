//! The running controller: it compiles after changes, no oftener than its rate limit, and its workers take over a little later.

use super::{Model, Outcome, SimRequest, Split};
use crate::rehearse::{
    ApiServer,
    server::{
        resource::Key,
        store::{ChangeKind, Version},
    },
};
use fastrand::Rng;
use serde_json::Value;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// `--sync-rate-limit` 0.3 per second.
const BETWEEN_SYNCS: Duration = Duration::from_millis(3334);
/// The workers' timer, in milliseconds.
const WORKER_TIMER: u64 = 1000;

/// A handle on the controller; clones share one configuration.
#[derive(Clone)]
pub struct Nginx {
    server: ApiServer,
    live: Arc<Mutex<Arc<Model>>>,
    rng: Arc<Mutex<Rng>>,
}

impl Nginx {
    /// A controller with an empty configuration; [`Self::run`] must be running for it to change.
    pub fn new(server: ApiServer, seed: u64) -> Self {
        Self {
            server,
            live: Arc::default(),
            rng: Arc::new(Mutex::new(Rng::with_seed(seed))),
        }
    }

    /// Runs for ever.
    pub async fn run(self) {
        let mut changes = self.server.subscribe_from_start();
        let mut last_sync: Option<Instant> = None;
        loop {
            if !changes.next().await.iter().any(|v| concerns(v)) {
                continue;
            }
            if let Some(last) = last_sync {
                tokio::time::sleep_until(last + BETWEEN_SYNCS).await;
            }
            last_sync = Some(Instant::now());
            // What has come meanwhile is compiled in, too.
            changes.pending();
            let model = Arc::new(Model::of(&self.server));
            let timer = Duration::from_millis(self.with_rng(|rng| rng.u64(..=WORKER_TIMER)));
            tokio::time::sleep(timer).await;
            *self.live.lock().unwrap_or_else(PoisonError::into_inner) = model;
        }
    }

    /// The configuration in force.
    pub fn model(&self) -> Arc<Model> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends one request through; a pod that has gone or does not run answers 502.
    pub fn request(&self, namespace: &str, request: &SimRequest) -> Outcome {
        let model = self.model();
        let outcome = self.with_rng(|rng| model.route(request, rng));
        match &outcome {
            Outcome::Stable { pod } | Outcome::Canary { pod } if !self.answers(namespace, pod) => Outcome::Status(502),
            _ => outcome,
        }
    }

    /// Sends one request as [`Self::request`] does, and where nobody answers on to the other pods of the same Service, as
    /// `proxy_next_upstream` has it: what became of it, and how many addresses answered nothing, each a wait for the client.
    pub fn patiently(&self, namespace: &str, request: &SimRequest) -> (Outcome, usize) {
        const TRIES: usize = 3;
        let model = self.model();
        let first = self.with_rng(|rng| model.route(request, rng));
        let (Outcome::Stable { pod } | Outcome::Canary { pod }) = &first else {
            return (first, 0);
        };
        let others = model.peers(pod).filter(|other| other != pod);
        let tried = std::iter::once(pod.as_str()).chain(others).take(TRIES);
        let mut dead = 0;
        for pod in tried {
            if self.answers(namespace, pod) {
                let pod = pod.to_owned();
                let outcome = match &first {
                    Outcome::Canary { .. } => Outcome::Canary { pod },
                    _ => Outcome::Stable { pod },
                };
                return (outcome, dead);
            }
            dead += 1;
        }
        (Outcome::Status(502), dead)
    }

    /// How plain requests to a host and path divide now.
    pub fn share(&self, host: &str, path: &str) -> Split {
        self.model().share(host, path)
    }

    /// Whether a container runs behind the address that nginx knows.
    fn answers(&self, namespace: &str, pod: &str) -> bool {
        let pod = self.server.get(&Key::pod(namespace, pod));
        pod.is_some_and(|p| {
            p.pointer("/status/containerStatuses/0/state/running")
                .is_some_and(Value::is_object)
        })
    }

    fn with_rng<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn concerns(version: &Version) -> bool {
    match version.key.resource.plural.as_str() {
        "ingresses" => {
            version.change != ChangeKind::Modified
                || seen_of(version.previous.as_deref()) != seen_of(Some(&version.object))
        }
        "services" | "endpointslices" | "ingressclasses" => true,
        _ => false,
    }
}

/// What of an Ingress the controller looks at.
fn seen_of(ingress: Option<&Value>) -> [Option<&Value>; 2] {
    ["/metadata/annotations", "/spec"].map(|at| ingress.and_then(|i| i.pointer(at)))
}
