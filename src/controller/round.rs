//! One round of one release.

use super::{Context, RoundError, report};
use crate::{
    api::{ANNOTATION_COMMAND, CanaryRelease, CanaryReleaseStatus, FINALIZER, Stage, Verdict, conditions},
    cluster::{Applied, CallError, bounded, object_ref, patch_params, perform, post_params, publish},
    observe::{Others, View, ask_ready, observe},
    release::{Decision, Kind, Op, Settling, Write, at_rest},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, Patch, PostParams},
    runtime::controller::Action,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How long the first look at a namespace may take before it is looked at again; it wakes the round itself when done.
const OPENING: Duration = Duration::from_secs(15);
/// How often a namespace that may not be watched is tried again.
const REFUSED: Duration = Duration::from_secs(30);

pub(super) async fn round(release: Arc<CanaryRelease>, context: &Context) -> Result<Action, RoundError> {
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let view = context.views.enter(&namespace, &name);
    match view.ready() {
        Ok(true) => {}
        Ok(false) => return Ok(Action::requeue(OPENING)),
        Err(why) => {
            let message = format!(
                "{why}; the weight stays where it is: grant the operator this right (docs/install.md), or correct the RoleBinding"
            );
            report::stalled(context, &release, "Forbidden", &message).await?;
            return Ok(Action::requeue(REFUSED));
        }
    }
    let settings = &context.settings;
    let others = others(context, &release);
    let settling = Settling {
        time: settings.settle,
        outages: settings.contact.outages(),
    };
    let judged = context.judging.look(
        &release,
        &view,
        settings.routing.as_ref(),
        &settling,
        settings.clock.now(),
    );
    let mut seen = observe(
        &settings.client,
        release.clone(),
        &view,
        settings.routing.as_ref(),
        others,
    )
    .await?;
    settings.metrics.judged(&judged);
    seen.judged = judged;
    seen.servers = context.judging.servers();
    seen.led_since = context.led_since;
    seen.outages = settling.outages;
    seen.drained_since = context.memory.drained_since(&namespace, &name);
    let turn = context.playing.try_lock().ok();
    seen.may_play = turn.is_some();
    let decided = settings.clock.now();
    let mut decision = (settings.decide)(&seen, settings.routing.as_ref(), settings.settle, decided);
    let power = |status: &CanaryReleaseStatus| status.rollout.as_ref().is_some_and(|rollout| rollout.power.is_some());
    if power(&decision.status) && !release.status.as_ref().is_some_and(power) {
        // What has arrived meanwhile is read, and whoever waits for it goes on, before the next plan is played: of 200
        // releases that started together, writes waited 4 s for their answers (`make bench`).
        tokio::task::yield_now().await;
    }
    if !decision.relies_on.is_empty() {
        // A storm of the simulation led requests to pods that had crashed, by a watch that hung.
        let now = ask_ready(&settings.client, &namespace, &decision.relies_on).await?;
        if now
            .iter()
            .any(|(service, ready)| seen.ready.get(service).copied().unwrap_or(0) != *ready)
        {
            seen.ready.extend(now);
            decision = (settings.decide)(&seen, settings.routing.as_ref(), settings.settle, decided);
        }
    }
    drop(turn);
    if !decision.takes_away && !decision.writes.is_empty() && context.memory.is_unrecorded(&namespace, &name) {
        // No step is taken on a status that tells of one before the last.
        replace_status(context, &release, release.status.clone(), true).await?;
    }
    let mut latest = release.clone();
    for write in &decision.writes {
        latest = apply(context, &view, &namespace, latest, write).await?;
    }
    decision.carried_out(decided, settings.clock.now());
    // Nobody reads what becomes of an object that is about to be gone, and a refusal would keep it there.
    let farewell = decision.release_finalizer && release.metadata.deletion_timestamp.is_some();
    let differs = !farewell && differs(latest.status.as_ref(), &decision);
    // What follows may be refused, which is told in place of what is told here: to tell both in turns would wake this round
    // again and again (a sweep found a storm of status writes).
    let follows = decision.release_finalizer || decision.answered;
    let told_last = differs && follows && is_recorded(latest.status.as_ref(), &decision.status);
    if !told_last {
        if differs {
            latest = write_status(context, &latest, &decision).await?;
        }
        tell(context, &release, &latest, &decision).await;
    }
    if decision.release_finalizer && latest.finalizers().iter().any(|f| f == FINALIZER) {
        latest = release_finalizer(context, &latest).await?;
    }
    if decision.answered {
        latest = remove_command(context, &latest).await?;
    }
    if told_last {
        latest = write_status(context, &latest, &decision).await?;
        tell(context, &release, &latest, &decision).await;
    }
    if !decision.watching || at_rest(&latest, settings.clock.now()).is_some() {
        context.views.leave(&namespace, &name);
        context.judging.stop(&namespace, &name);
    }
    Ok(Action::requeue(decision.again))
}

