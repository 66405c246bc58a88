//! What a step is judged by.

use super::{
    super::{Plan, Side},
    case::Fault,
};
use crate::{
    api::{Analysis, Check, CheckKind, ErrorDeadline, ErrorRegression, NoData, Source, Step},
    observe::revision,
};
use serde_json::json;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(30);
/// The controllers count a second or two late.
const SHORTEST: Duration = Duration::from_secs(2);
/// How the only check is called where none is asked for.
const DEFAULT_CHECK: &str = "errors";

/// `spec.analysis`, with what a step has of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Length of a window.
    pub interval: Duration,
    /// How long requests are left out after a weight is live.
    pub warm_up: Duration,
    /// What follows from too few requests.
    pub no_data: NoData,
    /// So many windows in a row outside of a bound roll back.
    pub failure_limit: u32,
    /// What follows where the source gives no answer.
    pub error_deadline: ErrorDeadline,
    /// Whether a step may end before its hold.
    pub early_advance: bool,
    /// Who counted the requests.
    pub source: Source,
    /// Server of queries, and of requests counted by Prometheus.
    pub server: Option<String>,
    /// What is checked.
    pub checks: Vec<Rule>,
    min_requests: Option<u32>,
}

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// As asked for.
    pub check: Check,
    /// Stands for all that a verdict depends on: another one starts anew.
    pub asked: String,
}

impl Rules {
    /// What is asked for while a step lasts.
    #[must_use]
    pub fn of(analysis: Option<&Analysis>, step: Option<&Step>) -> Self {
        let whole = analysis.cloned().unwrap_or_default();
        let own = step.and_then(|step| step.analysis).unwrap_or_default();
        let hold = step.and_then(|step| step.hold).map_or(INTERVAL, |hold| hold.get());
        let interval = own.interval.or(whole.interval).map(|interval| interval.get());
        let checks = whole.checks.unwrap_or_else(|| vec![default_check()]);
        Self {
            interval: interval.unwrap_or(INTERVAL.min(hold)).max(SHORTEST),
            warm_up: own.warm_up.or(whole.warm_up).unwrap_or_default().get(),
            no_data: own.no_data.unwrap_or(whole.no_data),
            failure_limit: own.failure_limit.unwrap_or(whole.failure_limit).max(1),
            error_deadline: whole.error_deadline,
            early_advance: whole.early_advance,
            source: whole.source,
            server: whole.prometheus,
            checks: checks.into_iter().map(Rule::new).collect(),
            min_requests: own.min_requests.or(whole.min_requests),
        }
    }

    /// Whether any check needs requests to be counted.
    #[must_use]
    pub fn counts_requests(&self) -> bool {
        let mut kinds = self.checks.iter().filter_map(|rule| rule.check.kind());
        kinds.any(|kind| !matches!(kind, CheckKind::Query(_)))
    }

    /// Whether any check needs to know how long answers took.
    #[must_use]
    pub fn times_requests(&self) -> bool {
        self.checks.iter().any(Rule::times_requests)
    }

    /// What a schedule can find by the first comparison of failures, where there is one: steps as share of the requests and
    /// length; and how often version 1 fails by that comparison.
    #[must_use]
    pub fn plan(&self, steps: Vec<(f64, f64)>, stable: &Side) -> Option<(Plan, f64)> {
        let test = self.checks.iter().find_map(|rule| match rule.check.kind() {
            Some(CheckKind::ErrorRegression(test)) => Some(test),
            _ => None,
        })?;
        let tally = Fault::compared(test.failures.as_ref()).tally(stable)?;
        #[allow(clippy::cast_precision_loss)] // Counts stay far below 2^52.
        let share = tally.failed as f64 / tally.requests.max(1) as f64;
        let plan = Plan {
            steps,
            alpha: test.false_rollback,
            ignore_below: test.ignore_below,
        };
        Some((plan, share))
    }

