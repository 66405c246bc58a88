//! What is watched, and only while somebody needs it: a namespace is watched from the start of its first running
//! release to the end of its last, so that idle releases cost neither requests nor memory.

use crate::{
    api::{CanaryRelease, LABEL_RELEASE},
    release::Kind,
};
use futures::{StreamExt, channel::mpsc::UnboundedSender};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::Ingress,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt,
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
};
use tokio::task::JoinSet;

/// Wakes the reconciler for one release.
pub type Wake = UnboundedSender<ObjectRef<kube::core::DeserializeGuard<CanaryRelease>>>;

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
    /// Why a watch does not work, by resource.
    broken: BTreeMap<String, String>,
}

/// Our own write, until the watch has shown it: what the cache says at `before` is older than what we know.
struct Written {
    before: Option<String>,
    now: Option<DynamicObject>,
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
            state.members.is_empty()
        };
        if empty {
            open.remove(namespace);
        }
    }

    /// Drops members that `exists` does not know any more: they were deleted before they had anything to guard.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        let mut open = lock(&self.open);
        open.retain(|namespace, view| {
            let mut state = lock(&view.state);
            state.members.retain(|release| exists(namespace, release));
            !state.members.is_empty()
        });
    }

    /// How many namespaces are watched.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.open).len()
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
            deployments: watch(&mut watches, deployments, all.clone(), deployment, waker.clone()),
            services: watch(
                &mut watches,
                Api::<Service>::namespaced(client.clone(), namespace),
                all.clone(),
                (),
                waker.clone(),
            ),
            ingresses: watch(
                &mut watches,
                Api::<Ingress>::namespaced(client.clone(), namespace),
                all.clone(),
                (),
                waker.clone(),
            ),
            slices: watch(
                &mut watches,
                Api::<EndpointSlice>::namespaced(client.clone(), namespace),
                all,
                (),
                waker.clone(),
            ),
            pods: watch(
                &mut watches,
                Api::<Pod>::namespaced(client.clone(), namespace),
                ours,
                (),
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

    /// Remembers what a write left, until the watch shows it. `before` is the version that was replaced.
    pub fn wrote(&self, kind: Kind, name: &str, before: Option<String>, now: Option<DynamicObject>) {
        lock(&self.state)
            .written
            .insert((kind, name.to_owned()), Written { before, now });
    }

    /// Version of an object as last seen.
    #[must_use]
    pub fn version(&self, kind: Kind, name: &str) -> Option<String> {
        match kind {
            Kind::Deployment => self
                .deployments()
                .into_iter()
                .find(|o| o.name_any() == name)?
                .resource_version(),
            Kind::Service => self
                .services()
                .into_iter()
                .find(|o| o.name_any() == name)?
                .resource_version(),
            Kind::Ingress => self
                .ingresses()
                .into_iter()
                .find(|o| o.name_any() == name)?
                .resource_version(),
            Kind::CanaryRelease => None,
        }
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
        let mut seen: BTreeMap<String, Arc<K>> = store
            .state()
            .into_iter()
            .map(|object| (object.name_any(), object))
            .collect();
        let mut state = lock(&self.state);
        state.written.retain(|(written_kind, name), written| {
            if *written_kind != kind {
                return true;
            }
            let stale = seen.get(name).and_then(|object| object.meta().resource_version.clone()) == written.before;
            if stale {
                match written.now.as_ref().and_then(&convert) {
                    Some(object) => seen.insert(name.clone(), Arc::new(object)),
                    None => seen.remove(name),
                };
            }
            stale
        });
        seen.into_values().collect()
    }
}

fn typed<K: DeserializeOwned>(object: &DynamicObject) -> Option<K> {
    serde_json::to_value(object)
        .ok()
        .and_then(|value| serde_json::from_value(value).ok())
}

/// A store has no order of its own; decisions and their tests have.
fn sorted<K: Resource>(mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
    objects.sort_by_key(|object| object.meta().name.clone());
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

    fn works(&self, resource: &str) {
        lock(&self.state).broken.remove(resource);
    }

    fn broke(&self, resource: &str, error: &watcher::Error) {
        let refused = match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
                (status.code == 403).then(|| status.message.clone())
            }
            _ => None,
        };
        tracing::warn!(namespace = self.namespace, resource, %error, "watch interrupted");
        if let Some(message) = refused {
            lock(&self.state).broken.insert(resource.to_owned(), message);
            self.wake_all();
        }
    }
}

fn watch<K>(
    watches: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    dyntype: K::DynamicType,
    waker: Waker,
) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Send + Sync + 'static,
{
    let resource = K::plural(&dyntype).into_owned();
    let writer = Writer::<K>::new(dyntype);
    let store = writer.as_reader();
    let stream = watcher(api, config)
        .modify(|object| object.meta_mut().managed_fields = None)
        .default_backoff()
        .reflect(writer);
    watches.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object)) => waker.wake(&object),
                Ok(watcher::Event::InitDone) => {
                    waker.works(&resource);
                    waker.wake_all();
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Err(error) => waker.broke(&resource, &error),
            }
        }
    });
    store
}