/// Tells what was decided beside the status, as events and metrics: once, and not only if what follows goes well.
async fn tell(context: &Context, before: &CanaryRelease, latest: &CanaryRelease, decision: &Decision) {
    let settings = &context.settings;
    let (namespace, name) = (latest.namespace().unwrap_or_default(), latest.name_any());
    let metrics = &settings.metrics;
    metrics.observe(&namespace, &name, before.status.as_ref(), decision);
    for note in &decision.notes {
        tracing::info!(namespace, name, reason = note.reason, "{}", note.message);
        let now = settings.clock.now();
        if let Err(error) = publish(&settings.client, latest, note, &settings.instance, now).await {
            tracing::warn!(namespace, name, %error, "event not recorded");
        }
    }
}

/// Performs one write and remembers what it left, until the watch shows it.
async fn apply(
    context: &Context,
    view: &View,
    namespace: &str,
    latest: Arc<CanaryRelease>,
    write: &Write,
) -> Result<Arc<CanaryRelease>, CallError> {
    let outcome = perform(&context.settings.client, namespace, write).await;
    context.settings.metrics.wrote(write.kind, outcome.as_ref().err());
    tracing::info!(namespace, kind = ?write.kind, object = write.name, why = write.why, failed = outcome.as_ref().err().map(ToString::to_string), "write");
    if outcome.as_ref().is_err_and(CallError::is_conflict) {
        match write.kind {
            Kind::CanaryRelease => read_again(context, &latest).await,
            _ => refresh(context, view, namespace, write).await,
        }
    }
    match (outcome?, &write.op) {
        (Applied::Stored(object), _) if write.kind == Kind::CanaryRelease => {
            let mut written = CanaryRelease::clone(&latest);
            written.metadata = object.metadata;
            return Ok(remember(context, namespace, written));
        }
        (Applied::Stored(object), _) => view.wrote(write.kind, &write.name, object),
        (Applied::Deleted, Op::Delete { uid, .. }) => view.deleted(write.kind, &write.name, uid),
        (Applied::Deleted, _) => {}
    }
    Ok(latest)
}

/// The object is not what was decided on: were its event lost, the same would be decided, and refused, for ever.
async fn refresh(context: &Context, view: &View, namespace: &str, write: &Write) {
    let client = context.settings.client.clone();
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &object_ref(write.kind));
    match bounded(api.get_opt(&write.name)).await {
        Ok(Some(object)) => view.wrote(write.kind, &write.name, Box::new(object)),
        Ok(None) => view.deleted(write.kind, &write.name, ""),
        Err(error) => tracing::warn!(namespace, object = write.name, %error, "object not read again after a conflict"),
    }
}

fn remember(context: &Context, namespace: &str, written: CanaryRelease) -> Arc<CanaryRelease> {
    let written = Arc::new(written);
    context.memory.wrote(namespace, written.clone());
    written
}

/// What makes a status worth a write. The count of pods alone does not, nor do other numbers for the same verdicts before
/// their time: they are told with the next change.
#[derive(PartialEq, Serialize)]
struct Worth {
    status: CanaryReleaseStatus,
    /// Why a pod failed, and what it logged last.
    failed: (Option<String>, Option<String>),
    /// By name and what is asked: the verdict, of which step, and how many breaches.
    verdicts: Vec<(String, String, Option<Verdict>, u32, u32)>,
}

