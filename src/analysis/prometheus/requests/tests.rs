use super::*;
use crate::{
    analysis::{
        counts::Version,
        prometheus::{Ask, LabelNames},
    },
    rehearse::clock::VirtualClock,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use promql_parser::parser::{Expr, VectorSelector, parse, token::T_LOR};
use proptest::prelude::*;
use serde_json::json;
use std::{collections::BTreeSet, sync::atomic::AtomicUsize, sync::atomic::Ordering};

type Labels = BTreeMap<String, String>;

/// A Prometheus in memory: it stores what a test scrapes, and evaluates the queries that it is asked.
#[derive(Default)]
struct Store {
    labelling: Labelling,
    clock: Option<VirtualClock>,
    stored: Mutex<Stored>,
}

#[derive(Default)]
struct Stored {
    series: BTreeMap<Labels, Vec<(i64, f64)>>,
    /// What fails, and how.
    down: Option<Problem>,
    /// Statuses that no answer has, as where a store behind it is missing.
    hidden: BTreeSet<String>,
    asked: Vec<String>,
}

impl Store {
    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap()
    }

    fn asked(&self) -> usize {
        self.stored().asked.len()
    }

    /// What each series of the selector has within so many milliseconds.
    fn select(&self, selector: &VectorSelector, range: i64) -> Vec<(Labels, Vec<(i64, f64)>)> {
        let stored = self.stored();
        let now = self.clock.unwrap().now().as_millisecond();
        let name = selector.name.as_ref();
        let matches = |labels: &Labels| {
            let label = |name: &str| labels.get(name).map_or("", String::as_str);
            name.is_none_or(|name| label("__name__") == name)
                && selector
                    .matchers
                    .matchers
                    .iter()
                    .all(|matcher| matcher.is_match(label(&matcher.name)))
                && !stored.hidden.contains(label("status"))
        };
        let within = |samples: &[(i64, f64)]| {
            let samples = samples.iter().filter(|(at, _)| *at > now - range && *at <= now);
            samples.copied().collect::<Vec<_>>()
        };
        let found = stored.series.iter().filter(|(labels, _)| matches(labels));
        found
            .map(|(labels, samples)| (labels.clone(), within(samples)))
            .filter(|(_, samples)| !samples.is_empty())
            .collect()
    }

    fn evaluate(&self, query: &str) -> serde_json::Value {
        let seconds = |at: i64| at as f64 / 1000.0;
        match parse(query).unwrap_or_else(|why| panic!("{query}: {why}")) {
            Expr::MatrixSelector(range) => {
                let found = self.select(&range.vs, i64::try_from(range.range.as_millis()).unwrap());
                let series = found.into_iter().map(|(labels, samples)| {
                    let values: Vec<_> = samples
                        .into_iter()
                        .map(|(at, value)| json!([seconds(at), value.to_string()]))
                        .collect();
                    json!({"metric": labels, "values": values})
                });
                json!({"resultType": "matrix", "result": series.collect::<Vec<_>>()})
            }
            Expr::Binary(either) if either.op.id() == T_LOR => {
                let (Expr::Unary(less), Expr::Aggregate(more)) = (*either.lhs, *either.rhs) else {
                    panic!("{query}");
                };
                let Expr::Aggregate(less) = *less.expr else {
                    panic!("{query}")
                };
                let count = |selector: Expr| match selector {
                    Expr::VectorSelector(selector) => self.select(&selector, 300_000).len() as i64,
                    other => panic!("{other:?}"),
                };
                let (less, more) = (count(*less.expr), count(*more.expr));
                let number = if less > 0 { -less } else { more };
                let element = json!({"metric": {}, "value": [0, number.to_string()]});
                let result = if number == 0 { vec![] } else { vec![element] };
                json!({"resultType": "vector", "result": result})
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Ask for Store {
    fn names(&self) -> Vec<String> {
        vec!["main".to_owned()]
    }

    fn labelling(&self, server: &str) -> Result<Labelling, QueryError> {
        match server {
            "main" => Ok(self.labelling.clone()),
            name => Err(QueryError::Unknown {
                name: name.to_owned(),
                known: self.names(),
            }),
        }
    }

    fn ask<'a>(&'a self, server: &'a str, query: &'a str, _: usize) -> BoxFuture<'a, Result<Bytes, QueryError>> {
        Box::pin(async move {
            self.stored().asked.push(query.to_owned());
            if let Some(problem) = self.stored().down.clone() {
                return Err(QueryError::of(server, problem));
            }
            let answer = json!({"status": "success", "data": self.evaluate(query)});
            Ok(Bytes::from(answer.to_string()))
        })
    }
}

/// A controller's counters, by canary, status, Ingress and family.
#[derive(Clone, Default)]
struct Nginx(BTreeMap<(String, u16, String, String), u64>);

impl Nginx {
    /// Requests to a version, all of them answered by it.
    fn serve(&mut self, canary: &str, status: u16, count: u64) {
        self.serve_at("web", canary, status, count);
    }

    fn serve_at(&mut self, ingress: &str, canary: &str, status: u16, count: u64) {
        for family in ["requests", "response_duration_seconds_count"] {
            let key = (canary.to_owned(), status, ingress.to_owned(), family.to_owned());
            *self.0.entry(key).or_default() += count;
        }
    }
}

const CANARY: &str = "shop-web-canary-80";

struct Rig {
    clock: VirtualClock,
    store: Arc<Store>,
    prometheus: Prometheus,
}

impl Rig {
    fn new() -> Self {
        Self::labelled(Labelling::default())
    }

    fn labelled(labelling: Labelling) -> Self {
        let clock = VirtualClock::new();
        let store = Arc::new(Store {
            labelling,
            clock: Some(clock),
            ..Store::default()
        });
        let prometheus = Prometheus::new(store.clone(), Arc::new(clock));
        Self {
            clock,
            store,
            prometheus,
        }
    }

    fn subscribe(&self) -> Subscription {
        self.prometheus.subscribe("main", interest(), || {})
    }

    /// Stores a scrape of now.
    fn scrape(&self, pod: &str, nginx: &Nginx) {
        self.scrape_as(pod, nginx, &[("job", "ingress-nginx"), ("instance", pod)], "");
    }

    /// With these labels added, and its own of these names renamed so.
    fn scrape_as(&self, pod: &str, nginx: &Nginx, added: &[(&str, &str)], renamed: &str) {
        let at = self.clock.now().as_millisecond();
        let mut stored = self.store.stored();
        let mut store = |labels: &[(&str, &str)], value: f64| {
            let own = labels.iter().map(|(name, value)| match *name {
                "namespace" | "service" => (format!("{renamed}{name}"), (*value).to_owned()),
                name => (name.to_owned(), (*value).to_owned()),
            });
            let added = added
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let labels: Labels = own.chain(added).filter(|(_, value)| !value.is_empty()).collect();
            stored.series.entry(labels).or_default().push((at, value));
        };
        store(
            &[
                ("__name__", "nginx_ingress_controller_config_last_reload_successful"),
                ("controller_pod", pod),
            ],
            1.0,
        );
        for ((canary, status, ingress, family), value) in &nginx.0 {
            let name = format!("nginx_ingress_controller_{family}");
            let (status, le) = (
                status.to_string(),
                family.strip_suffix("_bucket").map_or("", |_| "0.25"),
            );
            let labels = [
                ("__name__", name.as_str()),
                ("controller_pod", pod),
                ("namespace", "shop"),
                ("ingress", ingress),
                ("service", "web"),
                ("canary", canary),
                ("status", &status),
                ("path", "/a\"b"),
                ("le", le),
            ];
            store(&labels, *value as f64);
        }
    }
}

fn interest() -> Interest {
    Interest {
        namespace: "shop".to_owned(),
        ingresses: BTreeSet::from(["web".to_owned()]),
        service: "web".to_owned(),
        canaries: BTreeSet::from([CANARY.to_owned()]),
        latency: false,
    }
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn totals(subscription: &Subscription) -> (u64, u64, bool) {
    let counts = subscription.counts().unwrap();
    (counts.stable.total(), counts.canary.total(), counts.complete)
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_unless_somebody_subscribes() {
    let rig = Rig::new();
    pass(60).await;
    assert_eq!(rig.store.asked(), 0);
    rig.scrape("a", &Nginx::default());
    let woken = Arc::new(AtomicUsize::new(0));
    let waker = woken.clone();
    let subscription = rig.prometheus.subscribe("main", interest(), move || {
        waker.fetch_add(1, Ordering::Relaxed);
    });
    pass(11).await;
    // Three queries a look; and why there is no request, once a minute.
    assert_eq!(rig.store.asked(), 3 * 3 + 1);
    // Nothing came that is newer.
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    rig.scrape("a", &Nginx::default());
    pass(5).await;
    assert_eq!(woken.load(Ordering::Relaxed), 2);
    drop(subscription);
    let asked = rig.store.asked();
    pass(600).await;
    assert_eq!(rig.store.asked(), asked);
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_from_the_first_scrape_after_the_subscription() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    a.serve("", 200, 1000);
    a.serve(CANARY, 200, 100);
    rig.scrape("a", &a);
    pass(5).await;
    let subscription = rig.subscribe();
    a.serve("", 200, 50);
    pass(5).await;
    // The only scrape is of before the counting began.
    assert_eq!(subscription.counts(), None);
    pass(5).await;
    let first = rig.clock.now();
    rig.scrape("a", &a);
    pass(5).await;
    let counts = subscription.counts().unwrap();
    assert_eq!(totals(&subscription), (0, 0, true));
    assert_eq!(
        (counts.began, counts.at, counts.exposed),
        (first, first, Exposed::Requests)
    );
    // A version's first failures are a series' first value.
    a.serve("", 200, 9);
    a.serve(CANARY, 500, 2);
    rig.scrape("a", &a);
    pass(5).await;
    let counts = subscription.counts().unwrap();
    assert_eq!((counts.stable.total(), counts.stable.of_nginx()), (9, 0));
    assert_eq!(counts.canary.judged(), BTreeMap::from([(Status::Code(500), 2)]));
    assert_eq!((counts.missing.as_slice(), counts.elsewhere), ([].as_slice(), 0));
    assert_eq!(subscription.age(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_had_no_request_yet_counts_its_first() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    let subscription = rig.subscribe();
    for _ in 0..2 {
        pass(10).await;
        rig.scrape("a", &a);
    }
    a.serve(CANARY, 500, 30);
    pass(10).await;
    rig.scrape("a", &a);
    pass(5).await;
    assert_eq!(totals(&subscription), (0, 30, true));
}

#[tokio::test(start_paused = true)]
async fn a_round_begins_with_the_pod_that_was_scraped_the_longest_ago() {
    let rig = Rig::new();
    let (mut a, mut b) = (Nginx::default(), Nginx::default());
    a.serve("", 200, 10);
    b.serve("", 200, 10);
    let subscription = rig.subscribe();
    pass(2).await;
    let first = rig.clock.now();
    rig.scrape("a", &a);
    pass(7).await;
    let second = rig.clock.now();
    rig.scrape("b", &b);
    pass(7).await;
    let counts = subscription.counts().unwrap();
    assert_eq!((counts.began, counts.at), (first, second));
    a.serve("", 200, 1);
    rig.scrape("a", &a);
    b.serve("", 200, 2);
    rig.scrape("b", &b);
    pass(5).await;
    assert_eq!(totals(&subscription), (3, 0, true));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_scraped_late_is_told_and_goes_on_where_it_was() {
    let rig = Rig::new();
    let (mut a, mut b) = (Nginx::default(), Nginx::default());
    a.serve("", 200, 1000);
    b.serve("", 200, 1000);
    let subscription = rig.subscribe();
    let mut last = rig.clock.now();
    for second in 0..26 {
        pass(5).await;
        a.serve("", 200, 1);
        b.serve("", 200, 1);
        rig.scrape("a", &a);
        if second < 6 {
            last = rig.clock.now();
            rig.scrape("b", &b);
        }
    }
    pass(1).await;
    let counts = subscription.counts().unwrap();
    assert!(!counts.complete);
    assert_eq!(
        counts.missing,
        [format!(
            "controller pod b was last scraped by Prometheus main at {last}"
        )]
    );
    let (stable, _, _) = totals(&subscription);
    rig.scrape("b", &b);
    pass(5).await;
    let (now, _, complete) = totals(&subscription);
    assert!(complete);
    assert_eq!(now - stable, 20);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_scraped_seldom_is_not_late() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    rig.scrape("a", &a);
    pass(60).await;
    rig.scrape("a", &a);
    let subscription = rig.subscribe();
    for _ in 0..3 {
        pass(60).await;
        a.serve("", 200, 5);
        rig.scrape("a", &a);
        pass(55).await;
        assert!(subscription.counts().unwrap().complete);
        pass(5).await;
        rig.scrape("a", &a);
    }
    assert_eq!(totals(&subscription), (15, 0, true));
    assert_eq!(subscription.age(), Duration::from_secs(65));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_vanished_counts_as_gone_after_a_while_and_keeps_what_it_had_counted() {
    let rig = Rig::new();
    let (mut a, mut b) = (Nginx::default(), Nginx::default());
    a.serve("", 200, 1000);
    b.serve("", 200, 1000);
    let subscription = rig.subscribe();
    pass(1).await;
    rig.scrape("a", &a);
    rig.scrape("b", &b);
    pass(10).await;
    b.serve("", 200, 7);
    rig.scrape("b", &b);
    let mut told = Vec::new();
    for _ in 0..20 {
        rig.scrape("a", &a);
        pass(10).await;
        told.push(totals(&subscription));
    }
    let of = |complete| told.iter().filter(|(_, _, told)| *told == complete).count();
    assert!(told.iter().all(|(stable, _, _)| *stable == 7), "{told:?}");
    assert!((10..=13).contains(&of(false)), "{told:?}");
    assert_eq!(told.last().unwrap(), &(7, 0, true));
    // Should it come back all the same, what it counted meanwhile is not known to be of since.
    b.serve("", 200, 500);
    rig.scrape("b", &b);
    pass(5).await;
    assert_eq!(totals(&subscription), (7, 0, true));
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_started_over_counts_whole() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    a.serve("", 200, 1000);
    let subscription = rig.subscribe();
    pass(1).await;
    rig.scrape("a", &a);
    pass(10).await;
    a = Nginx::default();
    a.serve("", 200, 8);
    a.serve(CANARY, 502, 3);
    rig.scrape("a", &a);
    pass(5).await;
    assert_eq!(totals(&subscription), (8, 3, true));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_two_jobs_scrape_is_counted_once() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    a.serve("", 200, 1000);
    let subscription = rig.subscribe();
    let mut scrapes = [("pods", true), ("services", true)];
    for second in 0..60 {
        if second == 30 {
            scrapes[0].1 = false;
            scrapes[1].1 = true;
        }
        a.serve("", 200, 1);
        for (job, _) in scrapes.iter().filter(|(_, scrapes)| *scrapes) {
            pass(1).await;
            rig.scrape_as("a", &a, &[("job", job)], "");
        }
        pass(if second < 30 { 3 } else { 4 }).await;
    }
    let (stable, _, complete) = totals(&subscription);
    assert!(complete);
    // When its job goes silent, the other is a baseline a minute later at the latest.
    assert!((45..60).contains(&stable), "{stable}");
}

#[tokio::test(start_paused = true)]
async fn a_series_that_is_missing_for_a_while_does_not_count_anew() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    a.serve("", 200, 1_000_000);
    a.serve("", 404, 1_000_000);
    a.serve("", 500, 1_000_000);
    // Hidden from the first look on, and so not known when it shows.
    rig.store.stored().hidden = BTreeSet::from(["500".to_owned()]);
    let subscription = rig.subscribe();
    for second in 0..100 {
        pass(5).await;
        a.serve("", 200, 1);
        a.serve("", 404, 1);
        a.serve("", 500, 1);
        rig.scrape("a", &a);
        match second {
            20 => rig.store.stored().hidden = BTreeSet::from(["404".to_owned()]),
            90 => rig.store.stored().hidden.clear(),
            _ => {}
        }
    }
    pass(5).await;
    let counts = subscription.counts().unwrap();
    let of = |status| {
        counts
            .stable
            .requests
            .get(&Status::Code(status))
            .copied()
            .unwrap_or_default()
    };
    // One look is lost when a series turns out to have been there all the time, to those that are seen then.
    assert_eq!((of(200), of(404), of(500)), (98, 99, 79));
}

#[tokio::test(start_paused = true)]
async fn labels_that_prometheus_renamed_are_found_by_their_configured_names() {
    let renamed = Labelling {
        names: LabelNames {
            namespace: "exported_namespace".to_owned(),
            service: "exported_service".to_owned(),
            ..LabelNames::default()
        },
        select: BTreeMap::from([("cluster".to_owned(), "eu-1".to_owned())]),
    };
    let target = [
        ("namespace", "ingress-nginx"),
        ("service", "controller-metrics"),
        ("cluster", "eu-1"),
    ];
    let elsewhere = [("namespace", "ingress-nginx"), ("cluster", "us-1")];
    let rig = Rig::labelled(renamed);
    let (mut a, mut other) = (Nginx::default(), Nginx::default());
    a.serve("", 200, 10);
    let subscription = rig.subscribe();
    for _ in 0..3 {
        pass(5).await;
        rig.scrape_as("a", &a, &target, "exported_");
        rig.scrape_as("b", &other, &elsewhere, "exported_");
        a.serve("", 200, 4);
        other.serve("", 200, 100);
    }
    pass(5).await;
    assert_eq!(totals(&subscription), (8, 0, true));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_found_is_told_with_what_to_check() {
    let target = [("namespace", "ingress-nginx"), ("job", "x")];
    let mut other = Nginx::default();
    other.serve_at("other", "", 200, 5);
    let mut ours = Nginx::default();
    ours.serve("", 200, 5);
    type Case<'a> = (&'a str, Option<(&'a Nginx, &'a str)>, Exposed, bool, &'a str);
    let cases: [Case<'_>; 4] = [
        (
            "nothing",
            None,
            Exposed::Nothing,
            false,
            "Prometheus main has no metrics of ingress-nginx: do its controllers run with --enable-metrics, does this \
             Prometheus scrape them, and are namespace and controller_pod what it calls their labels?",
        ),
        (
            "no request of anybody",
            Some((&Nginx::default(), "")),
            Exposed::NoRequests,
            true,
            "",
        ),
        ("requests of others", Some((&other, "")), Exposed::Requests, true, ""),
        (
            "renamed",
            Some((&ours, "exported_")),
            Exposed::NoRequests,
            false,
            "Prometheus main has nginx_ingress_controller_requests with the label exported_namespace: say so in the \
             operator's configuration (labels: {namespace: exported_namespace, service: exported_service})",
        ),
    ];
    for (case, scraped, exposed, complete, told) in cases {
        let rig = Rig::new();
        let subscription = rig.subscribe();
        for _ in 0..14 {
            if let Some((nginx, renamed)) = scraped {
                let target = if renamed.is_empty() { &target[1..] } else { &target };
                rig.scrape_as("a", nginx, target, renamed);
            }
            pass(5).await;
        }
        let counts = subscription.counts().unwrap();
        assert_eq!(
            (counts.complete, counts.missing.join("; ").as_str()),
            (complete, told),
            "{case}"
        );
        if complete {
            assert_eq!(counts.exposed, exposed, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_prometheus_that_fails_is_told_and_loses_nothing_that_it_stored() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    a.serve("", 200, 10);
    let woken = Arc::new(AtomicUsize::new(0));
    let waker = woken.clone();
    rig.store.stored().down = Some(Problem::Connect("Connection refused".to_owned()));
    let subscription = rig.prometheus.subscribe("main", interest(), move || {
        waker.fetch_add(1, Ordering::Relaxed);
    });
    pass(11).await;
    let counts = subscription.counts().unwrap();
    let refused = "Prometheus main: no connection: Connection refused";
    assert_eq!((counts.complete, counts.missing), (false, vec![refused.to_owned()]));
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    rig.store.stored().down = None;
    rig.scrape("a", &a);
    pass(5).await;
    assert_eq!(totals(&subscription), (0, 0, true));
    let began = subscription.counts().unwrap().began;
    rig.store.stored().down = Some(Problem::Deadline(Duration::from_secs(10)));
    for _ in 0..4 {
        a.serve("", 200, 3);
        rig.scrape("a", &a);
        pass(5).await;
    }
    let counts = subscription.counts().unwrap();
    assert_eq!(
        (counts.complete, counts.began, counts.stable.total()),
        (false, began, 0)
    );
    assert_eq!(counts.missing, ["Prometheus main: no whole answer within 10s"]);
    rig.store.stored().down = None;
    pass(5).await;
    assert_eq!(totals(&subscription), (12, 0, true));

    let nobody = rig.prometheus.subscribe("mian", interest(), || {});
    pass(1).await;
    assert_eq!(
        nobody.counts().unwrap().missing,
        ["no Prometheus is called \"mian\": the operator knows main"]
    );
}

#[tokio::test(start_paused = true)]
async fn requests_through_other_ingresses_are_counted_apart_and_times_where_they_are_asked_for() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    a.serve("", 200, 10);
    rig.scrape("a", &a);
    let timed = Interest {
        latency: true,
        ..interest()
    };
    let (plain, timed) = (rig.subscribe(), rig.prometheus.subscribe("main", timed, || {}));
    pass(5).await;
    rig.scrape("a", &a);
    pass(5).await;
    a.serve(CANARY, 200, 3);
    a.serve_at("admin", CANARY, 200, 4);
    a.serve_at("admin", "", 200, 50);
    let bucket = "response_duration_seconds_bucket".to_owned();
    a.0.insert((CANARY.to_owned(), 200, "web".to_owned(), bucket), 2);
    rig.scrape("a", &a);
    pass(5).await;
    for subscription in [&plain, &timed] {
        assert_eq!(totals(subscription), (0, 3, true));
        assert_eq!(subscription.counts().unwrap().elsewhere, 4);
    }
    let within = |subscription: &Subscription| subscription.counts().unwrap().canary.within;
    assert_eq!(within(&plain), BTreeMap::new());
    assert_eq!(
        within(&timed),
        BTreeMap::from([(Edge::from(Duration::from_millis(250)), 2)])
    );
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_is_told() {
    let rig = Rig::new();
    let mut a = Nginx::default();
    a.serve("", 200, 10);
    let subscription = rig.subscribe();
    pass(1).await;
    rig.scrape("a", &a);
    pass(5).await;
    for samples in rig.store.stored().series.values_mut() {
        let (at, value) = *samples.last().unwrap();
        // Which the store shows only when it is asked then.
        samples.push((at + 4_000, value));
    }
    pass(5).await;
    assert!(subscription.counts().unwrap().complete);
}

#[test]
fn the_queries_name_what_is_asked_for_and_reach_back_no_further_than_the_last_scrape() {
    let labelling = Labelling {
        names: LabelNames {
            service: "exported_service".to_owned(),
            ..LabelNames::default()
        },
        select: BTreeMap::from([("cluster".to_owned(), "a\\b\"c".to_owned())]),
    };
    let two = Interest {
        ingresses: BTreeSet::from(["web".to_owned(), "web.admin".to_owned()]),
        latency: true,
        ..interest()
    };
    let queries = Queries::new(&two, &labelling, Duration::from_secs(47));
    assert_eq!(
        queries.own,
        "{__name__=~\"nginx_ingress_controller_(requests|response_duration_seconds_count|response_duration_seconds_bucket)\",\
         namespace=\"shop\",ingress=~\"web|web[.]admin\",exported_service=\"web\",canary=~\"|shop-web-canary-80\",\
         le!=\"+Inf\",cluster=\"a\\\\b\\\"c\"}[47s]"
    );
    assert_eq!(
        queries.elsewhere,
        "{__name__=~\"nginx_ingress_controller_(requests)\",namespace=\"shop\",canary=~\"shop-web-canary-80\",\
         cluster=\"a\\\\b\\\"c\"}[47s]"
    );
    assert_eq!(
        queries.alive,
        "{__name__=~\"nginx_ingress_controller_(config_last_reload_successful)\",cluster=\"a\\\\b\\\"c\"}[47s]"
    );
    assert_eq!(
        doubt(&labelling),
        "-count(nginx_ingress_controller_requests{cluster=\"a\\\\b\\\"c\",exported_namespace!=\"\"}) or \
         count(nginx_ingress_controller_requests{cluster=\"a\\\\b\\\"c\",namespace!=\"\",ingress!=\"\"})"
    );
    for query in [&queries.own, &queries.elsewhere, &queries.alive, &doubt(&labelling)] {
        assert!(parse(query).is_ok(), "{query}");
    }
}

/// What happens between looks.
#[derive(Clone, Debug)]
enum Step {
    Requests { pod: usize, status: u16, count: u64 },
    Restart { pod: usize },
    Scrape { pod: usize, replica: usize },
    Look { hides: Option<u16> },
    Pass { seconds: i64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pod = 0usize..2;
    let step = prop_oneof![
        4 => (pod.clone(), 0u16..3, 1u64..100).prop_map(|(pod, status, count)| Step::Requests { pod, status, count }),
        1 => pod.clone().prop_map(|pod| Step::Restart { pod }),
        4 => (pod, 0usize..2).prop_map(|(pod, replica)| Step::Scrape { pod, replica }),
        4 => prop::option::weighted(0.3, 0u16..3).prop_map(|hides| Step::Look { hides }),
        3 => (1i64..40).prop_map(|seconds| Step::Pass { seconds }),
        1 => (40i64..400).prop_map(|seconds| Step::Pass { seconds }),
    ];
    prop::collection::vec(step, 0..80)
}

/// What Prometheus has of two pods: `merged` as one series where two replicas scrape, else as two targets.
struct Stores {
    merged: bool,
    counters: [BTreeMap<u16, u64>; 2],
    /// By pod, replica and status; 99 shows that the pod was scraped.
    samples: BTreeMap<(usize, usize, u16), Vec<(i64, u64)>>,
}

impl Stores {
    fn scrape(&mut self, pod: usize, replica: usize, at: i64) {
        for (status, value) in self.counters[pod].iter().chain([(&99, &0)]) {
            // Merging takes each series from one of the replicas.
            let replica = if self.merged { usize::from(*status) % 2 } else { replica };
            self.samples
                .entry((pod, replica, *status))
                .or_default()
                .push((at, *value));
        }
    }

    fn seen(&self, from: i64, hides: Option<u16>) -> Vec<Seen> {
        let mut seen = Vec::new();
        for ((pod, replica, status), samples) in &self.samples {
            let samples: Vec<_> = samples.iter().filter(|(at, _)| *at > from).collect();
            let (Some((first, _)), Some((last, value))) = (samples.first(), samples.last()) else {
                continue;
            };
            if hides == Some(*status) {
                continue;
            }
            let replica = if self.merged { 0 } else { *replica };
            let reading = Reading {
                series: u64::from(*status) * 10 + replica as u64,
                family: Family::Requests,
                version: Version::Canary,
                status: Status::Code(*status),
                value: *value,
            };
            seen.push(Seen {
                pod: format!("pod-{pod}"),
                target: replica as u64,
                reading: (*status != 99).then_some(reading),
                first: *first,
                last: *last,
                apart: None,
            });
        }
        seen
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_request_is_counted_that_was_not_made(merged in any::<bool>(), steps in steps()) {
        let start = 1_000_000_000_000;
        let time = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        let mut now = start;
        let before = || BTreeMap::from([(0, 1_000_000), (1, 1_000_000)]);
        let mut stores = Stores { merged, counters: [before(), before()], samples: BTreeMap::new() };
        let (mut rounds, mut counter, mut made) = (Rounds::new(time(start)), Counter::new(time(start)), 0);
        for step in steps {
            match step {
                Step::Requests { pod, status, count } => {
                    *stores.counters[pod].entry(status).or_default() += count;
                    made += count;
                }
                Step::Restart { pod } => stores.counters[pod].clear(),
                Step::Scrape { pod, replica } => {
                    now += 1;
                    stores.scrape(pod, replica, now);
                }
                Step::Pass { seconds } => now += seconds * 1000,
                Step::Look { hides } => {
                    let from = now - i64::try_from(rounds.window(time(now)).as_millis()).unwrap();
                    let newer = rounds.see(&stores.seen(from, hides), time(now));
                    if let Some(round) = rounds.round("main", newer, Exposed::Requests, time(now)) {
                        counter.add(round);
                    }
                    let counted = counter.counts().map_or(0, |counts| counts.canary.total());
                    prop_assert!(counted <= made, "{counted} of {made}");
                }
            }
        }
    }

    #[test]
    fn every_request_that_was_scraped_is_counted(batches in prop::collection::vec((0usize..2, 0u16..3, 1u64..100, 1i64..30), 1..60)) {
        let start = 1_000_000_000_000;
        let time = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        let mut now = start;
        let mut stores = Stores {
            merged: false,
            counters: [BTreeMap::from([(0, 1_000_000)]), BTreeMap::new()],
            samples: BTreeMap::new(),
        };
        let (mut rounds, mut counter, mut made) = (Rounds::new(time(start)), Counter::new(time(start)), 0);
        let mut look = |stores: &mut Stores, now: i64| {
            (0..2).for_each(|pod| stores.scrape(pod, 0, now));
            let from = now - i64::try_from(rounds.window(time(now)).as_millis()).unwrap();
            let newer = rounds.see(&stores.seen(from, None), time(now));
            rounds.round("main", newer, Exposed::Requests, time(now)).into_iter().for_each(|round| counter.add(round));
            counter.counts().map_or(0, |counts| counts.canary.total())
        };
        look(&mut stores, now);
        for (pod, status, count, seconds) in batches {
            now += seconds * 1000;
            *stores.counters[pod].entry(status).or_default() += count;
            made += count;
            prop_assert_eq!(look(&mut stores, now), made);
        }
    }
}
