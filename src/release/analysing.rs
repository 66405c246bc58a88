//! What follows from the verdicts on version 2: the weight stays, the release goes on, or version 1 gets all requests back.

use super::{
    Level, Schedule, Settling,
    draft::{Draft, Flow},
    ending,
};
use crate::{
    analysis::{InForce, Interest, Rules},
    api::{
        CanaryRelease, CheckKind, CheckStatus, ErrorAction, NoData, Outcome, PromotionMode, Rollout, Source, Stage,
        Verdict, Weight,
    },
    routing::{Routing, ports},
};
use k8s_openapi::{api::networking::v1::Ingress, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::ResourceExt;
use std::{sync::Arc, time::Duration};

/// How long a step without a hold is taken to last.
const UNHELD: Duration = Duration::from_secs(30);
/// A verdict is fresh for so many intervals and this time: windows follow each other, and counts come a little later.
const FRESH: u32 = 2;
const LATE: Duration = Duration::from_secs(15);

pub(super) const AWAITING: &str = "AwaitingVerdict";
pub(super) const NO_DATA: &str = "NoData";
const ERROR: &str = "AnalysisError";
const BREACH: &str = "CheckBreached";

/// What of a release is counted and judged.
#[derive(Clone, Debug, PartialEq)]
pub struct ToJudge {
    /// When the release began.
    pub started_at: MicroTime,
    /// Which requests are its own.
    pub interest: Interest,
    /// By what they are judged.
    pub rules: Rules,
    /// Under which weight; nothing while version 2 gets none.
    pub in_force: Option<InForce>,
    /// Whether it is waited for requests that are still led where none should go: they are asked for each second.
    pub closely: bool,
}

/// What of a release is to be counted and judged now. Counting begins before version 2 gets requests: the traffic of
/// version 1 tells what the release can find. It ends when no controller leads any there.
#[must_use]
pub fn to_judge(
    release: &CanaryRelease,
    ingresses: &[Arc<Ingress>],
    routing: &dyn Routing,
    settling: &Settling,
) -> Option<ToJudge> {
    let rollout = release.rollout()?;
    let mut rules = rules(release, rollout);
    // A Prometheus tells too late whether requests are still led somewhere.
    let may_drain = rules.source == Source::IngressNginx && ending::may_be_exposed(rollout);
    let judged = match rollout.stage {
        Stage::Preparing | Stage::Stepping | Stage::Promoting => true,
        Stage::Finishing | Stage::RollingBack if may_drain => false,
        _ => return None,
    };
    let interest = interest(
        &release.namespace().unwrap_or_default(),
        rollout,
        ingresses,
        rules.times_requests(),
    );
    if !judged {
        rules.checks.clear();
    }
    let live = settling.live(rollout).filter(|_| judged && is_judged(rollout));
    let in_force = live.map(|live| InForce {
        step: rollout.step,
        weight: weight(rollout),
        live,
        chosen: chosen(release, rollout, ingresses, routing),
        denied: rollout.split_differs.is_some(),
    });
    let replaces = release.spec.promotion.mode == PromotionMode::UpdateStable
        && rollout.stage == Stage::Promoting
        && weight(rollout) == Weight::FULL;
    Some(ToJudge {
        started_at: rollout.started_at.clone(),
        interest,
        rules,
        in_force,
        closely: replaces || rollout.drained_since.is_some(),
    })
}

/// Whether there is anything to judge yet. Before the first step no request meets version 2: a query about those would have no
/// result, and the release would wait for one for ever.
fn is_judged(rollout: &Rollout) -> bool {
    rollout.step > 0 || rollout.stage == Stage::Promoting
}

/// The weight that was last written.
fn weight(rollout: &Rollout) -> Weight {
    let last = rollout.reached.last().filter(|_| is_judged(rollout));
    last.map_or(Weight::ZERO, |last| last.weight)
}

fn rules(release: &CanaryRelease, rollout: &Rollout) -> Rules {
    let schedule = super::schedule(&release.spec).ok();
    let step = schedule.and_then(|schedule| schedule.step(rollout.step));
    Rules::of(release.spec.analysis.as_ref(), step.as_ref())
}

/// Whether clients stay with the version that they once had.
pub(super) fn pins_clients(rollout: &Rollout, ingresses: &[Arc<Ingress>], routing: &dyn Routing) -> bool {
    let mut stable = ingresses.iter().filter(|i| rollout.ingresses.contains(&i.name_any()));
    stable.any(|ingress| routing.pins_clients(ingress))
}

/// Why chance does not decide about each request.
fn chosen(
    release: &CanaryRelease,
    rollout: &Rollout,
    ingresses: &[Arc<Ingress>],
    routing: &dyn Routing,
) -> Option<&'static str> {
    if pins_clients(rollout, ingresses, routing) {
        return Some("session affinity keeps clients with a version");
    }
    let testers = release
        .spec
        .traffic
        .as_ref()
        .is_some_and(|traffic| traffic.has_testers());
    testers.then_some("testers choose version 2 themselves (spec.traffic)")
}

