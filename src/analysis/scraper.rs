//! Asks every controller for its metrics, while somebody wants to know.
//!
//! One for the whole operator: what it costs depends on the number of controller pods, not of releases. Each pod is asked
//! by itself, for a Service would answer for one of them at random, and each has only its own share of the traffic.

use super::{
    controllers::{Controller, Controllers, Listing},
    counts::{
        Answer, Counter, Counts, Edge, Exposed, Family, Interest, Reading, Round, Scrape, SeriesLabels, Status, series,
    },
    exposition::{Malformed, Parser, Sample},
};
use crate::cluster::Clock;
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    future::{BoxFuture, join_all},
    stream::BoxStream,
};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::Client;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

/// Series of one pod that are kept at most: a release's own are one for each path, host, method and status.
const MOST_SERIES: usize = 200_000;
/// What ingress-nginx's chart labels its controllers with.
pub const SELECTOR: &str = "app.kubernetes.io/name=ingress-nginx,app.kubernetes.io/component=controller";
/// Where ingress-nginx serves its metrics unless told otherwise.
pub const PORT: u16 = 10254;
/// What the names of its metrics begin with.
pub(super) const PREFIX: &str = "nginx_ingress_controller_";
/// Without the prefix: requests, those that one upstream answered, and, where times are asked for, how fast.
const NAMES: [&str; 3] = [
    "requests",
    "response_duration_seconds_count",
    "response_duration_seconds_bucket",
];

/// Where the controllers are, and how they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Namespace of the controllers; all when none.
    pub namespace: Option<String>,
    /// Label selector of the controllers' pods.
    pub selector: String,
    /// Port of `/metrics` (ingress-nginx's `--healthz-port`).
    pub port: u16,
    /// What the metrics' names begin with.
    pub prefix: String,
    /// From one round to the next at least, and unless whoever subscribes wants less. The controllers' own counters are a
    /// second or two behind, so oftener is of no use.
    pub interval: Duration,
    /// How long a controller may take for all of its answer.
    pub deadline: Duration,
    /// Bytes of an answer at most.
    pub limit: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: Some("ingress-nginx".to_owned()),
            selector: SELECTOR.to_owned(),
            port: PORT,
            prefix: PREFIX.to_owned(),
            interval: Duration::from_secs(1),
            deadline: Duration::from_secs(3),
            limit: 256 << 20,
        }
    }
}

impl Settings {
    /// The controllers' pods, for messages.
    pub(super) fn whose(&self) -> String {
        let place = match &self.namespace {
            Some(namespace) => format!("in the namespace {namespace}"),
            None => "in all namespaces".to_owned(),
        };
        format!("the ingress-nginx controllers' pods {place} (labels {})", self.selector)
    }
}

/// Why a controller's metrics are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeError {
    /// No connection to the pod.
    #[error("no connection: {0}")]
    Connect(String),
    /// The answer was not whole in time.
    #[error("no whole answer within {0:?}")]
    Deadline(Duration),
    /// Another status than 200; redirects are not followed.
    #[error("HTTP status {0}")]
    Status(StatusCode),
    /// The connection broke, or what came is not HTTP.
    #[error("the answer broke off: {0}")]
    Interrupted(String),
    /// More bytes than allowed.
    #[error("more than {0} bytes")]
    TooLarge(u64),
    /// More series than are kept.
    #[error("more than {MOST_SERIES} series of one release")]
    TooManySeries,
    /// Not the text format.
    #[error("{count} unreadable lines, the first of them {first}")]
    Malformed {
        /// How many lines.
        count: u64,
        /// The first of them.
        first: Malformed,
    },
    /// A counter that counts nothing.
    #[error("a counter stands at {0}")]
    NotACount(String),
}

/// An answer's body, in pieces.
pub type Pieces = BoxStream<'static, Result<Bytes, ScrapeError>>;

/// How a controller is asked.
pub trait Fetch: Send + Sync {
    /// The exposition of a controller. Whoever asks bounds time and size.
    fn fetch<'a>(&'a self, controller: &'a Controller) -> BoxFuture<'a, Result<Pieces, ScrapeError>>;
}

/// Asks over HTTP.
#[derive(Clone, Debug)]
pub struct Http(HttpClient<HttpConnector, Empty<Bytes>>);

