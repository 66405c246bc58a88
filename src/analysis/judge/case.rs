//! One check of one release.

use super::{
    Answer, GRACE, InForce, Look, Mark, Rule, Span, after, compares,
    words::{Grouped, evidence, fault, number, percent, plural, sample, seconds},
};
use crate::{
    analysis::{
        Edge, Exposed, Millis, Quantile, Side, Status,
        sequential::{Batch, Tally},
    },
    api::{CheckKind, CheckStatus, Evidence, Failures, Latency, NoData, Query, SuccessRate, Verdict, Weight},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use std::time::Duration;

/// How much later than the weight is live a window may begin and yet be taken for one from then on: counts come once a second.
const SLACK: Duration = Duration::from_secs(2);
/// By how much version 2's failures may exceed version 1's, as a share of the requests, where chance does not decide about
/// each request and the sequential test does not hold.
const TOLERATED: f64 = 0.05;
/// Characters of a message: the schema's bound, and an API server that refuses a status stops the release.
const LONGEST_MESSAGE: usize = 1024;
/// Where nothing else is asked for, answers above these are slow: between them lie most services.
const EDGES: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
];

/// One check, as far as it was judged.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub status: CheckStatus,
    /// When there was first a look without counts.
    since: Option<Timestamp>,
    pub window: Option<Window>,
    /// When the answer to a query was that was judged last.
    answered: Option<Timestamp>,
    /// A verdict that nobody has been told of.
    pub fresh: Option<Verdict>,
}

/// Requests that are judged together.
#[derive(Clone, Debug)]
pub(super) struct Window {
    from: Mark,
    /// When it may end.
    pub due: Timestamp,
    /// When too few requests are told again.
    tell: Timestamp,
}

/// What of an answer is a failure.
#[derive(Clone, Debug)]
pub(super) enum Fault<'a> {
    /// Its status is one of these, or a server's error.
    Status(Option<&'a Failures>),
    /// Its status is a server's error, or the client gave up before there was one: a version that hangs shows no others until
    /// nginx itself gives up, which takes a minute unless told otherwise (measured: all requests 499, and none 5xx). People who
    /// leave do so of both versions alike, so this is for comparisons alone.
    Unserved,
    /// It took longer.
    Slower(Duration),
}

impl<'a> Fault<'a> {
    /// What a comparison takes for failures, where these are asked for.
    pub fn compared(failures: Option<&'a Failures>) -> Self {
        failures.map_or(Self::Unserved, |failures| Self::Status(Some(failures)))
    }

    /// Requests of a side, and those of them that failed; nothing where no bucket tells.
    pub fn tally(&self, side: &Side) -> Option<Tally> {
        match self {
            Self::Status(_) | Self::Unserved => {
                let judged = side.judged();
                let failed = judged.iter().filter(|(status, _)| self.is(**status));
                Some(Tally {
                    failed: failed.map(|(_, count)| count).sum(),
                    requests: judged.values().sum(),
                })
            }
            Self::Slower(edge) => {
                let failed = match side.timed() {
                    0 => 0,
                    _ => side.slower(Edge::from(*edge))?,
                };
                Some(Tally {
                    failed,
                    requests: side.timed(),
                })
            }
        }
    }

    /// Whether an answer with this status is such a failure.
    fn is(&self, status: Status) -> bool {
        match self {
            Self::Status(Some(Failures(listed))) => listed.iter().any(|text| status.is_of(text)),
            Self::Status(None) => status.is_server_error(),
            Self::Unserved => status.is_server_error() || status == Status::GIVEN_UP,
            Self::Slower(_) => false,
        }
    }

    fn edge(&self) -> Option<Duration> {
        match self {
            Self::Status(_) | Self::Unserved => None,
            Self::Slower(edge) => Some(*edge),
        }
    }
}

