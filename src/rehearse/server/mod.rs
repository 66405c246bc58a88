//! The API server: a `tower::Service` that `kube::Client` talks to, over a [`store`].

pub mod change;
pub mod defaults;
pub mod error;
pub mod intercept;
mod listen;
pub mod patch;
mod perform;
pub mod resource;
pub mod routes;
pub mod schema;
pub mod selector;
pub mod store;
pub mod validation;
mod watch;

use super::{clock::VirtualClock, json::set};
use bytes::Bytes;
use error::ApiError;
use futures::{Stream, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use http::{Request, Response, request::Parts};
use intercept::{After, Before, Interceptor, NoFaults, Outcome, Record};
use kube::client::Body;
use perform::Answer;
use resource::{Key, Resource};
use routes::Call;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use store::{DeleteOptions, Store, Version, WriteOptions};
use tokio::sync::{Notify, watch as signal};

/// The log of one container: of its current run, and of the run before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerLog {
    /// None while the container has not started.
    pub current: Option<String>,
    /// None before the first restart.
    pub previous: Option<String>,
}

struct Shared {
    clock: VirtualClock,
    store: Mutex<Store>,
    changed: signal::Sender<u64>,
    away: AtomicBool,
    gone: Notify,
    interceptor: Mutex<Arc<dyn Interceptor>>,
    records: Mutex<Vec<Record>>,
    logs: Mutex<BTreeMap<(Key, String), ContainerLog>>,
    crashes: Mutex<BTreeMap<String, Arc<Notify>>>,
}

/// There is no connection to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection refused")]
pub struct Unreachable;

