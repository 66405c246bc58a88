//! What this process knows about releases beyond what the watch has shown. It is gone when another begins to lead.

use crate::{
    api::{CanaryRelease, CanaryReleaseStatus},
    observe::older,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How many rounds may fail in how long before the next ones are kept apart, and how far. What a failed round did wakes the
/// next one: without this, one that may write this but not that could write without end (sweeps found it twice).
const STUMBLES: (u32, Duration) = (5, Duration::from_secs(10));
const APART: Duration = Duration::from_secs(1);
/// How far messages of the same failure are kept apart.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// By namespace and name.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<(String, String), Entry>>);

#[derive(Default)]
struct Entry {
    /// What our last write left, until the cache shows it or something newer.
    written: Option<Arc<CanaryRelease>>,
    /// Its status could not be written.
    unrecorded: bool,
    /// Since when the status that could not be written told of requests taken away.
    drained_since: Option<MicroTime>,
    failures: u32,
    /// Failed rounds, since when they are counted, and until when the next one has to wait.
    stumbles: u32,
    stumbles_since: Option<Instant>,
    not_before: Option<Instant>,
    /// When a failure was last told.
    told: Option<Instant>,
    /// Since when rounds have been refused.
    refused_since: Option<Instant>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.written.is_none()
            && !self.unrecorded
            && self.drained_since.is_none()
            && self.failures == 0
            && self.stumbles_since.is_none()
            && self.told.is_none()
            && self.refused_since.is_none()
    }

    /// Counts a failed round against the pace of the next ones.
    fn stumble(&mut self) {
        let (most, within) = STUMBLES;
        let now = Instant::now();
        if self
            .stumbles_since
            .is_none_or(|since| now.duration_since(since) > within)
        {
            (self.stumbles, self.stumbles_since) = (0, Some(now));
        }
        self.stumbles = self.stumbles.saturating_add(1);
        self.not_before = (self.stumbles >= most).then(|| now + APART);
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything is kept of this release.
    pub fn knows(&self, namespace: &str, name: &str) -> bool {
        self.lock().contains_key(&(namespace.to_owned(), name.to_owned()))
    }

    /// Forgets releases that are gone.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        self.lock().retain(|(namespace, name), _| exists(namespace, name));
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
            entry.stumble();
            before
        })
    }

    /// A round went through.
    pub fn succeeded(&self, namespace: &str, name: &str) {
        self.change(namespace, name, |entry| {
            entry.failures = 0;
            entry.told = None;
            entry.refused_since = None;
            let long_ago = |since: Instant| since.elapsed() > STUMBLES.1;
            if entry.stumbles_since.is_some_and(long_ago) {
                (entry.stumbles, entry.stumbles_since, entry.not_before) = (0, None, None);
            }
        });
    }

    /// Whether another message of the same failure may be told: what a webhook says may name each request, and what is told
    /// wakes the next round.
    pub fn may_tell_again(&self, namespace: &str, name: &str) -> bool {
        self.change(namespace, name, |entry| {
            let now = Instant::now();
            let may = entry.told.is_none_or(|told| now.duration_since(told) >= TELL_AGAIN);
            if may {
                entry.told = Some(now);
            }
            may
        })
    }

    /// For how long every round was refused, with this one.
    pub fn refused(&self, namespace: &str, name: &str) -> Duration {
        self.change(namespace, name, |entry| {
            let now = Instant::now();
            now.duration_since(*entry.refused_since.get_or_insert(now))
        })
    }

    /// How long the next round has to wait.
    pub fn wait(&self, namespace: &str, name: &str) -> Option<Duration> {
        let not_before = self.change(namespace, name, |entry| entry.not_before)?;
        let wait = not_before.saturating_duration_since(Instant::now());
        (!wait.is_zero()).then_some(wait)
    }

    /// Whether the status could not be written when it was last tried.
    pub fn is_unrecorded(&self, namespace: &str, name: &str) -> bool {
        self.change(namespace, name, |entry| entry.unrecorded)
    }

    /// Some status was written: it can be, again.
    pub fn recorded(&self, namespace: &str, name: &str) {
        self.change(namespace, name, |entry| entry.unrecorded = false);
    }

    /// Since when requests are taken away though no status tells.
    pub fn drained_since(&self, namespace: &str, name: &str) -> Option<MicroTime> {
        self.change(namespace, name, |entry| entry.drained_since.clone())
    }

    /// What was decided was written, or could not be.
    pub fn decided(&self, namespace: &str, name: &str, status: &CanaryReleaseStatus, written: bool) {
        let rollout = status.rollout.as_ref().filter(|_| !written);
        let drained_since = rollout.and_then(|rollout| rollout.drained_since.clone());
        self.change(namespace, name, |entry| {
            entry.unrecorded = !written;
            entry.drained_since = drained_since;
        });
    }
}
