use super::{Analysis, CanaryReleaseStatus, Duration, Freeze, Rollout, Stage, StepAnalysis, Traffic, Weight, Window};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Releases a new version of a Deployment behind ingress-nginx step by step, and promotes it or rolls it back.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "canary-operator.dev",
    version = "v1alpha1",
    kind = "CanaryRelease",
    namespaced,
    status = "CanaryReleaseStatus",
    derive = "PartialEq",
    shortname = "canary",
    category = "all",
    doc = "Releases a new version of a Deployment behind ingress-nginx step by step, and promotes it or rolls it back.",
    selectable = ".spec.target.deployment",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Weight", type_ = "string", json_path = ".status.weight"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stableImage"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".status.canaryImage"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Next advance", type_ = "string", json_path = ".status.nextAdvanceAt", priority = 1),
    printcolumn(name = "Verdicts", type_ = "string", json_path = ".status.verdicts", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name may have at most 63 characters: it becomes a label value")
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.steps) != has(self.ramp)").message("set either steps or ramp, exactly one of them"),
)]
pub struct CanaryReleaseSpec {
    /// What is released: objects of this namespace that serve version 1 today.
    pub target: Target,
    /// How version 2 differs from version 1.
    pub canary: Canary,
    /// Who reaches version 2 whatever the weight is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// The schedule, written out. The last step is followed by promotion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(
        validation = Rule::new(format!("self.exists(s, {}) || self.map(s, double(s.weight)).isSorted()", misshapen("s.weight"))).message("weights may not fall from one step to the next"),
        merge_strategy = ListMerge::Atomic,
    )]
    pub steps: Option<Vec<Step>>,
    /// The schedule as evenly spaced steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Ramp>,
    /// How version 2 is judged. When omitted, its failures are compared with version 1's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
    /// When the release may go on: in any of these. At any time when omitted. Rolling back never waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub windows: Option<Vec<Window>>,
    /// When the release does not go on, whatever `windows` says. Rolling back never waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub freezes: Option<Vec<Freeze>>,
    /// How long any one wait (pods ready, canary scaled, stable rolled out) may take. Default 10m.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: Duration,
    /// How version 2 takes version 1's place.
    #[serde(default)]
    pub promotion: Promotion,
    /// What is left of a version 2 that was found wanting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// While true the release does not start, the weight does not rise and version 1 is not replaced. Version 2 is watched
    /// and rolled back all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

fn default_progress_deadline() -> Duration {
    Duration::seconds(600)
}

/// CEL for a weight that is no number. Its own rule says so: another rule that stumbled over it would only add noise.
fn misshapen(weight: &str) -> String {
    format!("!string({weight}).matches('^[0-9]{{1,3}}([.][0-9]{{1,4}})?$')")
}

fn misshapen_ramp() -> String {
    ["self.from", "self.by", "self.to"].map(misshapen).join(" || ")
}

/// The objects that serve version 1.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of the Deployment that runs version 1 and will run version 2 after promotion.
    #[schemars(length(min = 1, max = 253))]
    pub deployment: String,
    /// Name of the Service in front of it. When omitted: the one Service that selects the Deployment's pods and that an Ingress leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub service: Option<String>,
    /// Names of the Ingresses that lead to the Service. When omitted: all that do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 253)))]
    pub ingresses: Option<Vec<String>>,
}

/// How version 2 differs from version 1; at least an image or a template.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.image) || has(self.template)").message("set canary.image, canary.template or both: without either, version 2 would be version 1"),
    validation = Rule::new("!has(self.container) || has(self.image)").message("canary.container says which container gets canary.image: set canary.image too"),
)]
pub struct Canary {
    /// Image of version 2, for `container` or for the only container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Which container gets `image`; needed where the pod has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
    /// Appended to the names of version 1's Deployment, Service and Ingresses to name the canary's.
    #[serde(default = "default_suffix")]
    #[schemars(length(min = 2, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^-[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("suffix starts with a dash, followed by lower-case letters, digits and dashes, such as -v2"))]
    pub suffix: String,
    /// Strategic-merge overlay on version 1's pod template, in the form of a Deployment's `spec.template`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_template_overlay")]
    pub template: Option<Value>,
    /// Number of canary pods during the steps; at promotion it gets as many as version 1 has. When omitted the canary grows
    /// with its share of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
}