impl Worth {
    fn of(mut status: CanaryReleaseStatus) -> Self {
        let failed = status.canary_pods.take().map(|pods| (pods.reason, pods.log));
        let checks = std::mem::take(&mut status.checks).into_iter();
        let verdicts = checks.map(|c| (c.name, c.asked, c.verdict, c.step, c.breaches));
        let verdicts = verdicts.collect();
        if let Some(rollout) = &mut status.rollout {
            rollout.of_nginx = 0;
        }
        let analysed = |condition: &&mut Condition| condition.type_ == conditions::ANALYSED;
        if let Some(analysed) = status.conditions.iter_mut().find(analysed) {
            analysed.message.clear();
        }
        Self {
            status,
            failed: failed.unwrap_or_default(),
            verdicts,
        }
    }

    /// As stored: JSON has times to the second or the microsecond. To write it takes long, and what is the same without is mostly so.
    fn is_same(&self, other: &Self) -> bool {
        self == other || json!(self) == json!(other)
    }
}

/// The status without its good news: a pass, or a verdict that is awaited, and a weight that is live.
fn without_good_news(status: &CanaryReleaseStatus) -> CanaryReleaseStatus {
    let mut status = status.clone();
    let bad = |verdict: Option<Verdict>| verdict.is_some_and(|verdict| verdict != Verdict::Pass);
    status.checks.retain(|check| bad(check.verdict));
    if status.checks.is_empty() {
        status.verdicts = None;
    }
    // What contradicts a weight, or interrupts it, holds the release, and is told in other words too.
    let news = [
        conditions::WEIGHT_LIVE,
        conditions::TRAFFIC_SPLIT_VERIFIED,
        conditions::ANALYSED,
    ];
    (status.conditions).retain(|condition| !news.contains(&&*condition.type_));
    status
}

/// Whether all that the next round goes by is stored, so that only words are left to be told.
fn is_recorded(old: Option<&CanaryReleaseStatus>, new: &CanaryReleaseStatus) -> bool {
    let facts = |status: &CanaryReleaseStatus| {
        let mut status = status.clone();
        (status.phase, status.message, status.next_advance_at) = (None, None, None);
        status.conditions.clear();
        Worth::of(status)
    };
    old.is_some_and(|old| facts(old).is_same(&facts(new)))
}

/// Whether a status is worth a write.
fn differs(old: Option<&CanaryReleaseStatus>, decision: &Decision) -> bool {
    let told = |status: &CanaryReleaseStatus| {
        status
            .checks
            .iter()
            .filter_map(|check| Some(check.at.as_ref()?.0))
            .max()
    };
    let Some(old) = old else { return true };
    if decision.good_news_waits {
        let bad_news = |status| Worth::of(without_good_news(status));
        return !bad_news(old).is_same(&bad_news(&decision.status));
    }
    let stale = match (told(old), told(&decision.status)) {
        (Some(old), Some(new)) => new.duration_since(old).unsigned_abs() >= decision.tell_again,
        (old, new) => old != new,
    };
    stale || !Worth::of(old.clone()).is_same(&Worth::of(decision.status.clone()))
}

/// Records what was decided, on exactly the version that it was decided on.
async fn write_status(
    context: &Context,
    latest: &CanaryRelease,
    decision: &Decision,
) -> Result<Arc<CanaryRelease>, CallError> {
    let (namespace, name) = (latest.namespace().unwrap_or_default(), latest.name_any());
    let written = replace_status(context, latest, Some(decision.status.clone()), false).await;
    context
        .memory
        .decided(&namespace, &name, &decision.status, written.is_ok());
    Ok(remember(context, &namespace, written?))
}

