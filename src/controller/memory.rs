//! What this process knows about releases beyond what the watch has shown. It is gone when another begins to lead.

use crate::{api::CanaryRelease, observe::older};
use kube::ResourceExt;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// By namespace and name.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<(String, String), Entry>>);

#[derive(Default)]
struct Entry {
    /// What our last write left, until the cache shows it or something newer.
    written: Option<Arc<CanaryRelease>>,
    /// A round of it went through.
    looked: bool,
    failures: u32,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.written.is_none() && !self.looked && self.failures == 0
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let entry = entries.entry(key.clone()).or_default();
        let outcome = change(entry);
        if entry.is_empty() {
            entries.remove(&key);
        }
        outcome
    }

    /// The release as cached, or as we left it where the cache is still behind our own write.
    pub fn newest(&self, namespace: &str, cached: &CanaryRelease) -> Arc<CanaryRelease> {
        self.change(namespace, &cached.name_any(), |entry| {
            let behind = |ours: &Arc<CanaryRelease>| {
                let (cached_at, ours_at) = (cached.resource_version(), ours.resource_version());
                ours.uid() == cached.uid() && older(cached_at.as_deref(), ours_at.as_deref())
            };
            entry.written = entry.written.take().filter(behind);
            entry.written.clone().unwrap_or_else(|| Arc::new(cached.clone()))
        })
    }

    /// Remembers what a write of ours left.
    pub fn wrote(&self, namespace: &str, now: Arc<CanaryRelease>) {
        self.change(namespace, &now.name_any(), |entry| entry.written = Some(now.clone()));
    }

    /// Counts a failed round; returns how many there were in a row before it.
    pub fn failed(&self, namespace: &str, name: &str) -> u32 {
        self.change(namespace, name, |entry| {
            let before = entry.failures;
            entry.failures = before.saturating_add(1);
            before
        })
    }

    /// A round went through.
    pub fn succeeded(&self, namespace: &str, name: &str) {
        self.change(namespace, name, |entry| entry.failures = 0);
    }

    /// Whether no round of the release went through yet, since it began.
    pub fn first_look(&self, namespace: &str, name: &str) -> bool {
        self.change(namespace, name, |entry| !entry.looked)
    }

    /// A round of a release under way went through.
    pub fn looked(&self, namespace: &str, name: &str) {
        self.change(namespace, name, |entry| entry.looked = true);
    }

    /// The release has nothing to do any more.
    pub fn rests(&self, namespace: &str, name: &str) {
        self.change(namespace, name, |entry| entry.looked = false);
    }
}
