//! Version 2 takes version 1's place.
//!
//! nginx learns of replaced pods up to four seconds late and waits out its connect timeout for each address that is gone,
//! so the canary carries everything while the stable Deployment rolls (measured: 5–13 % of requests waited 5 s otherwise).

use super::{
    Kind, Level, Op,
    draft::{Draft, Flow, clock},
    ending,
    holding::{hold_until_deadline, tampered, unready},
    preflight::ground,
    schedule,
};
use crate::{
    api::{Outcome, Phase, Rollout, Stage, Weight},
    render::promotion_patch,
    routing::Split,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// Whether the stable Deployment already has version 2's template: from then on there is no way back but forward.
pub(super) fn committed(draft: &Draft<'_>) -> bool {
    draft
        .seen
        .stable
        .as_ref()
        .is_some_and(|stable| Some(stable.revision()) == draft.status.revision)
}

/// Moves all traffic to the canary, then gives the stable Deployment version 2's template.
pub(super) fn promoting(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    if committed(draft) {
        (rollout.stage, rollout.waiting_since) = (Stage::Finishing, MicroTime(draft.now));
        draft.status.rollout = Some(rollout);
        return Flow::Again;
    }
    if let Some(flow) = ending::found_wanting(draft, &rollout) {
        return flow;
    }
    let steps = schedule::schedule(&draft.seen.release.spec).map_or(0, |schedule| schedule.len());
    draft.status.step = Some(format!("{steps}/{steps}"));
    let need = draft.seen.stable.as_ref().map_or(1, |stable| stable.replicas.max(1));
    let name = rollout.canary.deployment.clone();
    if !draft.scale(&mut rollout, need, "all requests are next") {
        let left = draft.deadline(&rollout);
        if left.is_zero() {
            let message = format!(
                "Deployment {name} did not get the {need} ready pods that carry everything during promotion, within {} (spec.progressDeadline)",
                draft.seen.release.spec.progress_deadline
            );
            return ending::turn_back(draft, rollout, Outcome::RolledBack, "ProgressDeadlineExceeded", message);
        }
        draft.say(Phase::Promoting, "ScalingCanary", format!("waiting for {need} ready pods of Deployment {name}, which then carry all requests while version 1's are replaced"));
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    if let Some(why) = unready(draft, &rollout) {
        return hold_until_deadline(draft, rollout, why);
    }
    let split = Split {
        weight: Weight::FULL,
        step: steps + 1,
    };
    if let Some(flow) = tampered(draft, &rollout, split) {
        return flow;
    }
    if draft.steer(
        &rollout,
        split,
        "version 2 carries everything while version 1's pods are replaced",
    ) {
        rollout.weight_since = Some(MicroTime(draft.now));
        draft.reached(&mut rollout, Weight::FULL);
        let images = draft.images();
        draft.note(
            Level::Normal,
            "Promoting",
            format!(
                "{images}: every step passed; all requests go to version 2's canary while Deployment {} is replaced",
                draft.seen.release.target()
            ),
        );
    }
    let written = rollout.weight_since.get_or_insert(MicroTime(draft.now)).0;
    let left = draft.until(written, draft.settle);
    if !left.is_zero() {
        draft.look_again(left);
        draft.say(
            Phase::Promoting,
            "ShiftingTraffic",
            format!(
                "all requests go to version 2's canary; Deployment {} gets version 2 at {}",
                draft.seen.release.target(),
                clock(draft.now + left)
            ),
        );
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    replace_stable(draft, rollout)
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
    let patch = promotion_patch(&draft.seen.release.spec.canary, &ground.container);
    draft.write(
        Kind::Deployment,
        &stable.name,
        Op::StrategicMerge {
            version: stable.version.clone(),
            patch,
        },
        "every step passed",
    );
    (rollout.stage, rollout.waiting_since) = (Stage::Finishing, MicroTime(draft.now));
    draft.say(
        Phase::Promoting,
        "ReplacingStable",
        format!(
            "waiting for Deployment {} to roll out version 2; the canary carries all requests meanwhile",
            stable.name
        ),
    );
    draft.deadline(&rollout);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// Waits for the stable Deployment, then takes the canary away without losing a request.
pub(super) fn finishing(draft: &mut Draft<'_>, mut rollout: Rollout) -> Flow {
    let Some(stable) = &draft.seen.stable else {
        return ending::turn_back(
            draft,
            rollout,
            Outcome::RolledBack,
            "StableChanged",
            ending::stable_changed(draft),
        );
    };
    if !committed(draft) {
        // The watch may not have shown our own write yet: the old template is then still the one that was replaced.
        let message = ending::stable_changed(draft);
        return ending::turn_back(draft, rollout, Outcome::RolledBack, "StableChanged", message);
    }
    let name = stable.name.clone();
    let drained = rollout.drained_since.is_some();
    let back = stable.rolled_out() && draft.ready(&rollout.service) > 0;
    if !drained && !back {
        rollout.stable_since = None;
        let left = draft.deadline(&rollout);
        let deadline = draft.seen.release.spec.progress_deadline;
        if left.is_zero() {
            let failure = stable
                .replica_failure()
                .map(|why| format!(" ({why})"))
                .unwrap_or_default();
            let message = if stable.rolled_out() {
                format!(
                    "Deployment {name} runs version 2, but Service {} has no ready endpoint after {deadline} (spec.progressDeadline): restore the Service; nginx answers 503 to everyone until then",
                    rollout.service
                )
            } else {
                format!(
                    "Deployment {name} did not roll out version 2 within {deadline} (spec.progressDeadline){failure}; the canary goes on carrying all requests: see kubectl rollout status deployment/{name}"
                )
            };
            draft.stall(&[super::Finding::new("PromotionStuck", message)]);
        } else {
            draft.say(
                Phase::Promoting,
                "ReplacingStable",
                format!(
                    "waiting for Deployment {name} to roll out version 2; the canary carries all requests meanwhile"
                ),
            );
        }
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    // The controllers learn of the stable Deployment's new endpoints like of anything else: within the settle time.
    let stable_since = rollout.stable_since.get_or_insert(MicroTime(draft.now)).0;
    let left = draft.until(stable_since, draft.settle);
    if !drained && !left.is_zero() {
        draft.look_again(left);
        draft.say(
            Phase::Promoting,
            "StableUpdated",
            format!(
                "Deployment {name} runs version 2; requests return to it at {}",
                clock(draft.now + left)
            ),
        );
        draft.status.rollout = Some(rollout);
        return Flow::Wait;
    }
    let mut since = rollout.drained_since.take();
    let gone = draft.drain(&mut since, rollout.exposed, "version 2 has taken version 1's place");
    rollout.drained_since = since;
    draft.say(
        Phase::Promoting,
        "RemovingCanary",
        format!("Deployment {name} runs version 2; requests return to it, then the canary's pods are removed"),
    );
    if gone {
        let message = format!(
            "version 2 ({}) has taken version 1's place",
            draft.status.canary_image.clone().unwrap_or_default()
        );
        return ending::end(draft, rollout, Outcome::Promoted, "Promoted".to_owned(), message);
    }
    draft.status.rollout = Some(rollout);
    Flow::Wait
}
