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
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// By namespace and name.
pub(super) struct Judging {
    scraper: Option<Scraper>,
    wake: Wake,
    entries: Mutex<BTreeMap<(String, String), Entry>>,
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
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn subscribe(&self, (namespace, name): &(String, String), interest: Interest) -> Option<Subscription> {
        let (wake, release) = (self.wake.clone(), ObjectRef::new(name).within(namespace));
        // The reconciler is gone when this fails, and the subscription is about to follow.
        let wake = move || drop(wake.unbounded_send(release.clone()));
        Some(self.scraper.as_ref()?.subscribe(interest, wake))
    }

    /// The release needs no judging.
    pub fn stop(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Ends it for releases that `exists` does not know any more.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        self.lock().retain(|(namespace, name), _| exists(namespace, name));
    }
}