/// The series of a release: those of version 1's Ingresses, and of the canary Service's ports as the Ingresses name them.
fn interest(namespace: &str, rollout: &Rollout, ingresses: &[Arc<Ingress>], latency: bool) -> Interest {
    let ours = ingresses.iter().filter(|i| rollout.ingresses.contains(&i.name_any()));
    let canary = |port: String| Interest::canary(namespace, &rollout.canary.service, port);
    Interest {
        namespace: namespace.to_owned(),
        ingresses: rollout.ingresses.iter().cloned().collect(),
        service: rollout.service.clone(),
        canaries: ours
            .flat_map(|ingress| ports(ingress, &rollout.service).map(canary))
            .collect(),
        latency,
    }
}

/// Takes over what was judged, and turns back where that is proof enough.
pub(super) fn found_harmful(draft: &mut Draft<'_>, rollout: &mut Rollout) -> Option<Flow> {
    let rules = rules(&draft.seen.release, rollout);
    let judged = &draft.seen.judged;
    if !judged.checks.is_empty() || rules.checks.is_empty() {
        draft.status.checks.clone_from(&judged.checks);
    }
    if let Some(all) = &judged.all {
        rollout.of_nginx = rollout.of_nginx.max(all.stable.of_nginx() + all.canary.of_nginx());
    }
    tell_changes(draft);
    let (reason, message) = proof(draft, &rules)?;
    Some(ending::turn_back(
        draft,
        rollout.clone(),
        Outcome::RolledBack,
        reason,
        message,
    ))
}

/// What was judged since the last status, in events and in one line.
fn tell_changes(draft: &mut Draft<'_>) {
    let before = draft.seen.release.status.as_ref();
    let before = before.map(|status| status.checks.as_slice()).unwrap_or_default();
    let news: Vec<_> = draft
        .status
        .checks
        .iter()
        .filter(|check| is_news(check, before))
        .cloned()
        .collect();
    for check in news {
        let message = check.message.unwrap_or_default();
        match check.verdict {
            Some(Verdict::Breach) => draft.note(Level::Warning, BREACH, message),
            Some(Verdict::Error) => draft.note(Level::Warning, ERROR, message),
            Some(Verdict::Pass | Verdict::NoData) | None => draft.note(Level::Normal, "CheckPassed", message),
        }
    }
    let told: Vec<_> = (draft.status.checks.iter())
        .filter_map(|check| Some(format!("{} {}", check.name, check.verdict?)))
        .collect();
    draft.status.verdicts = Some(told.join(", ")).filter(|told| !told.is_empty());
}

/// A breach that counts, a source without an answer, and the pass that ends either. Where requests are few, data is missing
/// now and then: that is told where the release waits for it.
fn is_news(check: &CheckStatus, before: &[CheckStatus]) -> bool {
    let before = before.iter().find(|other| other.asked == check.asked);
    let (last, breaches) = before.map_or((None, 0), |before| (before.verdict, before.breaches));
    match check.verdict {
        None | Some(Verdict::NoData) => false,
        Some(Verdict::Pass) => matches!(last, Some(Verdict::Breach | Verdict::Error)),
        Some(verdict) => last != Some(verdict) || check.breaches > breaches,
    }
}