fn default_suffix() -> String {
    "-canary".to_owned()
}

fn pod_template_overlay(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "description": "Strategic-merge overlay on version 1's pod template, in the form of a Deployment's `spec.template`. The API server does the merge and refuses unknown fields.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// One step of the schedule.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.hold) || (has(self.approval) && self.approval)").message("a step needs hold, or approval: true"))]
pub struct Step {
    /// Share of the requests that go to version 2, in percent: an integer, or a decimal string of up to four places.
    pub weight: Weight,
    /// How long the weight stays at least, counted from when it is live in the controllers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Duration>,
    /// Whether somebody has to approve before the release goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
    /// Other settings of `spec.analysis` while this step lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<StepAnalysis>,
}

/// How version 2 takes version 1's place.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Promotion {
    /// Who gives the stable Deployment version 2's template.
    #[serde(default)]
    pub mode: PromotionMode,
    /// Whether all requests go to the canary while the stable Deployment's pods are replaced.
    #[serde(default)]
    pub shift_traffic: ShiftTraffic,
}

/// Who gives the stable Deployment version 2's template.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum PromotionMode {
    /// The operator, with one write.
    #[default]
    UpdateStable,
    /// Somebody else, such as a GitOps tool: the canary carries on until the stable Deployment itself carries version 2.
    AwaitStable,
}

/// Whether all requests go to the canary while the stable Deployment's pods are replaced. nginx learns of replaced pods
/// late: under traffic, 5 to 13 % of the requests wait 5 s (measured with an app that exits at once on SIGTERM).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ShiftTraffic {
    /// Yes, and without where the canary's pods for that cannot be had within `spec.progressDeadline`.
    #[default]
    Auto,
    /// Yes, and rolled back where the canary's pods for that cannot be had within `spec.progressDeadline`.
    Always,
    /// No: the stable Deployment's pods are replaced while they serve.
    Never,
}

/// What is left of a version 2 that was found wanting.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    /// How long version 2's Deployment is kept without traffic after it was rolled back, to look at its pods.
    pub keep_for: Duration,
}

/// Evenly spaced steps: `from`, `from + by`, … up to `to`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(format!("{} || double(self.by) > 0.0", misshapen("self.by"))).message("ramp.by must be more than 0"),
    validation = Rule::new(format!("{} || double(self.from) <= double(self.to)", misshapen_ramp())).message("ramp.from may not exceed ramp.to"),
    validation = Rule::new(format!("{} || double(self.by) == 0.0 || (double(self.to) - double(self.from)) / double(self.by) < 100.0001", misshapen_ramp())).message("the ramp has more than 101 steps: make ramp.by larger"),
)]
pub struct Ramp {
    /// Weight of the first step, in percent.
    pub from: Weight,
    /// By how much each step raises the weight.
    pub by: Weight,
    /// Weight of the last step.
    pub to: Weight,
    /// How long each weight stays.
    pub every: Duration,
}

impl CanaryRelease {
    /// Where the running or last release stands, as recorded.
    #[must_use]
    pub fn rollout(&self) -> Option<&Rollout> {
        self.status.as_ref()?.rollout.as_ref()
    }

    /// Name of version 1's Deployment: the one that the running release started with, or the one that is asked for.
    #[must_use]
    pub fn target(&self) -> &str {
        self.rollout()
            .filter(|rollout| rollout.stage != Stage::Ended && !rollout.deployment.is_empty())
            .map_or(&self.spec.target.deployment, |rollout| &rollout.deployment)
    }
}
