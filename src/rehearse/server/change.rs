//! Changes: what they are once made, and how they are asked for.

use super::super::json::{int, items, text};
use super::resource::Key;
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It began to exist.
    Added,
    /// It was written.
    Modified,
    /// It ceased to exist.
    Deleted,
}

/// One entry of the log: an object as it was from `resource_version` on.
#[derive(Clone, Debug)]
pub struct Version {
    /// The global version counter after the change.
    pub resource_version: u64,
    /// When, in virtual time.
    pub at: Timestamp,
    /// What happened.
    pub change: ChangeKind,
    /// To what.
    pub key: Key,
    /// The object after the change; for a deletion, as it was last.
    pub object: Arc<Value>,
    /// The object before the change.
    pub previous: Option<Arc<Value>>,
}

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Compute and answer, but store nothing.
    pub dry_run: bool,
    /// Refuse unknown fields.
    pub strict: bool,
    /// Only `.status` is written.
    pub status: bool,
}

/// `metav1.DeleteOptions`, as far as they matter here.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Delete only the object with this uid.
    pub uid: Option<String>,
    /// Delete only this version.
    pub resource_version: Option<String>,
    /// Background (default), Foreground or Orphan.
    pub propagation: Option<String>,
    /// For pods: seconds; None means the pod's own period.
    pub grace_period: Option<i64>,
    /// Compute and answer, but store nothing.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the body of a DELETE request.
    pub fn parse(body: &Value) -> Self {
        let optional = |at| Some(text(body, at).to_string()).filter(|s| !s.is_empty());
        Self {
            uid: optional("/preconditions/uid"),
            resource_version: optional("/preconditions/resourceVersion"),
            propagation: optional("/propagationPolicy"),
            grace_period: int(body, "/gracePeriodSeconds"),
            dry_run: !items(body, "/dryRun").is_empty(),
        }
    }
}
