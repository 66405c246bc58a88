//! Everything that one round reads, each object with the resourceVersion it was read at.

mod endpoints;
mod pods;
mod read;
mod survey;
mod views;
mod workload;

pub use endpoints::{ask_ready, ready};
pub use pods::{Failure, RESTARTING, failure, last_line};
pub use read::{Others, observe};
pub use survey::{Autoscaler, Budget, Class, Survey};
pub(crate) use views::older;
pub use views::{Merged, View, Views, Wake};
pub use workload::{Workload, image, pod_labels, revision};

use crate::{analysis::Judged, api::CanaryRelease, cluster::Outages};
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::Ingress},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// What one round knows.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The release itself.
    pub release: Arc<CanaryRelease>,
    /// Whether the plan may be played in this round, which takes milliseconds where all else takes microseconds. Where many
    /// releases begin in the same instant, what they can find is told with their next weight.
    pub may_play: bool,
    /// The target Deployment.
    pub stable: Option<Workload>,
    /// Every Service of the namespace.
    pub services: Vec<Arc<Service>>,
    /// Every Ingress of the namespace.
    pub ingresses: Vec<Arc<Ingress>>,
    /// Deployments that this release owns.
    pub own_deployments: Vec<Workload>,
    /// Deployments by name that exist in the namespace.
    pub deployment_names: Vec<String>,
    /// Ready endpoints by Service.
    pub ready: BTreeMap<String, usize>,
    /// A canary pod that fails in a way that waiting does not mend, with the last line of its log.
    pub failure: Option<(Failure, Option<String>)>,
    /// What the target Deployment would become with version 2's overlay, where this round may need it;
    /// or why the API server refuses that.
    pub merged: Option<Result<Value, String>>,
    /// Other releases of this namespace with the same target Deployment that were there first.
    pub rivals: Vec<String>,
    /// Services whose traffic another release of this namespace splits at this time, each with that release's name.
    pub busy: BTreeMap<String, String>,
    /// What else the API server was asked, where a release is about to start.
    pub survey: Option<Survey>,
    /// Names of the Prometheus servers that the operator is configured with.
    pub servers: Vec<String>,
    /// What the requests say that were counted.
    pub judged: Judged,
    /// Since when this process has taken the requests away, where the status that told so could not be written.
    pub drained_since: Option<MicroTime>,
    /// Since when this process leads, by its own clock. What lies before was told by another clock, which may differ.
    pub led_since: Timestamp,
    /// When the API server was out of reach: others may be late to hear of what was written then and since.
    pub outages: Outages,
}
