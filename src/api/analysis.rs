//! How version 2 is judged while it gets requests: what is asked for.

use super::Duration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How version 2 is judged while it gets requests. Its pods are watched in any case.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.prometheus) || self.source == 'prometheus' || (has(self.checks) && self.checks.exists(c, has(c.prometheus)))").message("analysis.prometheus names a server that nothing is asked of: set source: prometheus, or add a check with a query"),
    validation = Rule::new("!has(self.earlyAdvance) || !self.earlyAdvance || !has(self.checks) || self.checks.exists(c, has(c.errorRegression) || has(c.latencyRegression))").message("earlyAdvance takes a comparison with version 1, which alone can rule out harm: add errorRegression or latencyRegression"),
)]
pub struct Analysis {
    /// Length of a window: requests are judged together that came within it. When omitted 30s, or the step's hold where that
    /// is shorter. A window goes on until it has `minRequests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(short_interval()).message(SHORT_INTERVAL))]
    pub interval: Option<Duration>,
    /// How long requests are left out after a weight is live, for caches to fill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<Duration>,
    /// Who counted the requests.
    #[serde(default)]
    pub source: Source,
    /// Name of a Prometheus server of the operator's configuration, for `source: prometheus` and for queries. When omitted:
    /// the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub prometheus: Option<String>,
    /// What follows from too few requests, or from a query without a result.
    #[serde(default)]
    pub no_data: NoData,
    /// So many windows in a row outside of a bound roll back.
    #[serde(default = "default_failure_limit")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_limit: u32,
    /// Requests to version 2 that a verdict takes. When omitted: so many that one failure alone breaks no bound (100 for 99 %),
    /// and 1 for a comparison with version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// What follows where the source gives no answer.
    #[serde(default)]
    pub error_deadline: ErrorDeadline,
    /// Whether a step ends before its hold where a doubling of version 1's failures is ruled out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub early_advance: bool,
    /// What is checked. When omitted: `errorRegression`. An empty list leaves the pods alone to be watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub checks: Option<Vec<Check>>,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            interval: None,
            warm_up: None,
            source: Source::default(),
            prometheus: None,
            no_data: NoData::default(),
            failure_limit: default_failure_limit(),
            min_requests: None,
            error_deadline: ErrorDeadline::default(),
            early_advance: false,
            checks: None,
        }
    }
}

fn default_failure_limit() -> u32 {
    2
}

/// The controllers' counters are a second or two behind, so that a shorter window would be none.
const SHORTEST_INTERVAL: &str = "2s";
const SHORT_INTERVAL: &str = "an interval is at least 2s: the controllers count a second or two late";

/// CEL for an interval that is no shorter.
fn short_interval() -> String {
    format!("{NO_DURATION} || duration(self) >= duration('{SHORTEST_INTERVAL}')")
}

/// CEL for a duration that is not zero.
fn some_time() -> String {
    format!("{NO_DURATION} || duration(self) > duration('0s')")
}

/// CEL for what is no duration at all, which its own rule tells.
const NO_DURATION: &str = "!self.matches('^(0|([0-9.]+(ms|s|m|h))+)$')";

/// Who counted the requests.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The ingress-nginx controllers, asked directly: no Prometheus is needed.
    #[default]
    IngressNginx,
    /// A Prometheus that scrapes them.
    Prometheus,
}

/// What follows from too few requests, or from a query without a result.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NoData {
    /// The weight stays until there is data.
    #[default]
    Hold,
    /// The schedule goes on without.
    Pass,
    /// It counts towards `failureLimit`.
    Fail,
}

/// What follows where the source gives no answer: no verdict, so that the weight stays; and at last this.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ErrorDeadline {
    /// For so long.
    #[serde(default = "default_error_deadline")]
    #[x_kube(validation = Rule::new(some_time()).message("errorDeadline.after is more than 0s: a single answer that does not come says nothing"))]
    pub after: Duration,
    /// Then.
    #[serde(default)]
    pub action: ErrorAction,
}

