//! Which releases have their requests counted and judged.

use crate::{
    analysis::{Interest, Judge, Judged, Look, Scraper, Subscription},
    api::CanaryRelease,
    observe::{View, Wake},
    release::to_judge,
    routing::Routing,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// By namespace and name.
pub(super) struct Judging {
    scraper: Option<Scraper>,
    wake: Wake,
    entries: Mutex<BTreeMap<(String, String), Entry>>,
    /// Releases whose last round failed: they are tried again in their own time, and new counts do not hurry them.
    failing: Arc<Mutex<BTreeSet<(String, String)>>>,
}

struct Entry {
    /// The release that is judged: the next of the same name starts anew.
    started_at: MicroTime,
    interest: Interest,
    subscription: Option<Subscription>,
    judge: Judge,
    /// Whether the last answers were complete, as logged.
    complete: Option<bool>,
}

impl Judging {
    pub fn new(scraper: Option<Scraper>, wake: Wake) -> Self {
        Self {
            scraper,
            wake,
            entries: Mutex::default(),
            failing: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the last round of a release ended.
    pub fn ended(&self, namespace: &str, name: &str, well: bool) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if well {
            failing.remove(&key);
        } else {
            failing.insert(key);
        }
    }

    /// What the requests of a release say; begins and ends the counting as the release needs it.
    pub fn look(
        &self,
        release: &CanaryRelease,
        view: &View,
        routing: &dyn Routing,
        settle: Duration,
        now: Timestamp,
    ) -> Judged {
        let key = (release.namespace().unwrap_or_default(), release.name_any());
        let Some(asked) = to_judge(release, &view.ingresses(), routing, settle) else {
            self.stop(&key.0, &key.1);
            return Judged::default();
        };
        let mut entries = self.lock();
        let known = |entry: &&mut Entry| entry.started_at == asked.started_at && entry.interest == asked.interest;
        if entries.get_mut(&key).as_ref().is_none_or(|entry| !known(entry)) {
            let checks = release.status.as_ref().map(|status| status.checks.as_slice());
            let entry = Entry {
                started_at: asked.started_at.clone(),
                subscription: self.subscribe(&key, asked.interest.clone()),
                interest: asked.interest,
                judge: Judge::resume(checks.unwrap_or_default()),
                complete: None,
            };
            entries.insert(key.clone(), entry);
        }
        let Some(entry) = entries.get_mut(&key) else {
            return Judged::default();
        };
        let counts = entry.subscription.as_ref().and_then(Subscription::counts);
        // Worth a line, once: what follows from it is told where it matters.
        if let Some(counts) = &counts
            && entry.complete.replace(counts.complete) != Some(counts.complete)
        {
            let (namespace, name) = key;
            match counts.missing.join("; ") {
                missing if missing.is_empty() => tracing::debug!(namespace, name, "requests are counted"),
                missing => tracing::warn!(namespace, name, missing, "requests are not counted"),
            }
        }
        let look = Look {
            now,
            rules: &asked.rules,
            in_force: asked.in_force.as_ref(),
            counts: counts.as_ref(),
            uncounted: None,
            answers: &BTreeMap::new(),
        };
        let judged = entry.judge.look(&look);
        if let Some(subscription) = &entry.subscription {
            subscription.every(entry.judge.pace(&look));
        }
        judged
    }

    fn subscribe(&self, key: &(String, String), interest: Interest) -> Option<Subscription> {
        Some(self.scraper.as_ref()?.subscribe(interest, self.waker(key)))
    }

    fn waker(&self, key: &(String, String)) -> impl Fn() + Send + Sync + 'static {
        let (wake, failing, key) = (self.wake.clone(), self.failing.clone(), key.clone());
        move || {
            if !failing.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
                // The reconciler is gone when this fails, and the subscription is about to follow.
                let _ = wake.unbounded_send(ObjectRef::new(&key.1).within(&key.0));
            }
        }
    }

    /// The release needs no judging.
    pub fn stop(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Ends it for releases that `exists` does not know any more.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        self.lock().retain(|(namespace, name), _| exists(namespace, name));
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.retain(|(namespace, name)| exists(namespace, name));
    }
}
