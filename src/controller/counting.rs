//! Which releases have their requests counted, and since when.

use crate::{
    analysis::{Interest, Scraper, Subscription},
    api::{CanaryRelease, Rollout},
    observe::{Counted, View, Wake},
    release::{counts_from, is_counted},
    routing::ports,
};
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::Ingress;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// By namespace and name.
pub(super) struct Counting {
    scraper: Option<Scraper>,
    wake: Wake,
    entries: Mutex<BTreeMap<(String, String), Entry>>,
}

struct Entry {
    interest: Interest,
    from: Timestamp,
    subscription: Subscription,
    /// Whether the last answers were complete, as logged.
    complete: Option<bool>,
}

impl Counting {
    pub fn new(scraper: Option<Scraper>, wake: Wake) -> Self {
        Self {
            scraper,
            wake,
            entries: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted of a release's requests; begins, ends and restarts the counting as the release needs it.
    pub fn look(&self, release: &CanaryRelease, view: &View, settle: Duration, now: Timestamp) -> Option<Counted> {
        let key = (release.namespace().unwrap_or_default(), release.name_any());
        let (Some(scraper), Some(rollout)) = (&self.scraper, release.rollout().filter(|_| is_counted(release))) else {
            self.stop(&key.0, &key.1);
            return None;
        };
        let interest = interest(&key.0, rollout, &view.ingresses());
        let mut entries = self.lock();
        if entries.get(&key).is_none_or(|entry| entry.interest != interest) {
            let (wake, release) = (self.wake.clone(), ObjectRef::new(&key.1).within(&key.0));
            // The reconciler is gone when this fails, and the subscription is about to follow.
            let wake = move || drop(wake.unbounded_send(release.clone()));
            let entry = Entry {
                subscription: scraper.subscribe(interest.clone(), wake),
                interest,
                from: now,
                complete: None,
            };
            entries.insert(key.clone(), entry);
        }
        let entry = entries.get_mut(&key)?;
        if let Some(from) = counts_from(rollout, settle, entry.from, now) {
            entry.from = from;
            entry.subscription.reset(from);
        }
        let counts = entry.subscription.counts()?;
        // Without counts a weight is live by its settle time alone: worth a line, once, and not a status that flaps.
        if entry.complete.replace(counts.complete) != Some(counts.complete) {
            let (namespace, name) = key;
            match counts.missing.join("; ") {
                missing if missing.is_empty() => tracing::debug!(namespace, name, "requests are counted"),
                missing => tracing::warn!(namespace, name, missing, "requests are not counted"),
            }
        }
        counts.complete.then(|| Counted {
            since: counts.since,
            stable: counts.stable.total(),
            canary: counts.canary.total(),
        })
    }

    /// The release needs no counting.
    pub fn stop(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Ends the counting for releases that `exists` does not know any more.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        self.lock().retain(|(namespace, name), _| exists(namespace, name));
    }
}

/// The series of a release: those of version 1's Ingresses, and of the canary Service's ports as the Ingresses name them.
fn interest(namespace: &str, rollout: &Rollout, ingresses: &[Arc<Ingress>]) -> Interest {
    let ours = ingresses.iter().filter(|i| rollout.ingresses.contains(&i.name_any()));
    let canary = |port: String| Interest::canary(namespace, &rollout.canary.service, port);
    Interest {
        namespace: namespace.to_owned(),
        ingresses: rollout.ingresses.iter().cloned().collect(),
        service: rollout.service.clone(),
        canaries: ours
            .flat_map(|ingress| ports(ingress, &rollout.service).map(canary))
            .collect(),
        latency: false,
    }
}