impl Default for ErrorDeadline {
    fn default() -> Self {
        Self {
            after: default_error_deadline(),
            action: ErrorAction::default(),
        }
    }
}

fn default_error_deadline() -> Duration {
    Duration::seconds(600)
}

/// What follows where the source has given no answer for long.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ErrorAction {
    /// The weight stays, and a person is called: an outage of the monitoring says nothing about version 2.
    #[default]
    Hold,
    /// Version 1 gets all requests back.
    Rollback,
}

/// Other settings while a step lasts.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StepAnalysis {
    /// See `spec.analysis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(short_interval()).message(SHORT_INTERVAL))]
    pub interval: Option<Duration>,
    /// See `spec.analysis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<Duration>,
    /// See `spec.analysis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_data: Option<NoData>,
    /// See `spec.analysis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub failure_limit: Option<u32>,
    /// See `spec.analysis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
}

/// One thing that is checked: exactly one of the kinds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.successRate), has(self.latency), has(self.errorRegression), has(self.latencyRegression), has(self.prometheus)].exists_one(set, set)").message("a check has exactly one of successRate, latency, errorRegression, latencyRegression and prometheus"),
    validation = Rule::new("!has(self.minRequests) || !has(self.prometheus)").message("a query counts no requests, so minRequests says nothing: have it return nothing where there are too few"),
)]
pub struct Check {
    /// By which it is told.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("the name of a check has lower-case letters, digits and dashes, such as errors-vs-v1"))]
    pub name: String,
    /// Requests to version 2 that a verdict takes, for this check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// Version 2 answers a share of its requests well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// Version 2 answers a share of its requests in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Version 2 fails no oftener than version 1 does at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_regression: Option<ErrorRegression>,
    /// Version 2 is slow no oftener than version 1 is at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_regression: Option<LatencyRegression>,
    /// The result of a query lies within bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Query>,
}

/// Version 2 answers a share of its requests well.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// At least so many percent.
    #[schemars(range(min = 0.0, max = 100.0))]
    #[x_kube(validation = Rule::new("self > 1.0").message("successRate.min is in percent, such as 99.5: with 1 or less nearly every request may fail"))]
    pub min: f64,
    /// Statuses of answers that are failures. When omitted 5xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<Failures>,
}

/// Version 2 answers a share of its requests in time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// The share, such as 0.99.
    #[x_kube(validation = Rule::new("self > 0.0 && self < 1.0").message("a quantile lies between 0 and 1, such as 0.99"))]
    pub quantile: f64,
    /// The time.
    #[x_kube(validation = Rule::new(some_time()).message("latency.max is more than 0s"))]
    pub max: Duration,
}

/// Version 2 fails no oftener than version 1 does at the same time: a sequential test, which may be looked at all the time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ErrorRegression {
    /// In how many releases at most a version 2 that fails no oftener is rolled back, whatever the traffic: 0.01 is one in a
    /// hundred.
    #[serde(default = "default_false_rollback")]
    #[x_kube(validation = Rule::new(FALSE_ROLLBACK).message(FALSE_ROLLBACK_SAYS))]
    pub false_rollback: f64,
    /// Up to how many times as many failures as version 1's are put up with.
    #[serde(default = "default_ignore_below")]
    #[schemars(range(min = 1.0, max = 10.0))]
    pub ignore_below: f64,
    /// Statuses of answers that are failures. When omitted 5xx, and 499: the client gave up waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<Failures>,
}

impl Default for ErrorRegression {
    fn default() -> Self {
        Self {
            false_rollback: default_false_rollback(),
            ignore_below: default_ignore_below(),
            failures: None,
        }
    }
}

/// CEL, because the API server cuts a bound of the schema off at its point where the value is an integer: 0 would be no less
/// than 0.000001.
const FALSE_ROLLBACK: &str = "self >= 0.000001 && self <= 0.5";
const FALSE_ROLLBACK_SAYS: &str = "falseRollback lies between 0.000001 and 0.5, such as 0.01";

