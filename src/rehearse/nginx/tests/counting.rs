//! What the controllers count, as the operator's own scraper reads it.

use super::{N, canary, ingress};
use crate::{
    analysis::{
        Controller, Counts, Fetch, Interest, Quantile, ScrapeError, Scraper, Status, Subscription, exposition::Parser,
        scraper,
    },
    rehearse::{
        Key, Resource, World,
        actors::behaviour::{Answers, Behaviour},
        json::{set, text},
        nginx::{Scrapes, SimRequest, controller_pod},
        server::store::DeleteOptions,
        world::tests::{deployment, in_world, service},
    },
};
use futures::TryStreamExt;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

const HOST: &str = "a.test";
const CANARY: &str = "default-v2-80";

fn canary_ingress() -> Key {
    Key::ingress("default", "canary")
}

/// Versions 1 and 2 behind an Ingress, a third of the requests for version 2, in force everywhere.
async fn split(world: &World, change: impl FnOnce(&mut Value)) {
    for (name, image) in [("v1", "app:v1"), ("v2", "app:v2")] {
        world.apply(deployment(name, image, 2)).unwrap();
        world.apply(service(name, name)).unwrap();
    }
    let mut main = ingress("main", 1, HOST, "/shop", "Prefix", "v1");
    change(&mut main);
    let mut second = canary(main.clone(), &[("canary-weight", "30")]);
    set(&mut second, "/metadata/name", json!("canary"));
    let backend = "/spec/rules/0/http/paths/0/backend/service/name";
    *second.pointer_mut(backend).unwrap() = json!("v2");
    for manifest in [main, second] {
        world.apply(manifest).unwrap();
    }
    pass(world, 15.0).await;
}

fn pods_of_v2(world: &World) -> Vec<Key> {
    let pods = world
        .server
        .with(|store| store.list(&Resource::new("", "pods"), "default"));
    let ours = pods
        .into_iter()
        .filter(|(_, pod)| text(pod, "/metadata/labels/app") == "v2");
    ours.map(|(key, _)| key).collect()
}

async fn pass(world: &World, seconds: f64) {
    world.pass(Duration::from_secs_f64(seconds)).await;
}

fn send(world: &World, host: &str, count: u32) {
    world.nginx.pass(
        &SimRequest::to(host, "/shop/cart"),
        (count, Duration::from_secs(1)),
        |_| {},
    );
}

fn subscribe(world: &World) -> (Scraper, Subscription) {
    let clock = Arc::new(world.server.clock());
    let scraper = Scraper::new(
        world.client(),
        clock,
        Arc::new(world.nginx.clone()),
        scraper::Settings::default(),
    );
    let interest = Interest {
        namespace: "default".to_owned(),
        ingresses: BTreeSet::from(["main".to_owned()]),
        service: "v1".to_owned(),
        canaries: BTreeSet::from([CANARY.to_owned()]),
        latency: true,
    };
    let subscription = scraper.subscribe(interest, || {});
    (scraper, subscription)
}

/// What is counted of so many requests, sent all at once.
async fn counted(world: &World, requests: u32) -> Counts {
    let (_scraper, subscription) = subscribe(world);
    pass(world, 1.5).await;
    send(world, HOST, requests);
    pass(world, 3.0).await;
    subscription.counts().unwrap()
}

/// Every sample of the first controller: name without prefix, labels, value.
async fn samples(world: &World) -> Vec<(&'static str, BTreeMap<String, String>, f64)> {
    const NAMES: [&str; 4] = [
        "requests",
        "response_duration_seconds_bucket",
        "response_duration_seconds_count",
        "response_duration_seconds_sum",
    ];
    let controller = Controller {
        namespace: "ingress-nginx".to_owned(),
        name: "ingress-nginx-controller-0".to_owned(),
        uid: String::new(),
        started: None,
        address: "10.0.0.1:10254".parse().unwrap(),
    };
    let pieces: Vec<_> = world
        .nginx
        .fetch(&controller)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let mut parser = Parser::new("nginx_ingress_controller_", &NAMES);
    let mut samples = Vec::new();
    let mut each = |sample: crate::analysis::exposition::Sample<'_>| {
        let labels = sample
            .labels
            .iter()
            .map(|(name, value)| (name.to_owned(), value.into_owned()));
        samples.push((NAMES[sample.family], labels.collect(), sample.value));
    };
    for piece in pieces {
        parser.feed(&piece, &mut each);
    }
    let tally = parser.finish(&mut each);
    assert_eq!(tally.first, None);
    samples
}

