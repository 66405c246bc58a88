use crate::{
    analysis::Judged,
    api::{CanaryReleaseStatus, Rollout, Stage},
    cluster::{ApiMetrics, CallError},
    release::{Decision, Kind},
};
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Everything that the operator counts. No label is of free text.
#[derive(Clone)]
pub struct Metrics {
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Requests to the API server.
    pub api: ApiMetrics,
    /// `canary_operator_round_duration_seconds`
    pub rounds: Histogram,
    /// `canary_operator_failed_rounds_total`
    pub failed_rounds: IntCounter,
    /// `canary_operator_leader`
    pub leader: IntGauge,
    /// Whether the releases are listed.
    pub ready: Ready,
    writes: IntCounterVec,
    weight: GaugeVec,
    verdicts: IntCounterVec,
    ended: IntCounterVec,
}

/// How many lists of releases the operator has still to see: one, or one for each namespace that it watches.
#[derive(Clone)]
pub struct Ready(Arc<AtomicUsize>);

impl Default for Ready {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }
}

impl Ready {
    /// So many lists are to be seen, anew.
    pub fn expect(&self, lists: usize) {
        self.0.store(lists, Ordering::Release);
    }

    /// One of them was.
    pub fn mark(&self) {
        let one_less = |missing: usize| missing.checked_sub(1);
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
    }

