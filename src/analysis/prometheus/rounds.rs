//! What Prometheus stored of the controllers, as looks at their pods.
//!
//! A controller is scraped at one time, so all series of its pod have a sample of then, and between two of these nothing is
//! known. A [`Round`] is made when there is something newer of a pod: it begins with the scrape of the pod that was scraped
//! the longest ago.
//!
//! Prometheus shows less than a controller does: a store behind it may be missing for a moment, and where two replicas are
//! merged, each series is of one or the other. A series that only seems to be new would count from zero, thousands at once.
//! So a series that was seen goes on where it was, however long it was missing; and one that was not seen, though it has a
//! sample of a scrape that was looked at, makes the next look at its pod a baseline. What that loses, it loses of both versions.

use crate::analysis::counts::{Answer, Exposed, Reading, Round, Scrape};
use jiff::{Timestamp, Unit};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// How far a first look reaches back: two scrapes of the longest common interval.
const LOOKBACK: i64 = 120_000;
/// A look reaches back beyond the last scrape by this, for the server's clock may be ahead.
const SLACK: i64 = 15_000;
/// A pod whose last scrape is older is not known well enough, unless it is scraped as rarely as that.
const LATE: i64 = 60_000;
/// And one whose last scrape is older than this is taken to be gone.
const GONE: i64 = 180_000;
/// A scrape that is said to be later than now by more is by another clock.
const AHEAD: i64 = 5_000;
/// Series of one pod that are kept at most.
const MOST_SERIES: usize = 200_000;

/// A series of a controller, as Prometheus has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// Name of the controller's pod.
    pub pod: String,
    /// Which of those who scrape that pod has it: a hash of the labels that they add.
    pub target: u64,
    /// What it counts for the release; none where it only shows that the pod was scraped.
    pub reading: Option<Reading>,
    /// When its oldest sample that was asked for was scraped, in milliseconds since 1970.
    pub first: i64,
    /// When its newest was, with the reading's value.
    pub last: i64,
    /// From one sample to the next, in milliseconds.
    pub apart: Option<i64>,
}

/// Makes rounds of what is seen.
#[derive(Debug)]
pub(super) struct Rounds {
    /// When the counting began.
    since: Timestamp,
    pods: BTreeMap<String, Pod>,
    /// Pods so far, to whoever counts.
    generation: u64,
    /// When the pods of the last round were scraped, the first and the last of them.
    scraped: Option<(Timestamp, Timestamp)>,
    /// Why the last round was not complete.
    missing: Vec<String>,
}

#[derive(Debug)]
struct Pod {
    target: u64,
    /// Of another one whoever counts takes the pod for another, whose first look is a baseline.
    generation: u64,
    /// When it was last scraped.
    scraped: i64,
    /// How often it is.
    every: Option<i64>,
    /// By series, with the time of the sample.
    readings: HashMap<u64, (i64, Reading)>,
}

impl Pod {
    fn new(target: u64, generation: u64) -> Self {
        Self {
            target,
            generation,
            scraped: i64::MIN,
            every: None,
            readings: HashMap::new(),
        }
    }

    fn uid(&self, name: &str) -> String {
        format!("{name}/{}", self.generation)
    }

    fn is_late(&self, now: i64) -> bool {
        now.saturating_sub(self.scraped) > LATE.max(self.every.unwrap_or_default().saturating_mul(2))
    }

    fn is_gone(&self, now: i64) -> bool {
        now.saturating_sub(self.scraped) > GONE.max(self.every.unwrap_or_default().saturating_mul(3))
    }

    /// Takes in what one target has of the pod; whether it was scraped since. It is of the `next` generation where it shows
    /// what it had all the time.
    fn see(&mut self, series: &[&Seen], next: u64) -> bool {
        let scraped = series.iter().map(|seen| seen.last).max().unwrap_or(self.scraped);
        let looked_at = self.scraped;
        let hidden = |seen: &&&Seen| {
            let reading = seen
                .reading
                .filter(|reading| !self.readings.contains_key(&reading.series));
            reading.is_some() && looked_at != i64::MIN && seen.first <= looked_at
        };
        if series.iter().any(|seen| hidden(&seen)) {
            self.generation = next;
        }
        for seen in series {
            let Some(reading) = seen.reading else { continue };
            if self.readings.len() > MOST_SERIES && !self.readings.contains_key(&reading.series) {
                continue;
            }
            let kept = self.readings.entry(reading.series).or_insert((seen.last, reading));
            if kept.0 <= seen.last {
                *kept = (seen.last, reading);
            }
        }
        let between = (looked_at != i64::MIN && scraped > looked_at).then(|| scraped - looked_at);
        let apart = series.iter().filter_map(|seen| seen.apart).min();
        self.every = apart.or(self.every).or(between);
        self.scraped = scraped.max(looked_at);
        scraped > looked_at
    }

