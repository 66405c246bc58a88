//! Whether the weight in force is live: every controller had the settle time to learn of it, and the requests counted
//! since do not say otherwise.

use super::{
    analysing::pins_clients,
    draft::{Draft, clock},
};
use crate::{
    analysis::{SplitVerdict, judge_split},
    api::{Rollout, Weight},
};

/// Why a release is held whose requests do not divide as they should.
pub(super) const SPLIT: &str = "TrafficSplitDiffers";
/// What usually causes it.
const CAUSES: &str = "usual causes: an Ingress of another class or path, a second canary, session affinity, a Service that another Ingress leads to, a version that leaves requests without an answer (docs/reasons.md)";

/// Requests counted since the weight is live that deny it, in a sentence that stays the same while they do.
pub(super) fn contradiction(
    draft: &Draft<'_>,
    rollout: &mut Rollout,
    weight: Weight,
) -> Option<(&'static str, String)> {
    let held = rollout.split_differs.clone();
    let verdict = verdict(draft, rollout, weight);
    let differs = match verdict {
        Some(SplitVerdict::Differs) => true,
        // Held until as many requests as it takes say that it is mended.
        Some(SplitVerdict::TooFew) | None => held.is_some(),
        Some(SplitVerdict::Agrees) => false,
    };
    if !differs {
        rollout.split_differs = None;
        return None;
    }
    let sentence = held.unwrap_or_else(|| {
        let counted = tally(draft).unwrap_or_default();
        format!("{counted} went to version 2 at a weight of {weight}%, which chance does not do: {CAUSES}")
    });
    rollout.split_differs = Some(sentence.clone());
    Some((SPLIT, sentence))
}

/// Notes that the counted requests prove the weight, once, and unless something else is to be told soon.
pub(super) fn prove(draft: &Draft<'_>, rollout: &mut Rollout, weight: Weight) {
    if rollout.proven.is_none() && verdict(draft, rollout, weight) == Some(SplitVerdict::Agrees) {
        rollout.proven = tally(draft);
    }
}

/// `37 of 412 requests since 10:00:06Z`.
fn tally(draft: &Draft<'_>) -> Option<String> {
    let live = draft.seen.judged.live.as_ref()?;
    let (stable, canary) = (live.stable.total(), live.canary.total());
    let since = clock(live.since, draft.now);
    Some(format!(
        "{canary} of {} requests since {since}",
        stable.saturating_add(canary)
    ))
}

/// What was counted says, where it was counted since the weight is live and chance decides about each request.
fn verdict(draft: &Draft<'_>, rollout: &Rollout, weight: Weight) -> Option<SplitVerdict> {
    let span = draft.seen.judged.live.as_ref()?;
    let live = draft.settling.live(rollout)?;
    let of_this_weight = span.since >= live || rollout.split_differs.is_some();
    if !of_this_weight || pins_clients(rollout, &draft.seen.ingresses, draft.routing) {
        return None;
    }
    let traffic = draft.seen.release.spec.traffic.as_ref();
    let testers = traffic.is_some_and(|traffic| traffic.has_testers());
    Some(judge_split(weight, span.stable.total(), span.canary.total(), testers))
}
