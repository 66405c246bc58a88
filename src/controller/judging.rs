//! Which releases have their requests counted and judged, and by whom.

use crate::{
    analysis::{
        Answer, Counts, Interest, Judge, Judged, Look, Met, OFTEN, Rules, Scraper, Subscription,
        prometheus::{self, Prometheus, Template},
    },
    api::{CanaryRelease, CheckKind, Query, Source},
    observe::{View, Wake},
    release::{Settling, server, to_judge},
    routing::Routing,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Who counts requests and answers queries.
#[derive(Clone, Default)]
pub struct Sources {
    /// The ingress-nginx controllers, where there are any.
    pub scraper: Option<Scraper>,
    /// The Prometheus servers of the configuration.
    pub prometheus: Option<Prometheus>,
}

/// By namespace and name.
pub(super) struct Judging {
    sources: Sources,
    wake: Wake,
    entries: Mutex<BTreeMap<(String, String), Entry>>,
    /// Releases whose last round failed: they are tried again in their own time, and new counts do not hurry them.
    failing: Arc<Mutex<BTreeSet<(String, String)>>>,
}

struct Entry {
    /// The release that is judged: the next of the same name starts anew.
    started_at: MicroTime,
    /// Since when.
    since: Timestamp,
    interest: Interest,
    source: (Source, Option<String>),
    counter: Result<Counter, String>,
    /// By the name of the check.
    queries: BTreeMap<String, Asked>,
    judge: Judge,
    /// Whether the last answers were complete, as logged.
    complete: Option<bool>,
}

/// Who counts the requests of a release.
enum Counter {
    Scraped(Subscription),
    Stored(prometheus::Subscription),
}

impl Counter {
    fn counts(&self) -> Option<Counts> {
        match self {
            Self::Scraped(subscription) => subscription.counts(),
            Self::Stored(subscription) => subscription.counts(),
        }
    }

    fn lag(&self) -> Duration {
        match self {
            Self::Scraped(_) => Duration::ZERO,
            Self::Stored(subscription) => subscription.age(),
        }
    }

    fn every(&self, length: Duration) {
        // Prometheus scrapes when it scrapes.
        if let Self::Scraped(subscription) = self {
            subscription.every(length);
        }
    }
}

/// A query that is asked.
struct Asked {
    /// Hash of the check.
    check: String,
    every: Duration,
    server: Result<String, String>,
    since: Timestamp,
    watch: Result<prometheus::Watch, String>,
}

impl Asked {
    fn answer(&self) -> Option<Answer> {
        match &self.watch {
            Err(why) => Some(Answer {
                at: self.since,
                result: Err(why.clone()),
            }),
            Ok(watch) => watch.latest().map(|latest| Answer {
                at: latest.at,
                result: latest.value.map_err(|error| error.to_string()),
            }),
        }
    }
}

impl Judging {
    pub fn new(sources: Sources, wake: Wake) -> Self {
        Self {
            sources,
            wake,
            entries: Mutex::default(),
            failing: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the last round of a release ended.
    pub fn ended(&self, namespace: &str, name: &str, well: bool) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if well {
            failing.remove(&key);
        } else {
            failing.insert(key);
        }
    }

    /// Names of the Prometheus servers, as they are configured now.
    pub fn servers(&self) -> Vec<String> {
        self.sources
            .prometheus
            .as_ref()
            .map(Prometheus::names)
            .unwrap_or_default()
    }

    /// What the requests of a release say; begins and ends the counting as the release needs it.
    pub fn look(
        &self,
        release: &CanaryRelease,
        view: &View,
        routing: &dyn Routing,
        settling: &Settling,
        now: Timestamp,
    ) -> Judged {
        let key = (release.namespace().unwrap_or_default(), release.name_any());
        let Some(asked) = to_judge(release, &view.ingresses(), routing, settling) else {
            self.stop(&key.0, &key.1);
            return Judged::default();
        };
        let source = (asked.rules.source, asked.rules.server.clone());
        let mut entries = self.lock();
        let known = entries.get(&key).is_some_and(|entry| {
            entry.started_at == asked.started_at && entry.interest == asked.interest && entry.source == source
        });
        if !known {
            let checks = release.status.as_ref().map(|status| status.checks.as_slice());
            let entry = Entry {
                started_at: asked.started_at.clone(),
                since: now,
                counter: self.count(&key, &source, asked.interest.clone()),
                interest: asked.interest,
                source,
                queries: BTreeMap::new(),
                judge: Judge::resume(checks.unwrap_or_default()),
                complete: None,
            };
            entries.insert(key.clone(), entry);
        }
        let Some(entry) = entries.get_mut(&key) else {
            return Judged::default();
        };
        self.ask(&key, entry, &asked.rules, now);
        let counts = entry.counter.as_ref().ok().and_then(Counter::counts);
        // Worth a line, once: what follows from it is told where it matters.
        if let Some(counts) = &counts
            && entry.complete.replace(counts.complete) != Some(counts.complete)
        {
            let (namespace, name) = key;
            match counts.missing.join("; ") {
                missing if missing.is_empty() => tracing::debug!(namespace, name, "requests are counted"),
                missing => tracing::warn!(namespace, name, missing, "requests are not counted"),
            }
        }
        let answers = entry.queries.iter();
        let answers = answers.filter_map(|(check, asked)| Some((check.clone(), asked.answer()?)));
        let look = Look {
            now,
            rules: &asked.rules,
            in_force: asked.in_force.as_ref(),
            counts: counts.as_ref(),
            lag: entry.counter.as_ref().map_or(Duration::ZERO, Counter::lag),
            uncounted: entry.counter.as_ref().err().map(String::as_str),
            answers: &answers.collect(),
        };
        let mut judged = entry.judge.look(&look);
        if let Ok(counter) = &entry.counter {
            // Whoever waits for silence waits for the first look at least.
            if counts.is_none() && matches!(counter, Counter::Scraped(_)) {
                judged.met = Some(Met::nobody_since(entry.since));
            }
            let pace = if asked.closely { OFTEN } else { entry.judge.pace(&look) };
            counter.every(pace);
        }
        judged
    }

    fn waker(&self, key: &(String, String)) -> impl Fn() + Send + Sync + 'static {
        let (wake, failing, key) = (self.wake.clone(), self.failing.clone(), key.clone());
        move || {
            if !failing.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
                // The reconciler is gone when this fails, and whoever calls it is about to follow.
                let _ = wake.unbounded_send(ObjectRef::new(&key.1).within(&key.0));
            }
        }
    }

    fn count(
        &self,
        key: &(String, String),
        (source, name): &(Source, Option<String>),
        interest: Interest,
    ) -> Result<Counter, String> {
        match (source, &self.sources) {
            (
                Source::IngressNginx,
                Sources {
                    scraper: Some(scraper), ..
                },
            ) => Ok(Counter::Scraped(scraper.subscribe(interest, self.waker(key)))),
            (Source::IngressNginx, _) => Err("there are no controllers to ask".to_owned()),
            (Source::Prometheus, sources) => {
                let server = server(name.as_deref(), &self.servers())?;
                let prometheus = sources
                    .prometheus
                    .as_ref()
                    .ok_or_else(|| format!("{server} cannot be asked"))?;
                Ok(Counter::Stored(prometheus.subscribe(
                    &server,
                    interest,
                    self.waker(key),
                )))
            }
        }
    }

    /// Queries come and go with the spec; one that asks something else is asked anew.
    fn ask(&self, key: &(String, String), entry: &mut Entry, rules: &Rules, now: Timestamp) {
        let mut before = std::mem::take(&mut entry.queries);
        let servers = self.servers();
        for rule in &rules.checks {
            let Some(CheckKind::Query(query)) = rule.check.kind() else {
                continue;
            };
            let (name, server) = (
                &rule.check.name,
                server(query.server.as_deref().or(rules.server.as_deref()), &servers),
            );
            let same =
                |asked: &Asked| asked.check == rule.asked && asked.every == rules.interval && asked.server == server;
            let asked = before.remove(name).filter(same).unwrap_or_else(|| Asked {
                check: rule.asked.clone(),
                every: rules.interval,
                watch: self.watch(key, &server, query, &entry.interest, rules.interval),
                server,
                since: now,
            });
            entry.queries.insert(name.clone(), asked);
        }
    }

    fn watch(
        &self,
        key: &(String, String),
        server: &Result<String, String>,
        query: &Query,
        interest: &Interest,
        every: Duration,
    ) -> Result<prometheus::Watch, String> {
        let server = server.as_ref().map_err(Clone::clone)?;
        let template = Template::parse(&query.query).map_err(|error| error.to_string())?;
        let prometheus = self
            .sources
            .prometheus
            .as_ref()
            .ok_or_else(|| format!("{server} cannot be asked"))?;
        Ok(prometheus.watch(server, template.render(interest, every), every, self.waker(key)))
    }

    /// The release needs no judging.
    pub fn stop(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Ends it for releases that `exists` does not know any more.
    pub fn forget_missing(&self, exists: impl Fn(&str, &str) -> bool) {
        self.lock().retain(|(namespace, name), _| exists(namespace, name));
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.retain(|(namespace, name)| exists(namespace, name));
    }
}