    /// Requests to version 2 that a verdict takes: as asked for, or so many that one alone makes no difference.
    /// `compares`: a sequential test needs no number, for it weighs what it has.
    #[must_use]
    pub(super) fn need(&self, check: &Check, compares: bool) -> u64 {
        let one_alone = |rest: f64| {
            // Between what says something at all and what a quiet service has in an hour.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Of 10 to 1,000.
            let many = (1.0 / rest - 1e-6).ceil().clamp(10.0, 1000.0) as u64;
            many
        };
        let asked = check.min_requests.or(self.min_requests).map(u64::from);
        asked.unwrap_or_else(|| match check.kind() {
            Some(CheckKind::SuccessRate(rate)) if rate.min < 100.0 => one_alone(1.0 - rate.min / 100.0),
            Some(CheckKind::Latency(latency)) => one_alone(1.0 - latency.quantile),
            _ if compares => 1,
            _ => 20,
        })
    }
}

impl Rule {
    /// Whether it needs to know how long answers took.
    #[must_use]
    pub fn times_requests(&self) -> bool {
        matches!(
            self.check.kind(),
            Some(CheckKind::Latency(_) | CheckKind::LatencyRegression(_))
        )
    }

    fn new(check: Check) -> Self {
        let asked = revision(&json!(check));
        Self { check, asked }
    }
}

fn default_check() -> Check {
    Check {
        name: DEFAULT_CHECK.to_owned(),
        min_requests: None,
        success_rate: None,
        latency: None,
        error_regression: Some(ErrorRegression::default()),
        latency_regression: None,
        prometheus: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn rules(analysis: Value, step: Value) -> Rules {
        let analysis: Option<Analysis> = serde_json::from_value(analysis).unwrap();
        let step: Step = serde_json::from_value(step).unwrap();
        Rules::of(analysis.as_ref(), Some(&step))
    }

    #[test]
    fn without_analysis_the_failures_of_both_versions_are_compared() {
        let rules = rules(Value::Null, json!({"weight": 10, "hold": "5m"}));
        let [only] = &rules.checks[..] else { panic!("{rules:?}") };
        assert!(matches!(only.check.kind(), Some(CheckKind::ErrorRegression(test)) if test.false_rollback == 0.01));
        assert_eq!(
            (rules.interval, rules.failure_limit, rules.no_data),
            (INTERVAL, 2, NoData::Hold)
        );
    }

    #[test]
    fn a_window_fits_into_its_step_unless_it_is_asked_to_be_longer() {
        let interval = |analysis, step| rules(analysis, step).interval.as_secs();
        assert_eq!(interval(Value::Null, json!({"weight": 10, "hold": "10s"})), 10);
        assert_eq!(interval(Value::Null, json!({"weight": 10, "hold": "1s"})), 2);
        assert_eq!(interval(Value::Null, json!({"weight": 10, "approval": true})), 30);
        assert_eq!(
            interval(json!({"interval": "1m"}), json!({"weight": 10, "hold": "10s"})),
            60
        );
    }

    #[test]
    fn a_step_has_settings_of_its_own() {
        let analysis = json!({"interval": "1m", "failureLimit": 3, "minRequests": 50, "checks": [{"name": "ok", "successRate": {"min": 99}}]});
        let step = json!({"weight": 1, "hold": "1h", "analysis": {"interval": "10m", "minRequests": 5, "warmUp": "1m", "noData": "pass"}});
        let rules = rules(analysis, step);
        assert_eq!((rules.interval.as_secs(), rules.warm_up.as_secs()), (600, 60));
        assert_eq!((rules.failure_limit, rules.no_data), (3, NoData::Pass));
        assert_eq!(rules.need(&rules.checks[0].check, false), 5);
    }

    #[test]
    fn so_many_requests_are_needed_that_one_failure_alone_breaks_no_bound() {
        let need = |check: Value| {
            let rules = rules(json!({"checks": [check]}), json!({"weight": 10, "hold": "5m"}));
            rules.need(&rules.checks[0].check, true)
        };
        let success = |min: f64| need(json!({"name": "ok", "successRate": {"min": min}}));
        assert_eq!(
            [success(99.0), success(99.9), success(99.99), success(50.0)],
            [100, 1000, 1000, 10]
        );
        assert_eq!(success(100.0), 1);
        assert_eq!(
            need(json!({"name": "p99", "latency": {"quantile": 0.99, "max": "1s"}})),
            100
        );
        assert_eq!(need(json!({"name": "errors", "errorRegression": {}})), 1);
        assert_eq!(
            need(json!({"name": "errors", "minRequests": 7, "errorRegression": {}})),
            7
        );
    }
}
