//! Drives releases: observe, decide, apply, status. No decision is made here.

mod judging;
mod memory;
mod report;
mod round;

use crate::{
    api::CanaryRelease,
    cluster::{CallError, Clock, Contact},
    observe::Views,
    release::{Decide, IDLE, Rest, at_rest},
    routing::Routing,
    telemetry::Metrics,
};
use futures::{FutureExt, StreamExt, TryStreamExt, channel::mpsc};
use jiff::Timestamp;
use judging::Judging;
pub use judging::Sources;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        Controller, WatchStreamExt,
        controller::{self, Action},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use memory::Memory;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// A `CanaryRelease`, or why it does not decode: one that does not must not keep the others from being seen.
type Guarded = DeserializeGuard<CanaryRelease>;

/// First and longest pause after a failed round.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Longest pause where the status cannot be written, so that what is found harmful meanwhile is taken away soon.
const UNRECORDED: Duration = Duration::from_secs(5);
/// First pause after a conflict, which means that the watch is about to show something newer.
const AFTER_CONFLICT: Duration = Duration::from_millis(300);
/// How often the watched namespaces are checked for releases that are gone.
const SWEEP: Duration = Duration::from_secs(60);

/// What `kubectl apply` keeps of an object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What a controller runs with.
#[derive(Clone)]
pub struct Settings {
    /// The API server.
    pub client: Client,
    /// Whether it was in reach.
    pub contact: Contact,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// How the traffic backend is told.
    pub routing: Arc<dyn Routing>,
    /// How a round is decided.
    pub decide: Decide,
    /// How long a written weight takes to reach every controller.
    pub settle: Duration,
    /// Who counts requests and answers queries.
    pub sources: Sources,
    /// Name of this process in events.
    pub instance: String,
    /// Where it counts.
    pub metrics: Metrics,
}

/// Takes off what is kept for others, which is most of an idle release: who wrote which field, and what kubectl applied.
fn slim(release: &mut Guarded) {
    release.managed_fields_mut().clear();
    release.annotations_mut().remove(LAST_APPLIED);
}

/// What rounds share.
pub(crate) struct Context {
    settings: Settings,
    views: Views,
    judging: Judging,
    memory: Memory,
    releases: Store<Guarded>,
    /// By this process's clock.
    led_since: Timestamp,
    /// Held by the release that may have its plan played, until what has arrived meanwhile is dealt with.
    playing: Mutex<()>,
}

impl Context {
    /// Whether no round is due, however often somebody looks: nothing is to be done for it, and nothing is held for it.
    fn rests(&self, release: &CanaryRelease) -> bool {
        let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
        at_rest(release, self.settings.clock.now()) == Some(Rest::UntilChanged)
            && !self.views.has_member(&namespace, &name)
            && !self.memory.knows(&namespace, &name)
    }
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoundError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the round panicked; this is a bug in the operator, and no other release is affected")]
    Panicked,
}

/// Runs until `shutdown`, for one namespace or for all. Rounds in flight are finished.
pub async fn run(
    settings: Settings,
    namespace: Option<&str>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let client = settings.client.clone();
    let api: Api<Guarded> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let (wake, woken) = mpsc::unbounded();
    let (releases, writer) = reflector::store();
    // Lists are quorum reads: starting from the API server's cache would mean acting on the past.
    let seen = watcher(api, watcher::Config::default()).modify(slim).reflect(writer);
    let ready = settings.metrics.ready.clone();
    let context = Arc::new(Context {
        judging: Judging::new(settings.sources.clone(), wake.clone()),
        views: Views::new(client, wake),
        memory: Memory::default(),
        releases: releases.clone(),
        led_since: settings.clock.now(),
        playing: Mutex::default(),
        settings,
    });
    // Whenever a round ends, kube's runner looks at all that have not: with 10,000 that have nothing to do, a third of a
    // start's time (`make bench`).
    let watching = context.clone();
    let due = seen.applied_objects().try_filter(move |object| {
        let rests = object.0.as_ref().is_ok_and(|release| watching.rests(release));
        futures::future::ready(!rests)
    });
    let controller = Controller::for_stream(due, context.releases.clone())
        .with_config(controller::Config::default().concurrency(0))
        .reconcile_on(woken)
        .graceful_shutdown_on(shutdown);
    let sweeper = context.clone();
    let rounds = controller.run(reconcile, after_error, context).for_each(|outcome| {
        if let Err(error) = outcome {
            // Watch failures come out only here; a vanished object is not worth a line.
            match error {
                controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..) => {
                    tracing::debug!(%error, "round")
                }
                error => tracing::warn!(%error, "CanaryReleases cannot be watched; retrying"),
            }
        }
        futures::future::ready(())
    });
    let ready = async move {
        if releases.wait_until_ready().await.is_ok() {
            ready.mark();
        }
        std::future::pending::<()>().await;
    };
    let sweep = async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            let exists = |of: &str, name: &str| {
                let release = ObjectRef::new(name).within(of);
                // What others see to is not missing.
                namespace.is_some_and(|namespace| namespace != of) || sweeper.releases.get(&release).is_some()
            };
            sweeper.views.forget_missing(exists);
            sweeper.judging.forget_missing(exists);
            sweeper.memory.forget_missing(exists);
            sweeper.settings.metrics.forget_missing(exists);
        }
    };
    tokio::select! {
        biased;
        () = rounds => {}
        () = ready => {}
        () = sweep => {}
    }
}

