//! A release's requests, from the controllers' counters as Prometheus stored them.
//!
//! Neither `rate()` nor `increase()`: they cannot see the first value of a series, which is a version's first failure, and
//! nothing is left of them where every request failed. Instead the samples themselves are asked for, with the times at which
//! they were scraped, and counted as scraped ones are. A range is asked for that just reaches back to the last scrape, so that
//! a series costs its labels and a sample or two, some 450 bytes; asking for values at one time and for their `timestamp()`
//! would write the labels twice, and the second time without the name of the metric.

use super::{
    Prometheus,
    answer::{self, Series},
    error::{Problem, QueryError},
    rounds::{Rounds, Seen},
    servers::Labelling,
    template::{any_of, duration},
};
use crate::analysis::{
    counts::{
        Counter, Counts, Edge, Exposed, Family, Interest, Reading, Round, SeriesLabels, Status, series as series_of,
    },
    scraper::{PREFIX, count},
};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// From one look to the next. Prometheus scrapes every 15 to 60 s as a rule; a look that finds nothing newer is cheap.
const EVERY: Duration = Duration::from_secs(5);
/// Bytes of an answer at most: about 35,000 series.
const LIMIT: usize = 16 << 20;
/// Looks in which nothing of the release is found before it is asked again why.
const BETWEEN_DOUBTS: u32 = 12;

/// Has a release's requests counted; dropping it ends that.
#[derive(Debug)]
pub struct Subscription {
    counted: Arc<Mutex<Counted>>,
    // Dropping the set ends the asking.
    _looking: JoinSet<()>,
}

#[derive(Debug)]
struct Counted {
    counter: Counter,
    /// How often the controllers are scraped.
    every: Duration,
}

fn lock(counted: &Mutex<Counted>) -> MutexGuard<'_, Counted> {
    // A panic elsewhere leaves the counter whole: a round is added by a single call.
    counted.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subscription {
    /// What has been counted; none before every controller was scraped since the counting began.
    #[must_use]
    pub fn counts(&self) -> Option<Counts> {
        lock(&self.counted).counter.counts().cloned()
    }

    /// How old the counts may be while nothing is wrong: as long as the controllers are not scraped, and not looked at.
    #[must_use]
    pub fn age(&self) -> Duration {
        lock(&self.counted).every.saturating_add(EVERY)
    }
}

impl Prometheus {
    /// Counts a release's requests from now on, and calls `wake` when there is something newer or something wrong. Takes a
    /// tokio runtime.
    #[must_use]
    pub fn subscribe(&self, server: &str, interest: Interest, wake: impl Fn() + Send + 'static) -> Subscription {
        let since = self.clock.now();
        let counted = Arc::new(Mutex::new(Counted {
            counter: Counter::new(since),
            every: Duration::ZERO,
        }));
        let mut looker = Looker {
            prometheus: self.clone(),
            server: server.to_owned(),
            interest,
            rounds: Rounds::new(since),
            exposed: Exposed::default(),
            wrong: None,
            undoubted: 0,
            pods: false,
            warnings: Vec::new(),
        };
        let kept = counted.clone();
        let mut looking = JoinSet::new();
        looking.spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(round) = looker.look().await else { continue };
                {
                    let mut counted = lock(&kept);
                    counted.counter.add(round);
                    counted.every = looker.rounds.every();
                }
                // Outside of the lock: who is woken may ask at once.
                wake();
            }
        });
        Subscription {
            counted,
            _looking: looking,
        }
    }
}

struct Looker {
    prometheus: Prometheus,
    server: String,
    interest: Interest,
    rounds: Rounds,
    exposed: Exposed,
    /// Why nothing of the release is found, where that is not for want of requests.
    wrong: Option<String>,
    /// Looks since that was last asked, and whether there were any pods then.
    undoubted: u32,
    pods: bool,
    warnings: Vec<String>,
}

impl Looker {
    async fn look(&mut self) -> Option<Round> {
        let seen = self.see().await;
        let now = self.prometheus.clock.now();
        match (seen, &self.wrong) {
            (Err(error), _) => self.rounds.failed(error.to_string(), now),
            (Ok(_), Some(wrong)) => self.rounds.failed(wrong.clone(), now),
            (Ok(newer), None) => self.rounds.round(&self.server, newer, self.exposed, now),
        }
    }

