//! Judges version 2 by the requests that were counted, window by window, and by all of them together.
//!
//! Pure: told the time and what was counted, it answers with verdicts as data. Nothing it remembers beside those is needed
//! to be safe: one that starts over judges the next window instead of this one.

mod case;
mod rules;
mod words;

pub use rules::{Rule, Rules};

use super::{Counts, Met, Side, sequential::Batch};
use crate::api::{CheckKind, CheckStatus, Verdict, Weight};
use case::Case;
use jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// How late the counts of a window may be before there is no verdict for want of them.
const GRACE: Duration = Duration::from_secs(10);
/// After a raise requests are counted as often as that tells something.
const CLOSELY: Duration = Duration::from_secs(30);
/// As often as counting tells something: the controllers' own counters are about so late.
pub const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(5);
/// Requests that are weighed together at least: the comparison uses what one fewer are worth.
pub(super) const BATCH: u64 = 20;
/// Requests that denied the weight make room for others after this time, which may say that it is mended.
const FORGIVEN: Duration = Duration::from_secs(30);

/// The weight that requests are judged under.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    /// Number of the step.
    pub step: u32,
    /// Share of the requests that goes to version 2.
    pub weight: Weight,
    /// When every controller has it. Until then the share lies between the one before and this one.
    pub live: Timestamp,
    /// Why a request's version is not left to chance, where it is not: then the versions' requests differ in more than the
    /// version.
    pub chosen: Option<&'static str>,
    /// Whether the requests since then have denied the weight.
    pub denied: bool,
}

/// Result of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// When it was asked.
    pub at: Timestamp,
    /// The number, nothing where the result is empty, or why there is none.
    pub result: Result<Option<f64>, String>,
}

/// What a look knows.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The present.
    pub now: Timestamp,
    /// What is asked for.
    pub rules: &'a Rules,
    /// What is judged; nothing while version 2 gets no requests yet.
    pub in_force: Option<&'a InForce>,
    /// Requests, as last counted.
    pub counts: Option<&'a Counts>,
    /// How late they may be while nothing is wrong.
    pub lag: Duration,
    /// Why they are not counted at all.
    pub uncounted: Option<&'a str>,
    /// Last results of queries, by the check's name.
    pub answers: &'a BTreeMap<String, Answer>,
}

/// Requests of both versions since a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// When it began.
    pub since: Timestamp,
    /// When it ended.
    pub until: Timestamp,
    /// To version 1.
    pub stable: Side,
    /// To version 2.
    pub canary: Side,
}

/// What a judge has found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Where each check stands.
    pub checks: Vec<CheckStatus>,
    /// Verdicts of this very look: kind of check as written, and verdict.
    pub verdicts: Vec<(&'static str, Verdict)>,
    /// Whether the comparisons with version 1 prove harm together; the one that does most says so.
    pub harm: Option<String>,
    /// Whether all of them rule out a doubling of version 1's failures.
    pub harmless: bool,
    /// Requests since the weight is live.
    pub live: Option<Span>,
    /// Requests since counting began.
    pub all: Option<Span>,
    /// Until when requests have met each version, where that is counted at once.
    pub met: Option<Met>,
}

/// Judges one release.
#[derive(Clone, Debug)]
pub struct Judge {
    cases: Vec<Case>,
    /// Step and moment that windows are of.
    of: Option<(u32, Timestamp)>,
    /// What had been counted when counting began, when the weight was live, and when the comparisons last weighed it.
    first: Option<Mark>,
    live: Option<Mark>,
    weighed: Option<Mark>,
    /// Whether requests that are yet to be weighed may have come while a raised weight spread.
    spreading: bool,
}

/// What had been counted at a moment.
#[derive(Clone, Debug)]
struct Mark {
    began: Timestamp,
    stable: Side,
    canary: Side,
}

impl Mark {
    fn of(counts: &Counts) -> Self {
        Self {
            began: counts.began,
            stable: counts.stable.clone(),
            canary: counts.canary.clone(),
        }
    }

    fn span(&self, counts: &Counts) -> Span {
        Span {
            since: self.began,
            until: counts.began,
            stable: counts.stable.since(&self.stable),
            canary: counts.canary.since(&self.canary),
        }
    }
}

impl Judge {
    /// Goes on where another left off, as far as that is recorded.
    #[must_use]
    pub fn resume(checks: &[CheckStatus]) -> Self {
        Self {
            cases: checks.iter().cloned().map(Case::recorded).collect(),
            of: None,
            first: None,
            live: None,
            weighed: None,
            spreading: true,
        }
    }

    /// Takes in what is new.
    pub fn look(&mut self, look: &Look<'_>) -> Judged {
        self.adopt(look.rules);
        if let Some(counts) = look.counts.filter(|counts| counts.complete) {
            self.first.get_or_insert_with(|| Mark::of(counts));
        }
        match look.in_force {
            Some(in_force) => self.judge(look, in_force),
            None => self.weighed = look.counts.map(Mark::of),
        }
        self.found(look)
    }

    /// How soon the next look is worth its price.
    #[must_use]
    pub fn pace(&self, look: &Look<'_>) -> Duration {
        let Some(in_force) = look.in_force else { return SELDOM };
        let until = |at: Timestamp| at.duration_since(look.now).as_secs_f64();
        let new = until(after(in_force.live, CLOSELY)) > 0.0;
        let windows = self.cases.iter().filter_map(|case| case.window.as_ref());
        // One that is overdue for want of requests may be for days.
        let soon = windows
            .map(|window| until(window.due))
            .any(|left| (0.0..SELDOM.as_secs_f64()).contains(&left));
        let troubled = self
            .cases
            .iter()
            .any(|case| case.status.verdict == Some(Verdict::Breach));
        if new || soon || troubled { OFTEN } else { SELDOM }
    }