/// What a comparison with version 1 is made of.
struct Comparison<'a> {
    faults: Vec<Fault<'a>>,
    false_rollback: f64,
    ignore_below: f64,
}

fn comparison<'a>(rule: &'a Rule) -> Option<Comparison<'a>> {
    match rule.check.kind()? {
        CheckKind::ErrorRegression(test) => Some(Comparison {
            faults: vec![Fault::compared(test.failures.as_ref())],
            false_rollback: test.false_rollback,
            ignore_below: test.ignore_below,
        }),
        CheckKind::LatencyRegression(test) => {
            let asked = test.above.iter().flatten().map(|edge| edge.get());
            let edges: Vec<_> = if test.above.is_some() {
                asked.collect()
            } else {
                EDGES.to_vec()
            };
            Some(Comparison {
                faults: edges.into_iter().map(Fault::Slower).collect(),
                false_rollback: test.false_rollback,
                ignore_below: test.ignore_below,
            })
        }
        _ => None,
    }
}

/// A verdict with all that is told of it.
struct Finding {
    verdict: Verdict,
    value: Option<String>,
    limit: Option<String>,
    requests: Option<u64>,
    words: String,
}

impl Finding {
    fn no_data(words: String, requests: Option<u64>) -> Self {
        Self {
            verdict: Verdict::NoData,
            value: None,
            limit: None,
            requests,
            words: format!("has no data: {words}"),
        }
    }

    fn error(why: &str) -> Self {
        Self {
            verdict: Verdict::Error,
            value: None,
            limit: None,
            requests: None,
            words: format!("cannot be judged: {why}"),
        }
    }
}

impl Case {
    pub fn new(rule: &Rule) -> Self {
        Self::recorded(CheckStatus {
            name: rule.check.name.clone(),
            asked: rule.asked.clone(),
            verdict: None,
            step: 0,
            message: None,
            value: None,
            limit: None,
            requests: None,
            at: None,
            breaches: 0,
            error_since: None,
            evidence: Vec::new(),
        })
    }

    pub fn recorded(status: CheckStatus) -> Self {
        Self {
            status,
            since: None,
            window: None,
            answered: None,
            fresh: None,
        }
    }

    /// Windows are of one weight.
    pub fn begin_step(&mut self) {
        self.window = None;
    }

    // === All requests together