/// Requests by canary and status.
async fn requests(world: &World) -> BTreeMap<(String, String), f64> {
    let samples = samples(world)
        .await
        .into_iter()
        .filter(|(name, ..)| *name == "requests");
    samples
        .map(|(_, labels, value)| ((labels["canary"].clone(), labels["status"].clone()), value))
        .collect()
}

fn by_status(counts: &[(u16, u64)]) -> BTreeMap<Status, u64> {
    counts
        .iter()
        .map(|(status, count)| (Status::Code(*status), *count))
        .collect()
}

/// Whether a count is what chance makes of a share of all: within four standard deviations.
fn assert_near(count: u64, share: f64, of: u64) {
    let (count, of) = (count as f64, of as f64);
    let deviation = (of * share * (1.0 - share)).sqrt();
    assert!(
        (count - share * of).abs() <= 4.0 * deviation,
        "{count} of {of} instead of {share}"
    );
}

#[test]
fn requests_have_the_labels_of_the_real_controller() {
    in_world(1, |world| async move {
        split(&world, |_| {}).await;
        send(&world, HOST, 100);
        pass(&world, 3.0).await;
        let samples = samples(&world).await;
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = |canary: &str| {
            BTreeMap::from([
                label("canary", canary),
                label("controller_class", "k8s.io/ingress-nginx"),
                label("controller_namespace", "ingress-nginx"),
                label("controller_pod", "ingress-nginx-controller-0"),
                label("host", HOST),
                label("ingress", "main"),
                label("method", "GET"),
                label("namespace", "default"),
                label("path", "/shop"),
                label("service", "v1"),
                label("status", "200"),
            ])
        };
        let of = |wanted: &'static str| samples.iter().filter(move |(name, ..)| *name == wanted);
        let labels: Vec<_> = of("requests").map(|(_, labels, _)| labels.clone()).collect();
        assert_eq!(labels, [expected(""), expected(CANARY)]);
        assert_eq!(of("response_duration_seconds_sum").count(), 2);
        let edges: Vec<_> = of("response_duration_seconds_bucket")
            .map(|(_, labels, _)| labels["le"].as_str())
            .collect();
        let defaults = [
            "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf",
        ];
        assert_eq!(edges, [defaults, defaults].concat());
    });
}

#[test]
fn both_versions_are_counted_as_their_images_answer() {
    in_world(2, |world| async move {
        split(&world, |_| {}).await;
        world.image_answers("app:v1", Answers::slow(Duration::from_millis(40)));
        let broken = Answers {
            failing: 0.2,
            ..Answers::slow(Duration::from_millis(300))
        };
        world.image_answers("app:v2", broken);
        let Counts {
            stable,
            canary,
            complete,
            ..
        } = counted(&world, N).await;
        assert!(complete);
        assert_eq!(stable.total() + canary.total(), u64::from(N));
        assert_near(canary.total(), 0.3, u64::from(N));
        assert_eq!(
            (&stable.judged(), &canary.judged()),
            (&stable.requests, &canary.requests)
        );
        assert_eq!(stable.judged(), by_status(&[(200, stable.total())]));
        assert_near(canary.judged()[&Status::Code(500)], 0.2, canary.total());
        let median = |side: &crate::analysis::Side| match side.quantile(0.5) {
            Some(Quantile::At(time)) => time,
            other => panic!("{other:?}"),
        };
        // As exactly as the buckets around them tell.
        assert!((30..50).contains(&median(&stable).as_millis()), "{:?}", median(&stable));
        assert!(
            (260..420).contains(&median(&canary).as_millis()),
            "{:?}",
            median(&canary)
        );
    });
}

#[test]
fn a_request_shows_between_one_and_two_seconds_later() {
    in_world(3, |world| async move {
        split(&world, |_| {}).await;
        for fraction in [0.0, 0.3, 0.9] {
            world.nginx.start_over();
            pass(&world, fraction).await;
            send(&world, HOST, 1);
            let mut waited = 0.0;
            while requests(&world).await.is_empty() {
                pass(&world, 0.1).await;
                waited += 0.1;
            }
            assert!((1.0..2.1).contains(&waited), "{waited} after {fraction}");
        }
    });
}

