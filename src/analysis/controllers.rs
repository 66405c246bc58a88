//! The pods of the ingress-nginx controller, watched for as long as the value lives.

use super::scraper::Settings;
use crate::cluster::watch_on;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        reflector::{Store, store::Writer},
        watcher,
    },
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::task::JoinSet;

/// A controller pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Of the pod.
    pub namespace: String,
    /// Of the pod.
    pub name: String,
    /// Of the pod.
    pub uid: String,
    /// When the kubelet took the pod on. Its container may have started over since, which its counters show.
    pub started: Option<Timestamp>,
    /// Where its metrics are.
    pub address: SocketAddr,
}

/// What is known of the controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Pods that serve, by namespace and name.
    pub ready: Vec<Controller>,
    /// Pods that are about to end, and meanwhile still serve: of 50 requests right after the controller was replaced, 28
    /// were counted at the new pod (measured).
    pub ending: Vec<Controller>,
    /// Uids of the others.
    pub unready: BTreeSet<String>,
    /// Why there may be more than these.
    pub unlisted: Option<String>,
}

/// A watch on the controllers; dropping it ends it.
#[derive(Debug)]
pub struct Controllers {
    pods: Store<Pod>,
    port: u16,
    whose: String,
    broken: Arc<Mutex<Option<String>>>,
    // Dropping the set ends the watch.
    _watch: JoinSet<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves the value whole: it is only ever replaced.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controllers {
    /// Watches the pods that the settings select. Takes a tokio runtime.
    #[must_use]
    pub fn watch(client: &Client, settings: &Settings) -> Self {
        let api: Api<Pod> = match settings.namespace.as_deref() {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let config = watcher::Config::default().labels(&settings.selector);
        let mut writer = Writer::<Pod>::new(());
        let pods = writer.as_reader();
        let broken = Arc::new(Mutex::new(None));
        let told = broken.clone();
        let mut watch = JoinSet::new();
        let slim = |pod: &mut Pod| {
            pod.metadata.managed_fields = None;
            pod.spec = None;
        };
        let tell = move |event: watcher::Result<watcher::Event<Pod>>| match event {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                if matches!(event, watcher::Event::InitDone) {
                    *lock(&told) = None;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "watch of the ingress-nginx controllers interrupted");
                if let watcher::Error::InitialListFailed(kube::Error::Api(status))
                | watcher::Error::WatchStartFailed(kube::Error::Api(status)) = &error
                    && matches!(status.code, 400 | 403)
                {
                    *lock(&told) = Some(status.message.clone());
                }
            }
        };
        watch.spawn(watch_on(api, config, slim, tell));
        Self {
            pods,
            port: settings.port,
            whose: settings.whose(),
            broken,
            _watch: watch,
        }
    }

    /// Returns when the pods were listed once.
    pub async fn listed(&self) {
        // An error means that the watch has ended, which it does with this value.
        let _ = self.pods.wait_until_ready().await;
    }

    /// The pods as they are known now.
    #[must_use]
    pub fn list(&self) -> Listing {
        let mut listing = Listing::default();
        for pod in self.pods.state() {
            match controller(&pod, self.port) {
                Some(controller) if pod.metadata.deletion_timestamp.is_some() => listing.ending.push(controller),
                Some(controller) if is_ready(&pod) => listing.ready.push(controller),
                _ => drop(listing.unready.insert(pod.uid().unwrap_or_default())),
            }
        }
        // A store has no order of its own.
        for pods in [&mut listing.ready, &mut listing.ending] {
            pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        }
        let listed = futures::FutureExt::now_or_never(self.listed()).is_some();
        listing.unlisted = match lock(&self.broken).as_ref() {
            Some(why) => Some(format!("cannot watch {}: {why}", self.whose)),
            None if !listed => Some(format!("{} are not listed yet", self.whose)),
            None if listing.ready.is_empty() => Some(format!("none of {} is ready", self.whose)),
            None => None,
        };
        listing
    }
}

/// The controller in a pod, where it has an address.
fn controller(pod: &Pod, port: u16) -> Option<Controller> {
    let status = pod.status.as_ref()?;
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    Some(Controller {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        started: status.start_time.as_ref().map(|time| time.0),
        address: SocketAddr::new(ip, port),
    })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    ready.any(|condition| condition.status == "True")
}
