//! The `CanaryRelease` resource, `canary-operator.dev/v1alpha1`: what users write and what they read back.

mod analysis;
mod checks;
mod duration;
mod evidence;
mod spec;
mod status;
#[cfg(test)]
mod tests;
mod traffic;
mod weight;
mod windows;

pub use analysis::{
    Analysis, Check, CheckKind, ErrorAction, ErrorDeadline, ErrorRegression, Failures, Latency, LatencyRegression,
    NoData, Query, Source, StepAnalysis, SuccessRate,
};
pub use checks::{CheckStatus, Verdict};
pub use duration::{Duration, DurationError};
pub use evidence::Evidence;
pub use spec::{
    Canary, CanaryRelease, CanaryReleaseSpec, Promotion, PromotionMode, Ramp, Rollback, ShiftTraffic, Step, Target,
};
pub use status::{
    CanaryObjects, CanaryPods, CanaryReleaseStatus, Commanded, HistoryEntry, Outcome, Phase, Reached, Rollout, Stage,
    conditions, set_condition,
};
pub use traffic::{Header, Traffic};
pub use weight::{Weight, WeightError};
pub use windows::{CalendarError, CivilTime, ClockTime, Day, Freeze, TimeZoneName, Window};

/// API group of the resource; also the prefix of every label and annotation that the operator writes.
pub const GROUP: &str = "canary-operator.dev";

/// Finalizer held on a `CanaryRelease` only while objects of a canary may exist, so that an idle
/// operator can be uninstalled without leaving resources that nobody can delete.
pub const FINALIZER: &str = "canary-operator.dev/traffic";

/// Label on everything made for a release, pods included; its value is the name of the `CanaryRelease`.
pub const LABEL_RELEASE: &str = "canary-operator.dev/release";

/// Label on the canary's pods: the revision they run, so that a predecessor's dying pods are not taken for them.
pub const LABEL_REVISION: &str = "canary-operator.dev/revision";

/// Annotation on a canary Ingress: number of the step whose weight it carries. Written together with the weight,
/// so that an operator that died before recording the step finds out where traffic stands.
pub const ANNOTATION_STEP: &str = "canary-operator.dev/step";

/// Annotation on a canary Ingress: since when it leads requests as it does, to the microsecond. Written together with what it
/// leads, so that a weight that was put right just before the operator died does not count as known to nginx (the model found
/// that).
pub const ANNOTATION_SINCE: &str = "canary-operator.dev/since";

/// Annotation by which a person commands a running release; see [`crate::release`]'s commands. The operator removes it.
pub const ANNOTATION_COMMAND: &str = "canary-operator.dev/command";

/// Annotation on the canary's Deployment: version 1's pod template, kept for as long as the stable Deployment may fail to
/// roll out version 2.
pub const ANNOTATION_STABLE_TEMPLATE: &str = "canary-operator.dev/stable-template";