#[test]
fn what_nginx_limits_is_labelled_by_the_dice_and_no_answer_of_the_application() {
    in_world(4, |world| async move {
        let limit = "/metadata/annotations/nginx.ingress.kubernetes.io~1limit-rpm";
        split(&world, |main| set(main, limit, json!("60"))).await;
        let Counts { stable, canary, .. } = counted(&world, 1000).await;
        // Five minutes' worth at once, and one more in the second that they were sent in.
        let answered: u64 = stable.judged().values().chain(canary.judged().values()).sum();
        assert!((300..=302).contains(&answered), "{answered}");
        assert_near(canary.of_nginx(), 0.3, 1000 - answered);
        assert_eq!(canary.requests[&Status::Code(503)], canary.of_nginx());
        assert_eq!(canary.answered, by_status(&[(200, canary.total() - canary.of_nginx())]));
        pass(&world, 60.0).await;
        let Counts { stable, canary, .. } = counted(&world, 1000).await;
        let answered: u64 = stable.judged().values().chain(canary.judged().values()).sum();
        assert!((60..70).contains(&answered), "{answered}");
    });
}

#[test]
fn dead_pods_of_the_canary_are_502_of_the_canary_without_a_time() {
    in_world(5, |world| async move {
        split(&world, |_| {}).await;
        let (_scraper, subscription) = subscribe(&world);
        pass(&world, 1.5).await;
        world.kubelet(|s| s.termination = Duration::ZERO);
        world
            .server
            .delete(&Key::deployment("default", "v2"), &DeleteOptions::default())
            .unwrap();
        let gone = |w: &World| pods_of_v2(w).is_empty();
        world.run_until(Duration::from_secs(5), gone).await.unwrap();
        // nginx does not know yet.
        send(&world, HOST, 1000);
        pass(&world, 10.0).await;
        let canary = subscription.counts().unwrap().canary;
        assert_near(canary.total(), 0.3, 1000);
        assert_eq!(canary.requests, by_status(&[(502, canary.total())]));
        assert_eq!(
            (canary.answered.clone(), canary.judged()),
            (by_status(&[]), canary.requests.clone())
        );
        // Without endpoints the canary is left out, in silence.
        send(&world, HOST, 1000);
        pass(&world, 3.0).await;
        assert_eq!(subscription.counts().unwrap().canary, canary);
    });
}

#[test]
fn a_pod_that_is_gone_sends_requests_on_to_the_others_and_their_times_are_not_known() {
    in_world(6, |world| async move {
        split(&world, |_| {}).await;
        let (_scraper, subscription) = subscribe(&world);
        pass(&world, 1.5).await;
        let gone = pods_of_v2(&world).remove(0);
        world.server.with(|store| store.purge(&gone));
        send(&world, HOST, 1000);
        pass(&world, 3.0).await;
        let canary = subscription.counts().unwrap().canary;
        assert_eq!(canary.requests, by_status(&[(200, canary.total())]));
        assert_near(canary.answered[&Status::Code(200)], 0.5, canary.total());
    });
}

#[test]
fn without_an_endpoint_of_the_stable_service_everything_is_503_of_nobody() {
    in_world(7, |world| async move {
        split(&world, |_| {}).await;
        world.image_behaves("app:v1", Behaviour::NeverReady);
        pass(&world, 10.0).await;
        send(&world, HOST, 10);
        pass(&world, 3.0).await;
        assert_eq!(
            requests(&world).await,
            BTreeMap::from([((String::new(), "503".to_owned()), 10.0)])
        );
    });
}

#[test]
fn hosts_that_no_ingress_names_literally_are_not_counted() {
    for (host, sent) in [("*.a.test", "x.a.test"), ("", "b.test")] {
        in_world(8, |world| async move {
            let change = |main: &mut Value| {
                let rule = main.pointer_mut("/spec/rules/0").unwrap();
                match host {
                    "" => drop(crate::rehearse::json::remove(rule, "/host")),
                    host => set(rule, "/host", json!(host)),
                }
            };
            split(&world, change).await;
            assert!(world.nginx.request(&SimRequest::to(sent, "/shop")).status == 200);
            send(&world, sent, 100);
            pass(&world, 3.0).await;
            assert_eq!(samples(&world).await, []);
        });
    }
}

