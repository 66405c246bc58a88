//! The running controllers: they compile after changes, no oftener than their rate limit, their workers take over a little
//! later, and each counts the requests that pass through it.

use super::{
    Model, Reply, SimRequest, Split,
    metrics::{Counters, Series, Tally},
    model::CATCH_ALL,
    serve::{Limits, Passage, Served},
};
use crate::{
    analysis::{
        Controller, Fetch, ScrapeError,
        scraper::{Pieces, SELECTOR},
    },
    rehearse::{
        ApiServer, Resource,
        actors::{behaviour::Answers, kubelet::Settings},
        json::{int, is_ending, is_true, map, set, text},
        server::{
            resource::Key,
            store::{ChangeKind, Version},
        },
    },
};
use fastrand::Rng;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch::Receiver},
    time::Instant,
};

/// `--sync-rate-limit` 0.3 per second.
const BETWEEN_SYNCS: Duration = Duration::from_millis(3334);
/// The workers' timer, in milliseconds.
const WORKER_TIMER: u64 = 1000;
/// Where the controllers' pods are.
const NAMESPACE: &str = "ingress-nginx";

/// A controller's pod, as the chart labels it.
pub fn controller_pod(name: &str) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "controller", "image": "registry.k8s.io/ingress-nginx/controller:v1.15.1"}]}});
    for (label, value) in SELECTOR.split(',').filter_map(|pair| pair.split_once('=')) {
        let label = label.replace('/', "~1");
        set(&mut pod, &format!("/metadata/labels/{label}"), json!(value));
    }
    pod
}

/// What becomes of it when somebody asks for a controller's metrics.
#[derive(Clone, Debug, Default)]
pub enum Scrapes {
    /// They are told.
    #[default]
    Answer,
    /// Something else is said.
    Say(String),
    /// It fails.
    Fail(ScrapeError),
    /// Nothing is ever said.
    Hang,
}

/// A kind of object that the controllers watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watched {
    /// All of them.
    Ingresses,
    /// Which of them are theirs.
    Classes,
    /// Behind them.
    Services,
    /// The pods' addresses.
    Endpoints,
}

impl Watched {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Ingresses, Self::Classes, Self::Services, Self::Endpoints];

    fn resource(self) -> Resource {
        let (group, plural) = match self {
            Self::Ingresses => ("networking.k8s.io", "ingresses"),
            Self::Classes => ("networking.k8s.io", "ingressclasses"),
            Self::Services => ("", "services"),
            Self::Endpoints => ("discovery.k8s.io", "endpointslices"),
        };
        Resource::new(group, plural)
    }

    fn of(resource: &Resource) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.resource() == *resource)
    }
}

/// A handle on all controllers, which share one configuration; clones are the same.
#[derive(Clone)]
pub struct Nginx {
    server: ApiServer,
    state: Arc<Mutex<State>>,
    deafened: Arc<Notify>,
}

struct State {
    settings: Receiver<Settings>,
    live: Arc<Model>,
    rng: Rng,
    limits: Limits,
    /// By the pod's name.
    controllers: BTreeMap<String, Process>,
    /// How pods answer that were asked, by their namespace and name.
    answers: BTreeMap<(String, String), Option<Answers>>,
    /// The version of the world as of which these are known.
    seen: u64,
    scrapes: Scrapes,
    /// Kinds whose watch is cut off.
    deaf: BTreeMap<Watched, Deaf>,
}

/// A watch that is cut off.
struct Deaf {
    until: Instant,
    /// What had been heard of before.
    heard: Vec<Arc<Value>>,
}

/// A controller's process.
struct Process {
    /// The pod's uid and how often its container has started over: another is another process.
    identity: (String, i64),
    ready: bool,
    counters: Counters,
}

impl State {
    /// Learns which controllers run, and forgets how pods answered, wherever anything has changed.
    fn look(&mut self, server: &ApiServer) {
        let version = server.with(|store| store.version());
        if version == self.seen && !self.settings.has_changed().unwrap_or(false) {
            return;
        }
        self.seen = version;
        self.settings.mark_unchanged();
        self.answers.clear();
        let pods = server.list(&Resource::new("", "pods"), NAMESPACE);
        let mut old = std::mem::take(&mut self.controllers);
        for pod in pods.iter().filter(|pod| runs(pod)) {
            let name = text(pod, "/metadata/name");
            let restarts = int(pod, "/status/containerStatuses/0/restartCount").unwrap_or(0);
            let identity = (text(pod, "/metadata/uid").to_owned(), restarts);
            let ready = is_true(pod, "Ready") && !is_ending(pod);
            let known = old.remove(name).filter(|process| process.identity == identity);
            let counters = known.map_or_else(|| Counters::new(name), |process| process.counters);
            let process = Process {
                identity,
                ready,
                counters,
            };
            self.controllers.insert(name.to_owned(), process);
        }
    }