/// A handle on the API server; clones share one store.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    client: Arc<str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ApiServer {
    /// An empty API server.
    pub fn new(clock: VirtualClock, seed: u64) -> Self {
        let shared = Shared {
            clock,
            store: Mutex::new(Store::new(clock, seed)),
            changed: signal::channel(0).0,
            away: AtomicBool::new(false),
            gone: Notify::new(),
            interceptor: Mutex::new(Arc::new(NoFaults)),
            records: Mutex::default(),
            logs: Mutex::default(),
            crashes: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            client: Arc::from("client"),
        }
    }

    /// The same server as another client sees it; the name shows in records and crashes.
    pub fn named(&self, client: &str) -> Self {
        Self {
            shared: self.shared.clone(),
            client: Arc::from(client),
        }
    }

    /// A `kube::Client` on this server, without a retry layer.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// The clock of this world.
    pub fn clock(&self) -> VirtualClock {
        self.shared.clock
    }

    /// Works on the store directly, as one atomic step, and wakes whoever waits for changes.
    pub fn with<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = lock(&self.shared.store);
        let before = store.version();
        let out = work(&mut store);
        let after = store.version();
        drop(store);
        if after != before {
            self.shared.changed.send_replace(after);
        }
        out
    }

    /// The object, if it exists.
    pub fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.with(|s| s.get(key))
    }

    /// All objects of a resource in a namespace ("" for all).
    pub fn list(&self, resource: &Resource, namespace: &str) -> Vec<Arc<Value>> {
        self.with(|s| s.list(resource, namespace))
            .into_iter()
            .map(|(_, o)| o)
            .collect()
    }

    /// Creates an object, named by its manifest, as somebody inside the cluster.
    pub fn create(&self, object: Value) -> Result<Arc<Value>, ApiError> {
        let key = Key::of(&object);
        self.with(|s| s.create(&key.resource, &key.namespace, object, WriteOptions::default()))
    }

    /// Creates the object, or merges its manifest into what exists, as `kubectl apply` does.
    pub fn apply(&self, object: Value) -> Result<Arc<Value>, ApiError> {
        let key = Key::of(&object);
        self.with(|s| s.patch(&key, patch::PatchKind::Apply, &object, WriteOptions::default()))
            .map(|(stored, _)| stored)
    }

    /// Changes an object at once, status and all, as somebody else. None when it does not exist.
    pub fn edit(&self, key: &Key, change: impl FnOnce(&mut Value)) -> Option<Arc<Value>> {
        self.with(|s| s.edit(key, change))
    }

    /// Deletes an object as somebody else; true when it is gone, false when it waits for finalizers or for its kubelet.
    pub fn delete(&self, key: &Key, options: &DeleteOptions) -> Result<bool, ApiError> {
        self.with(|s| s.delete(key, options)).map(|(_, gone)| gone)
    }

    /// Every version an object ever had, oldest first.
    pub fn history(&self, key: &Key) -> Vec<Arc<Version>> {
        self.with(|s| s.log().iter().filter(|v| v.key == *key).cloned().collect())
    }

    /// Every change of every object, oldest first.
    pub fn log(&self) -> Vec<Arc<Version>> {
        self.with(|s| s.log().to_vec())
    }

    /// The changes from now on.
    pub fn subscribe(&self) -> Changes {
        let changed = self.changed();
        Changes {
            seen: self.with(|s| s.version()),
            server: self.clone(),
            changed,
        }
    }

    /// The changes from the very first on.
    pub fn subscribe_from_start(&self) -> Changes {
        Changes {
            seen: 0,
            server: self.clone(),
            changed: self.changed(),
        }
    }

    /// Stores objects as they are, status and uid and all, as a backup is restored; only their versions are new.
    pub fn restore(&self, objects: impl IntoIterator<Item = Value>) {
        self.with(|s| objects.into_iter().for_each(|object| drop(s.restore(object))));
    }

    /// From now on objects of this CustomResourceDefinition are held to its schema, though not to its rules in CEL.
    pub fn define(&self, definition: &Value) {
        self.with(|s| s.define(definition));
    }

    /// A rule of one's own about what may be stored.
    pub fn admit(&self, rule: impl Fn(&Key, &Value, Option<&Value>) -> Result<(), ApiError> + Send + Sync + 'static) {
        self.with(|s| s.admit(Box::new(rule)));
    }

    /// Sets who decides about faults.
    pub fn intercept(&self, interceptor: impl Interceptor + 'static) {
        *lock(&self.shared.interceptor) = Arc::new(interceptor);
    }

    /// Every request made through a client so far.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.shared.records).clone()
    }

    /// Nobody reaches it from now on: connections are refused, and those that are open end.
    pub fn go_away(&self) {
        self.shared.away.store(true, Ordering::SeqCst);
        self.shared.gone.notify_waiters();
    }

    /// It can be reached again.
    pub fn come_back(&self) {
        self.shared.away.store(false, Ordering::SeqCst);
    }

    fn is_away(&self) -> bool {
        self.shared.away.load(Ordering::SeqCst)
    }

    /// Returns when a connection is lost for it cannot be reached. One after the other, or whoever comes back would do so in an
    /// order that no seed decides.
    async fn lost(&self, record: usize) {
        let mut gone = std::pin::pin!(self.shared.gone.notified());
        gone.as_mut().enable();
        if !self.is_away() {
            gone.await;
        }
        let turn = u64::try_from(record % 1000).unwrap_or_default();
        tokio::time::sleep(std::time::Duration::from_millis(turn)).await;
    }

    /// Waits until the interceptor lets the client of this name die.
    pub async fn crashed(&self, client: &str) {
        self.crash_signal(client).notified().await;
    }

    /// Sets what `GET pods/NAME/log` answers for one container.
    pub fn set_log(&self, pod: &Key, container: &str, log: ContainerLog) {
        lock(&self.shared.logs).insert((pod.clone(), container.into()), log);
    }

    fn container_log(&self, pod: &Key, container: &str) -> Option<ContainerLog> {
        lock(&self.shared.logs)
            .get(&(pod.clone(), container.to_string()))
            .cloned()
    }

    fn crash_signal(&self, client: &str) -> Arc<Notify> {
        lock(&self.shared.crashes).entry(client.into()).or_default().clone()
    }

    fn changed(&self) -> signal::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    fn interceptor(&self) -> Arc<dyn Interceptor> {
        lock(&self.shared.interceptor).clone()
    }

    fn note(&self, record: usize, change: impl FnOnce(&mut Record)) {
        lock(&self.shared.records)
            .get_mut(record)
            .map(change)
            .unwrap_or_default();
    }

    async fn handle(self, parts: &Parts, body: &[u8]) -> Result<Response<ReplyBody>, Unreachable> {
        let call = match Call::parse(self.client.clone(), parts, body) {
            Ok(call) => call,
            Err(refusal) => return Ok(refused(&refusal)),
        };
        let record = {
            let mut records = lock(&self.shared.records);
            records.push(Record::of(&call, self.shared.clock.now()));
            records.len() - 1
        };
        if self.is_away() {
            return Err(Unreachable);
        }
        let response = tokio::select! {
            biased;
            () = self.lost(record) => return Err(Unreachable),
            response = self.answer(call, record) => response,
        };
        if self.is_away() {
            return Err(Unreachable);
        }
        self.note(record, |r| r.code = response.status().as_u16());
        Ok(response)
    }

    async fn answer(&self, call: Call, record: usize) -> Response<ReplyBody> {
        let interceptor = self.interceptor();
        let mut at = None;
        let mut later = None;
        match interceptor.before(&call) {
            Before::Pass => {}
            Before::Answer(refusal) => return refused(&refusal),
            Before::Hang => std::future::pending().await,
            Before::Delay(by) => tokio::time::sleep(by).await,
            Before::InFlight(by) => later = Some(by),
            Before::Crash => self.die().await,
            Before::At(version) => at = Some(version),
        }
        let answer = match later {
            None => self.perform(&call, at, record),
            Some(by) => {
                let (server, call) = (self.clone(), call.clone());
                // A task of its own goes on when the client has gone.
                let flight = tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    server.perform(&call, None, record)
                });
                flight
                    .await
                    .unwrap_or_else(|_| Answer::Refused(error::failure(500, "InternalError", "the request was lost")))
            }
        };
        let outcome = Outcome {
            code: answer.code(),
            body: answer.json(),
        };
        match interceptor.after(&call, outcome) {
            After::Pass => {}
            After::Answer(refusal) => return refused(&refusal),
            After::Hang => std::future::pending().await,
            After::Delay(by) => tokio::time::sleep(by).await,
            After::Crash => self.die().await,
        }
        match answer {
            Answer::Json(code, body) => reply(code, "application/json", once(body.to_string())),
            Answer::Text(text) => reply(200, "text/plain", once(text)),
            Answer::Refused(refusal) => refused(&refusal),
            Answer::Watch(selector) => reply(
                200,
                "application/json",
                watch::lines(self.clone(), (call, record), selector),
            ),
        }
    }

    async fn die(&self) {
        self.crash_signal(&self.client).notify_one();
        std::future::pending().await
    }
}

