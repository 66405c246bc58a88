//! Back to version 1, and the end of a release.

use super::{
    Kind, Level, Op,
    draft::{Draft, Flow, IDLE, STRAY, clock},
    preparing::ALREADY_RUNNING,
    promoting, schedule,
};
use crate::{
    api::{HistoryEntry, Outcome, Phase, Rollout, ShiftTraffic, Stage, Weight},
    observe::{RESTARTING, Workload},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;
use std::time::Duration;

/// Releases that are told.
const HISTORY: usize = 10;
/// A deletion does not wait longer than this for version 1 to get ready.
const DELETION_DEADLINE: Duration = Duration::from_secs(120);
/// Nor for objects to go once nobody has to wait for requests to them: the garbage collector removes what is owned.
const CLEANUP: Duration = Duration::from_secs(30);

/// What is told while requests cannot return to version 1 yet.
const AWAITING: [&str; 2] = [AWAITING_VERSION_1, STUCK];
const AWAITING_VERSION_1: &str = "AwaitingVersion1";
const STUCK: &str = "RollbackStuck";

/// Whether version 2 fails, or version 1 is no longer what the release was measured against.
pub(super) fn found_wanting(draft: &mut Draft<'_>, rollout: &Rollout) -> Option<Flow> {
    let same = draft
        .seen
        .stable
        .as_ref()
        .is_some_and(|stable| stable.revision() == rollout.stable_revision);
    if !same {
        let message = stable_changed(draft);
        return Some(turn_back(
            draft,
            rollout.clone(),
            Outcome::RolledBack,
            "StableChanged",
            message,
        ));
    }
    if let Some((failure, log)) = draft.seen.failure.clone() {
        let restarting = failure.reason == RESTARTING;
        let how = match restarting {
            true => format!("does not stay up: {}", failure.message),
            false => format!("is in {}", failure.reason),
        };
        let said = log.or(Some(failure.message).filter(|m| !m.is_empty() && !restarting));
        let exit = failure
            .exit_code
            .map(|code| format!(" (exit code {code})"))
            .unwrap_or_default();
        let said = said.map(|line| format!(": {line}")).unwrap_or_default();
        let message = format!("container {} of version 2 {how}{exit}{said}", failure.container);
        return Some(turn_back(
            draft,
            rollout.clone(),
            Outcome::RolledBack,
            &failure.reason,
            message,
        ));
    }
    // Pods that promotion asks for beyond those of the last step may be refused where it can do without them.
    // An operator that died after it asked for them had not recorded that promotion had begun.
    let spec = &draft.seen.release.spec;
    let last = rollout.skip_steps || schedule::schedule(spec).is_ok_and(|schedule| rollout.step >= schedule.len());
    let asked_for = match rollout.stage {
        Stage::Promoting => true,
        Stage::Stepping => last && draft.has_pods_beyond_share(rollout),
        _ => false,
    };
    let spared = asked_for && spec.promotion.shift_traffic != ShiftTraffic::Always;
    let canary = draft.canary(rollout);
    if let Some(why) = canary.and_then(Workload::replica_failure).filter(|_| !spared) {
        let message = format!("Deployment {} cannot make its pods: {why}", rollout.canary.deployment);
        return Some(turn_back(
            draft,
            rollout.clone(),
            Outcome::RolledBack,
            "ReplicaFailure",
            message,
        ));
    }
    if rollout.stage != Stage::Preparing && draft.canary(rollout).is_none() {
        let message = format!("Deployment {} was deleted by somebody else", rollout.canary.deployment);
        return Some(turn_back(
            draft,
            rollout.clone(),
            Outcome::RolledBack,
            "CanaryDeleted",
            message,
        ));
    }
    let changed = |canary: &Workload| {
        rollout
            .canary
            .template
            .as_ref()
            .is_some_and(|known| *known != canary.revision())
    };
    if canary.is_some_and(changed) {
        let message = format!(
            "the pod template of Deployment {} was changed by somebody else, so that its pods are not what would be promoted: change spec.canary instead",
            rollout.canary.deployment
        );
        let rollout = rollout.clone();
        return Some(turn_back(draft, rollout, Outcome::RolledBack, "CanaryChanged", message));
    }
    None
}

pub(super) fn stable_changed(draft: &Draft<'_>) -> String {
    let name = draft.seen.release.target();
    match draft.seen.stable {
        None => format!("Deployment {name} was deleted while version 2 was being released"),
        Some(_) => format!(
            "the pod template of Deployment {name} was changed by somebody else, so what was measured against it no longer holds"
        ),
    }
}

/// Waits for something that takes its time, and turns back where that exceeds the progress deadline. `what` is what is
/// told while it waits, `late` the clause about what did not happen.
pub(super) fn wait_for_progress(
    draft: &mut Draft<'_>,
    rollout: Rollout,
    what: (Phase, &'static str, String),
    late: String,
) -> Flow {
    if draft.deadline(&rollout).is_zero() {
        let deadline = draft.seen.release.spec.progress_deadline;
        let message = format!("{late} within {deadline} (spec.progressDeadline)");
        return turn_back(draft, rollout, Outcome::RolledBack, "ProgressDeadlineExceeded", message);
    }
    let (phase, reason, message) = what;
    draft.say(phase, reason, message);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// Decides that traffic returns to version 1, and begins with it in the same round.
pub(super) fn turn_back(
    draft: &mut Draft<'_>,
    mut rollout: Rollout,
    outcome: Outcome,
    reason: &str,
    message: String,
) -> Flow {
    let level = if outcome == Outcome::RolledBack {
        Level::Warning
    } else {
        Level::Normal
    };
    draft.note(level, "RollingBack", format!("{reason}: {message}"));
    rollout.exposed = may_be_exposed(&rollout);
    rollout.stage = Stage::RollingBack;
    rollout.outcome = Some(outcome);
    (rollout.reason, rollout.detail) = (Some(reason.to_owned()), Some(message));
    rollout.waiting_since = MicroTime(draft.now);
    // Of version 2's pods there: version 1's are awaited anew.
    rollout.stable_since = None;
    draft.status.rollout = Some(rollout);
    Flow::Again
}

/// Whether requests may have met version 2. An operator that dies after it wrote the first weight has recorded no more than the
/// stage, and the Ingress may be gone before the next one records anything: the model found pods that went too early.
pub(super) fn may_be_exposed(rollout: &Rollout) -> bool {
    rollout.exposed || matches!(rollout.stage, Stage::Stepping | Stage::Promoting | Stage::Finishing)
}

/// Removes the canary: traffic first.
pub(super) fn rolling_back(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    let detail = rollout.detail.clone().unwrap_or_default();
    if let Some(flow) = await_version_1(draft, &mut rollout, &detail) {
        return flow;
    }
    let outcome = rollout.outcome.unwrap_or(Outcome::RolledBack);
    let keep = draft
        .seen
        .release
        .spec
        .rollback
        .filter(|_| outcome == Outcome::RolledBack);
    let mut since = rollout.drained_since.take();
    let gone = draft.drain(&mut since, rollout.exposed, keep.is_some(), &detail);
    rollout.drained_since = since;
    let stay = draft.pods_stay(rollout.drained_since.as_ref());
    draft.say(
        Phase::RollingBack,
        "RollingBack",
        format!("version 1 gets all requests, version 2 is being removed: {detail}{stay}"),
    );
    if gone {
        let reason = rollout.reason.clone().unwrap_or_default();
        let there = draft.canary(&rollout).is_some();
        rollout.kept_until = keep.filter(|_| there).map(|keep| Time(draft.now + keep.keep_for.get()));
        return end(draft, rollout, outcome, reason, detail);
    }
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// A sound canary that carries everything goes on with it until version 1's pods are all there again, and the controllers
/// have had the time to learn of them.
fn await_version_1(draft: &mut Draft<'_>, rollout: &mut Rollout, detail: &str) -> Option<Flow> {
    let stable = draft.seen.stable.as_ref()?;
    let sound = draft.seen.failure.is_none() && draft.ready(&rollout.canary.service) > 0;
    let carries = sound && draft.live_weight() == Weight::FULL && rollout.drained_since.is_none();
    let name = stable.name.clone();
    if !carries {
        return None;
    }
    rollout.replaced |= stable.revision() != rollout.stable_revision;
    let told = rollout.stable_since.is_some() || AWAITING.iter().any(|reason| draft.said(reason));
    let short = rollout.autoscaled && stable.replicas < rollout.capacity && !told;
    if short {
        // All requests come back at once: the autoscaler would add the pods for them only after they are missed. Once, for
        // it may take them away again.
        let op = Op::Merge {
            version: stable.version.clone(),
            patch: json!({"spec": {"replicas": rollout.capacity}}),
        };
        draft.write(Kind::Deployment, &name, op, "the pods that an autoscaler took away");
    } else if stable.rolled_out() && draft.ready(&rollout.service) > 0 {
        // Pods that were there all along are known already.
        let since = rollout.stable_since.get_or_insert(MicroTime(draft.now)).0;
        let left = draft.unsettled(since);
        if !(told || rollout.replaced) || left.is_zero() {
            return None;
        }
        draft.look_again(left);
        let at = draft.known_at(since);
        let late = draft.late(since).unwrap_or_default();
        let message = format!("Deployment {name} has rolled out; requests return to it at {at}: {detail}{late}");
        draft.say(Phase::RollingBack, "StableUpdated", message);
        draft.status.rollout = Some(rollout.clone());
        return Some(Flow::Wait);
    }
    rollout.stable_since = None;
    let message = format!(
        "requests return to Deployment {name} when it has rolled out; version 2 carries them until then: {detail}"
    );
    if draft.deadline(rollout).is_zero() {
        let deadline = draft.seen.release.spec.progress_deadline;
        let message = format!(
            "Deployment {name} has not rolled out for {deadline} (spec.progressDeadline): see kubectl rollout status deployment/{name}; {message}"
        );
        draft.stall(&[super::Finding::new(STUCK, message)]);
    } else {
        draft.say(Phase::RollingBack, AWAITING_VERSION_1, message);
    }
    draft.status.rollout = Some(rollout.clone());
    Some(Flow::Wait)
}

/// Removes a Deployment that was kept when its time is over, whatever a next release waits for meanwhile; returns whether
/// that takes this round.
pub(super) fn kept_too_long(draft: &mut Draft<'_>, rollout: &Rollout) -> bool {
    let Some(until) = &rollout.kept_until else {
        return false;
    };
    let left = draft.until(until.0, Duration::ZERO);
    if !left.is_zero() {
        draft.look_again(left);
        return false;
    }
    draft.decision.release_finalizer = true;
    let mut rollout = rollout.clone();
    if draft.remove_deployments("spec.rollback.keepFor is over") {
        rollout.kept_until = None;
    }
    say_ended(draft, &rollout);
    draft.status.rollout = Some(rollout);
    true
}

/// Says how a release ended: when it ends, and again when what was asked for since is asked for no more.
pub(super) fn say_ended(draft: &mut Draft<'_>, rollout: &Rollout) {
    let detail = rollout.detail.clone().unwrap_or_default();
    match rollout.outcome {
        Some(Outcome::Promoted) => {
            let nothing_to_do = rollout.reason.as_deref() == Some(ALREADY_RUNNING);
            let reason = if nothing_to_do { ALREADY_RUNNING } else { "Promoted" };
            draft.say(Phase::Promoted, reason, detail);
        }
        Some(Outcome::Aborted) => draft.say(Phase::RolledBack, "Aborted", detail),
        Some(Outcome::Superseded) => draft.say(Phase::Pending, "Superseded", detail),
        Some(Outcome::RolledBack) | None => {
            let kept = rollout
                .kept_until
                .as_ref()
                .filter(|until| until.0 > draft.now)
                .map(|until| {
                    let until = clock(until.0, draft.now);
                    let name = &rollout.canary.deployment;
                    format!("; Deployment {name} is kept until {until} (spec.rollback.keepFor)")
                });
            let kept = kept.unwrap_or_default();
            draft.say(Phase::RolledBack, "RolledBack", format!("rolled back: {detail}{kept}"));
        }
    }
}

/// Records how the release ended.
pub(super) fn end(
    draft: &mut Draft<'_>,
    mut rollout: Rollout,
    outcome: Outcome,
    reason: String,
    message: String,
) -> Flow {
    rollout.stage = Stage::Ended;
    rollout.outcome = Some(outcome);
    (rollout.reason, rollout.detail) = (Some(reason.clone()), Some(message.clone()));
    let entry = HistoryEntry {
        revision: draft.status.revision.clone().unwrap_or_default(),
        stable_image: draft.status.stable_image.clone(),
        canary_image: draft.status.canary_image.clone(),
        outcome,
        reason: reason.clone(),
        message: message.clone(),
        started_at: Time(rollout.started_at.0),
        ended_at: Time(draft.now),
        reached: rollout.reached.clone(),
        commands: rollout.commands.clone(),
    };
    draft.status.history.insert(0, entry);
    draft.status.history.truncate(HISTORY);
    match outcome {
        Outcome::Promoted => {
            draft.status.stable_image = draft.status.canary_image.take();
            draft.note(Level::Normal, "Promoted", message);
        }
        Outcome::RolledBack => draft.note(
            Level::Warning,
            "RolledBack",
            format!("rolled back: {message}; change spec.canary to release another version, or retry"),
        ),
        Outcome::Aborted => draft.note(Level::Normal, "Aborted", message),
        Outcome::Superseded => draft.note(Level::Normal, "Superseded", message),
    }
    say_ended(draft, &rollout);
    draft.status.rollout = Some(rollout);
    if outcome == Outcome::Superseded
        && let Some(rollout) = &mut draft.status.rollout
    {
        // What was asked for before may be asked for again meanwhile: it is yet to be released.
        rollout.intent.clear();
    }
    // A superseded release is followed by the next at once, which would only take the finalizer again.
    draft.decision.release_finalizer = outcome != Outcome::Superseded;
    draft.look_again(if outcome == Outcome::Superseded {
        Duration::ZERO
    } else {
        IDLE
    });
    Flow::Wait
}

/// The `CanaryRelease` is being deleted: the same way back, and never a stuck finalizer.
pub(super) fn deleted(draft: &mut Draft<'_>) -> Flow {
    // By the API server's clock; the operator may have been away since.
    let asked = draft.seen.release.metadata.deletion_timestamp.as_ref();
    let asked = asked.map_or(draft.now, |at| draft.counted_from(at.0));
    let patience = draft.until(asked, DELETION_DEADLINE);
    if !patience.is_zero()
        && let Some(flow) = carry_on(draft)
    {
        draft.look_again(patience);
        return flow;
    }
    abandon(draft, asked)
}

/// The canary goes on carrying what version 1's pods cannot.
fn carry_on(draft: &mut Draft<'_>) -> Option<Flow> {
    let mut rollout = draft.status.rollout.clone().filter(|r| r.stage != Stage::Ended)?;
    if matches!(rollout.stage, Stage::Promoting | Stage::Finishing) && promoting::committed(draft, &rollout) {
        // Past the point of no return: version 1's pods are being replaced.
        rollout.stage = Stage::Finishing;
        return Some(promoting::finishing(draft, rollout));
    }
    let deleted = || "the CanaryRelease is being deleted".to_owned();
    let detail = rollout.detail.clone().unwrap_or_else(deleted);
    await_version_1(draft, &mut rollout, &detail)
}

/// Removes the canary of a `CanaryRelease` that is being deleted since `asked`.
fn abandon(draft: &mut Draft<'_>, asked: Timestamp) -> Flow {
    let ended = draft.stage() == Some(Stage::Ended);
    let mut rollout = draft.status.rollout.clone();
    // Counted from when the way back began, not from when it was asked for: the operator may have been away, and its clock
    // may differ from the API server's. What was never recorded never had traffic.
    let begun = match &rollout {
        None => asked,
        Some(rollout) if rollout.outcome == Some(Outcome::Aborted) => draft.counted_from(rollout.waiting_since.0),
        Some(_) => draft.now,
    };
    let exposed = rollout.as_ref().is_some_and(may_be_exposed);
    let mut since = rollout.as_mut().and_then(|r| r.drained_since.take());
    let traffic_ended = since
        .as_ref()
        .map_or(begun, |since| draft.counted_from(since.0).max(begun));
    let overdue = draft
        .until(draft.settling.end(traffic_ended), STRAY + CLEANUP)
        .is_zero();
    if ended || overdue || draft.drain(&mut since, exposed, false, "the CanaryRelease is being deleted") {
        if overdue {
            draft.note(
                Level::Warning,
                "CleanupOverdue",
                "the canary's objects could not be removed in time: the garbage collector removes them now",
            );
        }
        draft.decision.writes.retain(|write| write.kind != Kind::CanaryRelease);
        draft.decision.release_finalizer = true;
        draft.decision.at_rest = true;
        return Flow::Wait;
    }
    let stay = draft.pods_stay(since.as_ref());
    if let Some(mut rollout) = rollout {
        if rollout.stage != Stage::RollingBack {
            draft.note(
                Level::Normal,
                "Aborted",
                "the CanaryRelease is being deleted: version 1 gets all requests back",
            );
        }
        rollout.exposed = exposed;
        rollout.stage = Stage::RollingBack;
        if rollout.outcome.replace(Outcome::Aborted) != Some(Outcome::Aborted) {
            rollout.waiting_since = MicroTime(draft.now);
        }
        rollout.drained_since = since;
        draft.status.rollout = Some(rollout);
    }
    draft.say(
        Phase::RollingBack,
        "Aborted",
        format!("the CanaryRelease is being deleted: version 1 gets all requests, version 2 is being removed{stay}"),
    );
    draft.look_again(draft.settling.time);
    Flow::Wait
}