    /// Asks for everything; whether there is a newer scrape.
    async fn see(&mut self) -> Result<bool, QueryError> {
        let labelling = self.prometheus.ask.labelling(&self.server)?;
        let window = self.rounds.window(self.prometheus.clock.now());
        let queries = Queries::new(&self.interest, &labelling, window);
        // The release's own last: what was scraped by the time that the others show must not be missing in it.
        let alive = self.series(&queries.alive, &labelling).await?;
        let elsewhere = self.series(&queries.elsewhere, &labelling).await?;
        let own = self.series(&queries.own, &labelling).await?;
        let parts = [alive, elsewhere, own];
        let warnings: Vec<String> = parts.iter().flat_map(|(_, warnings)| warnings).cloned().collect();
        if warnings != self.warnings && !warnings.is_empty() {
            tracing::warn!(server = self.server, ?warnings, "Prometheus answers with warnings");
        }
        self.warnings = warnings;
        let seen: Vec<Seen> = parts.into_iter().flat_map(|(seen, _)| seen).collect();
        let newer = self.rounds.see(&seen, self.prometheus.clock.now());
        self.doubt(&labelling).await?;
        Ok(newer)
    }

    async fn series(&self, query: &str, labelling: &Labelling) -> Result<(Vec<Seen>, Vec<String>), QueryError> {
        let body = self.prometheus.ask.ask(&self.server, query, LIMIT).await?;
        let read = || {
            let (series, warnings) = answer::series(&body)?;
            let seen = series
                .iter()
                .filter_map(|series| seen(series, &self.interest, labelling).transpose());
            Ok((seen.collect::<Result<Vec<_>, Problem>>()?, warnings))
        };
        read().map_err(|problem| QueryError::of(&self.server, problem))
    }

    /// Where nothing of the release is found: whether there is nothing, or nothing that is called so.
    async fn doubt(&mut self, labelling: &Labelling) -> Result<(), QueryError> {
        if self.rounds.are_requests_known() {
            (self.exposed, self.wrong, self.undoubted) = (Exposed::Requests, None, 0);
            return Ok(());
        }
        let pods = self.rounds.are_pods_known();
        let due = self.undoubted == 0 || pods != self.pods;
        self.pods = pods;
        self.undoubted = (self.undoubted + 1) % BETWEEN_DOUBTS;
        if !due {
            return Ok(());
        }
        let server = &self.server;
        let namespace = &labelling.names.namespace;
        let body = self.prometheus.ask.ask(server, &doubt(labelling), LIMIT).await?;
        let number = answer::number(&body).map_err(|problem| QueryError::of(server, problem))?;
        let of_this_cluster = match labelling.select.is_empty() {
            true => String::new(),
            false => format!(" with {}", matchers(&labelling.select).join(",")),
        };
        (self.exposed, self.wrong) = match number.value {
            Some(series) if series < 0.0 => (
                Exposed::NoRequests,
                Some(format!(
                    "Prometheus {server} has {PREFIX}requests with the label exported_{namespace}: say so in the operator's \
                     configuration (labels: {{namespace: exported_{namespace}, service: exported_{}}})",
                    labelling.names.service
                )),
            ),
            Some(_) => (Exposed::Requests, None),
            None if pods => (Exposed::NoRequests, None),
            None => (
                Exposed::Nothing,
                Some(format!(
                    "Prometheus {server} has no metrics of ingress-nginx{of_this_cluster}: do its controllers run with \
                     --enable-metrics, does this Prometheus scrape them, and are {} and {} what it calls their labels?",
                    labelling.names.namespace, labelling.names.controller_pod
                )),
            ),
        };
        Ok(())
    }
}

/// The queries of a look.
#[derive(Debug, PartialEq, Eq)]
struct Queries {
    /// The series of the release's own Ingresses.
    own: String,
    /// Requests to its canary, by whatever Ingress: other Ingresses with the same backend leak into it.
    elsewhere: String,
    /// Of every controller, whether it has had a request or not.
    alive: String,
}

