//! What a release's requests came to since a moment, from counters that only ever grow and sometimes start over.
//!
//! Absolute values mean nothing: a canary's series outlive it and come back with the next release of the same names
//! (#11047, #13894), and each controller counts only what went through it. So only differences are added up, per pod and series.

use jiff::Timestamp;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Which requests concern a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Of its Ingresses.
    pub namespace: String,
    /// Names of the stable Ingresses that it splits: the canary Ingress's name never appears in a label (measured).
    pub ingresses: BTreeSet<String>,
    /// Name of the stable Service: the label `service` has it for requests to the canary too (measured).
    pub service: String,
    /// Values of the label `canary`: `<namespace>-<canary Service>-<port as written in the canary Ingress>`, one for each port.
    pub canaries: BTreeSet<String>,
    /// Whether times are wanted too: a dozen series where there is one without.
    pub latency: bool,
}

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// To version 1.
    Stable,
    /// To version 2.
    Canary,
    /// To version 2, through an Ingress that the release does not split: a canary binds to the Service's port, not to a
    /// host, so that any other Ingress with the same backend leaks into it (measured).
    Elsewhere,
}

impl Interest {
    /// What the label `canary` says of requests to this Service, by way of an Ingress that names its port so: a port that
    /// is named in the Ingress is named in the label too (measured).
    #[must_use]
    pub fn canary(namespace: &str, service: &str, port: impl fmt::Display) -> String {
        format!("{namespace}-{service}-{port}")
    }

    /// Which version a series of these labels counts for; none where it does not concern the release.
    #[must_use]
    pub fn version(&self, labels: &SeriesLabels<'_>) -> Option<Version> {
        // Ingresses lead to Services of their own namespace alone, so what is of another is another release's, though the
        // canary label may read alike: `a-b` + `c` and `a` + `b-c` do.
        if labels.namespace != self.namespace {
            return None;
        }
        let ours = labels.service == self.service && self.ingresses.contains(labels.ingress.as_ref());
        // A controller before 1.0.2 has no such label: its requests cannot be told apart and count for neither.
        let canary = labels.canary.as_deref()?;
        match (canary.is_empty(), self.canaries.contains(canary)) {
            (true, _) if ours => Some(Version::Stable),
            (false, true) if ours => Some(Version::Canary),
            (false, true) => Some(Version::Elsewhere),
            _ => None,
        }
    }
}

/// The labels that tell whose request it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesLabels<'a> {
    /// Of the stable Ingress.
    pub namespace: Cow<'a, str>,
    /// Name of the stable Ingress.
    pub ingress: Cow<'a, str>,
    /// Name of the stable Service.
    pub service: Cow<'a, str>,
    /// The canary's upstream, empty for version 1; absent before ingress-nginx 1.0.2.
    pub canary: Option<Cow<'a, str>>,
    /// HTTP status, or its class.
    pub status: Cow<'a, str>,
    /// Upper edge of a bucket, in seconds.
    pub le: Cow<'a, str>,
}

/// What a series counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `…_requests`: every request.
    Requests,
    /// `…_response_duration_seconds_count`: those that exactly one upstream answered.
    Answered,
    /// `…_response_duration_seconds_bucket`: those of them that it answered within a time.
    Within(Edge),
}

/// Upper edge of a histogram's bucket, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge(u64);

impl Edge {
    /// Of the label `le`, in seconds; none for `+Inf`, within which all are, and for what is no time.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Duration::try_from_secs_f64(text.parse().ok()?).ok().map(Self::from)
    }

    /// As a length of time.
    #[must_use]
    pub fn get(self) -> Duration {
        Duration::from_micros(self.0)
    }
}

impl From<Duration> for Edge {
    fn from(length: Duration) -> Self {
        Self(u64::try_from(length.as_micros()).unwrap_or(u64::MAX))
    }
}

/// Of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// A status code; 0 for what is not one.
    Code(u16),
    /// `--report-status-classes`: 5 for `5xx`.
    Class(u8),
}

impl Status {
    /// nginx's own for a client that closed the connection before it had an answer.
    pub const GIVEN_UP: Self = Self::Code(499);