    /// The controllers that get requests: the ready ones, and where there is none whichever still runs.
    fn serving(&self) -> Vec<String> {
        let ready = self.controllers.iter().filter(|(_, process)| process.ready);
        let mut names: Vec<_> = ready.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            names.extend(self.controllers.keys().cloned());
        }
        names
    }
}

impl Nginx {
    /// Controllers with an empty configuration; [`Self::run`] must be running for it to change. `settings` tell how
    /// pods answer.
    pub fn new(server: ApiServer, settings: Receiver<Settings>, seed: u64) -> Self {
        let state = State {
            settings,
            live: Arc::default(),
            rng: Rng::with_seed(seed),
            limits: Limits::default(),
            controllers: BTreeMap::new(),
            answers: BTreeMap::new(),
            seen: 0,
            scrapes: Scrapes::default(),
            deaf: BTreeMap::new(),
        };
        Self {
            server,
            state: Arc::new(Mutex::new(state)),
            deafened: Arc::default(),
        }
    }

    /// Runs for ever.
    pub async fn run(self) {
        let mut changes = self.server.subscribe_from_start();
        let mut last_sync: Option<Instant> = None;
        loop {
            let concerned = tokio::select! {
                biased;
                versions = changes.next() => versions.iter().any(|version| self.hears_of(version)),
                () = self.hears_again() => true,
            };
            if !concerned {
                continue;
            }
            if let Some(last) = last_sync {
                tokio::time::sleep_until(last + BETWEEN_SYNCS).await;
            }
            last_sync = Some(Instant::now());
            // What has come meanwhile is compiled in, too.
            changes.pending();
            let model = Arc::new(self.compile());
            let timer = Duration::from_millis(self.lock().rng.u64(..=WORKER_TIMER));
            tokio::time::sleep(timer).await;
            let mut state = self.lock();
            for process in state.controllers.values_mut() {
                process.counters.retain(&model);
            }
            state.live = model;
        }
    }

    /// The configuration in force.
    pub fn model(&self) -> Arc<Model> {
        self.lock().live.clone()
    }

    /// How plain requests to a host and path divide now.
    pub fn share(&self, host: &str, path: &str) -> Split {
        self.model().share(host, path)
    }

    /// Sends one request through.
    pub fn request(&self, request: &SimRequest) -> Reply {
        let mut reply = Served::by_nginx(404).reply();
        self.pass(request, (1, Duration::ZERO), |served| reply = served.reply());
        reply
    }

    /// Sends the requests through that came in the last `interval`, divided evenly among the locations of all Ingresses.
    pub fn crowd(&self, per_second: u32, interval: Duration) {
        let model = self.model();
        let addresses: Vec<_> = model.addresses().collect();
        let locations = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let requests = per_second.saturating_mul(u32::try_from(interval.as_secs()).unwrap_or(u32::MAX));
        for ((host, path), index) in addresses.iter().zip(0..) {
            // The first ones get what is left over.
            let count = (requests + locations - 1 - index) / locations;
            self.pass(&SimRequest::to(host, path), (count, interval), |_| {});
        }
    }

    /// From now on this becomes of it when somebody asks for metrics.
    pub fn scrapes(&self, scrapes: Scrapes) {
        self.lock().scrapes = scrapes;
    }

    /// The controllers hear of no change to these kinds of objects for so long, and go on with what they know: each watch is cut
    /// off, and tried again, by itself.
    pub fn deafen(&self, kinds: &[Watched], length: Duration) {
        let mut state = self.lock();
        let until = Instant::now() + length;
        for kind in kinds {
            let heard = || Deaf {
                until,
                heard: self.server.list(&kind.resource(), ""),
            };
            let deaf = state.deaf.entry(*kind).or_insert_with(heard);
            deaf.until = deaf.until.max(until);
        }
        self.deafened.notify_one();
    }

    /// Whether it is of a kind whose watch works, and makes a difference.
    fn hears_of(&self, version: &Version) -> bool {
        let kind = Watched::of(&version.key.resource).filter(|kind| concerns(*kind, version));
        kind.is_some_and(|kind| !self.lock().deaf.contains_key(&kind))
    }

