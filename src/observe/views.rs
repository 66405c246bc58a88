//! What is watched, and only while somebody needs it: a namespace is watched from the start of its first running
//! release to the end of its last, so that idle releases cost neither requests nor memory.

use super::Survey;
use crate::{
    api::{CanaryRelease, LABEL_RELEASE},
    cluster::{IN_PASSING, watch_on},
    release::Kind,
};
use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::Ingress,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject, ObjectMeta},
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

/// Wakes the reconciler for one release.
pub type Wake = UnboundedSender<ObjectRef<kube::core::DeserializeGuard<CanaryRelease>>>;

/// What a Deployment would become, or why the API server refuses that.
pub type Merged = Result<serde_json::Value, String>;

/// How long an answer is taken to hold: what refuses a merge may be a policy, which changes unseen.
const ANSWERS_HOLD: Duration = Duration::from_secs(60);

/// Refusals further apart are not of the same trouble: a watch is tried again sooner.
const APART: Duration = Duration::from_secs(15);

/// The first and the last of some refusals in a row.
#[derive(Default)]
struct Refusals(Option<(Instant, Instant)>);

impl Refusals {
    /// How long they have gone on.
    fn one_more(&mut self) -> Duration {
        let now = Instant::now();
        let in_a_row = self.0.filter(|(_, last)| now.duration_since(*last) < APART);
        let first = in_a_row.map_or(now, |(first, _)| first);
        self.0 = Some((first, now));
        now.duration_since(first)
    }
}

/// The watched namespaces.
pub struct Views {
    client: Client,
    wake: Wake,
    open: Mutex<BTreeMap<String, Arc<View>>>,
}

/// One watched namespace.
pub struct View {
    deployments: Store<DynamicObject>,
    services: Store<Service>,
    ingresses: Store<Ingress>,
    slices: Store<EndpointSlice>,
    pods: Store<Pod>,
    state: Arc<Mutex<State>>,
    // Dropping the set ends the watches.
    _watches: JoinSet<()>,
}

#[derive(Default)]
struct State {
    members: BTreeSet<String>,
    written: BTreeMap<(Kind, String), Written>,
    /// Number of the last write.
    writes: u64,
    /// Why a watch does not work, by resource.
    broken: BTreeMap<String, String>,
    /// What the API server made of a merge, by release: the question, when it was asked, and the answer.
    merged: BTreeMap<String, (String, Instant, Merged)>,
    /// The same for what was asked before a start.
    surveys: BTreeMap<String, (String, Instant, Survey)>,
}

impl State {
    /// To questions of who is no member any more.
    fn forget_answers(&mut self) {
        self.merged.retain(|release, _| self.members.contains(release));
        self.surveys.retain(|release, _| self.members.contains(release));
    }
}

/// Our own write, until the watch has shown it or something newer: the cache is older than what we know.
struct Written {
    /// Which of our writes it was.
    number: u64,
    /// What it left.
    now: Left,
}

/// What a write left of an object.
enum Left {
    /// The object as stored.
    Object(Box<DynamicObject>),
    /// Nothing of the object with this uid.
    Nothing { uid: String },
}

impl Left {
    /// Whether an event shows this or something newer. Versions are compared as numbers, as the API server's watch cache
    /// itself does; what is not a number is taken for newer.
    fn shown_by(&self, meta: &ObjectMeta, deleted: bool) -> bool {
        match self {
            Self::Object(object) => !older(meta.resource_version.as_deref(), object.resource_version().as_deref()),
            Self::Nothing { uid } => {
                deleted || meta.deletion_timestamp.is_some() || meta.uid.as_deref() != Some(uid.as_str())
            }
        }
    }
}