    /// Of the label's value.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.as_bytes() {
            [class @ b'1'..=b'9', b'x' | b'X', b'x' | b'X'] => Self::Class(class - b'0'),
            _ => Self::Code(text.parse().unwrap_or(0)),
        }
    }

    /// Whether a server failed.
    #[must_use]
    pub fn is_server_error(self) -> bool {
        matches!(self, Self::Code(500..=599) | Self::Class(5))
    }

    /// Whether it is this one, written as a code or as a class: `499`, `5xx`.
    #[must_use]
    pub fn is_of(self, text: &str) -> bool {
        match (self, Self::parse(text)) {
            (Self::Code(code), Self::Class(class)) => code / 100 == u16::from(class),
            (status, other) => status == other,
        }
    }

    /// Whether nginx has it for none but requests that the application was asked: that it did not answer, that it did so too
    /// late, that the client left before; and a success, unless without content, which is nginx's own answer to a preflight of CORS.
    fn takes_an_application(self) -> bool {
        matches!(self, Self::GIVEN_UP | Self::Code(200..=203 | 206 | 502 | 504))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

/// Value of one series of one controller pod that concerns a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Names the series among those of the pod, from scrape to scrape; see [`series`].
    pub series: u64,
    /// What it counts.
    pub family: Family,
    /// For which version.
    pub version: Version,
    /// Of the answers.
    pub status: Status,
    /// Requests since the controller started.
    pub value: u64,
}

/// Names a series by its family and all of its labels, method, path and host included.
#[must_use]
pub fn series(family: Family, labels: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (family, labels).hash(&mut hasher);
    hasher.finish()
}

/// Which of ingress-nginx's metrics an exposition had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exposed {
    /// None: its metrics are off (`--enable-metrics=false`, the default of the last releases), or something else answered.
    #[default]
    Nothing,
    /// Its own, and no request of anybody. It shows that family from its first request on; so either it had none that it
    /// counts (wildcard and host-less Ingresses are not counted by default), or `--exclude-socket-metrics` leaves it out.
    NoRequests,
    /// Requests.
    Requests,
}

/// What one controller pod said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrape {
    /// Readings of the series that concern the release, each series once.
    pub readings: Vec<Reading>,
    /// What the whole exposition had.
    pub exposed: Exposed,
}

/// A controller pod in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Uid of the pod.
    pub uid: String,
    /// When the pod started, where that is known.
    pub started: Option<Timestamp>,
    /// What it said, or why it said nothing: a sentence that names the pod.
    pub scrape: Result<Scrape, String>,
}

/// One look at all controller pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Every ready pod, and of those that are about to end the ones that answered.
    pub answers: Vec<Answer>,
    /// Uids of the other pods that exist: they may come back.
    pub unready: BTreeSet<String>,
    /// Why the list of pods itself is not to be relied on.
    pub unlisted: Option<String>,
}

/// Requests of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// All, by status.
    pub requests: BTreeMap<Status, u64>,
    /// Those that exactly one upstream answered, by status: the application's own answers. The rest of
    /// [`Side::requests`] nginx answered itself (limits, redirects, authentication), or after a retry.
    pub answered: BTreeMap<Status, u64>,
    /// How many of those it answered within each time, where that is asked for.
    pub within: BTreeMap<Edge, u64>,
}

impl Side {
    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }

    /// Requests that tell something of the application, by status: those that one upstream answered, and of the others, which
    /// were tried again or not answered, those with a status that nginx has for no others: where one of two pods refused
    /// connections all 20 requests were answered 200, and none had a time (measured). nginx's other answers belong to neither
    /// version: of 241 requests labelled with the canary 177 were 503 of a rate limit that it never saw (measured). An error of
    /// the application's own after a retry is missed; and where only classes are reported, those of nginx cannot be told.
    #[must_use]
    pub fn judged(&self) -> BTreeMap<Status, u64> {
        let mut judged = self.answered.clone();
        for (status, count) in self.requests.iter().filter(|(status, _)| status.takes_an_application()) {
            let answered = judged.entry(*status).or_default();
            *answered = (*answered).max(*count);
        }
        judged.retain(|_, count| *count > 0);
        judged
    }

    /// Requests that nginx answered itself.
    #[must_use]
    pub fn of_nginx(&self) -> u64 {
        self.total().saturating_sub(self.judged().values().sum())
    }

    /// What has come since `earlier`, which was counted on the way here.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        fn less<K: Ord + Copy>(now: &BTreeMap<K, u64>, before: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
            let before = |key| before.get(key).copied().unwrap_or(0);
            now.iter()
                .map(|(key, count)| (*key, count.saturating_sub(before(key))))
                .collect()
        }
        Self {
            requests: less(&self.requests, &earlier.requests),
            answered: less(&self.answered, &earlier.answered),
            within: less(&self.within, &earlier.within),
        }
    }
}