/// The verdict that ends the release, if there is one.
fn proof(draft: &Draft<'_>, rules: &Rules) -> Option<(&'static str, String)> {
    let checks = || {
        rules
            .checks
            .iter()
            .filter_map(|rule| Some((rule, find(draft, &rule.asked)?)))
    };
    let told = |check: &CheckStatus| check.message.clone().unwrap_or_default();
    if let Some(harm) = &draft.seen.judged.harm
        && let Some((rule, check)) = checks().find(|(_, check)| check.name == *harm)
    {
        return Some((reason(rule.check.kind()), told(check)));
    }
    if let Some((rule, check)) = checks().find(|(_, check)| check.breaches >= rules.failure_limit) {
        let windows = match check.breaches {
            1 => String::new(),
            many => format!(", in {many} windows in a row (failureLimit)"),
        };
        let reason = if check.verdict == Some(Verdict::NoData) {
            NO_DATA
        } else {
            reason(rule.check.kind())
        };
        return Some((reason, format!("{}{windows}", told(check))));
    }
    if rules.error_deadline.action == ErrorAction::Rollback {
        let limit = rules.error_deadline.after;
        let late = |check: &CheckStatus| overdue(draft, rules, check);
        let (_, check) = checks().find(|(_, check)| late(check))?;
        return Some((ERROR, format!("{}, for {limit} (analysis.errorDeadline)", told(check))));
    }
    None
}

/// Whether the source has given no answer for as long as that is put up with.
fn overdue(draft: &Draft<'_>, rules: &Rules, check: &CheckStatus) -> bool {
    let since = check
        .error_since
        .as_ref()
        .filter(|_| check.verdict == Some(Verdict::Error));
    let limit = rules.error_deadline.after.get();
    since.is_some_and(|since| draft.until(draft.counted_from(since.0), limit).is_zero())
}

fn find<'a>(draft: &'a Draft<'_>, asked: &str) -> Option<&'a CheckStatus> {
    draft.status.checks.iter().find(|check| check.asked == asked)
}

