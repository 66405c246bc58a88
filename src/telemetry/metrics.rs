use crate::{
    analysis::Judged,
    api::Stage,
    cluster::{ApiMetrics, CallError},
    release::{Decision, Kind},
};
use prometheus::{GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
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

/// Set while the operator has seen every release.
#[derive(Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// The releases were listed.
    pub fn mark(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// They have to be listed anew.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Whether they were.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
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
        self.ready.clear();
        self.weight.reset();
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

    /// Shows where a release stands after a round.
    pub fn observe(&self, namespace: &str, name: &str, decision: &Decision) {
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
        if decision.release_finalizer
            && decision.watching
            && let Some(rollout) = rollout
            && let Some(outcome) = rollout.outcome
        {
            let reason = rollout.reason.clone().unwrap_or_default();
            self.ended
                .with_label_values(&[format!("{outcome:?}").as_str(), reason.as_str()])
                .inc();
        }
    }
}