/// Until when requests have met each version: the end of the last round that found more of them than the one before; the time
/// at which counting began where none did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met {
    /// Version 1.
    pub stable: Timestamp,
    /// Version 2, through whichever Ingress.
    pub canary: Timestamp,
    /// When the last complete round began. Nobody knows whom requests have met since.
    pub known: Timestamp,
}

impl Met {
    /// Nothing has been counted since counting began.
    #[must_use]
    pub fn nobody_since(began: Timestamp) -> Self {
        Self {
            stable: began,
            canary: began,
            known: began,
        }
    }
}

/// What a release's requests came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Requests are counted from the first round that began then or later.
    pub since: Timestamp,
    /// When the last round began: what was counted is of before its end, and misses nothing of before its beginning but
    /// what the controllers themselves were late with.
    pub began: Timestamp,
    /// When the last round ended.
    pub at: Timestamp,
    /// Whether every ready controller pod answered in the last round, and there is one.
    pub complete: bool,
    /// Why not: sentences for people, each with the pod that did not answer.
    pub missing: Vec<String>,
    /// The most that a pod of the last round exposed. Without requests of this release, [`Exposed::Requests`] means no
    /// traffic, and anything less that there may be some.
    pub exposed: Exposed,
    /// Requests to version 1.
    pub stable: Side,
    /// Requests to version 2 through the release's own Ingresses.
    pub canary: Side,
    /// Requests to version 2 through others.
    pub elsewhere: u64,
    /// Until when requests have met each version; none before the first complete round.
    pub met: Option<Met>,
}

/// Adds up the requests of one release.
#[derive(Debug)]
pub struct Counter {
    counts: Counts,
    /// Whether a round has begun since.
    counted: bool,
    pods: HashMap<String, Pod>,
}

#[derive(Debug, Default)]
struct Pod {
    last: HashMap<u64, u64>,
    /// Its next answer is where counting starts.
    baseline: bool,
}

impl Counter {
    /// Counts from `since`.
    #[must_use]
    pub fn new(since: Timestamp) -> Self {
        Self {
            counts: Counts {
                since,
                began: since,
                at: since,
                complete: false,
                missing: Vec::new(),
                exposed: Exposed::default(),
                stable: Side::default(),
                canary: Side::default(),
                elsewhere: 0,
                met: None,
            },
            counted: false,
            pods: HashMap::new(),
        }
    }

    /// What it came to; none before the first round that began after the counting did.
    #[must_use]
    pub fn counts(&self) -> Option<&Counts> {
        self.counted.then_some(&self.counts)
    }

    /// Adds a round. One that began before the counting did is left out.
    pub fn add(&mut self, round: Round) {
        if round.began < self.counts.since {
            return;
        }
        self.counted = true;
        (self.counts.began, self.counts.at) = (round.began, round.ended);
        self.counts.missing = round.unlisted.iter().cloned().collect();
        self.counts.exposed = Exposed::default();
        self.counts.complete = round.unlisted.is_none() && !round.answers.is_empty();
        if round.unlisted.is_none() {
            // Only a pod that exists no more is forgotten: one that is ready again goes on where it was.
            let exists = |uid: &str| round.unready.contains(uid) || round.answers.iter().any(|a| a.uid == uid);
            self.pods.retain(|uid, _| exists(uid));
        }
        let before = self.totals();
        for Answer { uid, started, scrape } in round.answers {
            match scrape {
                Ok(scrape) => {
                    self.counts.exposed = self.counts.exposed.max(scrape.exposed);
                    self.answered(uid, started, &scrape.readings);
                }
                Err(why) => {
                    self.counts.complete = false;
                    self.counts.missing.push(why);
                }
            }
        }
        let (stable, canary) = self.totals();
        if self.counts.complete {
            let began = Met::nobody_since(self.counts.since);
            self.counts.met.get_or_insert(began).known = round.began;
        }
        if let Some(met) = &mut self.counts.met {
            if stable > before.0 {
                met.stable = round.ended;
            }
            if canary > before.1 {
                met.canary = round.ended;
            }
        }
    }