/// Replaces the status of exactly this version.
pub(super) async fn replace_status(
    context: &Context,
    latest: &CanaryRelease,
    status: Option<CanaryReleaseStatus>,
    dry_run: bool,
) -> Result<CanaryRelease, CallError> {
    let namespace = latest.namespace().unwrap_or_default();
    let api: Api<CanaryRelease> = Api::namespaced(context.settings.client.clone(), &namespace);
    let mut wanted = latest.clone();
    wanted.metadata.managed_fields = None;
    wanted.status = status;
    let params = PostParams {
        dry_run,
        ..post_params()
    };
    let written = bounded(api.replace_status(&latest.name_any(), &params, &wanted)).await;
    if written.as_ref().is_err_and(CallError::is_conflict) {
        read_again(context, latest).await;
    }
    written
}

/// Reads the release again after a conflict: what changed it, a pause perhaps, may be late by the watch. A storm of the
/// simulation raised the weight of a version that was not asked for any more.
async fn read_again(context: &Context, latest: &CanaryRelease) {
    let (namespace, name) = (latest.namespace().unwrap_or_default(), latest.name_any());
    let api: Api<CanaryRelease> = Api::namespaced(context.settings.client.clone(), &namespace);
    match bounded(api.get_opt(&name)).await {
        Ok(Some(now)) => drop(remember(context, &namespace, now)),
        // Its deletion is about to be seen.
        Ok(None) => {}
        Err(error) => tracing::warn!(namespace, name, %error, "release not read again after a conflict"),
    }
}

async fn release_finalizer(context: &Context, latest: &CanaryRelease) -> Result<Arc<CanaryRelease>, CallError> {
    let kept: Vec<_> = latest.finalizers().iter().filter(|f| *f != FINALIZER).collect();
    patch_metadata(context, latest, json!({"metadata": {"finalizers": kept}})).await
}

/// The command is in the status: carried out or refused.
async fn remove_command(context: &Context, latest: &CanaryRelease) -> Result<Arc<CanaryRelease>, CallError> {
    let patch = json!({"metadata": {"annotations": {ANNOTATION_COMMAND: null}}});
    patch_metadata(context, latest, patch).await
}

/// Changes the metadata of exactly the version that was decided on.
async fn patch_metadata(
    context: &Context,
    latest: &CanaryRelease,
    mut patch: Value,
) -> Result<Arc<CanaryRelease>, CallError> {
    let namespace = latest.namespace().unwrap_or_default();
    let api: Api<CanaryRelease> = Api::namespaced(context.settings.client.clone(), &namespace);
    if let Some(metadata) = patch.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), json!(latest.resource_version()));
    }
    let written = bounded(api.patch(&latest.name_any(), &patch_params(), &Patch::Merge(patch))).await;
    if written.as_ref().is_err_and(CallError::is_conflict) {
        read_again(context, latest).await;
    }
    let written = match written {
        Ok(written) => written,
        Err(CallError::Kube(kube::Error::Api(status))) if status.is_not_found() => latest.clone(),
        Err(error) => return Err(error),
    };
    Ok(remember(context, &namespace, written))
}

/// What other releases of the namespace do. Rivals are of the same Deployment and were there first: under way, or as new as
/// this one but older. A Service may have several Deployments behind it: its traffic is split by one release at a time.
fn others(context: &Context, release: &CanaryRelease) -> Others {
    let running = |other: &CanaryRelease| {
        let rollout = other.rollout();
        rollout.filter(|rollout| rollout.stage != Stage::Ended).cloned()
    };
    let mut others = Others::default();
    if running(release).is_some() {
        return others;
    }
    let now = context.settings.clock.now();
    let age = |release: &CanaryRelease| (release.creation_timestamp(), release.name_any());
    for other in context
        .releases
        .state()
        .iter()
        .filter_map(|other| other.0.as_ref().ok())
    {
        if other.namespace() != release.namespace() || other.uid() == release.uid() {
            continue;
        }
        let rollout = running(other);
        if other.target() == release.target()
            && (rollout.is_some() || (at_rest(other, now).is_none() && age(other) < age(release)))
        {
            others.rivals.push(other.name_any());
        } else if let Some(rollout) = rollout {
            others.busy.insert(rollout.service, other.name_any());
        }
    }
    others.rivals.sort();
    others
}