    fn answer(&self, name: &str, server: &str, now: i64, exposed: Exposed) -> Answer {
        let age = now.saturating_sub(self.scraped);
        let scrape = if self.readings.len() > MOST_SERIES {
            Err(format!(
                "controller pod {name} has more than {MOST_SERIES} series of one release"
            ))
        } else if age < -AHEAD {
            Err(format!(
                "the clock of Prometheus {server} is ahead of the operator's: it has scraped controller pod {name} in the future"
            ))
        } else if self.is_late(now) {
            // Not how long ago: that would be news every time.
            let last = Timestamp::from_millisecond(self.scraped).map(|last| last.round(Unit::Second).unwrap_or(last));
            let last = last.map(|last| last.to_string()).unwrap_or_default();
            Err(format!(
                "controller pod {name} was last scraped by Prometheus {server} at {last}"
            ))
        } else {
            Ok(Scrape {
                readings: self.readings.values().map(|(_, reading)| *reading).collect(),
                exposed,
            })
        };
        Answer {
            uid: self.uid(name),
            // Prometheus does not tell, and what a pod counted before it was first scraped is little.
            started: None,
            scrape,
        }
    }
}

impl Rounds {
    /// For a counter that counts from then.
    pub fn new(since: Timestamp) -> Self {
        Self {
            since,
            pods: BTreeMap::new(),
            generation: 0,
            scraped: None,
            missing: Vec::new(),
        }
    }

    /// How far back the next look has to reach: to the last scrape of every pod, so that a series is known to be new.
    pub fn window(&self, now: Timestamp) -> Duration {
        let oldest = self.pods.values().map(|pod| pod.scraped).min();
        let since = oldest.map_or(LOOKBACK, |oldest| {
            now.as_millisecond().saturating_sub(oldest).max(0).saturating_add(SLACK)
        });
        // Whole seconds are what PromQL reads best.
        Duration::from_secs(since.unsigned_abs().div_ceil(1000))
    }

    /// How often the controllers are scraped: the one that is the most seldom.
    pub fn every(&self) -> Duration {
        let every = self.pods.values().filter_map(|pod| pod.every).max().unwrap_or_default();
        Duration::from_millis(every.unsigned_abs())
    }

    /// Whether a controller is known to have been scraped of late.
    pub fn are_pods_known(&self) -> bool {
        !self.pods.is_empty()
    }

    /// Whether there is any request of the release.
    pub fn are_requests_known(&self) -> bool {
        self.pods.values().any(|pod| !pod.readings.is_empty())
    }

    /// Takes in all that was seen now; whether there is a newer scrape.
    pub fn see(&mut self, seen: &[Seen], now: Timestamp) -> bool {
        let now = now.as_millisecond();
        let mut targets = BTreeMap::<&str, BTreeMap<u64, Vec<&Seen>>>::new();
        for series in seen {
            let targets = targets.entry(&series.pod).or_default();
            targets.entry(series.target).or_default().push(series);
        }
        let mut newer = false;
        for (name, targets) in targets {
            // Two jobs, or two replicas, may scrape one pod: its requests are still counted once.
            let newest =
                |(target, series): &(&u64, &Vec<&Seen>)| (series.iter().map(|seen| seen.last).max(), Reverse(**target));
            let Some((newest, _)) = targets.iter().max_by_key(newest) else {
                continue;
            };
            self.generation += 1;
            let next = self.generation;
            let pod = self
                .pods
                .entry(name.to_owned())
                .or_insert_with(|| Pod::new(*newest, next));
            if pod.target != *newest && pod.is_late(now) {
                *pod = Pod::new(*newest, next);
            }
            if let Some(series) = targets.get(&pod.target) {
                newer |= pod.see(series, next);
            }
        }
        self.pods.retain(|_, pod| !pod.is_gone(now));
        newer
    }

    /// A look at all pods as they are known now; none where it would say what the last one did.
    pub fn round(&mut self, server: &str, newer: bool, exposed: Exposed, now: Timestamp) -> Option<Round> {
        let (mut answers, mut unready, mut scraped) = (Vec::new(), BTreeSet::new(), Vec::new());
        for (name, pod) in &self.pods {
            let answer = pod.answer(name, server, now.as_millisecond(), exposed);
            match &answer.scrape {
                Ok(_) => scraped.extend(Timestamp::from_millisecond(pod.scraped)),
                // Of a controller that may serve others.
                Err(_) if pod.readings.is_empty() => {
                    unready.insert(answer.uid);
                    continue;
                }
                Err(_) => {}
            }
            answers.push(answer);
        }
        let Some(times) = scraped.iter().min().copied().zip(scraped.iter().max().copied()) else {
            let late: Vec<String> = answers.into_iter().filter_map(|answer| answer.scrape.err()).collect();
            let none = || format!("Prometheus {server} has scraped no ingress-nginx controller of late");
            return self.failed(if late.is_empty() { none() } else { late.join("; ") }, now);
        };
        self.scraped = Some(times);
        let late = answers.iter().filter_map(|answer| answer.scrape.as_ref().err());
        let changed = self.tell(late.cloned().collect());
        (newer || changed).then_some(Round {
            began: times.0,
            ended: times.1,
            answers,
            unready,
            unlisted: None,
        })
    }

    /// A look in which nothing was seen, and why; none where it would say what the last one did.
    pub fn failed(&mut self, why: String, now: Timestamp) -> Option<Round> {
        let (began, ended) = self.scraped.unwrap_or((now, now));
        self.tell(vec![why.clone()]).then(|| Round {
            // Who counts passes over what was scraped before the counting began, and is to know of this.
            began: began.max(self.since),
            ended: ended.max(self.since),
            answers: Vec::new(),
            unready: BTreeSet::new(),
            unlisted: Some(why),
        })
    }

    /// Whether it is something else than was told last.
    fn tell(&mut self, missing: Vec<String>) -> bool {
        let changed = missing != self.missing;
        self.missing = missing;
        changed
    }
}
