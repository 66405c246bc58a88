//! Whether the weight in force is live: every controller had the settle time to learn of it, and the requests counted
//! since do not say otherwise.

use super::draft::{Draft, clock};
use crate::{
    analysis::{SplitVerdict, judge_split},
    api::{CanaryRelease, Rollout, Stage, Weight},
};
use jiff::Timestamp;
use std::time::Duration;

/// Why a release is held whose requests do not divide as they should.
pub(super) const SPLIT: &str = "TrafficSplitDiffers";
/// What usually causes it.
const CAUSES: &str = "usual causes: an Ingress of another class or path, a second canary, session affinity, a Service that another Ingress leads to (docs/reasons.md)";

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
    let counted = draft.seen.counted.as_ref()?;
    let total = counted.stable.saturating_add(counted.canary);
    let since = clock(counted.since, draft.now);
    Some(format!("{} of {total} requests since {since}", counted.canary))
}

/// What was counted says, where it was counted since the weight is live and chance decides about each request.
fn verdict(draft: &Draft<'_>, rollout: &Rollout, weight: Weight) -> Option<SplitVerdict> {
    let counted = draft.seen.counted.as_ref()?;
    let live = rollout.weight_since.as_ref()?.0.checked_add(draft.settle).ok()?;
    let of_this_weight = counted.since >= live || rollout.split_differs.is_some();
    let stable = draft.seen.ingresses.iter();
    let mut stable = stable.filter(|i| {
        rollout
            .ingresses
            .contains(i.metadata.name.as_ref().unwrap_or(&String::new()))
    });
    if !of_this_weight || stable.any(|ingress| draft.routing.pins_clients(ingress)) {
        return None;
    }
    let testers = draft
        .seen
        .release
        .spec
        .traffic
        .as_ref()
        .is_some_and(|t| t.has_testers());
    Some(judge_split(weight, counted.stable, counted.canary, testers))
}

/// How many settle times a counting lasts that denies the weight, before another one may say that it is mended.
const FRESH: u32 = 5;

/// From when on requests are to be counted that are counted from `counting` on: from when the weight is live, and anew
/// where they have denied it for a while. Nothing where that is so already.
#[must_use]
pub fn counts_from(rollout: &Rollout, settle: Duration, counting: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let live = rollout.weight_since.as_ref()?.0.checked_add(settle).ok()?;
    let denies = rollout.split_differs.is_some() && counting.checked_add(settle * FRESH).is_ok_and(|over| over <= now);
    (counting < live).then_some(live).or(denies.then_some(now))
}

/// Whether the requests of a release are worth counting.
#[must_use]
pub fn is_counted(release: &CanaryRelease) -> bool {
    release
        .rollout()
        .is_some_and(|rollout| matches!(rollout.stage, Stage::Stepping | Stage::Promoting))
}
