//! Version 2 takes version 1's place.
//!
//! nginx learns of replaced pods up to four seconds late and waits out its connect timeout for each address that is gone,
//! so the canary carries everything while the stable Deployment rolls (measured: 5–13 % of requests waited 5 s otherwise).

use super::{
    Finding, Kind, Level, Op,
    analysing::{doubt, found_harmful, tell_again},
    draft::{Draft, Flow, SCALING, VERSION_1},
    ending, hash,
    holding::{gone, hold_until_deadline, resume, tampered, unready, written_and_missing},
    preflight::ground,
    proof::contradiction,
    schedule,
    stepping::{held_by, wait_at},
    waiting::{paused, share, unheard},
};
use crate::{
    api::{Outcome, Phase, PromotionMode, Rollout, ShiftTraffic, Stage, Weight},
    observe::Workload,
    render::{differences, promotion_patch},
    routing::Split,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::json;
use std::time::Duration;

/// Whether the stable Deployment has version 2's template: from then on there is no way back but through a rollout.
pub(super) fn committed(draft: &Draft<'_>, rollout: &Rollout) -> bool {
    let promoted = rollout.promoted_revision.as_ref().or(draft.status.revision.as_ref());
    let stable = draft.seen.stable.as_ref();
    stable.is_some_and(|stable| Some(&stable.revision()) == promoted)
}

/// Moves all traffic to the canary, where it can carry it, then has the stable Deployment run version 2.
pub(super) fn promoting(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    if carried_by_somebody(draft, &mut rollout) || committed(draft, &rollout) {
        (rollout.stage, rollout.waiting_since) = (Stage::Finishing, MicroTime(draft.now));
        draft.status.rollout = Some(rollout);
        return Flow::Again;
    }
    if let Some(flow) = ending::found_wanting(draft, &rollout) {
        return flow;
    }
    if let Some(flow) = found_harmful(draft, &mut rollout) {
        return flow;
    }
    let schedule = schedule::schedule(&draft.seen.release.spec).ok();
    let steps = schedule.as_ref().map_or(0, super::Schedule::len);
    draft.status.step = Some(format!("{steps}/{steps}"));
    let shifts = shifts(draft, &rollout, schedule.as_ref());
    let split = if shifts {
        Split {
            weight: Weight::FULL,
            step: steps + 1,
        }
    } else {
        // Steps that were skipped are not walked now, nor another schedule: the weight stays where it is.
        Split {
            weight: rollout.reached.last().map_or(Weight::ZERO, |reached| reached.weight),
            step: rollout.step,
        }
    };
    let unready = unready(draft, &rollout);
    if unready.is_none()
        && let Some(flow) = gone(draft, &rollout)
    {
        return flow;
    }
    if shifts && let Some(flow) = scale(draft, &mut rollout) {
        return flow;
    }
    if !shifts {
        rollout.weight_since.get_or_insert(MicroTime(draft.now));
    }
    if let Some(why) = unready {
        return hold_until_deadline(draft, rollout, why);
    }
    if let Some(flow) = tampered(draft, &rollout, split) {
        return flow;
    }
    let in_force = rollout.reached.last().map_or(split.weight, |reached| reached.weight);
    // A weight that was written and not recorded yet is not the one that the requests were counted under.
    if draft.live_weight() == in_force
        && let Some(why) = contradiction(draft, &mut rollout, in_force)
    {
        return hold_until_deadline(draft, rollout, why);
    }
    resume(draft, &mut rollout);
    if !shifts && draft.own_ingresses().next().is_some() && draft.steer(&mut rollout, split, "spec.traffic changed") {
        let who = share(draft, split.weight);
        draft.note(Level::Normal, "TrafficChanged", format!("spec.traffic changed: {who}"));
    }
    if let Some(barrier) = paused(draft, "promotion").or_else(|| unheard(draft, "promotion", draft.now)) {
        let weight = draft.live_weight();
        return wait_at(draft, rollout, weight, barrier);
    }
    // Pods, or a person, may have been waited for since the last step's verdicts.
    let asks = shifts || draft.seen.release.spec.promotion.mode == PromotionMode::UpdateStable;
    if asks
        && in_force.max(draft.live_weight()) < Weight::FULL
        && let Some(doubt) = doubt(draft, &rollout)
    {
        let message = format!("{}; promotion waits: {}", share(draft, in_force), doubt.why);
        return held_by(draft, rollout, doubt, message);
    }
    if shifts && let Some(flow) = shift(draft, &mut rollout, split) {
        return flow;
    }
    match draft.seen.release.spec.promotion.mode {
        PromotionMode::UpdateStable => replace_stable(draft, rollout),
        PromotionMode::AwaitStable => await_stable(draft, rollout, split.weight),
    }
}

/// Whether the canary is to carry everything meanwhile, or does already: who says no only then would have the weight fall
/// for nothing.
fn shifts(draft: &Draft<'_>, rollout: &Rollout, schedule: Option<&super::Schedule>) -> bool {
    let stepped = schedule.map_or(Weight::ZERO, |schedule| schedule.weight(rollout.step));
    let reached = rollout.reached.last().map_or(Weight::ZERO, |last| last.weight);
    let shifted = reached == Weight::FULL && stepped < Weight::FULL;
    let wanted = draft.seen.release.spec.promotion.shift_traffic != ShiftTraffic::Never;
    rollout.unshifted.is_none() && (wanted || shifted)
}

/// Pods that carry all requests. Where they cannot be had, the release goes back, or on without them.
fn scale(draft: &mut Draft<'_>, rollout: &mut Rollout) -> Option<Flow> {
    let need = draft.capacity(rollout);
    let name = rollout.canary.deployment.clone();
    if draft.scale(rollout, need, "all requests are next") {
        return None;
    }
    let late = format!("Deployment {name} did not get the {need} ready pods that carry everything during promotion");
    let refused = draft.canary(rollout).and_then(Workload::replica_failure);
    let auto = draft.seen.release.spec.promotion.shift_traffic == ShiftTraffic::Auto;
    // At 100 % already, there is nothing to fall back to; nor on pods that are not there for the share they have.
    let live = draft.live_weight();
    // Nor where requests were taken away a moment ago: nginx may send some still, so that no pod goes (the model found that).
    let enough = draft.has_ready(rollout, draft.pods(rollout, live)) && written_and_missing(draft, rollout).is_none();
    if auto && enough && live < Weight::FULL && (refused.is_some() || draft.deadline(rollout).is_zero()) {
        if let Some(barrier) = unheard(draft, "promotion", draft.now) {
            // Told as this wait goes on: another reason would begin its deadline anew.
            draft.say(Phase::Promoting, SCALING, format!("{late}; {}", barrier.why));
            draft.look_again(draft.until(barrier.until.unwrap_or(draft.now), Duration::ZERO));
            draft.status.rollout = Some(rollout.clone());
            return Some(Flow::Wait);
        }
        let deadline = draft.seen.release.spec.progress_deadline;
        let why = refused.unwrap_or_else(|| format!("not within {deadline} (spec.progressDeadline)"));
        let message = format!(
            "{late}: {why}; Deployment {} is replaced while it serves, and some requests may wait for seconds (spec.promotion.shiftTraffic: Auto)",
            rollout.deployment
        );
        draft.note(Level::Warning, "TrafficNotShifted", message.clone());
        rollout.unshifted = Some(message.clone());
        draft.rely_on_endpoints(rollout);
        let pods = draft.pods(rollout, live);
        draft.shrink(rollout, pods, "these pods are not to be had");
        draft.say(Phase::Promoting, "TrafficNotShifted", message);
        draft.look_again(Duration::ZERO);
        draft.status.rollout = Some(rollout.clone());
        return Some(Flow::Wait);
    }
    let waiting = format!(
        "waiting for {need} ready pods of Deployment {name}, which then carry all requests while version 1's are replaced"
    );
    let what = (Phase::Promoting, SCALING, waiting);
    Some(ending::wait_for_progress(draft, rollout.clone(), what, late))
}

/// The weight of promotion, and the time that the controllers take to learn of it.
fn shift(draft: &mut Draft<'_>, rollout: &mut Rollout, split: Split) -> Option<Flow> {
    let stable = rollout.deployment.clone();
    let why = "version 2 carries everything while version 1's pods are replaced";
    // An operator that died after it wrote this weight did not record since when it is in force.
    let recorded = rollout.reached.last().is_some_and(|last| last.weight == split.weight);
    if draft.steer(rollout, split, why) || !recorded {
        rollout.proven = None;
        rollout.weight_since = Some(MicroTime(draft.now));
        rollout.exposed = true;
        draft.reached(rollout, split.weight);
        let message = format!(
            "{}; {}% of the requests go to version 2's canary while Deployment {stable} is replaced",
            passed(draft, rollout),
            split.weight
        );
        draft.note(Level::Normal, "Promoting", message);
    }
    let written = rollout.weight_since.get_or_insert(MicroTime(draft.now)).0;
    let left = draft.unsettled(written);
    // Some may choose version 1, and all may stay with it for a cookie: nothing tells those from a controller that has not heard,
    // so that they are waited for too, and not for ever.
    let stray = draft.unquiet(written, VERSION_1);
    if left.is_zero() && stray.is_zero() {
        return None;
    }
    draft.look_again(left.max(stray));
    let next = match draft.has_strays(written, VERSION_1) {
        true => format!(
            "when no request has met it for some seconds, at the latest at {}",
            draft.given_up_at(written)
        ),
        false => format!("at {} at the earliest", draft.known_at(written)),
    };
    let late = draft.late(written).unwrap_or_default();
    let message = format!(
        "{}% of the requests go to version 2's canary; Deployment {stable} is next {next}{late}",
        split.weight
    );
    draft.say(Phase::Promoting, "ShiftingTraffic", message);
    draft.status.rollout = Some(rollout.clone());
    Some(Flow::Wait)
}

/// `app:v1 -> app:v2: every step passed`.
fn passed(draft: &Draft<'_>, rollout: &Rollout) -> String {
    let how = if rollout.skip_steps {
        "the rest of the steps is skipped by command"
    } else {
        "every step passed"
    };
    format!("{}: {how}", draft.images())
}

/// The one write to the user's Deployment: the same patch that was tried when the release started.
fn replace_stable(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    let ground = match ground(draft.seen, draft.routing) {
        Ok(ground) => ground,
        Err(findings) => {
            draft.stall(&findings);
            draft.status.rollout = Some(rollout);
            return Flow::Wait;
        }
    };
    let Some(stable) = &draft.seen.stable else {
        return Flow::Wait;
    };
    let serves = draft.live_weight() < Weight::FULL;
    let recorded = draft.seen.release.rollout();
    if recorded.is_none_or(|recorded| recorded.stage != Stage::Promoting) {
        // Were the operator to die between this write and the status, it would take the write for somebody else's.
        draft.say(
            Phase::Promoting,
            "ReplacingStable",
            format!("Deployment {} is next", stable.name),
        );
        draft.look_again(Duration::ZERO);
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    let mut patch = promotion_patch(&draft.seen.release.spec.canary, &ground.container);
    if rollout.autoscaled && stable.replicas < rollout.capacity {
        // All requests come back at once: the autoscaler would add the pods for them only after they are missed.
        json_patch::merge(&mut patch, &json!({"spec": {"replicas": rollout.capacity}}));
    }
    let op = Op::StrategicMerge {
        version: stable.version.clone(),
        patch,
    };
    draft.write(Kind::Deployment, &stable.name, op, "every step passed");
    draft.rely_on_endpoints(&rollout);
    if serves {
        let message = format!(
            "{}; Deployment {} is replaced while it serves",
            passed(draft, &rollout),
            stable.name
        );
        draft.note(Level::Normal, "Promoting", message);
    }
    (rollout.stage, rollout.waiting_since) = (Stage::Finishing, MicroTime(draft.now));
    rollout.replaced = true;
    let message = replacing(draft, &rollout);
    draft.say(Phase::Promoting, "ReplacingStable", message);
    draft.deadline(&rollout);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

fn replacing(draft: &Draft<'_>, rollout: &Rollout) -> String {
    let meanwhile = rollout.unshifted.clone().unwrap_or_else(|| match draft.live_weight() {
        Weight::FULL => "the canary carries all requests meanwhile".to_owned(),
        weight => format!(
            "it serves while its pods are replaced, and the canary carries {weight}% (spec.promotion.shiftTraffic)"
        ),
    });
    format!(
        "waiting for Deployment {} to roll out version 2; {meanwhile}",
        rollout.deployment
    )
}

/// Whether somebody else gave the stable Deployment a template on which version 2's overlay changes nothing.
fn carried_by_somebody(draft: &Draft<'_>, rollout: &mut Rollout) -> bool {
    if draft.seen.release.spec.promotion.mode != PromotionMode::AwaitStable {
        return false;
    }
    let Some(stable) = &draft.seen.stable else {
        return false;
    };
    // Exactly version 2 needs no question. It is theirs all the same: the operator does not take it back.
    if committed(draft, rollout) {
        rollout.promoted_revision = Some(stable.revision());
        return true;
    }
    still_version_2(draft, rollout)
}

/// Whether version 2's overlay changes nothing on the stable Deployment, whatever else somebody changed there: a restart,
/// or a note of the commit.
fn still_version_2(draft: &Draft<'_>, rollout: &mut Rollout) -> bool {
    let (Some(stable), Some(Ok(merged))) = (&draft.seen.stable, &draft.seen.merged) else {
        return false;
    };
    let same = rollout.intent == hash::intent(&draft.seen.release.spec);
    let carried = same && merged.pointer("/spec/template") == Some(&stable.template);
    if carried {
        rollout.promoted_revision = Some(stable.revision());
    }
    carried
}

/// GitOps: the canary carries on until the stable Deployment itself carries version 2.
fn await_stable(draft: &mut Draft<'_>, mut rollout: Rollout, weight: Weight) -> Flow {
    let image = draft.status.canary_image.clone().unwrap_or_default();
    let message = format!(
        "{weight}% of the requests go to version 2's canary until Deployment {} itself carries version 2 ({image}): change it where it is kept (spec.promotion.mode: AwaitStable)",
        rollout.deployment
    );
    if !draft.said("AwaitingStable") {
        draft.note(Level::Normal, "AwaitingStable", message.clone());
    }
    // Waits for people: without a deadline, and they read the numbers.
    rollout.interrupted_for = None;
    draft.decision.tell_again = Some(tell_again(draft, &rollout));
    draft.say(Phase::Promoting, "AwaitingStable", message);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// Waits for the stable Deployment, then takes the canary away without losing a request.
pub(super) fn finishing(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    rollout.replaced = true;
    let Some(stable) = &draft.seen.stable else {
        let message = ending::stable_changed(draft);
        return ending::turn_back(draft, rollout, Outcome::RolledBack, "StableChanged", message);
    };
    if !committed(draft, &rollout) && !still_version_2(draft, &mut rollout) {
        let (reason, message) = undone(draft, &rollout, stable);
        return ending::turn_back(draft, rollout, Outcome::RolledBack, reason, message);
    }
    let name = stable.name.clone();
    let drained = rollout.drained_since.is_some();
    let back = stable.rolled_out() && draft.ready(&rollout.service) > 0;
    if !drained && !back {
        rollout.stable_since = None;
        keep_traffic(draft, &mut rollout);
        if draft.deadline(&rollout).is_zero() {
            return stuck(draft, rollout, stable);
        }
        let message = replacing(draft, &rollout);
        draft.say(Phase::Promoting, "ReplacingStable", message);
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    // The controllers learn of the stable Deployment's new endpoints like of anything else: within the settle time.
    let stable_since = rollout.stable_since.get_or_insert(MicroTime(draft.now)).0;
    let left = draft.unsettled(stable_since);
    if !drained && !left.is_zero() {
        draft.look_again(left);
        let at = draft.known_at(stable_since);
        let late = draft.late(stable_since).unwrap_or_default();
        let message = format!("Deployment {name} runs version 2; requests return to it at {at}{late}");
        draft.say(Phase::Promoting, "StableUpdated", message);
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    let mut since = rollout.drained_since.take();
    let gone = draft.drain(
        &mut since,
        rollout.exposed,
        false,
        "version 2 has taken version 1's place",
    );
    rollout.drained_since = since;
    let stay = draft.pods_stay(rollout.drained_since.as_ref());
    draft.say(
        Phase::Promoting,
        "RemovingCanary",
        format!("Deployment {name} runs version 2; requests return to it, then the canary's pods are removed{stay}"),
    );
    if gone {
        let of_nginx = match rollout.of_nginx {
            0 => String::new(),
            some => format!(
                "; nginx answered {some} request{} itself (limits, redirects, authentication), which count for neither version",
                if some == 1 { "" } else { "s" }
            ),
        };
        let message = format!(
            "version 2 ({}) has taken version 1's place{of_nginx}",
            draft.status.canary_image.clone().unwrap_or_default()
        );
        return ending::end(draft, rollout, Outcome::Promoted, "Promoted".to_owned(), message);
    }
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// The stable Deployment carries version 2 no longer.
fn undone(draft: &Draft<'_>, rollout: &Rollout, stable: &Workload) -> (&'static str, String) {
    if stable.revision() == rollout.stable_revision {
        let name = &stable.name;
        let message =
            format!("Deployment {name} was given version 1's template back before it had rolled out version 2");
        return ("PromotionFailed", message);
    }
    ("StableChanged", ending::stable_changed(draft))
}

/// A canary Ingress that somebody changed while it carries what version 1's pods cannot is put right, at most once in a
/// settle time.
fn keep_traffic(draft: &mut Draft<'_>, rollout: &mut Rollout) {
    let steps = schedule::schedule(&draft.seen.release.spec).map_or(0, |schedule| schedule.len());
    let split = Split {
        weight: Weight::FULL,
        step: steps + 1,
    };
    let since = rollout.weight_since.as_ref();
    let settled = since.is_none_or(|since| draft.until(since.0, draft.settling.time).is_zero());
    // Where somebody else replaced the stable Deployment before all requests were shifted, the canary lacks the pods for it.
    let shifted = rollout.reached.last().is_some_and(|last| last.weight == Weight::FULL);
    if rollout.unshifted.is_some()
        || draft.seen.release.spec.promotion.shift_traffic == ShiftTraffic::Never
        || !shifted
        || !settled
    {
        return;
    }
    if draft.ready(&rollout.canary.service) > 0
        && draft.ready(&rollout.service) > 0
        && draft.steer(rollout, split, "it carries what version 1's pods cannot")
    {
        rollout.weight_since = Some(MicroTime(draft.now));
        let message = "a canary Ingress was changed by somebody else during promotion, and is put right".to_owned();
        draft.note(Level::Warning, "CanaryIngressChanged", message);
    }
}

/// The stable Deployment did not roll out version 2 in time: it gets version 1's template back, and requests return when
/// that has rolled out.
fn stuck(draft: &mut Draft<'_>, rollout: Rollout, stable: &Workload) -> Flow {
    let deadline = draft.seen.release.spec.progress_deadline;
    let name = &stable.name;
    if stable.rolled_out() {
        let message = format!(
            "Deployment {name} runs version 2, but Service {} has no ready endpoint after {deadline} (spec.progressDeadline): restore the Service; nginx answers 503 to everyone until then",
            rollout.service
        );
        draft.stall(&[Finding::new("PromotionStuck", message)]);
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    let failure = stable
        .replica_failure()
        .map(|why| format!(" ({why})"))
        .unwrap_or_default();
    let message =
        format!("Deployment {name} did not roll out version 2 within {deadline} (spec.progressDeadline){failure}");
    let kept = draft.canary(&rollout).and_then(|canary| canary.kept_template.as_ref());
    // Where somebody else keeps the stable Deployment, it is theirs to take back.
    let ours = draft.seen.release.spec.promotion.mode == PromotionMode::UpdateStable;
    let Some(kept) = kept.filter(|_| ours && rollout.promoted_revision.is_none()) else {
        let message = format!(
            "{message}; the canary goes on carrying its requests: see kubectl rollout status deployment/{name}"
        );
        draft.stall(&[Finding::new("PromotionStuck", message)]);
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    };
    if let Some(barrier) = unheard(draft, "version 1", draft.now) {
        let weight = draft.live_weight();
        return wait_at(draft, rollout, weight, barrier);
    }
    let op = Op::Merge {
        version: stable.version.clone(),
        patch: json!({"spec": {"template": differences(&stable.template, kept)}}),
    };
    draft.write(
        Kind::Deployment,
        name,
        op,
        "version 2 did not roll out: version 1's template",
    );
    ending::turn_back(draft, rollout, Outcome::RolledBack, "PromotionFailed", message)
}