fn default_false_rollback() -> f64 {
    0.01
}

fn default_ignore_below() -> f64 {
    1.0
}

/// Version 2 is slow no oftener than version 1 is at the same time: the same test, where a slow answer counts as a failure.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LatencyRegression {
    /// Times above which an answer is slow: edges of the controllers' buckets (5, 10, 25, 50, 100, 250 and 500 ms, 1, 2.5, 5 and
    /// 10 s unless they are told others). When omitted 100ms, 250ms, 500ms, 1s and 2.5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 5))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub above: Option<Vec<Duration>>,
    /// In how many releases at most a version 2 that is slow no oftener is rolled back.
    #[serde(default = "default_false_rollback")]
    #[x_kube(validation = Rule::new(FALSE_ROLLBACK).message(FALSE_ROLLBACK_SAYS))]
    pub false_rollback: f64,
    /// Up to how many times as many slow answers as version 1's are put up with.
    #[serde(default = "default_ignore_below")]
    #[schemars(range(min = 1.0, max = 10.0))]
    pub ignore_below: f64,
}

/// Statuses of answers that are failures: codes such as `499`, and classes such as `5xx`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(transparent)]
pub struct Failures(
    #[schemars(length(min = 1, max = 20), inner(regex(pattern = "^[1-5](xx|[0-9]{2})$")))] pub Vec<String>,
);

/// The result of a query lies within bounds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.min) || has(self.max)").message("set min, max or both: without a bound nothing is checked"),
    validation = Rule::new("!has(self.min) || !has(self.max) || self.min <= self.max").message("min may not exceed max"),
)]
pub struct Query {
    /// PromQL with one number as its result. `{{ namespace }}`, `{{ ingress }}`, `{{ service }}`, `{{ canary }}` and
    /// `{{ interval }}` stand for this release's; compare the second to fourth with `=~`.
    #[schemars(length(min = 1, max = 4096))]
    #[x_kube(validation = Rule::new(KNOWN_PLACEHOLDERS).message("a query knows {{ namespace }}, {{ ingress }}, {{ service }}, {{ canary }} and {{ interval }}, and no other double braces"))]
    pub query: String,
    /// Name of the server, where it is another than `analysis.prometheus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub server: Option<String>,
    /// The least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// CEL for a query whose double braces are all known. One pattern, because the API server refuses rules that may cost much.
const KNOWN_PLACEHOLDERS: &str =
    r"self.matches('^([^{]|[{][^{]|[{][{]\\s*(namespace|ingress|service|canary|interval)\\s*[}][}])*[{]?$')";

/// What a check asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CheckKind<'a> {
    /// `successRate`
    SuccessRate(&'a SuccessRate),
    /// `latency`
    Latency(&'a Latency),
    /// `errorRegression`
    ErrorRegression(&'a ErrorRegression),
    /// `latencyRegression`
    LatencyRegression(&'a LatencyRegression),
    /// `prometheus`
    Query(&'a Query),
}

impl CheckKind<'_> {
    /// As written in the spec.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::SuccessRate(_) => "successRate",
            Self::Latency(_) => "latency",
            Self::ErrorRegression(_) => "errorRegression",
            Self::LatencyRegression(_) => "latencyRegression",
            Self::Query(_) => "prometheus",
        }
    }
}

impl Check {
    /// What it asks for; nothing where it says nothing, which the definition refuses.
    #[must_use]
    pub fn kind(&self) -> Option<CheckKind<'_>> {
        None.or(self.success_rate.as_ref().map(CheckKind::SuccessRate))
            .or(self.latency.as_ref().map(CheckKind::Latency))
            .or(self.error_regression.as_ref().map(CheckKind::ErrorRegression))
            .or(self.latency_regression.as_ref().map(CheckKind::LatencyRegression))
            .or(self.prometheus.as_ref().map(CheckKind::Query))
    }
}