impl Queries {
    fn new(interest: &Interest, labelling: &Labelling, window: Duration) -> Self {
        let Labelling { names, select } = labelling;
        let select = matchers(select);
        let range =
            |matchers: &[String]| format!("{{{}}}[{}]", [matchers, &select].concat().join(","), duration(window));
        let family = |name: &str| format!("__name__=~\"{PREFIX}({name})\"");
        let families = match interest.latency {
            true => family("requests|response_duration_seconds_count|response_duration_seconds_bucket"),
            false => family("requests|response_duration_seconds_count"),
        };
        let namespace = format!("{}={}", names.namespace, quoted(&interest.namespace));
        let canaries = any_of(&interest.canaries);
        Self {
            own: range(&[
                families,
                namespace.clone(),
                format!("{}=~{}", names.ingress, quoted(&any_of(&interest.ingresses))),
                format!("{}={}", names.service, quoted(&interest.service)),
                // Prometheus drops a label that is empty, which is version 1's.
                format!("{}=~{}", names.canary, quoted(&format!("|{canaries}"))),
                // As many as _count has.
                "le!=\"+Inf\"".to_owned(),
            ]),
            elsewhere: range(&[
                family("requests"),
                namespace,
                format!("{}=~{}", names.canary, quoted(&canaries)),
            ]),
            alive: range(&[family("config_last_reload_successful")]),
        }
    }
}

/// How many series of requests there are; negative where Prometheus has renamed what it is asked for.
fn doubt(labelling: &Labelling) -> String {
    let Labelling { names, select } = labelling;
    let named = |more: &str| {
        format!(
            "{PREFIX}requests{{{}}}",
            [&matchers(select), &[more.to_owned()][..]].concat().join(",")
        )
    };
    let renamed = named(&format!("exported_{}!=\"\"", names.namespace));
    let ours = named(&format!("{}!=\"\",{}!=\"\"", names.namespace, names.ingress));
    format!("-count({renamed}) or count({ours})")
}

fn matchers(select: &BTreeMap<String, String>) -> Vec<String> {
    select
        .iter()
        .map(|(name, value)| format!("{name}={}", quoted(value)))
        .collect()
}

/// A string of PromQL, which has Go's escapes.
fn quoted(text: &str) -> String {
    format!(
        "\"{}\"",
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
    )
}

/// Which pod's series it is and what it counts; none where it is of no use.
fn seen(series: &Series<'_>, interest: &Interest, labelling: &Labelling) -> Result<Option<Seen>, Problem> {
    let names = &labelling.names;
    let Some(samples) = series.samples() else {
        return Ok(None);
    };
    // Without the label there is none to say that it is empty.
    let mut labels = SeriesLabels {
        canary: Some("".into()),
        ..SeriesLabels::default()
    };
    let (mut metric, mut pod) = ("", "");
    let mut target = DefaultHasher::new();
    for (name, value) in series.labels() {
        let (name, value) = (name.as_ref(), value.as_ref());
        match name {
            "__name__" => metric = value,
            "le" => labels.le = value.into(),
            "host" | "path" | "method" | "controller_class" | "controller_namespace" => {}
            name if name == names.controller_pod => pod = value,
            name if name == names.namespace => labels.namespace = value.into(),
            name if name == names.ingress => labels.ingress = value.into(),
            name if name == names.service => labels.service = value.into(),
            name if name == names.canary => labels.canary = Some(value.into()),
            name if name == names.status => labels.status = value.into(),
            _ => (name, value).hash(&mut target),
        }
    }
    if pod.is_empty() {
        return Ok(None);
    }
    let family = match metric.strip_prefix(PREFIX) {
        Some("requests") => Some(Family::Requests),
        Some("response_duration_seconds_count") => Some(Family::Answered),
        Some("response_duration_seconds_bucket") => Edge::parse(&labels.le).map(Family::Within),
        _ => None,
    };
    let reading = match (family, interest.version(&labels)) {
        (Some(family), Some(version)) => Some(Reading {
            series: series_of(family, series.labels()),
            family,
            version,
            status: Status::parse(&labels.status),
            value: count(samples.value).ok_or_else(|| Problem::NotACount(samples.value.to_string()))?,
        }),
        _ => None,
    };
    Ok(Some(Seen {
        pod: pod.to_owned(),
        target: target.finish(),
        reading,
        first: samples.first,
        last: samples.last,
        apart: samples.apart(),
    }))
}

#[cfg(test)]
mod tests;
