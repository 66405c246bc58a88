//! Where a release stands, and what follows.

use super::{
    Decision, command,
    draft::{Draft, Flow, IDLE},
    ending, hash, preparing, promoting, stepping, waiting,
};
use crate::{
    api::{CanaryRelease, FINALIZER, Outcome, Phase, Stage},
    observe::Observed,
    routing::Routing,
};
use jiff::Timestamp;
use kube::ResourceExt;
use std::time::Duration;

/// How a round is decided: [`decide`], unless a test proves that a wrong way would be found.
pub type Decide = fn(&Observed, &dyn Routing, Duration, Timestamp) -> Decision;

/// Decides one round: total and pure. `settle` is how long a written weight takes to reach every controller.
#[must_use]
pub fn decide(seen: &Observed, routing: &dyn Routing, settle: Duration, now: Timestamp) -> Decision {
    let mut draft = Draft::new(seen, routing, settle, now);
    if seen.release.metadata.deletion_timestamp.is_none() {
        command::obey(&mut draft);
    }
    // Every stage leads onward, so that a handful of turns is enough; the bound makes it total.
    for _ in 0..8 {
        if let Flow::Wait = turn(&mut draft) {
            break;
        }
    }
    draft.finish()
}

/// For how long a release needs nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Until somebody changes it.
    UntilChanged,
    /// Until a Deployment that was kept goes, or the clock may have been set meanwhile, or somebody changes it.
    For(Duration),
}

/// Whether a release has nothing to do and nothing to guard, as far as the object itself tells. Such a release costs no
/// request and no watch.
#[must_use]
pub fn at_rest(release: &CanaryRelease, now: Timestamp) -> Option<Rest> {
    let guarded = release.finalizers().iter().any(|f| f == FINALIZER);
    let deleting = release.metadata.deletion_timestamp.is_some();
    if guarded {
        return None;
    }
    if deleting {
        return Some(Rest::UntilChanged);
    }
    let status = release.status.as_ref()?;
    let rollout = status.rollout.as_ref()?;
    let ended = rollout.stage == Stage::Ended && rollout.intent == hash::intent(&release.spec);
    let answered = command::commanded(release).is_none() && status.command.is_none();
    if !ended || !answered || status.observed_generation != release.metadata.generation {
        return None;
    }
    let Some(until) = &rollout.kept_until else {
        return Some(Rest::UntilChanged);
    };
    let left = Duration::try_from(until.0.duration_since(now)).unwrap_or_default();
    (!left.is_zero()).then(|| Rest::For(left.min(IDLE)))
}

fn turn(draft: &mut Draft<'_>) -> Flow {
    let deleting = draft.seen.release.metadata.deletion_timestamp.is_some();
    if deleting {
        return ending::deleted(draft);
    }
    let intent = hash::intent(&draft.seen.release.spec);
    let Some(rollout) = draft.status.rollout.clone() else {
        return start(draft, intent);
    };
    if rollout.stage == Stage::Ended {
        if ending::kept_too_long(draft, &rollout) {
            return Flow::Wait;
        }
        if rollout.intent != intent {
            let recorded = draft.seen.release.rollout();
            if recorded.is_some_and(|recorded| recorded.intent == intent) {
                // Tried again by a command of this very round: what a start needs to know is asked in the next.
                draft.say(Phase::Pending, "Retrying", "the release starts again at its first step");
                draft.look_again(Duration::ZERO);
                return Flow::Wait;
            }
            return start(draft, intent);
        }
        // An operator that died while it started another release recorded nothing of it, and the spec may be as it was again.
        let unrecorded = rollout.kept_until.is_none() && draft.owns_any();
        let gone = !unrecorded || draft.drain(&mut None, false, false, "a release that was not begun left this");
        if !gone {
            draft.look_again(draft.settling.time);
        }
        ending::say_ended(draft, &rollout);
        draft.decision.release_finalizer = gone;
        draft.decision.at_rest = true;
        return Flow::Wait;
    }
    if rollout.intent != intent
        && matches!(rollout.stage, Stage::Preparing | Stage::Stepping | Stage::Promoting)
        && !promoting::committed(draft, &rollout)
    {
        return ending::turn_back(
            draft,
            rollout,
            Outcome::Superseded,
            "Superseded",
            "spec.canary or spec.target changed: version 1 gets all traffic back before the new version starts"
                .to_owned(),
        );
    }
    match rollout.stage {
        Stage::Preparing => preparing::preparing(draft, rollout),
        Stage::Stepping => stepping::stepping(draft, rollout),
        Stage::Promoting => promoting::promoting(draft, rollout),
        Stage::Finishing => promoting::finishing(draft, rollout),
        Stage::RollingBack => ending::rolling_back(draft, rollout),
        Stage::Ended => Flow::Wait,
    }
}

/// A release starts unless it is paused.
fn start(draft: &mut Draft<'_>, intent: String) -> Flow {
    let Some(barrier) = waiting::paused(draft, "the release") else {
        return preparing::begin(draft, intent);
    };
    draft.say(barrier.phase, barrier.reason, barrier.why);
    // An operator that died while it started the release left what is to be guarded.
    draft.decision.release_finalizer = !draft.owns_any();
    Flow::Wait
}