/// Whether version `a` of an object is older than version `b`; not where they cannot be compared.
pub(crate) fn older(a: Option<&str>, b: Option<&str>) -> bool {
    let number = |version: Option<&str>| version.and_then(|v| v.parse::<u64>().ok());
    matches!((number(a), number(b)), (Some(a), Some(b)) if a < b)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves these maps whole: every change to them is a single call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Views {
    /// No namespace is watched yet.
    #[must_use]
    pub fn new(client: Client, wake: Wake) -> Self {
        Self {
            client,
            wake,
            open: Mutex::default(),
        }
    }

    /// The view of a namespace for a release, opened if need be.
    #[must_use]
    pub fn enter(&self, namespace: &str, release: &str) -> Arc<View> {
        let mut open = lock(&self.open);
        let view = open
            .entry(namespace.to_owned())
            .or_insert_with(|| Arc::new(View::open(&self.client, namespace, &self.wake)));
        lock(&view.state).members.insert(release.to_owned());
        view.clone()
    }

    /// The release needs its namespace no longer.
    pub fn leave(&self, namespace: &str, release: &str) {
        let mut open = lock(&self.open);
        let Some(view) = open.get(namespace) else { return };
        let empty = {
            let mut state = lock(&view.state);
            state.members.remove(release);
            state.forget_answers();
            state.members.is_empty()
        };
        if empty {
            open.remove(namespace);
        }
    }

    /// Whether anything is held for this release.
    pub fn has_member(&self, namespace: &str, release: &str) -> bool {
        let open = lock(&self.open);
        open.get(namespace)
            .is_some_and(|view| lock(&view.state).members.contains(release))
    }

    /// Drops members that `exists` does not know any more: they were deleted before they had anything to guard.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        let mut open = lock(&self.open);
        open.retain(|namespace, view| {
            let mut state = lock(&view.state);
            state.members.retain(|release| exists(namespace, release));
            state.forget_answers();
            !state.members.is_empty()
        });
    }
}

