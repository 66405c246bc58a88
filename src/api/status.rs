use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CheckStatus, Duration, Weight};

/// What the operator saw and did. Written only by the operator.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CanaryReleaseStatus {
    /// `metadata.generation` of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people; programs read `conditions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What happens now, why it waits and until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Current step of how many, such as `2/5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Share of the requests in force in percent, read back from the live canary Ingress; never a wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// When the next step is due, provided that nothing holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_advance_at: Option<Time>,
    /// Image of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_image: Option<String>,
    /// Image of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_image: Option<String>,
    /// Hash of version 2's rendered pod template, frozen when the release starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The canary's pods as last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_pods: Option<CanaryPods>,
    /// Where the release stands; what the operator needs to go on after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Where the checks of the running (or last) release stand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub checks: Vec<CheckStatus>,
    /// The last verdicts, such as `errors Pass, p99 Breach`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<String>,
    /// The command that was carried out (or refused) and whose annotation is about to be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The last ten releases, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub history: Vec<HistoryEntry>,
    /// `Ready`, `Reconciling`, `Stalled` as kstatus reads them, and one for each thing that must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One word for what a release does, derived from where it stands.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Phase {
    /// Version 2 is being made ready; it gets no requests yet.
    Pending,
    /// Traffic moves along the steps.
    Progressing,
    /// Something keeps the schedule from going on; the message says what.
    Holding,
    /// Waits for a person: for an approval, or for `spec.paused` to be false.
    Paused,
    /// Version 2 takes version 1's place.
    Promoting,
    /// Version 2 has taken version 1's place.
    Promoted,
    /// Traffic returns to version 1.
    RollingBack,
    /// All traffic is with version 1 and the canary is gone.
    RolledBack,
    /// A person is needed; the message says for what.
    Stalled,
}

/// The canary's pods as last seen.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryPods {
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are wanted.
    pub desired: i32,
    /// The most pods that the canary will have beside version 1's.
    #[serde(default)]
    pub peak: i32,
    /// Why a pod does not run, such as `CrashLoopBackOff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last line of the failed container's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where the running (or last) release stands.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Hash of `spec.target` and `spec.canary`: another one is another release.
    pub intent: String,
    /// What is being done.
    pub stage: Stage,
    /// Hash of the schedule that `step` counts in.
    pub schedule: String,
    /// Number of the step in force, from 1; 0 while the canary Ingress carries weight 0 before the first.
    #[serde(default)]
    pub step: u32,
    /// When the release started.
    pub started_at: MicroTime,
    /// When the current wait began; deadlines count from here.
    pub waiting_since: MicroTime,
    /// When the weight in force was written; the step's hold counts from here plus the settle time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_since: Option<MicroTime>,
    /// The requests that prove the weight in force, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<String>,
    /// The requests that deny the weight in force, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_differs: Option<String>,
    /// Hash of what the canary Ingresses were last made to express: where that is still wanted and they express something
    /// else, that was somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expressed: Option<String>,
    /// Since when something interrupts the step, such as pods that are not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted_since: Option<MicroTime>,
    /// How long this step was interrupted before that. All its interruptions together may take the progress deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted_for: Option<Duration>,
    /// Number of the step whose going on was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<u32>,
    /// Whether the rest of the schedule is skipped, by command.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_steps: bool,
    /// The commands that were carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub commands: Vec<Commanded>,
    /// When the last canary Ingress was deleted; version 2's pods outlive it by the settle time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained_since: Option<MicroTime>,
    /// Name of version 1's Deployment, frozen when the release started: another target is another release.
    #[serde(default)]
    pub deployment: String,
    /// Hash of version 1's pod template when the release started.
    pub stable_revision: String,
    /// The most pods that version 1 had: so many carry all requests. An autoscaler takes pods away as requests leave.
    #[serde(default)]
    pub capacity: i32,
    /// Whether an autoscaler sets version 1's number of pods: it took away what the requests left that went to the canary.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub autoscaled: bool,
    /// Why the stable Deployment's pods are replaced while they serve, where all requests were to go to the canary before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unshifted: Option<String>,
    /// Hash of the stable Deployment's pod template once it carries version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_revision: Option<String>,
    /// Until when version 2's Deployment is kept after it was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Time>,
    /// Names of the stable Service and Ingresses, as found when the release started.
    pub service: String,
    /// See `service`.
    pub ingresses: Vec<String>,
    /// Names of the canary's objects.
    pub canary: CanaryObjects,
    /// Whether version 1's pods were replaced meanwhile, so that the controllers have to learn of others before requests return.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
    /// When the stable Deployment was first seen to have rolled out what it is to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_since: Option<MicroTime>,
    /// Whether any request may have gone to version 2, so that its pods must outlive the canary Ingresses.
    #[serde(default)]
    pub exposed: bool,
    /// What somebody should know although it did not keep the release from starting, as found then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(max = 500)))]
    pub warnings: Vec<String>,
    /// What the plan can find and what it cannot, told before, from the traffic that version 1 has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub power: Option<String>,
    /// Requests that nginx answered by itself: they count for neither version.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub of_nginx: u64,
    /// The weights reached so far, and when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub reached: Vec<Reached>,
    /// How it ends or ended, once that is decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// CamelCase word for why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Rollout {
    /// What the names of the canary's objects end in, frozen with them: another suffix in the spec is another release.
    #[must_use]
    pub fn suffix(&self) -> &str {
        self.canary.service.strip_prefix(&self.service).unwrap_or_default()
    }
}