impl Default for Http {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Settings::default().deadline));
        let client = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_max_idle_per_host(1)
            .build(connector);
        Self(client)
    }
}

impl Fetch for Http {
    fn fetch<'a>(&'a self, controller: &'a Controller) -> BoxFuture<'a, Result<Pieces, ScrapeError>> {
        let request = Request::get(format!("http://{}/metrics", controller.address))
            .header(header::ACCEPT, "text/plain;version=0.0.4")
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Empty::new());
        Box::pin(async move {
            let request = request.map_err(|error| ScrapeError::Connect(error.to_string()))?;
            let response = self.0.request(request).await.map_err(|error| {
                let why = innermost(&error);
                if error.is_connect() {
                    ScrapeError::Connect(why)
                } else {
                    ScrapeError::Interrupted(why)
                }
            })?;
            if response.status() != StatusCode::OK {
                return Err(ScrapeError::Status(response.status()));
            }
            let pieces = response
                .into_body()
                .into_data_stream()
                .map_err(|error| ScrapeError::Interrupted(innermost(&error)));
            Ok(pieces.boxed())
        })
    }
}

/// What is at the bottom of an error: the layers above only say that something failed.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

type Wake = Arc<dyn Fn() + Send + Sync>;

/// Counts the requests of every release that subscribes. Clones share everything.
#[derive(Clone)]
pub struct Scraper(Arc<Shared>);

struct Shared {
    client: Client,
    clock: Arc<dyn Clock>,
    fetch: Arc<dyn Fetch>,
    settings: Settings,
    state: Mutex<State>,
    /// Somebody wants rounds at another pace.
    paced: Notify,
}

#[derive(Default)]
struct State {
    last: u64,
    subscribers: BTreeMap<u64, Subscriber>,
    /// Asks, as long as there is a subscriber.
    rounds: Option<AbortHandle>,
}

struct Subscriber {
    interest: Arc<Interest>,
    counter: Counter,
    wake: Wake,
    every: Duration,
    woken: Option<Instant>,
}

impl State {
    /// How long after a round the next one is wanted.
    fn pace(&self, least: Duration) -> Duration {
        self.subscribers.values().map(|s| s.every).min().unwrap_or(least)
    }
}

/// Has a release's requests counted; dropping it ends that.
pub struct Subscription {
    number: u64,
    shared: Arc<Shared>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Scraper {
    /// Asks nobody until somebody subscribes: `client` is for the controllers' pods, `fetch` for their metrics.
    #[must_use]
    pub fn new(client: Client, clock: Arc<dyn Clock>, fetch: Arc<dyn Fetch>, settings: Settings) -> Self {
        Self(Arc::new(Shared {
            client,
            clock,
            fetch,
            settings,
            state: Mutex::default(),
            paced: Notify::new(),
        }))
    }

    /// Counts a release's requests from now on, and calls `wake` after each round, or after fewer once
    /// [told so](Subscription::every). Takes a tokio runtime.
    #[must_use]
    pub fn subscribe(&self, interest: Interest, wake: impl Fn() + Send + Sync + 'static) -> Subscription {
        let mut state = self.0.lock();
        state.last += 1;
        let number = state.last;
        let subscriber = Subscriber {
            interest: Arc::new(interest),
            counter: Counter::new(self.0.clock.now()),
            wake: Arc::new(wake),
            every: self.0.settings.interval,
            woken: None,
        };
        state.subscribers.insert(number, subscriber);
        self.0.paced.notify_one();
        if state.rounds.as_ref().is_none_or(AbortHandle::is_finished) {
            state.rounds = Some(tokio::spawn(rounds(self.0.clone())).abort_handle());
        }
        Subscription {
            number,
            shared: self.0.clone(),
        }
    }
}

impl Subscription {
    /// What has been counted; none before the first round that began after the counting did.
    #[must_use]
    pub fn counts(&self) -> Option<Counts> {
        let state = self.shared.lock();
        state.subscribers.get(&self.number)?.counter.counts().cloned()
    }

