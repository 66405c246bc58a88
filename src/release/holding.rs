//! What keeps the weight from rising, and for how long.

use super::{
    Level,
    draft::{Draft, Flow, clock},
    ending,
    preflight::intrusion,
};
use crate::{
    api::{Duration, Outcome, Phase, Rollout},
    render::owned_by,
    routing::{Split, backends, leads_to},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Resource, ResourceExt};

const TAMPERED: &str = "CanaryIngressChanged";
const GONE: &str = "CanaryIngressGone";

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
    let suffix = rollout.suffix();
    let named = |name: &str| draft.seen.ingresses.iter().find(|i| i.name_any() == name);
    let missing = rollout.ingresses.iter().find_map(|name| {
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
    });
    missing.or_else(|| {
        let intrusion = intrusion(draft.seen, draft.routing, rollout)?;
        Some((intrusion.reason, intrusion.message))
    })
}

/// Something without a deadline of its own holds the release.
pub(super) fn hold(draft: &mut Draft<'_>, rollout: Rollout, reason: &'static str, message: String) -> Flow {
    if !draft.held_for(reason) {
        draft.note(Level::Warning, reason, message.clone());
    }
    draft.say(Phase::Holding, reason, message);
    draft.status.rollout = Some(rollout);
    Flow::Wait
}

/// Something interrupts the step. All interruptions of a step together may take the progress deadline: pods that flap
/// would otherwise begin their hold anew for ever.
pub(super) fn hold_until_deadline(
    draft: &mut Draft<'_>,
    mut rollout: Rollout,
    (reason, why): (&'static str, String),
) -> Flow {
    let since = draft.counted_from(rollout.interrupted_since.get_or_insert(MicroTime(draft.now)).0);
    let deadline = draft.seen.release.spec.progress_deadline;
    let before = rollout.interrupted_for.unwrap_or_default().get();
    let left = draft.until(since, deadline.get().saturating_sub(before));
    if left.is_zero() {
        let over = if before.is_zero() { "" } else { " altogether" };
        let message = format!("{why}, for {deadline}{over} (spec.progressDeadline)");
        return ending::turn_back(draft, rollout, Outcome::RolledBack, reason, message);
    }
    draft.look_again(left);
    let end = clock(draft.now + left, draft.now);
    hold(
        draft,
        rollout,
        reason,
        format!("{why}; rollback at {end} unless that mends"),
    )
}

/// What was interrupted starts over: a pod that is ready between two crashes is not ready.
pub(super) fn resume(draft: &Draft<'_>, rollout: &mut Rollout) {
    let Some(since) = rollout.interrupted_since.take() else {
        return;
    };
    let length = draft.now.duration_since(draft.counted_from(since.0));
    let length = std::time::Duration::try_from(length).unwrap_or_default();
    let before = rollout.interrupted_for.unwrap_or_default().get();
    rollout.interrupted_for = Some(Duration::of(before + length));
    // A weight that is not written yet has no time to start over.
    if let Some(since) = &mut rollout.weight_since {
        *since = MicroTime(draft.now);
    }
    rollout.proven = None;
}

/// A canary Ingress that is not there, though a round before this one wrote it.
pub(super) fn written_and_missing(draft: &Draft<'_>, rollout: &Rollout) -> Option<String> {
    draft.seen.release.rollout()?.expressed.as_ref()?;
    draft.missing(rollout)
}

/// A canary Ingress that this release has written and that is not there stays away, whatever would be asked of it now: the
/// release is rolled back.
pub(super) fn gone(draft: &mut Draft<'_>, rollout: &Rollout) -> Option<Flow> {
    let gone = written_and_missing(draft, rollout)?;
    // Somebody took the requests away from version 2, with or without a word: a person, or an operator that died, was refused
    // or cut off before it recorded why. To lead them there again would be to know better.
    let message = format!(
        "Ingress {gone} is gone and nothing records why: somebody deleted it, or an operator had begun to turn back and could not write the status (its log says why)"
    );
    Some(ending::turn_back(
        draft,
        rollout.clone(),
        Outcome::RolledBack,
        GONE,
        message,
    ))
}

/// Somebody else's hand on a canary Ingress that this step has written before: it is put right at once, and again once in a
/// settle time, so that two controllers do not write in turns for ever. The release holds until it stays for a settle time.
pub(super) fn tampered(draft: &mut Draft<'_>, rollout: &Rollout, split: Split) -> Option<Flow> {
    let mut rollout = rollout.clone();
    // Whoever may change the spec may change what follows from it.
    if rollout.expressed.as_ref() != Some(&draft.expression(split)) {
        return None;
    }
    let rest = draft.until(rollout.weight_since.as_ref()?.0, draft.settling.time);
    let watching = draft.held_for(TAMPERED) && !rest.is_zero();
    let stray = draft.strays(&rollout, split);
    if !watching && stray.is_none() {
        return None;
    }
    if !watching {
        let why = format!("step {}: {}% to version 2", split.step, split.weight);
        draft.steer(&mut rollout, split, &why);
        rollout.weight_since = Some(MicroTime(draft.now));
    }
    let names = stray.or_else(|| draft.own_ingresses().next().map(|ingress| ingress.name_any()));
    let name = names.unwrap_or_default();
    let why = format!(
        "Ingress {name} was changed by somebody else, or the one it follows was, and is put right: if that goes on, find out who writes it (kubectl get ingress {name} -o yaml --show-managed-fields)"
    );
    let flow = hold_until_deadline(draft, rollout, (TAMPERED, why));
    draft.look_again(if watching { rest } else { draft.settling.time });
    Some(flow)
}
