//! What a step waits for once its time is over: for nobody's pause, for an approval, for an open window.

use super::{
    Schedule,
    command::{Command, Verb},
    draft::{Draft, clock},
    windows::{Gate, gate},
};
use crate::api::{ANNOTATION_COMMAND, Phase, Rollout, Weight};
use jiff::Timestamp;
use kube::ResourceExt;

const PAUSED: &str = "Paused";
pub(super) const APPROVAL: &str = "AwaitingApproval";
const UNHEARD: &str = "AwaitingControllers";
const WINDOW: &str = "WindowClosed";
const MISTAKE: &str = "InvalidSpec";

/// Something that the schedule waits for.
pub(super) struct Barrier {
    pub phase: Phase,
    pub reason: &'static str,
    /// A clause that follows what is in force now.
    pub why: String,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
}

/// What keeps the release from going on at `at`, provided that the step's time is over by then and health allows it.
pub(super) fn barrier(draft: &Draft<'_>, rollout: &Rollout, schedule: &Schedule, at: Timestamp) -> Option<Barrier> {
    let next = next(rollout, schedule);
    let step = schedule.step(rollout.step).filter(|_| !rollout.skip_steps);
    let unapproved = step.is_some_and(|step| step.approval) && rollout.approved != Some(rollout.step);
    if unapproved && !draft.seen.release.spec.paused {
        let command = Command {
            verb: Verb::Approve(rollout.step),
            revision: draft.status.revision.clone().unwrap_or_default(),
        };
        let name = draft.seen.release.name_any();
        let namespace = draft.seen.release.namespace().unwrap_or_default();
        return Some(Barrier {
            phase: Phase::Paused,
            reason: APPROVAL,
            why: format!(
                "{next} waits for approval: kubectl annotate canaryrelease {name} -n {namespace} {ANNOTATION_COMMAND}={command}"
            ),
            until: None,
        });
    }
    shut(draft, rollout, &next, at)
}

/// What keeps any weight from rising at `at`, whichever step it is of.
pub(super) fn shut(draft: &Draft<'_>, rollout: &Rollout, next: &str, at: Timestamp) -> Option<Barrier> {
    let scheduled = !rollout.skip_steps;
    paused(draft, next)
        .or_else(|| scheduled.then(|| closed(draft, next, at)).flatten())
        .or_else(|| unheard(draft, next, at))
}

/// Controllers that may not have heard of endpoints yet: they would lead a raised share to the few that they know, and go on
/// leading requests to pods that are gone. Where everything goes to version 2 no share is left to raise, and what keeps
/// version 1's pods is the settle time of that weight, which an outage draws out.
pub(super) fn unheard(draft: &Draft<'_>, next: &str, at: Timestamp) -> Option<Barrier> {
    if draft.live_weight() == Weight::FULL {
        return None;
    }
    let outage = draft.settling.outages.unheard(at)?;
    let heard_by = outage.heard_by();
    Some(Barrier {
        phase: Phase::Holding,
        reason: UNHEARD,
        why: format!(
            "{next} at {}: the API server was out of reach until {}, and ingress-nginx may hear of new and lost endpoints as late as that",
            clock(heard_by, draft.now),
            clock(outage.until, draft.now)
        ),
        until: Some(heard_by),
    })
}

/// `spec.paused`, which holds what is not yet begun.
pub(super) fn paused(draft: &Draft<'_>, next: &str) -> Option<Barrier> {
    draft.seen.release.spec.paused.then(|| Barrier {
        phase: Phase::Paused,
        reason: PAUSED,
        why: format!("paused: {next} waits until spec.paused is false"),
        until: None,
    })
}

fn closed(draft: &Draft<'_>, next: &str, at: Timestamp) -> Option<Barrier> {
    let (reason, why, until) = match gate(&draft.seen.release.spec, at) {
        Ok(Gate::Open { .. }) => return None,
        Ok(Gate::Closed { until, why }) => (WINDOW, why, until),
        Err(mistake) => (MISTAKE, mistake, None),
    };
    Some(Barrier {
        phase: Phase::Holding,
        reason,
        why: match until {
            Some(until) => format!("{next} at {}: {why}", clock(until, draft.now)),
            None => format!("{next} waits: {why}"),
        },
        until,
    })
}

/// What follows the step in force: `30%`, or `promotion`.
pub(super) fn next(rollout: &Rollout, schedule: &Schedule) -> String {
    if rollout.skip_steps || rollout.step >= schedule.len() {
        "promotion".to_owned()
    } else {
        format!("{}%", schedule.weight(rollout.step + 1))
    }
}

/// Who goes to version 2 at a weight, in words.
pub(super) fn share(draft: &Draft<'_>, weight: Weight) -> String {
    let testers = draft.seen.release.spec.traffic.as_ref().filter(|t| t.has_testers());
    match testers {
        Some(testers) if weight == Weight::ZERO => format!("only {testers} go to version 2"),
        Some(testers) if weight < Weight::FULL => {
            format!("{weight}% of the requests, and all {testers}, go to version 2")
        }
        None if weight == Weight::ZERO => "no request goes to version 2 yet".to_owned(),
        _ => format!("{weight}% of the requests go to version 2"),
    }
}
