//! Traffic moves along the steps.

use super::{
    Finding, Level, Schedule,
    analysing::{self, AWAITING, NO_DATA, doubt, found_harmful, may_end_early, tell_power, trouble},
    draft::{Draft, Flow, SCALING, clock},
    ending, hash,
    holding::{gone, hold, hold_until_deadline, resume, tampered, unready},
    proof::{contradiction, prove},
    schedule,
    waiting::{APPROVAL, Barrier, barrier, next, share, shut},
};
use crate::{
    api::{Phase, Rollout, Stage, Weight},
    routing::Split,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use std::time::Duration;

/// How long counts may take for a window that ends with its step.
const AWAITED: Duration = Duration::from_secs(5);

/// Good news is not told by itself where the step's end is told within this time.
const SOON: Duration = Duration::from_secs(30);

/// One round of a release whose canary Ingresses exist or are due.
pub(super) fn stepping(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    if let Some(flow) = ending::found_wanting(draft, &rollout) {
        return flow;
    }
    if let Some(flow) = found_harmful(draft, &mut rollout) {
        return flow;
    }
    let schedule = match schedule::schedule(&draft.seen.release.spec) {
        Ok(schedule) => schedule,
        Err(message) => {
            let message = format!("{message}; the weight stays at {}%", draft.live_weight());
            return hold(draft, rollout, "InvalidSpec", message);
        }
    };
    rollout.capacity = draft.capacity(&rollout);
    if let Some(why) = unready(draft, &rollout) {
        return hold_until_deadline(draft, rollout, why);
    }
    if let Some(flow) = gone(draft, &rollout) {
        return flow;
    }
    // Steps noted on the Ingresses are of the schedule that was in force when they were written.
    if rollout.schedule != hash::schedule_hash(&draft.seen.release.spec) {
        if let Some(flow) = follow_schedule(draft, &mut rollout, &schedule) {
            return flow;
        }
    } else if catch_up(draft, &mut rollout, &schedule) {
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
    if let Some(why) = contradiction(draft, &mut rollout, weight) {
        return hold_until_deadline(draft, rollout, why);
    }
    resume(draft, &mut rollout);
    let why = format!("step {}: {}", rollout.step, share(draft, weight));
    let wrote = draft.steer(&mut rollout, split, &why);
    if wrote {
        steered(draft, &mut rollout, &schedule, weight);
    }
    let testers = draft.seen.release.spec.traffic.as_ref();
    rollout.exposed |= weight > Weight::ZERO || testers.is_some_and(|t| t.has_testers());
    draft.status.step = Some(format!("{}/{}", rollout.step, schedule.len()));
    let written = rollout.weight_since.get_or_insert(MicroTime(draft.now)).0;
    let hold = schedule
        .step(rollout.step)
        .and_then(|step| step.hold)
        .unwrap_or_default();
    let live = draft.settling.end(written);
    let over = live.checked_add(hold.get()).unwrap_or(Timestamp::MAX);
    let left = draft.until(over, Duration::ZERO);
    // An Ingress is written once in a round: what follows needs the version that this leaves.
    if wrote && rollout.skip_steps {
        draft.say(
            Phase::Progressing,
            "Stepping",
            format!("{}; promotion is next", share(draft, weight)),
        );
        draft.look_again(Duration::ZERO);
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    let early = !left.is_zero() && may_end_early(draft, &rollout);
    if !left.is_zero() && !rollout.skip_steps && !early {
        return stay(draft, rollout, &schedule, over);
    }
    if let Some(barrier) = barrier(draft, &rollout, &schedule, draft.now) {
        return wait_at(draft, rollout, weight, barrier);
    }
    if let Some(doubt) = doubt(draft, &rollout) {
        return wait_for_verdict(draft, rollout, &schedule, over, doubt);
    }
    advance(draft, rollout, &schedule)
}

/// A canary Ingress was written: for a new step, or because the spec asks for other testers.
fn steered(draft: &mut Draft<'_>, rollout: &mut Rollout, schedule: &Schedule, weight: Weight) {
    let who = share(draft, weight);
    if rollout.weight_since.is_some() {
        draft.note(Level::Normal, "TrafficChanged", format!("spec.traffic changed: {who}"));
        return;
    }
    rollout.weight_since = Some(MicroTime(draft.now));
    if rollout.step > 0 {
        tell_power(draft, rollout, schedule);
        draft.reached(rollout, weight);
        let message = format!("step {}/{}: {who}", rollout.step, schedule.len());
        draft.note(Level::Normal, "WeightChanged", message);
    }
}

/// The step's time is not over, or only just.
fn stay(draft: &mut Draft<'_>, mut rollout: Rollout, schedule: &Schedule, over: Timestamp) -> Flow {
    let left = draft.until(over, Duration::ZERO);
    draft.decision.tell_again = Some(analysing::tell_again(draft, &rollout));
    let who = share(draft, schedule.weight(rollout.step));
    if !left.is_zero() {
        draft.look_again(left);
    }
    if left < SOON {
        draft.decision.good_news_waits = true;
    } else {
        // That the weight is live is worth a look of its own.
        let live = draft.settling.live(&rollout);
        let settling = live.map_or(Duration::ZERO, |live| draft.until(live, Duration::ZERO));
        if !settling.is_zero() && left >= settling + SOON {
            draft.look_again(settling);
        }
        let weight = schedule.weight(rollout.step);
        prove(draft, &mut rollout, weight);
    }
    rollout.waiting_since = MicroTime(over);
    let (mut phase, mut reason) = (Phase::Progressing, "Stepping");
    let (then, at) = match barrier(draft, &rollout, schedule, over) {
        None => (
            format!("{} at {}", next(&rollout, schedule), clock(over, draft.now)),
            Some(over),
        ),
        Some(barrier) if barrier.reason == APPROVAL => {
            let next = next(&rollout, schedule);
            (
                format!("{next} waits for approval from {} on", clock(over, draft.now)),
                None,
            )
        }
        Some(barrier) => {
            if barrier.phase == Phase::Paused {
                (phase, reason) = (barrier.phase, barrier.reason);
            }
            (barrier.why, barrier.until)
        }
    };
    draft.status.next_advance_at = at.map(Time);
    let trouble = trouble(draft, &rollout)
        .map(|told| format!("; {told}"))
        .unwrap_or_default();
    let since = rollout.weight_since.as_ref();
    let late = since.and_then(|since| draft.late(since.0)).unwrap_or_default();
    draft.say(phase, reason, format!("{who}; {then}{late}{trouble}"));
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// The step's time is over, and a check has not passed. The last window ends with the step, and its counts come a moment
/// later: that is not worth a word.
fn wait_for_verdict(
    draft: &mut Draft<'_>,
    rollout: Rollout,
    schedule: &Schedule,
    over: Timestamp,
    doubt: analysing::Doubt,
) -> Flow {
    let awaited = draft.until(over, AWAITED);
    if doubt.reason == AWAITING && !awaited.is_zero() {
        draft.look_again(awaited);
        return stay(draft, rollout, schedule, over);
    }
    let weight = schedule.weight(rollout.step);
    let message = format!(
        "{}; {} waits: {}",
        share(draft, weight),
        next(&rollout, schedule),
        doubt.why
    );
    held_by(draft, rollout, doubt, message)
}

/// A check without a fresh pass keeps the weight where it is.
pub(super) fn held_by(draft: &mut Draft<'_>, rollout: Rollout, doubt: analysing::Doubt, message: String) -> Flow {
    if doubt.overdue {
        let finding = Finding::new(doubt.reason, message);
        draft.stall(&[finding]);
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    draft.look_again(AWAITED);
    draft.decision.tell_again = Some(analysing::tell_again(draft, &rollout));
    if matches!(doubt.reason, AWAITING | NO_DATA) {
        return hold(draft, rollout, doubt.reason, message);
    }
    // The verdict itself was told as an event.
    draft.say(Phase::Holding, doubt.reason, message);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// The step's time is over, and the schedule waits for something else than time.
pub(super) fn wait_at(draft: &mut Draft<'_>, mut rollout: Rollout, weight: Weight, barrier: Barrier) -> Flow {
    // Days may pass here: interruptions before them are not of the same trouble as those after.
    rollout.interrupted_for = None;
    let trouble = trouble(draft, &rollout)
        .map(|told| format!("; {told}"))
        .unwrap_or_default();
    let message = format!("{}; {}{trouble}", share(draft, weight), barrier.why);
    if barrier.reason == APPROVAL && !draft.said(barrier.reason) {
        draft.note(Level::Normal, barrier.reason, message.clone());
    }
    if let Some(until) = barrier.until {
        draft.look_again(draft.until(until, Duration::ZERO));
    }
    draft.status.next_advance_at = barrier.until.map(Time);
    // Whoever is to approve reads the numbers.
    draft.decision.tell_again = Some(analysing::tell_again(draft, &rollout));
    draft.say(barrier.phase, barrier.reason, message);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// A changed schedule goes on at the first step not below the weight in force. Where that raises the weight, it waits as
/// every rise does: for nobody's pause, for an open window, and for pods.
fn follow_schedule(draft: &mut Draft<'_>, rollout: &mut Rollout, schedule: &Schedule) -> Option<Flow> {
    if rollout.step == 0 || draft.own_ingresses().next().is_none() {
        // Nothing is in force yet, whichever step was to be the first.
        let first = u32::from(schedule.weight(1) == Weight::ZERO);
        adopt(draft, rollout, first);
        return None;
    }
    // What somebody else raised is not in force but to be put right.
    let recorded = rollout.reached.last().map_or(Weight::ZERO, |last| last.weight);
    let weight = draft.live_weight().min(recorded);
    let step = schedule.first_not_below(weight);
    let wanted = schedule.weight(step);
    if wanted > weight && !rollout.skip_steps {
        let in_force = Split {
            weight: recorded,
            step: rollout.step,
        };
        if let Some(flow) = tampered(draft, rollout, in_force) {
            return Some(flow);
        }
        let waits = match shut(draft, rollout, &format!("{wanted}%"), draft.now) {
            Some(barrier) => Some(wait_at(draft, rollout.clone(), weight, barrier)),
            None => pods_for(draft, rollout, wanted),
        };
        if waits.is_some() {
            // Other testers do not wait for another weight; a rollback needs the Ingresses as they are.
            if matches!(waits, Some(Flow::Wait))
                && let Some(mut held) = draft.status.rollout.take()
            {
                let why = format!("step {}: {}", held.step, share(draft, recorded));
                draft.steer(&mut held, in_force, &why);
                draft.status.rollout = Some(held);
            }
            return waits;
        }
    }
    adopt(draft, rollout, step);
    if rollout.skip_steps && wanted > weight {
        // What follows is the promotion, at whose weight the step does not matter.
        rollout.step = step.saturating_sub(1);
    }
    None
}

fn adopt(draft: &Draft<'_>, rollout: &mut Rollout, step: u32) {
    rollout.schedule = hash::schedule_hash(&draft.seen.release.spec);
    // An approval was of a step of the schedule before.
    rollout.approved = None;
    rollout.proven = None;
    rollout.step = step;
    rollout.weight_since = None;
}

/// An operator that died after it wrote a step's weight and before it recorded the step finds the step beside the weight.
/// Only the very next step with its weight can be such: anything else was noted by somebody else, and is put right.
/// Returns whether that step was already the promotion's.
fn catch_up(draft: &Draft<'_>, rollout: &mut Rollout, schedule: &Schedule) -> bool {
    let mut live = draft.own_ingresses().map(|ingress| draft.routing.split(ingress));
    let promoting = |split: &Split| split.step == schedule.len() + 1 && split.weight == Weight::FULL;
    let ahead = live.find(|split| split.step == rollout.step + 1 || (rollout.skip_steps && promoting(split)));
    match ahead {
        Some(split) if promoting(&split) => {
            enter_promotion(draft, rollout);
            return true;
        }
        Some(split) if split.step <= schedule.len() && split.weight == schedule.weight(split.step) => {
            enter_step(rollout, split.step);
            draft.reached(rollout, split.weight);
        }
        _ => {}
    }
    false
}

fn enter_step(rollout: &mut Rollout, step: u32) {
    rollout.step = step;
    rollout.weight_since = None;
    rollout.proven = None;
    rollout.interrupted_for = None;
}

fn enter_promotion(draft: &Draft<'_>, rollout: &mut Rollout) {
    rollout.stage = Stage::Promoting;
    rollout.waiting_since = MicroTime(draft.now);
    rollout.interrupted_for = None;
}

/// Nothing holds the release: pods first, then the weight.
fn advance(draft: &mut Draft<'_>, mut rollout: Rollout, schedule: &Schedule) -> Flow {
    if rollout.skip_steps || rollout.step >= schedule.len() {
        enter_promotion(draft, &mut rollout);
        draft.status.rollout = Some(rollout);
        return Flow::Again;
    }
    let weight = schedule.weight(rollout.step + 1);
    if let Some(flow) = pods_for(draft, &mut rollout, weight) {
        return flow;
    }
    let step = rollout.step + 1;
    enter_step(&mut rollout, step);
    draft.status.rollout = Some(rollout);
    Flow::Again
}

/// Waits for the pods that a weight needs.
fn pods_for(draft: &mut Draft<'_>, rollout: &mut Rollout, weight: Weight) -> Option<Flow> {
    let need = draft.pods(rollout, weight);
    if draft.scale(rollout, need, &format!("{weight}% of the requests are next")) {
        return None;
    }
    let canary = &rollout.canary.deployment;
    let waiting =
        format!("waiting for {need} ready pods of Deployment {canary} before {weight}% of the requests go there");
    let late = format!("Deployment {canary} did not get {need} ready pods");
    let what = (Phase::Progressing, SCALING, waiting);
    Some(ending::wait_for_progress(draft, rollout.clone(), what, late))
}
