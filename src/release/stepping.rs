//! Traffic moves along the steps.

use super::{
    Level, Schedule,
    decide::pods,
    draft::{Draft, Flow},
    ending, hash, schedule,
};
use crate::{
    api::{Outcome, Phase, Rollout, Stage, Weight},
    render::owned_by,
    routing::{Split, backends, leads_to},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{Resource, ResourceExt};

/// One round of a release whose canary Ingresses exist or are due.
pub(super) fn stepping(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    if let Some(flow) = ending::found_wanting(draft, &rollout) {
        return flow;
    }
    let schedule = match schedule::schedule(&draft.seen.release.spec) {
        Ok(schedule) => schedule,
        Err(message) => {
            return hold(
                draft,
                rollout,
                "InvalidSpec",
                format!("{message}; the weight stays at {}%", draft.live_weight()),
            );
        }
    };
    if let Some(why) = unready(draft, &rollout) {
        return hold_until_deadline(draft, rollout, why);
    }
    // Steps noted on the Ingresses are of the schedule that was in force when they were written.
    if !follow_schedule(draft, &mut rollout, &schedule) && catch_up(draft, &mut rollout, &schedule) {
        draft.status.rollout = Some(rollout);
        return Flow::Again;
    }
    let weight = schedule.weight(rollout.step);
    let split = Split {
        weight,
        step: rollout.step,
    };
    // Whoever raised the weight exposed version 2, even if it is put right in this very round.
    rollout.exposed |= draft.live_weight() > Weight::ZERO;
    if let Some(flow) = tampered(draft, &rollout, split) {
        return flow;
    }
    if draft.status.phase == Some(Phase::Holding) {
        // What was interrupted starts over: a pod that is ready between two crashes is not ready.
        rollout.weight_since = Some(MicroTime(draft.now));
    }
    if draft.steer(
        &rollout,
        split,
        &format!("step {}: {weight}% to version 2", rollout.step),
    ) {
        rollout.weight_since = Some(MicroTime(draft.now));
        if rollout.step > 0 {
            draft.reached(&mut rollout, weight);
            let message = format!(
                "step {}/{}: {weight}% of the requests go to version 2",
                rollout.step,
                schedule.len()
            );
            draft.note(Level::Normal, "WeightChanged", message);
        }
    }
    rollout.exposed |= weight > Weight::ZERO;
    draft.status.step = Some(format!("{}/{}", rollout.step, schedule.len()));
    let written = rollout.weight_since.get_or_insert(MicroTime(draft.now)).0;
    let hold = schedule
        .step(rollout.step)
        .map_or_else(Default::default, |step| step.hold);
    let left = draft.until(written, draft.settle + hold.get());
    if left.is_zero() {
        return advance(draft, rollout, &schedule);
    }
    let at = draft.now + left;
    let next = if rollout.step == schedule.len() {
        "promotion".to_owned()
    } else {
        format!("{}%", schedule.weight(rollout.step + 1))
    };
    draft.status.next_advance_at = Some(Time(at));
    draft.look_again(left);
    rollout.waiting_since = MicroTime(at);
    let share = if rollout.step == 0 {
        "no request goes to version 2 yet".to_owned()
    } else {
        format!("{weight}% of the requests go to version 2")
    };
    draft.say(
        Phase::Progressing,
        "Stepping",
        format!("{share}; {next} at {}", clock(at)),
    );
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// `07:04:05Z`: the date is in `nextAdvanceAt`.
pub(super) fn clock(at: jiff::Timestamp) -> String {
    // Rounded up, so that the time told is never before the time meant.
    let at = at + std::time::Duration::from_millis(999);
    at.strftime("%H:%M:%SZ").to_string()
}

/// A release that may not raise the weight: version 2 or version 1 has nobody to answer.
pub(super) fn unready(draft: &Draft<'_>, rollout: &Rollout) -> Option<(&'static str, String)> {
    if draft.ready(&rollout.canary.service) == 0 {
        let share = if rollout.exposed {
            ", so nginx sends its share of the requests to version 1"
        } else {
            "; no request goes there yet"
        };
        let message = format!("Service {} has no ready endpoint{share}", rollout.canary.service);
        return Some(("CanaryUnavailable", message));
    }
    if draft.ready(&rollout.service) == 0 {
        let message = format!(
            "Service {} has no ready endpoint: nginx answers 503 to everyone, whatever the weight",
            rollout.service
        );
        return Some(("StableUnavailable", message));
    }
    let suffix = &draft.seen.release.spec.canary.suffix;
    let named = |name: &str| draft.seen.ingresses.iter().find(|i| i.name_any() == name);
    rollout.ingresses.iter().find_map(|name| {
        let Some(stable) = named(name) else {
            let message =
                format!("Ingress {name} is gone, so there is no traffic to split: restore it, or delete this release");
            return Some(("IngressNotFound", message));
        };
        if !backends(stable).any(|backend| leads_to(backend, &rollout.service)) {
            let message = format!(
                "Ingress {name} no longer leads to Service {}, so there is no traffic to split: restore its backend, or delete this release",
                rollout.service
            );
            return Some(("IngressMismatch", message));
        }
        let taken = format!("{name}{suffix}");
        named(&taken).filter(|i| !owned_by(i.meta(), &draft.uid())).map(|_| {
            let message = format!("Ingress {taken} exists and is not this release's: delete it, or choose another spec.canary.suffix");
            ("NameTaken", message)
        })
    })
}

fn hold(draft: &mut Draft<'_>, mut rollout: Rollout, reason: &'static str, message: String) -> Flow {
    if draft.status.phase != Some(Phase::Holding) {
        rollout.waiting_since = MicroTime(draft.now);
        draft.note(Level::Warning, reason, message.clone());
    }
    draft.say(Phase::Holding, reason, message);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

pub(super) fn hold_until_deadline(
    draft: &mut Draft<'_>,
    mut rollout: Rollout,
    (reason, why): (&'static str, String),
) -> Flow {
    if draft.status.phase != Some(Phase::Holding) {
        rollout.waiting_since = MicroTime(draft.now);
    }
    let left = draft.deadline(&rollout);
    if left.is_zero() {
        let message = format!(
            "{why}, for {} (spec.progressDeadline)",
            draft.seen.release.spec.progress_deadline
        );
        return ending::turn_back(draft, rollout, Outcome::RolledBack, reason, message);
    }
    let message = format!("{why}; rollback at {} unless that mends", clock(draft.now + left));
    let flow = hold(draft, rollout, reason, message);
    draft.look_again(left);
    flow
}

const TAMPERED: &str = "CanaryIngressChanged";

/// Somebody else's hand on a canary Ingress that this step has written before: it is put back at once, and again once in a
/// settle time, so that two controllers do not write in turns for ever. The release holds until it stays for a settle time.
pub(super) fn tampered(draft: &mut Draft<'_>, rollout: &Rollout, split: Split) -> Option<Flow> {
    let mut rollout = rollout.clone();
    let rest = draft.until(rollout.weight_since.as_ref()?.0, draft.settle);
    let watching = draft.held_for(TAMPERED) && !rest.is_zero();
    let stray = draft.strays(&rollout, split);
    if !watching && stray.is_none() {
        return None;
    }
    if !watching {
        let why = format!("step {}: {}% to version 2", split.step, split.weight);
        draft.steer(&rollout, split, &why);
        rollout.weight_since = Some(MicroTime(draft.now));
    }
    let names = stray.or_else(|| draft.own_ingresses().next().map(|ingress| ingress.name_any()));
    let name = names.unwrap_or_default();
    let why = format!(
        "Ingress {name} was changed by somebody else, or the one it follows was, and is put right: if that goes on, find out who writes it (kubectl get ingress {name} -o yaml --show-managed-fields)"
    );
    let flow = hold_until_deadline(draft, rollout, (TAMPERED, why));
    draft.look_again(if watching { rest } else { draft.settle });
    Some(flow)
}

/// A changed schedule goes on at the first step not below the weight in force.
/// Returns whether it did change.
fn follow_schedule(draft: &Draft<'_>, rollout: &mut Rollout, schedule: &Schedule) -> bool {
    let hash = hash::schedule_hash(&draft.seen.release.spec);
    if rollout.schedule == hash {
        return false;
    }
    rollout.schedule = hash;
    if rollout.step > 0 {
        rollout.step = schedule.first_not_below(draft.live_weight());
    }
    rollout.weight_since = None;
    true
}

/// An operator that died after it wrote a step's weight and before it recorded the step finds the step beside the weight.
/// Only the very next step with its weight can be such: anything else was noted by somebody else, and is put right.
/// Returns whether that step was already the promotion's.
fn catch_up(draft: &Draft<'_>, rollout: &mut Rollout, schedule: &Schedule) -> bool {
    let mut live = draft.own_ingresses().map(|ingress| draft.routing.split(ingress));
    let Some(ahead) = live.find(|split| split.step == rollout.step + 1) else {
        return false;
    };
    if ahead.step > schedule.len() {
        if ahead.weight == Weight::FULL {
            enter_promotion(draft, rollout);
            return true;
        }
    } else if ahead.weight == schedule.weight(ahead.step) {
        rollout.step = ahead.step;
        rollout.weight_since = None;
        draft.reached(rollout, ahead.weight);
    }
    false
}

fn enter_promotion(draft: &Draft<'_>, rollout: &mut Rollout) {
    rollout.stage = Stage::Promoting;
    rollout.waiting_since = MicroTime(draft.now);
    rollout.weight_since = None;
}

/// The step's time is over: pods first, then the weight.
fn advance(draft: &mut Draft<'_>, mut rollout: Rollout, schedule: &Schedule) -> Flow {
    if rollout.step >= schedule.len() {
        enter_promotion(draft, &mut rollout);
        draft.status.rollout = Some(rollout);
        return Flow::Again;
    }
    let weight = schedule.weight(rollout.step + 1);
    let need = pods(draft, weight);
    if !draft.scale(&mut rollout, need, &format!("{weight}% of the requests are next")) {
        let left = draft.deadline(&rollout);
        if left.is_zero() {
            let message = format!(
                "Deployment {} did not get {need} ready pods within {} (spec.progressDeadline)",
                rollout.canary.deployment, draft.seen.release.spec.progress_deadline
            );
            return ending::turn_back(draft, rollout, Outcome::RolledBack, "ProgressDeadlineExceeded", message);
        }
        draft.say(
            Phase::Progressing,
            "ScalingCanary",
            format!(
                "waiting for {need} ready pods of Deployment {} before {weight}% of the requests go there",
                rollout.canary.deployment
            ),
        );
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    rollout.step += 1;
    rollout.weight_since = None;
    draft.status.rollout = Some(rollout);
    Flow::Again
}
