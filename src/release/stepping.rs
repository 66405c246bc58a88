//! Traffic moves along the steps.

use super::{
    Level, Schedule,
    draft::{Draft, Flow, clock},
    ending, hash,
    holding::{hold, hold_until_deadline, tampered, unready},
    schedule,
};
use crate::{
    api::{Outcome, Phase, Rollout, Stage, Weight},
    routing::Split,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

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
    rollout.exposed |= draft.exposed();
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
        .and_then(|step| step.hold)
        .unwrap_or_default();
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
    let need = draft.pods(weight);
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