/// Names of the canary's objects, frozen when the release starts.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryObjects {
    /// Version 2's Deployment.
    pub deployment: String,
    /// Version 2's Service.
    pub service: String,
    /// Hash of version 2's pod template as stored, so that somebody else's change of it is noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

/// A command that was carried out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Commanded {
    /// As written in the annotation.
    pub command: String,
    /// When.
    pub at: Time,
}

/// What is being done. Where exactly a stage stands is read off the live objects, not remembered.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Stage {
    /// Version 2's Deployment and Service are made and waited for.
    Preparing,
    /// The canary Ingresses exist; the weight follows the steps.
    Stepping,
    /// The canary carries everything while the stable Deployment gets version 2's template.
    Promoting,
    /// The stable Deployment runs version 2; the canary is drained and removed.
    Finishing,
    /// Traffic returns to version 1 and the canary is removed.
    RollingBack,
    /// Over; `outcome` says how.
    Ended,
}

/// How a release ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Outcome {
    /// Version 2 took version 1's place.
    Promoted,
    /// Version 2 was found wanting.
    RolledBack,
    /// Somebody ended it: by command, or by deleting the `CanaryRelease`.
    Aborted,
    /// Another version was asked for.
    Superseded,
}

/// A weight that was in force.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reached {
    /// Percent of the requests.
    pub weight: Weight,
    /// When it was written.
    pub at: Time,
}

/// A release that is over.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Hash of version 2's rendered pod template.
    pub revision: String,
    /// Image of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_image: Option<String>,
    /// Image of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_image: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// CamelCase word for why.
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// When it started.
    pub started_at: Time,
    /// When it was over.
    pub ended_at: Time,
    /// The weights that were in force, and since when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub reached: Vec<Reached>,
    /// The commands that were carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub commands: Vec<Commanded>,
}

/// Types of the conditions.
pub mod conditions {
    /// Version 2 has taken version 1's place (True); the release is under way, held, or ended otherwise (False).
    pub const READY: &str = "Ready";
    /// A release is under way (kstatus).
    pub const RECONCILING: &str = "Reconciling";
    /// A person is needed (kstatus).
    pub const STALLED: &str = "Stalled";
    /// Everything the release needs was found and fits.
    pub const PREFLIGHT_PASSED: &str = "PreflightPassed";
    /// Version 2's pods are ready.
    pub const CANARY_AVAILABLE: &str = "CanaryAvailable";
    /// Every controller has had the time to learn of the weight in force.
    pub const WEIGHT_LIVE: &str = "WeightLive";
    /// The requests that the controllers counted divide as the weight says.
    pub const TRAFFIC_SPLIT_VERIFIED: &str = "TrafficSplitVerified";
    /// What the last windows say of the checks: within the bounds (True), outside (False), or nothing (Unknown).
    pub const ANALYSED: &str = "Analysed";
    /// A person is waited for: for an approval, or for `spec.paused` to be false.
    pub const PAUSED: &str = "Paused";
    /// Version 2 has taken version 1's place.
    pub const PROMOTED: &str = "Promoted";
    /// Version 2 was taken back; sticky until the spec asks for another version.
    pub const ROLLED_BACK: &str = "RolledBack";
}

/// Adds or replaces the condition of `new`'s type; `lastTransitionTime` moves only when `status` flips.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}