#[test]
fn counters_outlive_the_canary_ingress_and_go_with_the_main_one() {
    in_world(9, |world| async move {
        split(&world, |_| {}).await;
        send(&world, HOST, 100);
        pass(&world, 3.0).await;
        let before = requests(&world).await;
        assert_eq!(before.len(), 2);
        world
            .server
            .delete(&canary_ingress(), &DeleteOptions::default())
            .unwrap();
        pass(&world, 60.0).await;
        assert_eq!(requests(&world).await, before);
        world
            .server
            .delete(&Key::ingress("default", "main"), &DeleteOptions::default())
            .unwrap();
        pass(&world, 10.0).await;
        assert_eq!(requests(&world).await, BTreeMap::new());
    });
}

#[test]
fn controllers_share_the_requests_and_one_that_starts_over_or_is_replaced_loses_none_that_was_seen() {
    in_world(10, |world| async move {
        world.apply(controller_pod("ingress-nginx-controller-1")).unwrap();
        split(&world, |_| {}).await;
        let (_scraper, subscription) = subscribe(&world);
        pass(&world, 1.5).await;
        let total = |subscription: &Subscription| {
            let counts = subscription.counts().unwrap();
            (counts.stable.total() + counts.canary.total(), counts.complete)
        };
        send(&world, HOST, 1000);
        pass(&world, 3.0).await;
        assert_eq!(total(&subscription), (1000, true));
        let first: f64 = requests(&world).await.values().sum();
        assert!((400.0..600.0).contains(&first), "{first}");

        world.nginx.start_over();
        assert_eq!(requests(&world).await, BTreeMap::new());
        send(&world, HOST, 100);
        pass(&world, 3.0).await;
        assert_eq!(total(&subscription), (1100, true));

        world.apply(controller_pod("ingress-nginx-controller-2")).unwrap();
        world
            .server
            .delete(
                &Key::pod("ingress-nginx", "ingress-nginx-controller-1"),
                &DeleteOptions::default(),
            )
            .unwrap();
        pass(&world, 10.0).await;
        send(&world, HOST, 100);
        pass(&world, 3.0).await;
        assert_eq!(total(&subscription), (1200, true));
    });
}

#[test]
fn metrics_that_cannot_be_had_are_missing_and_counted_once_they_can() {
    in_world(11, |world| async move {
        split(&world, |_| {}).await;
        let (_scraper, subscription) = subscribe(&world);
        pass(&world, 1.5).await;
        for (scrapes, expected) in [
            (
                Scrapes::Fail(ScrapeError::Connect("refused".to_owned())),
                "no connection: refused",
            ),
            (Scrapes::Hang, "no whole answer within 3s"),
            (
                Scrapes::Say("<html>\n".to_owned()),
                "1 unreadable lines, the first of them line 1: no metric name",
            ),
        ] {
            world.nginx.scrapes(scrapes);
            send(&world, HOST, 10);
            pass(&world, 10.0).await;
            let counts = subscription.counts().unwrap();
            assert_eq!(
                counts.missing,
                [format!("ingress-nginx/ingress-nginx-controller-0: {expected}")]
            );
            assert_eq!(counts.stable.total() + counts.canary.total(), 0);
        }
        world.nginx.scrapes(Scrapes::Answer);
        pass(&world, 5.0).await;
        let counts = subscription.counts().unwrap();
        assert_eq!(
            (counts.complete, counts.stable.total() + counts.canary.total()),
            (true, 30)
        );
    });
}

#[test]
fn steady_traffic_reaches_every_path_of_every_ingress_and_stops_when_told() {
    in_world(12, |world| async move {
        split(&world, |_| {}).await;
        world.apply(ingress("other", 2, "b.test", "/", "Prefix", "v1")).unwrap();
        pass(&world, 15.0).await;
        world.traffic(51, Duration::from_secs(1));
        pass(&world, 10.5).await;
        world.traffic(0, Duration::ZERO);
        pass(&world, 60.0).await;
        let mut hosts: BTreeMap<String, f64> = BTreeMap::new();
        for (_, labels, value) in samples(&world)
            .await
            .into_iter()
            .filter(|(name, ..)| *name == "requests")
        {
            *hosts.entry(labels["host"].clone()).or_default() += value;
        }
        assert_eq!(
            hosts,
            BTreeMap::from([("a.test".to_owned(), 260.0), ("b.test".to_owned(), 250.0)])
        );
    });
}