async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, RoundError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    if let Some(wait) = context.memory.wait(&namespace, &name) {
        return Ok(Action::requeue(wait));
    }
    let timer = context.settings.metrics.rounds.start_timer();
    // A panic would unwind through the controller and stop every release.
    let outcome = AssertUnwindSafe(one(&object, &context))
        .catch_unwind()
        .await
        .unwrap_or(Err(RoundError::Panicked));
    timer.observe_duration();
    context.judging.ended(&namespace, &name, outcome.is_ok());
    match &outcome {
        Ok(_) => context.memory.succeeded(&namespace, &name),
        Err(error) => {
            tracing::warn!(namespace, name, %error, "round ended early");
            context.settings.metrics.failed_rounds.inc();
            Box::pin(report::failed(&context, &object, error)).await;
        }
    }
    outcome
}

async fn one(object: &Guarded, context: &Context) -> Result<Action, RoundError> {
    match &object.0 {
        Ok(release) => {
            let namespace = release.namespace().unwrap_or_default();
            let release = context.memory.newest(&namespace, release);
            if let Some(rest) = at_rest(&release, context.settings.clock.now()) {
                context.views.leave(&namespace, &release.name_any());
                context.judging.stop(&namespace, &release.name_any());
                return Ok(match rest {
                    Rest::UntilChanged => Action::await_change(),
                    Rest::For(left) => Action::requeue(left),
                });
            }
            // Apart: rounds of thousands may be in flight, most of which find nothing to do.
            Box::pin(round::round(release, context)).await
        }
        Err(invalid) => {
            Box::pin(report::undecodable(context, object.meta(), &invalid.error)).await?;
            Ok(Action::requeue(IDLE))
        }
    }
}

fn after_error(object: Arc<Guarded>, error: &RoundError, context: Arc<Context>) -> Action {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let (first, mut longest) = BACKOFF;
    let first = match error {
        RoundError::Call(call) if call.is_conflict() => AFTER_CONFLICT,
        _ => first,
    };
    if context.memory.is_unrecorded(&namespace, &name) {
        longest = UNRECORDED;
    }
    let failures = context.memory.failed(&namespace, &name);
    Action::requeue(first.saturating_mul(1 << failures.min(10)).min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn size<F: Future>(_: impl Fn(Arc<Guarded>, Arc<Context>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn ten_thousand_releases_are_looked_at_together_in_little_memory() {
        assert!(size(reconcile) <= 1024, "{} bytes", size(reconcile));
    }

    #[test]
    fn what_is_kept_for_others_is_not_kept_in_memory() {
        let release = json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": "web", "annotations": {LAST_APPLIED: "{}", "a": "b"},
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]}, "spec": {}});
        let mut guarded: Guarded = serde_json::from_value(release).unwrap();
        assert!(guarded.0.is_err(), "one that does not decode is slimmed, too");
        slim(&mut guarded);
        assert!(guarded.managed_fields().is_empty());
        assert_eq!(guarded.annotations().len(), 1);
    }
}