impl tower::Service<Request<Body>> for ApiServer {
    type Response = Response<ReplyBody>;
    type Error = Unreachable;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap_or_default();
            server.handle(&parts, &body).await
        })
    }
}

/// The stream of changes that an actor follows.
pub struct Changes {
    server: ApiServer,
    seen: u64,
    changed: signal::Receiver<u64>,
}

impl Changes {
    /// The changes since the last call, waiting until there is one.
    pub async fn next(&mut self) -> Vec<Arc<Version>> {
        loop {
            let new = self.pending();
            if !new.is_empty() || self.changed.changed().await.is_err() {
                return new;
            }
        }
    }

    /// The changes since the last call, perhaps none.
    pub fn pending(&mut self) -> Vec<Arc<Version>> {
        let new = self.server.with(|s| s.since(self.seen).to_vec());
        self.seen = new.last().map_or(self.seen, |v| v.resource_version);
        new
    }
}

/// The body of an answer, streamed for watches.
pub struct ReplyBody(BoxStream<'static, Bytes>);

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        self.0
            .poll_next_unpin(context)
            .map(|next| next.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

fn once(text: String) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::iter([Bytes::from(text)])
}

fn reply(
    code: u16,
    content_type: &'static str,
    body: impl Stream<Item = Bytes> + Send + 'static,
) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody(body.boxed()));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn refused(refusal: &ApiError) -> Response<ReplyBody> {
    let mut response = reply(refusal.code, "application/json", once(error::body(refusal).to_string()));
    let wait = refusal
        .details
        .as_ref()
        .map(|d| d.retry_after_seconds)
        .filter(|s| *s > 0);
    if let Some(seconds) = wait.and_then(|s| http::HeaderValue::from_str(&s.to_string()).ok()) {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds);
    }
    response
}

/// An object cut down to its metadata, as asked for by an `Accept` header.
fn metadata_of(object: &Value) -> Value {
    let mut out = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"});
    set(
        &mut out,
        "/metadata",
        object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    );
    out
}

#[cfg(test)]
mod tests;