    /// Checks come and go with the spec; one that asks for something else starts anew.
    fn adopt(&mut self, rules: &Rules) {
        let mut before = std::mem::take(&mut self.cases);
        let case = |rule: &Rule| {
            let same = before.iter().position(|case| case.status.asked == rule.asked);
            same.map_or_else(|| Case::new(rule), |at| before.swap_remove(at))
        };
        self.cases = rules.checks.iter().map(case).collect();
    }

    fn judge(&mut self, look: &Look<'_>, in_force: &InForce) {
        if self.of != Some((in_force.step, in_force.live)) {
            self.of = Some((in_force.step, in_force.live));
            self.live = None;
            self.cases.iter_mut().for_each(Case::begin_step);
        }
        if let Some(counts) = look.counts {
            self.spreading |= self.live.is_none();
            let known = counts.complete && counts.began >= in_force.live;
            let forgiven = in_force.denied
                && (self.live.as_ref())
                    .is_some_and(|live| counts.began.duration_since(live.began).as_secs() >= FORGIVEN.as_secs() as i64);
            if known && (self.live.is_none() || forgiven) {
                self.live = Some(Mark::of(counts));
            }
            self.weigh(look, in_force, counts);
        }
        for (case, rule) in self.cases.iter_mut().zip(&look.rules.checks) {
            case.judge(look, in_force, rule);
        }
    }

    /// Adds what has come since to what the comparisons weigh, from the first request on: while a raised weight spreads, its
    /// share is taken to be spread already, which favours version 2.
    fn weigh(&mut self, look: &Look<'_>, in_force: &InForce, counts: &Counts) {
        let warm = after(in_force.live, look.rules.warm_up);
        let cold = counts.began < warm && !look.rules.warm_up.is_zero();
        let comparable = in_force.chosen.is_none() && !cold && in_force.weight > Weight::ZERO;
        let Some(before) = self.weighed.as_ref().filter(|_| comparable) else {
            return self.skip(counts);
        };
        let span = before.span(counts);
        let judged = |side: &Side| side.judged().values().sum::<u64>();
        if judged(&span.stable) + judged(&span.canary) < BATCH {
            return;
        }
        let least_share = if self.spreading {
            in_force.weight.fraction()
        } else {
            0.0
        };
        for (case, rule) in self.cases.iter_mut().zip(&look.rules.checks) {
            case.weigh(rule, |fault| {
                Some(Batch {
                    stable: fault.tally(&span.stable)?,
                    canary: fault.tally(&span.canary)?,
                    least_share,
                })
            });
        }
        self.skip(counts);
    }

    /// What has come until now is not weighed any more.
    fn skip(&mut self, counts: &Counts) {
        self.weighed = Some(Mark::of(counts));
        self.spreading = self.live.is_none();
    }

    fn found(&mut self, look: &Look<'_>) -> Judged {
        let compared: Vec<(usize, f64)> = (self.cases.iter().zip(&look.rules.checks).enumerate())
            .filter_map(|(index, (case, rule))| Some((index, case.log_harm(rule)?)))
            .collect();
        let chosen = look.in_force.is_none_or(|in_force| in_force.chosen.is_some());
        let mut judged = Judged::default();
        // The mean of evidence is evidence: several comparisons share the one chance of being wrong.
        if !chosen && together(&compared) >= 0.0 {
            let strongest = compared.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((index, _)) = strongest
                && let (Some(case), Some(rule)) = (self.cases.get_mut(index), look.rules.checks.get(index))
            {
                case.breached(rule, look, compared.len());
                judged.harm = Some(case.status.name.clone());
            }
        }
        judged.harmless = !chosen
            && !compared.is_empty()
            && (self.cases.iter().zip(&look.rules.checks)).all(|(case, rule)| case.is_harmless(rule));
        judged.checks = self.cases.iter().map(|case| case.status.clone()).collect();
        for (case, rule) in self.cases.iter_mut().zip(&look.rules.checks) {
            let kind = rule.check.kind().map(|kind| kind.name());
            judged.verdicts.extend(kind.zip(case.fresh.take()));
        }
        let counts = look.counts.filter(|counts| counts.complete);
        judged.live = counts.and_then(|counts| Some(self.live.as_ref()?.span(counts)));
        judged.all = look.counts.and_then(|counts| Some(self.first.as_ref()?.span(counts)));
        let at_once = look.counts.filter(|_| look.lag.is_zero());
        judged.met = at_once.and_then(|counts| counts.met);
        judged
    }
}

/// Logarithm of the mean of the evidence, each in units of its own limit.
fn together(compared: &[(usize, f64)]) -> f64 {
    let most = compared.iter().map(|(_, log)| *log).fold(f64::NEG_INFINITY, f64::max);
    if !most.is_finite() {
        return most;
    }
    #[allow(clippy::cast_precision_loss)] // At most ten.
    let mean = compared.iter().map(|(_, log)| (log - most).exp()).sum::<f64>() / compared.len() as f64;
    most + mean.ln()
}

/// `at + length`, as far as there is time.
fn after(at: Timestamp, length: Duration) -> Timestamp {
    at.checked_add(length).unwrap_or(Timestamp::MAX)
}

/// Whether a check compares version 2 with version 1 at the same time.
fn compares(kind: Option<CheckKind<'_>>) -> bool {
    matches!(
        kind,
        Some(CheckKind::ErrorRegression(_) | CheckKind::LatencyRegression(_))
    )
}

#[cfg(test)]
mod tests;
