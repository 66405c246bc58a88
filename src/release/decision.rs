//! What was decided, as data: printable, comparable, replayable.

use crate::api::CanaryReleaseStatus;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::Value;
use std::time::Duration;

/// Everything that follows from one look.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Performed in this order; the first that fails ends the round.
    pub writes: Vec<Write>,
    /// Written after the writes, where it differs from what is there.
    pub status: CanaryReleaseStatus,
    /// Whether nothing is left that the finalizer must guard: it is taken off after the status.
    pub release_finalizer: bool,
    /// Whether the annotation with a command is taken off, after the status.
    pub answered: bool,
    /// Told after the status.
    pub notes: Vec<Note>,
    /// When to look again if nothing happens before.
    pub again: Duration,
    /// How old the told numbers of a check may get while its verdict is the same.
    pub tell_again: Duration,
    /// Whether good news alone is not worth a write, for the next change is to be told soon.
    pub good_news_waits: bool,
    /// Whether this takes requests away from version 2, so that it waits for nothing, not even for a status.
    pub takes_away: bool,
    /// Whether the release needs its namespace watched.
    pub watching: bool,
    /// Services whose ready endpoints all requests of a version depend on from here on: they are asked for anew, for a watch
    /// may be late, and this is decided again where it was.
    pub relies_on: Vec<String>,
}

impl Decision {
    /// Traffic moves when the API server has carried it out, which may take seconds: what the status says to be so since
    /// it was decided is so since it was written. A storm of the simulation found pods that went that much too early.
    pub fn carried_out(&mut self, decided: Timestamp, written: Timestamp) {
        let steers = self.writes.iter().any(|write| write.kind == Kind::Ingress);
        let Some(rollout) = self.status.rollout.as_mut().filter(|_| steers) else {
            return;
        };
        let late = written.duration_since(decided);
        let shift = |at: &mut Timestamp| *at = at.saturating_add(late).unwrap_or(*at);
        for since in [&mut rollout.weight_since, &mut rollout.drained_since] {
            if let Some(MicroTime(since)) = since
                && *since == decided
            {
                *since = written;
            }
        }
        // The step's end counts from there: the next round would find it elsewhere, and write it again.
        if rollout.waiting_since.0 > decided {
            shift(&mut rollout.waiting_since.0);
        }
        if let Some(Time(at)) = &mut self.status.next_advance_at {
            shift(at);
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name, in the release's namespace.
    pub name: String,
    /// What is done to it.
    pub op: Op,
    /// Why, for the log.
    pub why: String,
}

/// Kinds that the operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `canary-operator.dev/v1alpha1`
    CanaryRelease,
    /// `apps/v1`
    Deployment,
    /// `v1`
    Service,
    /// `networking.k8s.io/v1`
    Ingress,
}

/// What is done to an object. Changes carry the resourceVersion that they were decided on.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// POST; fails where the object exists.
    Create(Value),
    /// JSON merge patch.
    Merge {
        /// resourceVersion decided on.
        version: String,
        /// The patch, without metadata.resourceVersion.
        patch: Value,
    },
    /// Strategic-merge patch, by which the API server merges containers by name.
    StrategicMerge {
        /// resourceVersion decided on.
        version: String,
        /// The patch, without metadata.resourceVersion.
        patch: Value,
    },
    /// DELETE of exactly this object, in the background.
    Delete {
        /// uid decided on.
        uid: String,
        /// resourceVersion decided on, for what steers traffic. Without it a Deployment could not be deleted
        /// while its pods keep changing its status.
        version: Option<String>,
    },
}

/// An event for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Normal or Warning.
    pub level: Level,
    /// CamelCase word.
    pub reason: String,
    /// Sentence.
    pub message: String,
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As planned.
    Normal,
    /// Somebody should look.
    Warning,
}