    /// Some watch works again.
    async fn hears_again(&self) {
        loop {
            let next = self.lock().deaf.values().map(|deaf| deaf.until).min();
            match next {
                Some(until) if until <= Instant::now() => {
                    return self.lock().deaf.retain(|_, deaf| deaf.until > until);
                }
                Some(until) => tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = self.deafened.notified() => {}
                },
                None => self.deafened.notified().await,
            }
        }
    }

    /// What follows from all that was heard of.
    fn compile(&self) -> Model {
        let state = self.lock();
        let heard = |kind: Watched| match state.deaf.get(&kind) {
            Some(deaf) => deaf.heard.clone(),
            None => self.server.list(&kind.resource(), ""),
        };
        let [ingresses, classes, services, slices] = Watched::ALL.map(heard);
        Model::compile(&ingresses, &classes, &services, &slices)
    }

    /// Every controller's container starts over so fast that nobody sees it: what they have counted is gone.
    pub fn start_over(&self) {
        for (name, process) in &mut self.lock().controllers {
            process.counters = Counters::new(name);
        }
    }

    /// Sends so many requests through that came evenly in a time until now.
    pub(super) fn pass(
        &self,
        request: &SimRequest,
        (count, interval): (u32, Duration),
        mut each: impl FnMut(Served<'_>),
    ) {
        let mut state = self.lock();
        let state = &mut *state;
        state.look(&self.server);
        let controllers = state.serving();
        let model = state.live.clone();
        let Some(plan) = model.plan(request).filter(|_| !controllers.is_empty()) else {
            // Without a controller nobody answers; without an Ingress the default backend does, and counts for nobody.
            let status = if controllers.is_empty() { 503 } else { 404 };
            return (0..count).for_each(|_| each(Served::by_nginx(status)));
        };
        let settings = state.settings.borrow();
        let answers = &mut state.answers;
        let passage = Passage::new(plan, |namespace: &str, pod: &str| {
            *answers
                .entry((namespace.to_owned(), pod.to_owned()))
                .or_insert_with(|| {
                    let pod = self.server.get(&Key::pod(namespace, pod)).filter(|pod| runs(pod))?;
                    Some(settings.behaviours.answers_of(&pod))
                })
        });
        let now = self.server.clock().elapsed();
        let between = interval / count.max(1);
        let mut tallies: BTreeMap<_, Tally> = BTreeMap::new();
        for number in 1..=count {
            let at = now.saturating_sub(between * (count - number));
            let limited = state.limits.refuse(passage.location(), at);
            let served = passage.pass(limited, &mut state.rng);
            let controller = state.rng.usize(..controllers.len());
            let tally = tallies.entry((controller, served.canary, served.status)).or_default();
            tally.count(served.time);
            each(served);
        }
        // By default only hosts that an Ingress names literally are counted.
        let host = request.host.split(':').next().unwrap_or_default();
        if !model.servers.contains_key(host) || host == CATCH_ALL {
            return;
        }
        for ((controller, canary, status), tally) in tallies {
            let process = controllers
                .get(controller)
                .and_then(|name| state.controllers.get_mut(name));
            let series = Series::new(passage.location(), host, canary, status);
            process
                .map(|process| process.counters.log(series, tally, now))
                .unwrap_or_default();
        }
    }

    /// What a controller tells of its metrics.
    ///
    /// # Errors
    /// Where no controller of that name runs.
    pub fn exposition(&self, controller: &str) -> Result<String, ScrapeError> {
        let mut state = self.lock();
        state.look(&self.server);
        let now = self.server.clock().elapsed();
        let refused = || ScrapeError::Connect("Connection refused".to_owned());
        let process = state.controllers.get_mut(controller).ok_or_else(refused)?;
        Ok(process.counters.exposition(now))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for Nginx {
    fn fetch<'a>(&'a self, controller: &'a Controller) -> BoxFuture<'a, Result<Pieces, ScrapeError>> {
        let scrapes = self.lock().scrapes.clone();
        async move {
            let text = match scrapes {
                Scrapes::Answer => self.exposition(&controller.name)?,
                Scrapes::Say(text) => text,
                Scrapes::Fail(error) => return Err(error),
                Scrapes::Hang => std::future::pending().await,
            };
            Ok(stream::iter([Ok(text.into())]).boxed())
        }
        .boxed()
    }
}

/// Whether a container runs in the pod.
fn runs(pod: &Value) -> bool {
    map(pod, "/status/containerStatuses/0/state/running").is_some()
}

fn concerns(kind: Watched, version: &Version) -> bool {
    kind != Watched::Ingresses
        || version.change != ChangeKind::Modified
        || seen_of(version.previous.as_deref()) != seen_of(Some(&version.object))
}

/// What of an Ingress the controller looks at.
fn seen_of(ingress: Option<&Value>) -> [Option<&Value>; 2] {
    ["/metadata/annotations", "/spec"].map(|at| ingress.and_then(|i| i.pointer(at)))
}