    /// Adds a batch to each comparison.
    pub fn weigh(&mut self, rule: &Rule, batch: impl Fn(&Fault<'_>) -> Option<Batch>) {
        let Some(comparison) = comparison(rule) else { return };
        let wanted = comparison.faults.len();
        let fits = |evidence: &Evidence| evidence.is_sound() && evidence.ignore_below == comparison.ignore_below;
        if self.status.evidence.len() != wanted || !self.status.evidence.iter().all(fits) {
            self.status.evidence = vec![Evidence::new(comparison.ignore_below); wanted];
        }
        for (fault, evidence) in comparison.faults.iter().zip(&mut self.status.evidence) {
            if let Some(batch) = batch(fault) {
                evidence.add(&batch);
            }
        }
    }

    /// Evidence of harm in units of its limit, as a logarithm: of a few edges the mean.
    pub fn log_harm(&self, rule: &Rule) -> Option<f64> {
        let comparison = comparison(rule)?;
        Some(mean(self.status.evidence.iter().map(Evidence::log_harm)) + comparison.false_rollback.ln())
    }

    /// Whether it compares nothing, or rules out that version 2 fails twice as often.
    pub fn is_harmless(&self, rule: &Rule) -> bool {
        let Some(comparison) = comparison(rule) else {
            return true;
        };
        let limit = -comparison.false_rollback.ln();
        let mut evidence = self.status.evidence.iter();
        !self.status.evidence.is_empty()
            && evidence.all(|evidence| evidence.log_no_harm(2.0 * comparison.ignore_below) >= limit)
    }

    /// The comparisons prove harm, this one most of all.
    pub fn breached(&mut self, rule: &Rule, look: &Look<'_>, together: usize) {
        let finding = self.compared(rule, Verdict::Breach, together);
        let at = look.counts.map_or(look.now, |counts| counts.at);
        let step = look.in_force.map_or(0, |in_force| in_force.step);
        if let Some(finding) = finding {
            self.note(finding, at, step, look);
        }
    }

    fn compared(&self, rule: &Rule, verdict: Verdict, together: usize) -> Option<Finding> {
        let comparison = comparison(rule)?;
        let (fault, strongest) = comparison
            .faults
            .iter()
            .zip(&self.status.evidence)
            .max_by(|a, b| a.1.log_harm().total_cmp(&b.1.log_harm()))?;
        let log = mean(self.status.evidence.iter().map(Evidence::log_harm));
        let limit = 1.0 / comparison.false_rollback;
        let compares = if verdict == Verdict::Breach { ">=" } else { "<" };
        // Evidence that reaches its limit only together with another check's is told with its own number all the same.
        let beside = if together > 1 && verdict == Verdict::Breach {
            " together with the other comparisons"
        } else {
            ""
        };
        let words = format!(
            "{} of {} request{} to version 2 {fault}, {} of {} to version 1: {}, evidence {} {compares} {}{beside}",
            Grouped(strongest.canary_failed),
            Grouped(strongest.canary),
            plural(strongest.canary),
            Grouped(strongest.stable_failed),
            Grouped(strongest.stable),
            strongest.in_words(comparison.false_rollback),
            evidence(log),
            number(limit, 0.0),
            fault = fault_of(fault),
        );
        Some(Finding {
            verdict,
            value: Some(evidence(log)),
            limit: Some(number(limit, 0.0)),
            requests: Some(strongest.canary),
            words,
        })
    }

    // === Windows

    /// Ends a window that is over, and begins the next.
    pub fn judge(&mut self, look: &Look<'_>, in_force: &InForce, rule: &Rule) {
        if let Some(CheckKind::Query(query)) = rule.check.kind() {
            return self.judge_answer(look, in_force, query);
        }
        if in_force.weight == Weight::ZERO {
            return;
        }
        let starts = after(in_force.live, look.rules.warm_up);
        let interval = look.rules.interval;
        let current = look.counts.filter(|counts| counts.complete && counts.began >= starts);
        let due = self.window.as_ref().map_or(starts, |window| window.due);
        let Some(counts) = current else {
            return self.overdue(look, in_force, due, &missing(look));
        };
        let Some(window) = &self.window else {
            let begin = if counts.began <= after(starts, SLACK) {
                starts
            } else {
                counts.began
            };
            self.begin(Mark::of(counts), begin, interval);
            return;
        };
        if counts.began < window.due {
            return self.overdue(look, in_force, due, "the controllers were not asked for a while");
        }
        if counts.exposed == Exposed::Nothing {
            let why = "the controllers show none of ingress-nginx's metrics: switch them on (--enable-metrics, controller.metrics.enabled of its chart)";
            return self.note(Finding::error(why), look.now, in_force.step, look);
        }
        let span = window.from.span(counts);
        let told = look.now >= window.tell;
        let finding = self.finding(look, in_force, rule, &span);
        let over = finding.verdict != Verdict::NoData;
        if over || told {
            self.note(finding, counts.at, in_force.step, look);
        }
        if over {
            // The next begins where this one was due to end, so that windows do not drift away from the step's hold.
            let begin = if counts.began <= after(due, SLACK) {
                due
            } else {
                counts.began
            };
            self.begin(Mark::of(counts), begin, interval);
        } else if told && let Some(window) = &mut self.window {
            window.tell = after(look.now, interval);
        }
    }

    fn begin(&mut self, from: Mark, begin: Timestamp, interval: Duration) {
        let due = after(begin, interval);
        self.window = Some(Window { from, due, tell: due });
    }

    /// No counts have come for a window that is over, or may not begin. Who has only just begun to ask is given the time too: each
    /// operator that started told an error, and one that died after each of its writes never got any further.
    fn overdue(&mut self, look: &Look<'_>, in_force: &InForce, due: Timestamp, why: &str) {
        let since = *self.since.get_or_insert(look.now);
        if look.now >= after(due.max(since), GRACE + look.lag) {
            self.note(Finding::error(why), look.now, in_force.step, look);
        }
    }

    fn finding(&self, look: &Look<'_>, in_force: &InForce, rule: &Rule, span: &Span) -> Finding {
        let compares = compares(rule.check.kind());
        let needed = look.rules.need(&rule.check, compares && in_force.chosen.is_none());
        let timed = rule.times_requests();
        let requests = if timed {
            span.canary.timed()
        } else {
            span.canary.judged().values().sum()
        };
        if requests < needed {
            return Finding::no_data(self.too_few(look, span, requests, needed), Some(requests));
        }
        let length = length(span);
        match rule.check.kind() {
            Some(CheckKind::SuccessRate(rate)) => success(rate, &span.canary, length),
            Some(CheckKind::Latency(latency)) => quantile(latency, &span.canary, length),
            Some(_) => match in_force.chosen {
                None => self.comparing(rule, &span.canary),
                Some(why) => bounded(rule, span, why, length),
            },
            None => Finding::error("the check asks for nothing"),
        }
    }

    /// The comparison goes on: it has not proven harm, which is found between the windows.
    fn comparing(&self, rule: &Rule, canary: &Side) -> Finding {
        if let Some(edge) = unknown_edge(rule, canary) {
            return Finding::error(&no_bucket(edge, canary));
        }
        let none = || Finding::no_data("no requests were compared yet".to_owned(), Some(0));
        self.compared(rule, Verdict::Pass, 1).unwrap_or_else(none)
    }

    fn too_few(&self, look: &Look<'_>, span: &Span, requests: u64, needed: u64) -> String {
        let of_nginx = span.canary.of_nginx();
        let more = match of_nginx {
            0 => String::new(),
            more => format!("; nginx itself answered {} more, which never reached it", Grouped(more)),
        };
        let unseen = look.counts.is_some_and(|counts| counts.exposed == Exposed::NoRequests);
        let hint = if unseen {
            " (the controllers count no request of anybody: hosts with a wildcard, and none, are not counted by default)"
        } else {
            ""
        };
        format!(
            "version 2 answered {} request{} in {}, and a verdict takes {}{more}{hint}",
            Grouped(requests),
            plural(requests),
            seconds(length(span)),
            Grouped(needed),
        )
    }

    fn judge_answer(&mut self, look: &Look<'_>, in_force: &InForce, query: &Query) {
        // What {{ interval }} reaches back to is of this weight alone.
        let from = after(after(in_force.live, look.rules.warm_up), look.rules.interval);
        let Some(answer) = look.answers.get(&self.status.name).filter(|answer| answer.at >= from) else {
            let why = look.uncounted.unwrap_or("Prometheus has not answered yet");
            return self.overdue(look, in_force, from, why);
        };
        if self.answered == Some(answer.at) {
            let due = after(answer.at, look.rules.interval);
            return self.overdue(look, in_force, due, "Prometheus was not asked for a while");
        }
        self.answered = Some(answer.at);
        self.note(result(query, answer), answer.at, in_force.step, look);
    }

    /// Records a verdict.
    fn note(&mut self, finding: Finding, at: Timestamp, step: u32, look: &Look<'_>) {
        // Prometheus has a clock of its own.
        let at = at.min(look.now);
        let status = &mut self.status;
        let counts = match finding.verdict {
            Verdict::Breach => true,
            Verdict::NoData => look.rules.no_data == NoData::Fail,
            Verdict::Pass | Verdict::Error => false,
        };
        if counts {
            status.breaches = status.breaches.saturating_add(1);
        } else if finding.verdict == Verdict::Pass {
            status.breaches = 0;
        }
        if finding.verdict == Verdict::Error {
            status.error_since.get_or_insert(MicroTime(look.now));
        } else {
            status.error_since = None;
        }
        // Told once while it lasts: a time that moves would be a change without news.
        let same = status.verdict == Some(Verdict::Error) && finding.verdict == Verdict::Error && status.step == step;
        let message = format!("{} {}", status.name, finding.words);
        let message: String = message.chars().take(LONGEST_MESSAGE).collect();
        if same && status.message.as_ref() == Some(&message) {
            return;
        }
        status.verdict = Some(finding.verdict);
        self.fresh = Some(finding.verdict);
        (status.value, status.limit, status.requests) = (finding.value, finding.limit, finding.requests);
        status.message = Some(message);
        status.at = Some(Time(at));
        status.step = step;
    }
}

/// Why there is nothing to judge.
fn missing(look: &Look<'_>) -> String {
    let told = look
        .counts
        .map(|counts| counts.missing.join("; "))
        .filter(|told| !told.is_empty());
    told.or(look.uncounted.map(str::to_owned))
        .unwrap_or_else(|| "the controllers have not answered yet".to_owned())
}

fn length(span: &Span) -> Duration {
    Duration::try_from(span.until.duration_since(span.since)).unwrap_or_default()
}

/// Logarithm of the mean.
fn mean(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    if !most.is_finite() {
        return 0.0;
    }
    let (sum, count) = logs.fold((0.0, 0.0), |(sum, count), log| (sum + (log - most).exp(), count + 1.0));
    most + (sum / count).ln()
}

fn fault_of(of: &Fault<'_>) -> String {
    fault(of.edge())
}

/// A time asked for that no bucket ends at.
fn unknown_edge(rule: &Rule, canary: &Side) -> Option<Duration> {
    let known = |edge: &Duration| canary.within.contains_key(&Edge::from(*edge));
    // Those that are tried where none is asked for need not all be there.
    let asked = matches!(rule.check.kind(), Some(CheckKind::LatencyRegression(test)) if test.above.is_some());
    let mut edges = comparison(rule)?.faults.into_iter().filter_map(|fault| fault.edge());
    if asked {
        edges.find(|edge| !known(edge))
    } else {
        let edges: Vec<_> = edges.collect();
        edges.first().copied().filter(|_| !edges.iter().any(known))
    }
}

fn no_bucket(edge: Duration, canary: &Side) -> String {
    let known: Vec<_> = canary
        .within
        .keys()
        .map(|edge| Millis(edge.get()).to_string())
        .collect();
    match known.is_empty() {
        true => "the controllers show no times: …_response_duration_seconds_bucket is missing".to_owned(),
        false => format!(
            "no bucket of the controllers ends at {}: choose from {} (or change their --time-buckets)",
            Millis(edge),
            known.join(", ")
        ),
    }
}

fn success(rate: &SuccessRate, canary: &Side, length: Duration) -> Finding {
    let tally = Fault::Status(rate.failures.as_ref()).tally(canary).unwrap_or_default();
    #[allow(clippy::cast_precision_loss)] // Counts stay far below 2^52.
    let share = 1.0 - tally.failed as f64 / tally.requests.max(1) as f64;
    let min = rate.min / 100.0;
    // One failure of a hundred is 99 %, whatever the last bit says.
    let passes = share >= min - 1e-12;
    let (value, limit) = (percent(share, min), percent(min, f64::NAN));
    Finding {
        verdict: if passes { Verdict::Pass } else { Verdict::Breach },
        words: format!(
            "{value} {} {limit} ({})",
            if passes { ">=" } else { "<" },
            sample(canary, length)
        ),
        value: Some(value),
        limit: Some(limit),
        requests: Some(tally.requests),
    }
}

fn quantile(latency: &Latency, canary: &Side, length: Duration) -> Finding {
    let max = latency.max.get();
    let Some(time) = canary.quantile(latency.quantile) else {
        return Finding::error(&no_bucket(max, canary));
    };
    if let Quantile::Above(last) = time
        && max > last
    {
        let why = format!(
            "the controllers' last bucket ends at {}: latency.max cannot be longer",
            Millis(last)
        );
        return Finding::error(&why);
    }
    let breach = time.exceeds(max);
    let (value, limit) = (time.to_string(), Millis(max).to_string());
    let percentile = number(latency.quantile * 100.0, f64::NAN);
    Finding {
        verdict: if breach { Verdict::Breach } else { Verdict::Pass },
        words: format!(
            "p{percentile} {value} {} {limit} ({})",
            if breach { ">" } else { "<=" },
            sample(canary, length)
        ),
        value: Some(value),
        limit: Some(limit),
        requests: Some(canary.timed()),
    }
}

/// Where the versions' requests differ in more than the version, failures are compared as shares, with a margin.
fn bounded(rule: &Rule, span: &Span, why: &str, length: Duration) -> Finding {
    let worst = comparison(rule)
        .into_iter()
        .flat_map(|comparison| comparison.faults)
        .filter_map(|fault| {
            let (stable, canary) = (fault.tally(&span.stable)?, fault.tally(&span.canary)?);
            #[allow(clippy::cast_precision_loss)] // Counts stay far below 2^52.
            let share = |tally: Tally| tally.failed as f64 / tally.requests.max(1) as f64;
            Some((share(canary), share(stable) + TOLERATED, fault_of(&fault)))
        });
    let Some((value, limit, fault)) = worst.max_by(|a, b| (a.0 - a.1).total_cmp(&(b.0 - b.1))) else {
        return Finding::error("the controllers show no times: …_response_duration_seconds_bucket is missing");
    };
    let breach = value > limit;
    let told = (percent(value, limit), percent(limit, f64::NAN));
    Finding {
        verdict: if breach { Verdict::Breach } else { Verdict::Pass },
        words: format!(
            "{} {} {} of the requests to version 2 {fault}, and the limit is version 1's share and {} more: {why}, so that the sequential test does not hold ({})",
            told.0,
            if breach { ">" } else { "<=" },
            told.1,
            percent(TOLERATED, f64::NAN),
            sample(&span.canary, length)
        ),
        value: Some(told.0),
        limit: Some(told.1),
        requests: Some(span.canary.judged().values().sum()),
    }
}

fn result(query: &Query, answer: &Answer) -> Finding {
    let value = match &answer.result {
        Ok(Some(value)) => *value,
        Ok(None) => return Finding::no_data("the result of its query is empty".to_owned(), None),
        Err(why) => return Finding::error(why),
    };
    let low = query.min.filter(|min| value < *min);
    let high = query.max.filter(|max| value > *max);
    let told = |limit: f64| (number(value, limit), number(limit, f64::NAN));
    let (verdict, (value, limit), words) = match (low, high) {
        (Some(min), _) => (Verdict::Breach, told(min), "<"),
        (None, Some(max)) => (Verdict::Breach, told(max), ">"),
        (None, None) => match (query.min, query.max) {
            (Some(min), Some(max)) => {
                let (value, least) = told(min);
                let limit = format!("{least} to {}", number(max, f64::NAN));
                (Verdict::Pass, (value, limit), "within")
            }
            (Some(min), None) => (Verdict::Pass, told(min), ">="),
            (None, Some(max)) => (Verdict::Pass, told(max), "<="),
            (None, None) => return Finding::error("its query has neither min nor max"),
        },
    };
    Finding {
        verdict,
        words: format!("{value} {words} {limit}"),
        value: Some(value),
        limit: Some(limit),
        requests: None,
    }
}