fn reason(kind: Option<CheckKind<'_>>) -> &'static str {
    match kind {
        Some(CheckKind::SuccessRate(_)) => "SuccessRate",
        Some(CheckKind::Latency(_)) => "Latency",
        Some(CheckKind::ErrorRegression(_)) => "ErrorRegression",
        Some(CheckKind::LatencyRegression(_)) => "LatencyRegression",
        Some(CheckKind::Query(_)) | None => "QueryResult",
    }
}

/// Why the weight may not rise: a check without a fresh pass.
pub(super) struct Doubt {
    pub reason: &'static str,
    pub why: String,
    /// Whether the source is silent for longer than is put up with, so that a person is called.
    pub overdue: bool,
}

/// What keeps the weight from rising though the step's time is over: missing data is never a pass.
pub(super) fn doubt(draft: &Draft<'_>, rollout: &Rollout) -> Option<Doubt> {
    if rollout.skip_steps || !is_judged(rollout) {
        return None;
    }
    let rules = rules(&draft.seen.release, rollout);
    let weight = weight(rollout);
    let doubts = rules.checks.iter().filter_map(|rule| {
        let asks = matches!(rule.check.kind(), Some(CheckKind::Query(_)));
        if weight == Weight::ZERO && !asks {
            return None;
        }
        let awaiting = || Doubt {
            reason: AWAITING,
            why: format!("check {} has not judged this step yet", rule.check.name),
            overdue: false,
        };
        let Some(check) = find(draft, &rule.asked).filter(|check| is_fresh(draft, rollout, &rules, check)) else {
            return Some(awaiting());
        };
        let reason = match check.verdict? {
            Verdict::Pass => return None,
            Verdict::NoData if rules.no_data == NoData::Pass => return None,
            Verdict::NoData => NO_DATA,
            Verdict::Breach => BREACH,
            Verdict::Error => ERROR,
        };
        let why = counted(check, &rules);
        Some(Doubt {
            reason,
            why,
            overdue: overdue(draft, &rules, check),
        })
    });
    // The verdict that says most: one that is awaited says least.
    doubts.min_by_key(|doubt| {
        [BREACH, ERROR, NO_DATA, AWAITING]
            .iter()
            .position(|reason| *reason == doubt.reason)
    })
}

/// Of this step, since its weight is live, and of now. What lets the weight rise is this process's own word: what another
/// found before it ended says nothing of the requests that nobody counted since.
fn is_fresh(draft: &Draft<'_>, rollout: &Rollout, rules: &Rules, check: &CheckStatus) -> bool {
    let live = draft.settling.live(rollout);
    let lasting = matches!(check.verdict, Some(Verdict::Error | Verdict::NoData));
    let raises = matches!(check.verdict, Some(Verdict::Pass | Verdict::NoData));
    check.step == rollout.step
        && check.verdict.is_some()
        && check.at.as_ref().zip(live).is_some_and(|(at, live)| {
            at.0 >= live
                && (lasting || !draft.until(at.0, rules.interval * FRESH + LATE).is_zero())
                && (!raises || (draft.seen.led_since..=draft.now).contains(&at.0))
        })
}

/// A verdict in words, with how far it is from a rollback.
fn counted(check: &CheckStatus, rules: &Rules) -> String {
    let told = check.message.clone().unwrap_or_default();
    match check.breaches {
        0 => told,
        some => format!(
            "{told}, {some} of {} windows in a row (failureLimit)",
            rules.failure_limit
        ),
    }
}

/// What the checks say that is worth a word while the step's time runs.
pub(super) fn trouble(draft: &Draft<'_>, rollout: &Rollout) -> Option<String> {
    let rules = rules(&draft.seen.release, rollout);
    let troubled =
        |check: &&CheckStatus| check.step == rollout.step && check.verdict.is_some_and(|v| v != Verdict::Pass);
    let check = draft
        .status
        .checks
        .iter()
        .filter(troubled)
        .max_by_key(|check| check.breaches)?;
    Some(counted(check, &rules))
}

/// Whether the step may end before its time: harm is ruled out, and every check has passed a window of it.
pub(super) fn may_end_early(draft: &Draft<'_>, rollout: &Rollout) -> bool {
    let rules = rules(&draft.seen.release, rollout);
    rules.early_advance
        && draft.seen.judged.harmless
        && weight(rollout) > Weight::ZERO
        && doubt(draft, rollout).is_none()
}

/// Traffic that is watched for less is no measure.
const MEASURED: Duration = Duration::from_secs(3);
/// A plan that misses the least rise that is not tolerated more often than not is worth a warning.
const LIKELY: f64 = 0.5;

/// What the schedule can find at the traffic that version 1 has, told before version 2 gets any.
pub(super) fn tell_power(draft: &mut Draft<'_>, rollout: &mut Rollout, schedule: &Schedule) {
    let Some(all) = draft
        .seen
        .judged
        .all
        .as_ref()
        .filter(|_| draft.seen.may_play && rollout.power.is_none())
    else {
        return;
    };
    let length = Duration::try_from(all.until.duration_since(all.since)).unwrap_or_default();
    let steps = (1..=schedule.len()).filter_map(|number| schedule.step(number));
    let steps = steps.filter(|step| step.weight > Weight::ZERO).map(|step| {
        let hold = step.hold.map_or(UNHELD, |hold| hold.get());
        (step.weight.fraction(), hold.as_secs_f64())
    });
    let rules = rules(&draft.seen.release, rollout);
    let Some((plan, failing)) = rules.plan(steps.collect(), &all.stable).filter(|_| length >= MEASURED) else {
        return;
    };
    let judged: u64 = all.stable.judged().values().sum();
    #[allow(clippy::cast_precision_loss)] // Counts stay far below 2^52.
    let per_second = judged as f64 / length.as_secs_f64();
    let outlook = plan.outlook(per_second, failing);
    if outlook.least < LIKELY {
        draft.note(Level::Warning, "PreflightWarning", outlook.words.clone());
        rollout.warnings.push(outlook.words.clone());
    }
    rollout.power = Some(outlook.words);
}

/// How old told numbers may get.
pub(super) fn tell_again(draft: &Draft<'_>, rollout: &Rollout) -> Duration {
    rules(&draft.seen.release, rollout).interval
}

/// What the last windows say, as a condition: status, reason, message.
pub(super) fn analysed(checks: &[CheckStatus]) -> (Option<bool>, &'static str, String) {
    let worst = checks
        .iter()
        .filter_map(|check| Some((check.verdict?, check)))
        .max_by_key(|(verdict, check)| {
            let rank = [Verdict::Pass, Verdict::NoData, Verdict::Error, Verdict::Breach];
            (rank.iter().position(|other| other == verdict), check.breaches)
        });
    let told = |check: &CheckStatus| check.message.clone().unwrap_or_default();
    match worst {
        None => (None, "NotJudged", String::new()),
        Some((Verdict::Pass, _)) if checks.iter().any(|check| check.verdict.is_none()) => {
            (None, AWAITING, String::new())
        }
        Some((Verdict::Pass, _)) => {
            let told: Vec<_> = checks.iter().map(told).collect();
            (Some(true), "Passed", told.join("; "))
        }
        Some((Verdict::Breach, check)) => (Some(false), BREACH, told(check)),
        Some((Verdict::NoData, check)) => (None, NO_DATA, told(check)),
        Some((Verdict::Error, check)) => (None, ERROR, told(check)),
    }
}