    /// From now on a look so often is enough: the controllers are asked as often as the most eager subscriber wants, and
    /// this one is woken after the rounds nearest to its own interval. Less than [`Settings::interval`] counts as that.
    pub fn every(&self, length: Duration) {
        let every = length.max(self.shared.settings.interval);
        let mut state = self.shared.lock();
        if let Some(subscriber) = state.subscribers.get_mut(&self.number)
            && subscriber.every != every
        {
            subscriber.every = every;
            self.shared.paced.notify_one();
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // Dropped after the lock: what its callback holds is not ours to know.
        let _gone = state.subscribers.remove(&self.number);
        self.shared.paced.notify_one();
        if state.subscribers.is_empty()
            && let Some(rounds) = state.rounds.take()
        {
            rounds.abort();
        }
        drop(state);
    }
}

async fn rounds(shared: Arc<Shared>) {
    let controllers = Controllers::watch(&shared.client, &shared.settings);
    // A cluster that does not list them is told of, not waited for.
    let _ = timeout(shared.settings.deadline, controllers.listed()).await;
    loop {
        let began = Instant::now();
        shared.round(began, controllers.list()).await;
        shared.due(began).await;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state whole: every change to it is a single call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the next round is due, after one that began at `began`.
    async fn due(&self, began: Instant) {
        loop {
            let pace = self.lock().pace(self.settings.interval);
            tokio::select! {
                biased;
                () = self.paced.notified() => {}
                () = sleep_until(began + pace) => return,
            }
        }
    }

    async fn round(&self, at: Instant, listing: Listing) {
        let began = self.clock.now();
        let subscribers = Subscribers::new(
            self.lock()
                .subscribers
                .iter()
                .map(|(number, subscriber)| (*number, subscriber.interest.clone())),
        );
        let (deadline, spare) = (self.settings.deadline, self.settings.interval);
        let ready = listing.ready.iter().map(|controller| (controller, deadline));
        // One that ends need not answer, so it does not hold up the round either.
        let ending = listing
            .ending
            .iter()
            .map(|controller| (controller, spare.min(deadline)));
        let asked = ready.chain(ending).map(async |(controller, deadline)| {
            let answer = self.ask(controller, deadline, &subscribers).await;
            (controller, answer)
        });
        let mut answers = join_all(asked).await;
        let mut unready = listing.unready;
        answers.retain(|(controller, answer)| {
            let counts = answer.is_ok() || listing.ready.contains(controller);
            if !counts {
                unready.insert(controller.uid.clone());
            }
            counts
        });
        let ended = self.clock.now();
        let mut wakes = Vec::new();
        {
            let mut state = self.lock();
            let half = state.pace(self.settings.interval) / 2;
            for (index, number) in subscribers.numbers.iter().enumerate() {
                // Gone since.
                let Some(subscriber) = state.subscribers.get_mut(number) else {
                    continue;
                };
                let answers = answers.iter_mut().map(|(controller, answer)| Answer {
                    uid: controller.uid.clone(),
                    started: controller.started,
                    scrape: match answer {
                        Ok(kept) => Ok(Scrape {
                            readings: kept.readings.get_mut(index).map(std::mem::take).unwrap_or_default(),
                            exposed: kept.exposed,
                        }),
                        Err(error) => Err(format!("{}/{}: {error}", controller.namespace, controller.name)),
                    },
                });
                subscriber.counter.add(Round {
                    began,
                    ended,
                    answers: answers.collect(),
                    unready: unready.clone(),
                    unlisted: listing.unlisted.clone(),
                });
                if subscriber
                    .woken
                    .is_none_or(|woken| at + half >= woken + subscriber.every)
                {
                    subscriber.woken = Some(at);
                    wakes.push(subscriber.wake.clone());
                }
            }
        }
        // Outside of the lock: who is woken may ask at once.
        wakes.iter().for_each(|wake| wake());
    }

    async fn ask(
        &self,
        controller: &Controller,
        deadline: Duration,
        subscribers: &Subscribers,
    ) -> Result<Kept, ScrapeError> {
        let answer = timeout(
            deadline,
            scrape(self.fetch.as_ref(), controller, &self.settings, subscribers),
        );
        let answer = answer.await.unwrap_or(Err(ScrapeError::Deadline(deadline)));
        if let Err(error) = &answer {
            tracing::debug!(pod = controller.name, namespace = controller.namespace, %error, "no metrics");
        }
        answer
    }
}

/// Who counts in a round.
struct Subscribers {
    numbers: Vec<u64>,
    /// By namespace, so that a sample is compared with few: the number's place, and the interest.
    interests: BTreeMap<String, Vec<(usize, Arc<Interest>)>>,
    /// Whether one of them asks for times.
    latency: bool,
}

impl Subscribers {
    fn new(subscribers: impl Iterator<Item = (u64, Arc<Interest>)>) -> Self {
        let (mut numbers, mut interests) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
        let mut latency = false;
        for (number, interest) in subscribers {
            latency |= interest.latency;
            interests
                .entry(interest.namespace.clone())
                .or_default()
                .push((numbers.len(), interest));
            numbers.push(number);
        }
        Self {
            numbers,
            interests,
            latency,
        }
    }
}

/// What is kept of one pod's answer.
#[derive(Debug)]
struct Kept {
    /// By the subscriber's place.
    readings: Vec<Vec<Reading>>,
    series: usize,
    exposed: Exposed,
    wrong: Option<ScrapeError>,
}

impl Kept {
    fn keep(&mut self, subscribers: &Subscribers, sample: &Sample<'_>) {
        if sample.family == 0 {
            self.exposed = Exposed::Requests;
        }
        let mut labels = SeriesLabels::default();
        for (name, value) in sample.labels.iter() {
            match name {
                "namespace" => labels.namespace = value,
                "ingress" => labels.ingress = value,
                "service" => labels.service = value,
                "canary" => labels.canary = Some(value),
                "status" => labels.status = value,
                "le" => labels.le = value,
                _ => {}
            }
        }
        let Some(interests) = subscribers.interests.get(Cow::as_ref(&labels.namespace)) else {
            return;
        };
        let family = match sample.family {
            0 => Family::Requests,
            1 => Family::Answered,
            _ => match Edge::parse(&labels.le) {
                Some(edge) => Family::Within(edge),
                None => return,
            },
        };
        let wanted = |interest: &Interest| interest.latency || !matches!(family, Family::Within(_));
        for (place, interest) in interests.iter().filter(|(_, interest)| wanted(interest)) {
            let Some(version) = interest.version(&labels) else {
                continue;
            };
            let Some(value) = count(sample.value) else {
                self.wrong = Some(ScrapeError::NotACount(sample.value.to_string()));
                return;
            };
            self.series += 1;
            if self.series > MOST_SERIES {
                self.wrong = Some(ScrapeError::TooManySeries);
                return;
            }
            if let Some(readings) = self.readings.get_mut(*place) {
                readings.push(Reading {
                    series: series(family, sample.labels.text()),
                    family,
                    version,
                    status: Status::parse(&labels.status),
                    value,
                });
            }
        }
    }
}

/// A counter's value; floats hold whole numbers up to 2^53 exactly, and no controller counts that far.
pub(super) fn count(value: f64) -> Option<u64> {
    (value >= 0.0 && value < 2f64.powi(53)).then_some(value as u64)
}

/// One pod's answer, all of it or an error: series that a broken answer lacks would count from zero when they come back.
async fn scrape(
    fetch: &dyn Fetch,
    controller: &Controller,
    settings: &Settings,
    subscribers: &Subscribers,
) -> Result<Kept, ScrapeError> {
    let mut pieces = fetch.fetch(controller).await?;
    let wanted = if subscribers.latency {
        NAMES.len()
    } else {
        NAMES.len() - 1
    };
    let mut parser = Parser::new(&settings.prefix, NAMES.get(..wanted).unwrap_or_default());
    let mut kept = Kept {
        readings: vec![Vec::new(); subscribers.numbers.len()],
        series: 0,
        exposed: Exposed::default(),
        wrong: None,
    };
    let mut length = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        length += piece.len() as u64;
        if length > settings.limit {
            return Err(ScrapeError::TooLarge(settings.limit));
        }
        parser.feed(&piece, &mut |sample| kept.keep(subscribers, &sample));
        if let Some(error) = kept.wrong.take() {
            return Err(error);
        }
    }
    let tally = parser.finish(&mut |sample| kept.keep(subscribers, &sample));
    if let Some(error) = kept.wrong.take() {
        return Err(error);
    }
    if let Some(first) = tally.first {
        let count = tally.malformed;
        return Err(ScrapeError::Malformed { count, first });
    }
    if tally.prefixed > 0 {
        kept.exposed = kept.exposed.max(Exposed::NoRequests);
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