    /// Requests to version 1, and to version 2.
    fn totals(&self) -> (u64, u64) {
        let Counts {
            stable,
            canary,
            elsewhere,
            ..
        } = &self.counts;
        (stable.total(), canary.total().saturating_add(*elsewhere))
    }

    fn answered(&mut self, uid: String, started: Option<Timestamp>, readings: &[Reading]) {
        let since = self.counts.since;
        let pod = self.pods.entry(uid).or_insert_with(|| Pod {
            last: HashMap::new(),
            // All that a pod has counted which started later was counted since.
            baseline: started.is_none_or(|started| started <= since),
        });
        // Anew from every answer: a series that is gone (its Ingress was) starts over when it comes back.
        let last = std::mem::replace(&mut pod.last, HashMap::with_capacity(readings.len()));
        let baseline = std::mem::take(&mut pod.baseline);
        for reading in readings {
            pod.last.insert(reading.series, reading.value);
            let before = match last.get(&reading.series) {
                _ if baseline => reading.value,
                // Below: the controller started over.
                Some(before) if *before <= reading.value => *before,
                // A first failure is a new series, which `rate()` cannot see.
                _ => 0,
            };
            let more = reading.value - before;
            let side = match reading.version {
                Version::Stable => &mut self.counts.stable,
                Version::Canary => &mut self.counts.canary,
                Version::Elsewhere => {
                    if reading.family == Family::Requests {
                        self.counts.elsewhere = self.counts.elsewhere.saturating_add(more);
                    }
                    continue;
                }
            };
            let count = match reading.family {
                // That there is such an edge is worth knowing before anything is within it.
                Family::Within(edge) => side.within.entry(edge).or_default(),
                _ if more == 0 => continue,
                Family::Requests => side.requests.entry(reading.status).or_default(),
                Family::Answered => side.answered.entry(reading.status).or_default(),
            };
            *count = count.saturating_add(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    /// One series: version 2, status 200, requests, unless told otherwise.
    fn reading(series: u64, value: u64) -> Reading {
        Reading {
            series,
            family: Family::Requests,
            version: Version::Canary,
            status: Status::Code(200),
            value,
        }
    }

    fn said(uid: &str, started: i64, readings: &[Reading]) -> Answer {
        Answer {
            uid: uid.to_owned(),
            started: Some(at(started)),
            scrape: Ok(Scrape {
                readings: readings.to_vec(),
                exposed: Exposed::Requests,
            }),
        }
    }

    fn silent(uid: &str) -> Answer {
        Answer {
            uid: uid.to_owned(),
            started: Some(at(-100)),
            scrape: Err(format!("{uid}: no answer")),
        }
    }

    fn round(second: i64, answers: &[Answer]) -> Round {
        Round {
            began: at(second),
            ended: at(second),
            answers: answers.to_vec(),
            unready: BTreeSet::new(),
            unlisted: None,
        }
    }

    /// Requests to version 2 after these rounds, counted from 0 on.
    fn canary(rounds: &[Round]) -> u64 {
        let mut counter = Counter::new(at(0));
        rounds.iter().cloned().for_each(|round| counter.add(round));
        counter.counts().unwrap().canary.total()
    }

    #[test]
    fn differences_are_counted_by_these_rules() {
        let old = |readings: &[Reading]| said("a", -100, readings);
        let b = |started, value| said("b", started, &[reading(1, value)]);
        for (rule, rounds, expected) in [
            (
                "a pod first seen is a baseline",
                vec![round(1, &[old(&[reading(1, 50)])])],
                0,
            ),
            (
                "what is added since counts",
                vec![
                    round(1, &[old(&[reading(1, 50)])]),
                    round(2, &[old(&[reading(1, 53)])]),
                    round(3, &[old(&[reading(1, 54)])]),
                ],
                4,
            ),
            (
                "a counter that started over counts whole",
                vec![round(1, &[old(&[reading(1, 50)])]), round(2, &[old(&[reading(1, 7)])])],
                7,
            ),
            (
                "a new series of a known pod counts from zero",
                vec![
                    round(1, &[old(&[reading(1, 50)])]),
                    round(2, &[old(&[reading(1, 50), reading(2, 20)])]),
                ],
                20,
            ),
            (
                "a new series of a pod that had none counts from zero",
                vec![round(1, &[old(&[])]), round(2, &[old(&[reading(1, 20)])])],
                20,
            ),
            (
                "a series that is gone counts from zero when it is back",
                vec![
                    round(1, &[old(&[reading(1, 50)])]),
                    round(2, &[old(&[])]),
                    round(3, &[old(&[reading(1, 60)])]),
                ],
                60,
            ),
            (
                "a pod that started later counts from zero",
                vec![round(1, &[old(&[])]), round(9, &[old(&[]), b(5, 30)])],
                30,
            ),
            (
                "a pod that started when the counting did is a baseline",
                vec![round(1, &[old(&[])]), round(9, &[old(&[]), b(0, 30)])],
                0,
            ),
            (
                "a pod that is gone keeps what it had counted",
                vec![
                    round(1, &[old(&[reading(1, 50)])]),
                    round(2, &[old(&[reading(1, 55)])]),
                    round(3, &[b(-100, 9)]),
                ],
                5,
            ),
            (
                "a pod that did not answer for a while goes on where it was",
                vec![
                    round(1, &[old(&[reading(1, 50)])]),
                    round(2, &[silent("a")]),
                    round(3, &[old(&[reading(1, 58)])]),
                ],
                8,
            ),
            (
                "a pod that was not ready for a while goes on where it was",
                vec![
                    round(1, &[old(&[reading(1, 50)])]),
                    Round {
                        unready: BTreeSet::from(["a".to_owned()]),
                        ..round(2, &[])
                    },
                    round(3, &[old(&[reading(1, 58)])]),
                ],
                8,
            ),
            (
                "a list that is not to be relied on makes no pod disappear",
                vec![
                    round(1, &[old(&[reading(1, 50)])]),
                    Round {
                        unlisted: Some("forbidden".to_owned()),
                        ..round(2, &[])
                    },
                    round(3, &[old(&[reading(1, 58)])]),
                ],
                8,
            ),
            (
                "a round that began before the counting did is left out",
                vec![
                    round(-1, &[old(&[reading(1, 40)])]),
                    round(1, &[old(&[reading(1, 50)])]),
                    round(2, &[old(&[reading(1, 51)])]),
                ],
                1,
            ),
            (
                "pods add up, and the same series of two pods are two",
                vec![
                    round(1, &[old(&[reading(1, 50)]), b(-1, 1000)]),
                    round(2, &[old(&[reading(1, 52)]), b(-1, 1003)]),
                ],
                5,
            ),
        ] {
            assert_eq!(canary(&rounds), expected, "{rule}");
        }
    }

    #[test]
    fn requests_are_kept_apart_by_version_family_and_status() {
        let all = |value| {
            let mut readings = Vec::new();
            for version in [Version::Stable, Version::Canary, Version::Elsewhere] {
                for family in [Family::Requests, Family::Answered] {
                    for status in [Status::Code(200), Status::Code(503)] {
                        let series = readings.len() as u64;
                        readings.push(Reading {
                            series,
                            family,
                            version,
                            status,
                            value: value * (series + 1),
                        });
                    }
                }
            }
            said("a", -100, &readings)
        };
        let mut counter = Counter::new(at(0));
        counter.add(round(1, &[all(1)]));
        counter.add(round(2, &[all(2)]));
        let counts = counter.counts().unwrap();
        let by = |ok, unavailable| BTreeMap::from([(Status::Code(200), ok), (Status::Code(503), unavailable)]);
        assert_eq!(
            counts.stable,
            Side {
                requests: by(1, 2),
                answered: by(3, 4),
                ..Side::default()
            }
        );
        assert_eq!(
            counts.canary,
            Side {
                requests: by(5, 6),
                answered: by(7, 8),
                ..Side::default()
            }
        );
        assert_eq!(counts.elsewhere, 9 + 10);
    }

    #[test]
    fn requests_have_met_a_version_until_the_end_of_the_last_round_that_found_more_of_them() {
        let mut counter = Counter::new(at(0));
        let mut met = |second, values: [u64; 3]| {
            let versions = [Version::Stable, Version::Canary, Version::Elsewhere];
            let readings: Vec<_> = (versions.into_iter().zip(values).zip(1..))
                .map(|((version, value), series)| Reading {
                    version,
                    ..reading(series, value)
                })
                .collect();
            counter.add(round(second, &[said("a", -100, &readings)]));
            let met = counter.counts().unwrap().met.unwrap();
            assert_eq!(met.known, at(second));
            (met.stable, met.canary)
        };
        assert_eq!(met(1, [7, 7, 7]), (at(0), at(0)), "a baseline says nothing");
        assert_eq!(met(2, [8, 7, 7]), (at(2), at(0)));
        assert_eq!(met(3, [8, 8, 7]), (at(2), at(3)));
        assert_eq!(met(4, [8, 8, 7]), (at(2), at(3)));
        assert_eq!(met(5, [8, 8, 9]), (at(2), at(5)));
    }

    #[test]
    fn whom_requests_have_met_is_known_until_the_last_complete_round_and_not_at_all_before_there_is_one() {
        let mut counter = Counter::new(at(0));
        let mut met = |second, answers: &[Answer]| {
            counter.add(round(second, answers));
            counter.counts().unwrap().met.map(|met| (met.canary, met.known))
        };
        let a = |value| said("a", -100, &[reading(1, value)]);
        assert_eq!(met(1, &[silent("a")]), None);
        assert_eq!(met(2, &[a(50)]), Some((at(0), at(2))));
        assert_eq!(met(3, &[silent("a")]), Some((at(0), at(2))));
        assert_eq!(met(4, &[a(51), silent("b")]), Some((at(4), at(2))));
    }

    #[test]
    fn complete_is_a_round_in_which_every_ready_pod_answered() {
        let mut counter = Counter::new(at(0));
        let (a, b) = (said("a", -100, &[]), said("b", -100, &[]));
        counter.add(round(1, &[a.clone(), b]));
        assert!(counter.counts().unwrap().complete);
        counter.add(round(2, &[a.clone(), silent("b")]));
        let counts = counter.counts().unwrap();
        assert_eq!(
            (counts.complete, counts.missing.as_slice()),
            (false, ["b: no answer".to_owned()].as_slice())
        );
        counter.add(round(3, std::slice::from_ref(&a)));
        assert!(counter.counts().unwrap().complete);
        counter.add(round(4, &[]));
        assert!(!counter.counts().unwrap().complete);
        counter.add(Round {
            unlisted: Some("forbidden".to_owned()),
            ..round(5, &[a])
        });
        let counts = counter.counts().unwrap();
        assert_eq!(
            (counts.complete, counts.missing.as_slice()),
            (false, ["forbidden".to_owned()].as_slice())
        );
    }

    #[test]
    fn absence_of_the_family_is_not_zero_traffic() {
        let exposing = |uid: &str, exposed| Answer {
            scrape: Ok(Scrape {
                readings: Vec::new(),
                exposed,
            }),
            ..silent(uid)
        };
        for (a, b, expected) in [
            (Exposed::Nothing, Exposed::Nothing, Exposed::Nothing),
            (Exposed::Nothing, Exposed::NoRequests, Exposed::NoRequests),
            (Exposed::Requests, Exposed::NoRequests, Exposed::Requests),
        ] {
            let mut counter = Counter::new(at(0));
            counter.add(round(1, &[exposing("a", a), exposing("b", b)]));
            assert_eq!(counter.counts().unwrap().exposed, expected);
        }
    }

    #[test]
    fn labels_tell_whose_request_it_was() {
        let interest = Interest {
            namespace: "shop".to_owned(),
            ingresses: BTreeSet::from(["web".to_owned(), "web-admin".to_owned()]),
            service: "web".to_owned(),
            canaries: BTreeSet::from(["shop-web-canary-80".to_owned(), "shop-web-canary-http".to_owned()]),
            latency: false,
        };
        for (namespace, ingress, service, canary, expected) in [
            ("shop", "web", "web", Some(""), Some(Version::Stable)),
            ("shop", "web-admin", "web", Some(""), Some(Version::Stable)),
            ("shop", "web", "web", Some("shop-web-canary-80"), Some(Version::Canary)),
            (
                "shop",
                "web-admin",
                "web",
                Some("shop-web-canary-http"),
                Some(Version::Canary),
            ),
            (
                "shop",
                "other",
                "web",
                Some("shop-web-canary-80"),
                Some(Version::Elsewhere),
            ),
            (
                "shop",
                "web",
                "other",
                Some("shop-web-canary-80"),
                Some(Version::Elsewhere),
            ),
            // Another path of the same Ingress, with another backend.
            ("shop", "web", "other", Some(""), None),
            ("shop", "other", "web", Some(""), None),
            ("shop", "web", "web", Some("shop-another-80"), None),
            ("stage", "web", "web", Some(""), None),
            ("stage", "web", "web", Some("shop-web-canary-80"), None),
            ("shop", "web", "web", None, None),
            ("", "", "", Some(""), None),
        ] {
            let labels = SeriesLabels {
                namespace: namespace.into(),
                ingress: ingress.into(),
                service: service.into(),
                canary: canary.map(Into::into),
                status: "200".into(),
                ..SeriesLabels::default()
            };
            assert_eq!(interest.version(&labels), expected, "{labels:?}");
        }
    }

    #[test]
    fn statuses_are_codes_or_classes() {
        for (text, expected, shown, error) in [
            ("200", Status::Code(200), "200", false),
            ("503", Status::Code(503), "503", true),
            ("5xx", Status::Class(5), "5xx", true),
            ("4XX", Status::Class(4), "4xx", false),
            ("", Status::Code(0), "0", false),
            ("xxx", Status::Code(0), "0", false),
            ("70000", Status::Code(0), "0", false),
        ] {
            let status = Status::parse(text);
            assert_eq!(
                (status, status.to_string().as_str(), status.is_server_error()),
                (expected, shown, error),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_application_did_not_answer_is_judged_only_where_nginx_blames_it() {
        let by = |counts: &[(u16, u64)]| {
            counts
                .iter()
                .map(|(code, count)| (Status::Code(*code), *count))
                .collect()
        };
        for (case, requests, answered, judged, of_nginx) in [
            // The first exercise: the rate limit's own 503.
            (
                "limited",
                vec![(200, 64), (503, 177)],
                vec![(200, 64)],
                vec![(200, 64)],
                177,
            ),
            ("failing", vec![(500, 34)], vec![(500, 34)], vec![(500, 34)], 0),
            (
                "dead",
                vec![(502, 12), (504, 3)],
                vec![(502, 2)],
                vec![(502, 12), (504, 3)],
                0,
            ),
            (
                "tried again, and given up meanwhile",
                vec![(200, 20), (499, 4)],
                vec![(200, 3)],
                vec![(200, 20), (499, 4)],
                0,
            ),
            (
                "turned away, and preflights",
                vec![(204, 7), (308, 5), (401, 2), (403, 3)],
                vec![],
                vec![],
                17,
            ),
            ("its own 503", vec![(503, 5)], vec![(503, 5)], vec![(503, 5)], 0),
            ("nobody", vec![], vec![], vec![], 0),
        ] {
            let side = Side {
                requests: by(&requests),
                answered: by(&answered),
                ..Side::default()
            };
            assert_eq!((side.judged(), side.of_nginx()), (by(&judged), of_nginx), "{case}");
        }
    }

    #[test]
    fn an_edge_that_nothing_is_within_is_known_all_the_same() {
        let edges = |fast, slow| {
            let bucket = |series, le: &str, value| Reading {
                family: Family::Within(Edge::parse(le).unwrap()),
                ..reading(series, value)
            };
            said("a", -100, &[bucket(1, "0.005", fast), bucket(2, "0.25", slow)])
        };
        let mut counter = Counter::new(at(0));
        counter.add(round(1, &[edges(7, 10)]));
        let first = counter.counts().unwrap().canary.clone();
        counter.add(round(2, &[edges(7, 14)]));
        let within = |fast, slow| {
            let edge = |millis| Edge::from(Duration::from_millis(millis));
            BTreeMap::from([(edge(5), fast), (edge(250), slow)])
        };
        assert_eq!(first.within, within(0, 0));
        let now = &counter.counts().unwrap().canary;
        assert_eq!((&now.within, now.since(&first).within), (&within(0, 4), within(0, 4)));
        assert_eq!([Edge::parse("+Inf"), Edge::parse("soon")], [None, None]);
    }

    /// What happens to one controller pod between two rounds.
    #[derive(Clone, Debug)]
    enum Step {
        Requests {
            pod: usize,
            series: u64,
            count: u64,
        },
        /// The controller's container starts over; all series are gone until they are asked again.
        Restart {
            pod: usize,
        },
        /// The pod is replaced by another, which has not been seen.
        Replace {
            pod: usize,
        },
        Look {
            unanswered: Option<usize>,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0usize..3, 0u64..3, 1u64..1000).prop_map(|(pod, series, count)| Step::Requests { pod, series, count }),
            1 => (0usize..3).prop_map(|pod| Step::Restart { pod }),
            1 => (0usize..3).prop_map(|pod| Step::Replace { pod }),
            3 => prop::option::weighted(0.2, 0usize..3).prop_map(|unanswered| Step::Look { unanswered }),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// A pod as it really is.
    #[derive(Clone, Debug)]
    struct Real {
        uid: String,
        started: i64,
        counters: BTreeMap<u64, u64>,
        /// Requests since the last look, or since the controller started over.
        unseen: u64,
        /// What the last look read.
        read: BTreeMap<u64, u64>,
        /// Whether the controller has started over since.
        restarted: bool,
    }

    impl Real {
        fn new(uid: String, started: i64, counters: BTreeMap<u64, u64>) -> Self {
            Self {
                uid,
                started,
                read: counters.clone(),
                counters,
                unseen: 0,
                restarted: false,
            }
        }

        /// Counters started over and have passed what was read of them: nobody can tell.
        fn hides_restart(&self) -> bool {
            self.restarted
                && self
                    .read
                    .iter()
                    .any(|(series, read)| self.counters.get(series) >= Some(read))
        }

        fn look(&mut self) -> Answer {
            (self.unseen, self.restarted, self.read) = (0, false, self.counters.clone());
            let readings: Vec<Reading> = self
                .counters
                .iter()
                .map(|(series, value)| reading(*series, *value))
                .collect();
            said(&self.uid, self.started, &readings)
        }
    }

    proptest! {
        #[test]
        fn every_request_that_can_be_seen_is_counted_once(steps in steps()) {
            let mut pods: Vec<Real> =
                (0..3).map(|n| Real::new(format!("old-{n}"), -50, BTreeMap::from([(0, 500 + n)]))).collect();
            let mut counter = Counter::new(at(0));
            let (mut truth, mut exact) = (0, true);
            let answers: Vec<Answer> = pods.iter_mut().map(Real::look).collect();
            counter.add(round(1, &answers));
            for (second, step) in (2..).zip(steps) {
                match step {
                    Step::Requests { pod, series, count } => {
                        *pods[pod].counters.entry(series).or_default() += count;
                        pods[pod].unseen += count;
                    }
                    Step::Restart { pod } => {
                        let pod = &mut pods[pod];
                        pod.counters.clear();
                        (pod.unseen, pod.restarted) = (0, true);
                    }
                    Step::Replace { pod } => pods[pod] = Real::new(format!("new-{second}"), second, BTreeMap::new()),
                    Step::Look { unanswered } => {
                        let mut answers = Vec::new();
                        for (index, pod) in pods.iter_mut().enumerate() {
                            if unanswered == Some(index) {
                                answers.push(silent(&pod.uid));
                            } else {
                                truth += pod.unseen;
                                exact &= !pod.hides_restart();
                                answers.push(pod.look());
                            }
                        }
                        counter.add(round(second, &answers));
                        let counts = counter.counts().unwrap();
                        prop_assert!(counts.canary.total() <= truth);
                        prop_assert!(!exact || counts.canary.total() == truth, "{} of {truth}", counts.canary.total());
                        prop_assert_eq!(counts.complete, unanswered.is_none());
                    }
                }
            }
        }
    }
}