impl View {
    fn open(client: &Client, namespace: &str, wake: &Wake) -> Self {
        let mut watches = JoinSet::new();
        let state = Arc::new(Mutex::new(State::default()));
        let all = watcher::Config::default();
        let ours = watcher::Config::default().labels(LABEL_RELEASE);
        let waker = Waker {
            namespace: namespace.to_owned(),
            wake: wake.clone(),
            state: state.clone(),
        };
        let deployment = ApiResource::erase::<Deployment>(&());
        let deployments = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &deployment);
        Self {
            deployments: watch(
                &mut watches,
                deployments,
                all.clone(),
                deployment,
                Some(Kind::Deployment),
                waker.clone(),
            ),
            services: watch(
                &mut watches,
                Api::<Service>::namespaced(client.clone(), namespace),
                all.clone(),
                (),
                Some(Kind::Service),
                waker.clone(),
            ),
            ingresses: watch(
                &mut watches,
                Api::<Ingress>::namespaced(client.clone(), namespace),
                all.clone(),
                (),
                Some(Kind::Ingress),
                waker.clone(),
            ),
            slices: watch(
                &mut watches,
                Api::<EndpointSlice>::namespaced(client.clone(), namespace),
                all,
                (),
                None,
                waker.clone(),
            ),
            pods: watch(
                &mut watches,
                Api::<Pod>::namespaced(client.clone(), namespace),
                ours,
                (),
                None,
                waker,
            ),
            state,
            _watches: watches,
        }
    }

    /// Whether every kind was listed once, so that absence means absence.
    ///
    /// # Errors
    /// Why not, where a watch was refused.
    pub fn ready(&self) -> Result<bool, String> {
        let broken = lock(&self.state).broken.clone();
        if let Some((resource, why)) = broken.first_key_value() {
            return Err(format!("cannot watch {resource}: {why}"));
        }
        let ready = [
            is_ready(&self.deployments),
            is_ready(&self.services),
            is_ready(&self.ingresses),
            is_ready(&self.slices),
            is_ready(&self.pods),
        ];
        Ok(ready.into_iter().all(|ready| ready))
    }

    /// Remembers what a write left, until the watch shows it.
    pub fn wrote(&self, kind: Kind, name: &str, object: Box<DynamicObject>) {
        self.left(kind, name, Left::Object(object));
    }

    /// Remembers that an object is gone, until the watch shows it.
    pub fn deleted(&self, kind: Kind, name: &str, uid: &str) {
        self.left(kind, name, Left::Nothing { uid: uid.to_owned() });
    }

    fn left(&self, kind: Kind, name: &str, now: Left) {
        let mut state = lock(&self.state);
        state.writes += 1;
        let number = state.writes;
        state.written.insert((kind, name.to_owned()), Written { number, now });
    }

    /// The answer to a merge that was asked for a short while ago.
    #[must_use]
    pub fn merged(&self, release: &str, question: &str, now: Instant) -> Option<Merged> {
        let state = lock(&self.state);
        let (asked, at, answer) = state.merged.get(release)?;
        (asked == question && now.duration_since(*at) < ANSWERS_HOLD).then(|| answer.clone())
    }

    /// Remembers the answer to a merge.
    pub fn remember_merged(&self, release: &str, question: String, now: Instant, answer: Merged) {
        lock(&self.state)
            .merged
            .insert(release.to_owned(), (question, now, answer));
    }

    /// What was answered before a start, a short while ago.
    #[must_use]
    pub fn survey(&self, release: &str, question: &str, now: Instant) -> Option<Survey> {
        let state = lock(&self.state);
        let (asked, at, answer) = state.surveys.get(release)?;
        (asked == question && now.duration_since(*at) < ANSWERS_HOLD).then(|| answer.clone())
    }

    /// Remembers what was answered before a start.
    pub fn remember_survey(&self, release: &str, question: String, now: Instant, answer: Survey) {
        lock(&self.state)
            .surveys
            .insert(release.to_owned(), (question, now, answer));
    }

    /// Deployments of the namespace.
    #[must_use]
    pub fn deployments(&self) -> Vec<Arc<DynamicObject>> {
        self.current(Kind::Deployment, &self.deployments, |object| Some(object.clone()))
    }

    /// Services of the namespace.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.current(Kind::Service, &self.services, typed)
    }

    /// Ingresses of the namespace.
    #[must_use]
    pub fn ingresses(&self) -> Vec<Arc<Ingress>> {
        self.current(Kind::Ingress, &self.ingresses, typed)
    }

    /// EndpointSlices of the namespace.
    #[must_use]
    pub fn slices(&self) -> Vec<Arc<EndpointSlice>> {
        sorted(self.slices.state())
    }

    /// Pods of canaries.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        sorted(self.pods.state())
    }

    /// What the cache has, corrected by our own writes that it has not shown yet.
    fn current<K>(&self, kind: Kind, store: &Store<K>, convert: impl Fn(&DynamicObject) -> Option<K>) -> Vec<Arc<K>>
    where
        K: Resource + Clone + 'static,
        K::DynamicType: Eq + Hash + Clone,
    {
        let mut seen = sorted(store.state());
        let state = lock(&self.state);
        for ((_, name), written) in state.written.iter().filter(|((of, _), _)| *of == kind) {
            let place = seen.binary_search_by(|object| object.meta().name.as_deref().cmp(&Some(name)));
            match &written.now {
                Left::Object(object) => {
                    let cached = place.ok().and_then(|at| seen.get(at)).map(|cached| cached.meta());
                    // The watch may have shown more than the write before its answer was there.
                    let is_newer = cached.is_some_and(|cached| written.now.shown_by(cached, false));
                    if !is_newer && let Some(object) = convert(object).map(Arc::new) {
                        let replaced = place.map_or_else(|at| at..at, |at| at..at + 1);
                        seen.splice(replaced, [object]);
                    }
                }
                Left::Nothing { .. } => {
                    if let Ok(at) = place {
                        seen.remove(at);
                    }
                }
            }
        }
        seen
    }
}

fn typed<K: DeserializeOwned>(object: &DynamicObject) -> Option<K> {
    serde_json::to_value(object)
        .ok()
        .and_then(|value| serde_json::from_value(value).ok())
}

