//! The parts of a cluster that react to what is stored, each a task of its own.

pub mod behaviour;
pub mod clients;
pub mod conditions;
pub mod deployment;
pub mod endpoints;
pub mod garbage;
pub mod kubelet;
pub mod rollout;

use super::server::{ApiServer, Changes, resource::Key, store::Version};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The work queue of an actor: keys that changes made dirty, and keys that are due at a later age of the world.
pub(crate) struct Queue {
    server: ApiServer,
    changes: Changes,
    lag: Duration,
    due: BTreeMap<Key, Duration>,
    dirty: BTreeSet<Key>,
}

impl Queue {
    /// A queue that looks at changes `lag` after they happen.
    pub(crate) fn new(server: &ApiServer, lag: Duration) -> Self {
        Self {
            server: server.clone(),
            changes: server.subscribe_from_start(),
            lag,
            due: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// Looks at `key` again when the world is `age` old; None: not before the next change.
    pub(crate) fn again(&mut self, key: &Key, age: Option<Duration>) {
        match age {
            Some(age) => self.due.insert(key.clone(), age),
            None => self.due.remove(key),
        };
    }

    /// The next keys to look at; `of` says which keys a change is about. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self, of: impl Fn(&Version) -> Vec<Key>) -> Vec<Key> {
        let clock = self.server.clock();
        loop {
            self.dirty.extend(self.changes.pending().iter().flat_map(|v| of(v)));
            if !self.dirty.is_empty() {
                // Also what keeps an actor that answers its own writes from standing still in time.
                tokio::time::sleep(self.lag).await;
                self.dirty.extend(self.changes.pending().iter().flat_map(|v| of(v)));
            }
            let now = clock.elapsed();
            self.dirty.extend(
                self.due
                    .iter()
                    .filter(|(_, age)| **age <= now)
                    .map(|(key, _)| key.clone()),
            );
            self.due.retain(|_, age| *age > now);
            if !self.dirty.is_empty() {
                return std::mem::take(&mut self.dirty).into_iter().collect();
            }
            let first = self.due.values().min().map(|age| clock.instant(*age));
            tokio::select! {
                biased;
                batch = self.changes.next() => self.dirty.extend(batch.iter().flat_map(|v| of(v))),
                () = sleep_until(first) => {}
            }
        }
    }
}

async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