    /// Whether all were.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

impl Metrics {
    /// Registers everything in a registry of its own.
    ///
    /// # Errors
    /// Where a name is not a metric name; never with these.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let rounds = HistogramOpts::new(
            "canary_operator_round_duration_seconds",
            "Time of one round of one release: observe, decide, apply, status.",
        );
        let metrics = Self {
            api: ApiMetrics::register(&registry)?,
            rounds: Histogram::with_opts(rounds)?,
            failed_rounds: IntCounter::new("canary_operator_failed_rounds_total", "Rounds that ended early.")?,
            leader: IntGauge::new("canary_operator_leader", "1 where this replica leads, else 0.")?,
            ready: Ready::default(),
            writes: IntCounterVec::new(
                Opts::new("canary_operator_writes_total", "Decided writes, by kind and result."),
                &["kind", "result"],
            )?,
            weight: GaugeVec::new(
                Opts::new(
                    "canary_operator_release_weight_ratio",
                    "Share of the requests in force for version 2, 0 to 1.",
                ),
                &["namespace", "name"],
            )?,
            verdicts: IntCounterVec::new(
                Opts::new(
                    "canary_operator_verdicts_total",
                    "What windows and comparisons said of version 2, by kind of check.",
                ),
                &["kind", "verdict"],
            )?,
            ended: IntCounterVec::new(
                Opts::new("canary_operator_releases_ended_total", "Releases that are over."),
                &["outcome", "reason"],
            )?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.rounds.clone()))?;
        registry.register(Box::new(metrics.failed_rounds.clone()))?;
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.writes.clone()))?;
        registry.register(Box::new(metrics.weight.clone()))?;
        registry.register(Box::new(metrics.verdicts.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        Ok(metrics)
    }

    /// Forgets what only the leader knows: whatever this replica still shows would outlive its truth.
    pub fn step_down(&self) {
        self.ready.expect(1);
        self.weight.reset();
    }

    /// Forgets releases that are gone without a last round.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        for family in self.weight.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    let mut labels = metric.get_label().iter();
                    labels.find(|label| label.name() == name).map(|label| label.value())
                };
                if let (Some(namespace), Some(name)) = (label("namespace"), label("name"))
                    && !exists(namespace, name)
                {
                    let _ = self.weight.remove_label_values(&[namespace, name]);
                }
            }
        }
    }

    /// Counts a decided write.
    pub fn wrote(&self, kind: Kind, error: Option<&CallError>) {
        let result = match error {
            None => "ok",
            Some(error) if error.is_conflict() => "conflict",
            Some(error) if error.is_forbidden() => "forbidden",
            Some(CallError::Deadline) => "timeout",
            Some(_) => "error",
        };
        self.writes
            .with_label_values(&[format!("{kind:?}").as_str(), result])
            .inc();
    }

    /// Counts the verdicts of a look.
    pub fn judged(&self, judged: &Judged) {
        for (kind, verdict) in &judged.verdicts {
            let verdict = format!("{verdict:?}");
            self.verdicts.with_label_values(&[*kind, verdict.as_str()]).inc();
        }
    }

    /// Shows where a release stands after a round, and counts it where that round ended it.
    pub fn observe(&self, namespace: &str, name: &str, before: Option<&CanaryReleaseStatus>, decision: &Decision) {
        let rollout = decision.status.rollout.as_ref();
        let running = rollout.is_some_and(|rollout| rollout.stage != Stage::Ended) && decision.watching;
        if running {
            let percent = decision
                .status
                .weight
                .as_ref()
                .and_then(|w| w.parse::<f64>().ok())
                .unwrap_or(0.0);
            self.weight.with_label_values(&[namespace, name]).set(percent / 100.0);
        } else {
            // A series that outlives its release would show a weight that is not in force; absent already is fine.
            let _ = self.weight.remove_label_values(&[namespace, name]);
        }
        let ended = |rollout: &&Rollout| rollout.stage == Stage::Ended;
        let before = before.and_then(|status| status.rollout.as_ref()).filter(ended);
        if let Some(rollout) = rollout.filter(ended)
            && before.is_none_or(|before| before.started_at != rollout.started_at)
            && let Some(outcome) = rollout.outcome
        {
            let reason = rollout.reason.clone().unwrap_or_default();
            self.ended
                .with_label_values(&[format!("{outcome:?}").as_str(), reason.as_str()])
                .inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn status(stage: &str, started_at: &str) -> CanaryReleaseStatus {
        let rollout = json!({"intent": "", "stage": stage, "schedule": "", "startedAt": started_at, "waitingSince": started_at,
            "stableRevision": "", "service": "shop", "ingresses": [], "outcome": "Promoted", "reason": "Promoted",
            "canary": {"deployment": "shop-v2", "service": "shop-v2"}});
        serde_json::from_value(json!({"rollout": rollout, "weight": "10"})).unwrap()
    }

    fn decision(status: CanaryReleaseStatus) -> Decision {
        Decision {
            writes: Vec::new(),
            status,
            release_finalizer: false,
            answered: false,
            notes: Vec::new(),
            again: Duration::ZERO,
            tell_again: Duration::ZERO,
            good_news_waits: false,
            takes_away: false,
            watching: true,
            relies_on: Vec::new(),
        }
    }

    #[test]
    fn a_release_is_counted_once_when_it_ends_and_so_is_the_next_of_its_name() {
        let metrics = Metrics::new().unwrap();
        let (monday, tuesday) = ("2026-01-05T10:00:00.000000Z", "2026-01-06T10:00:00.000000Z");
        let mut before = None;
        for (stage, started_at) in [
            ("Finishing", monday),
            ("Ended", monday),
            ("Ended", monday),
            ("Preparing", tuesday),
            ("Ended", tuesday),
            ("Ended", tuesday),
        ] {
            let now = decision(status(stage, started_at));
            metrics.observe("default", "shop", before.as_ref(), &now);
            before = Some(now.status);
        }
        assert_eq!(metrics.ended.with_label_values(&["Promoted", "Promoted"]).get(), 2);
    }

    #[test]
    fn a_release_that_is_gone_shows_no_weight() {
        let metrics = Metrics::new().unwrap();
        let under_way = decision(status("Stepping", "2026-01-05T10:00:00.000000Z"));
        for name in ["shop", "gone"] {
            metrics.observe("default", name, None, &under_way);
        }
        metrics.forget_missing(|_, name| name == "shop");
        let shown = prometheus::TextEncoder::new()
            .encode_to_string(&metrics.registry.gather())
            .unwrap();
        assert!(shown.contains(r#"name="shop",namespace="default"} 0.1"#), "{shown}");
        assert!(!shown.contains("gone"), "{shown}");
    }

    #[test]
    fn an_operator_of_two_namespaces_is_ready_when_both_are_listed() {
        let ready = Ready::default();
        ready.expect(2);
        ready.mark();
        assert!(!ready.get());
        ready.mark();
        assert!(ready.get());
        ready.expect(1);
        assert!(!ready.get());
    }
}