/// A store has no order of its own; decisions and their tests have.
fn sorted<K: Resource>(mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
    // Names are not copied to be compared: every round of every release sorts all objects of its namespace.
    objects.sort_by(|one, other| one.meta().name.cmp(&other.meta().name));
    objects
}

fn is_ready<K: Resource + Clone + 'static>(store: &Store<K>) -> bool
where
    K::DynamicType: Eq + Hash + Clone,
{
    futures::FutureExt::now_or_never(store.wait_until_ready()).is_some_and(|ready| ready.is_ok())
}

/// Wakes the releases that an object concerns: its own, by label; all of the namespace for what carries none.
#[derive(Clone)]
struct Waker {
    namespace: String,
    wake: Wake,
    state: Arc<Mutex<State>>,
}

impl Waker {
    fn wake<K: Resource>(&self, object: &K) {
        match object
            .meta()
            .labels
            .iter()
            .flatten()
            .find(|(key, _)| *key == LABEL_RELEASE)
        {
            Some((_, release)) => self.wake_one(release),
            None => self.wake_all(),
        }
    }

    fn wake_all(&self) {
        let members: Vec<String> = lock(&self.state).members.iter().cloned().collect();
        members.iter().for_each(|release| self.wake_one(release));
    }

    fn wake_one(&self, release: &str) {
        // The reconciler is gone when this fails, and this watch is about to follow.
        let _ = self
            .wake
            .unbounded_send(ObjectRef::new(release).within(&self.namespace));
    }

    /// An event shows what became of an object.
    fn shown<K: Resource>(&self, kind: Option<Kind>, object: &K, deleted: bool) {
        let (Some(kind), Some(name)) = (kind, object.meta().name.clone()) else {
            return;
        };
        let mut state = lock(&self.state);
        let key = (kind, name);
        if state
            .written
            .get(&key)
            .is_some_and(|written| written.now.shown_by(object.meta(), deleted))
        {
            state.written.remove(&key);
        }
    }

    fn writes(&self) -> u64 {
        lock(&self.state).writes
    }

    /// A list shows everything that was written before it was asked for.
    fn listed(&self, kind: Option<Kind>, resource: &str, asked: u64) {
        let mut state = lock(&self.state);
        state.broken.remove(resource);
        state
            .written
            .retain(|(of, _), written| Some(*of) != kind || written.number > asked);
    }

    fn broke(&self, resource: &str, error: &watcher::Error, refusals: &mut Refusals) {
        tracing::warn!(namespace = self.namespace, resource, %error, "watch interrupted");
        if let watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) = error
            && status.code == 403
        {
            if refusals.one_more() < IN_PASSING {
                return;
            }
            let refused = status.message.clone();
            lock(&self.state).broken.insert(resource.to_owned(), refused);
            self.wake_all();
        }
    }
}

fn watch<K>(
    watches: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    dyntype: K::DynamicType,
    kind: Option<Kind>,
    waker: Waker,
) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Send + Sync + 'static,
{
    let resource = K::plural(&dyntype).into_owned();
    let mut writer = Writer::<K>::new(dyntype);
    let store = writer.as_reader();
    let slim = |object: &mut K| object.meta_mut().managed_fields = None;
    let (mut asked, mut refusals) = (0, Refusals::default());
    let tell = move |event: watcher::Result<watcher::Event<K>>| {
        if let Ok(event) = &event {
            writer.apply_watcher_event(event);
        }
        match event {
            Ok(watcher::Event::Apply(object)) => {
                waker.shown(kind, &object, false);
                waker.wake(&object);
            }
            Ok(watcher::Event::Delete(object)) => {
                waker.shown(kind, &object, true);
                waker.wake(&object);
            }
            Ok(watcher::Event::Init) => asked = waker.writes(),
            Ok(watcher::Event::InitApply(_)) => {}
            Ok(watcher::Event::InitDone) => {
                waker.listed(kind, &resource, asked);
                waker.wake_all();
            }
            Err(error) => waker.broke(&resource, &error, &mut refusals),
        }
    };
    watches.spawn(watch_on(api, config, slim, tell));
    store
}
