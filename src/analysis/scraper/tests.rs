use super::*;
use crate::rehearse::{ApiServer, Key, clock::VirtualClock, server::resource::Resource};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What each pod says, by name; a pod that is not in it hangs.
#[derive(Default)]
struct Said {
    answers: Mutex<BTreeMap<String, Result<String, ScrapeError>>>,
    asked: AtomicUsize,
}

impl Said {
    fn say(&self, pod: &str, answer: Result<String, ScrapeError>) {
        self.answers.lock().unwrap().insert(pod.to_owned(), answer);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Fetch for Said {
    fn fetch<'a>(&'a self, controller: &'a Controller) -> BoxFuture<'a, Result<Pieces, ScrapeError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answers.lock().unwrap().get(&controller.name).cloned();
        Box::pin(async move {
            match answer {
                None => std::future::pending().await,
                Some(answer) => answer.map(|text| futures::stream::iter([Ok(Bytes::from(text))]).boxed()),
            }
        })
    }
}

/// A cluster with controller pods, and a scraper of them.
struct Rig {
    server: ApiServer,
    said: Arc<Said>,
    scraper: Scraper,
}

impl Rig {
    fn new() -> Self {
        let server = ApiServer::new(VirtualClock::new(), 1);
        let said = Arc::new(Said::default());
        let scraper = Scraper::new(
            server.client(),
            Arc::new(server.clock()),
            said.clone(),
            Settings::default(),
        );
        Self { server, said, scraper }
    }

    fn pod(&self, name: &str, ip: &str) {
        self.labelled_pod(name, ip, "controller");
    }

    fn labelled_pod(&self, name: &str, ip: &str, component: &str) {
        let labels = json!({"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": component});
        let metadata = json!({"name": name, "namespace": "ingress-nginx", "labels": labels});
        let spec = json!({"containers": [{"name": "controller", "image": "x"}]});
        self.server
            .create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
            .unwrap();
        let started = self.server.clock().stamp();
        self.status(name, |status| {
            *status = json!({"podIP": ip, "startTime": started, "conditions": [{"type": "Ready", "status": "True"}]});
        });
    }

    fn status(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.server
            .edit(&pod_key(name), |pod| change(&mut pod["status"]))
            .unwrap();
    }

    fn subscribe(&self) -> Subscription {
        self.scraper.subscribe(interest(), || {})
    }

    /// Requests to the API server so far.
    fn calls(&self) -> usize {
        self.server.records().len()
    }
}

fn pod_key(name: &str) -> Key {
    Key {
        resource: Resource::new("", "pods"),
        namespace: "ingress-nginx".to_owned(),
        name: name.to_owned(),
    }
}

fn interest() -> Interest {
    Interest {
        namespace: "shop".to_owned(),
        ingresses: BTreeSet::from(["web".to_owned()]),
        service: "web".to_owned(),
        canaries: BTreeSet::from([Interest::canary("shop", "web-canary", 80)]),
        latency: false,
    }
}

/// As a controller 1.11.0 writes it.
fn line(family: &str, canary: &str, status: u16, value: u64) -> String {
    format!(
        "nginx_ingress_controller_{family}{{canary=\"{canary}\",controller_class=\"k8s.io/ingress-nginx\",\
         controller_namespace=\"ingress-nginx\",controller_pod=\"ingress-nginx-controller-6f9457df85-6mj7r\",\
         host=\"shop.example\",ingress=\"web\",method=\"GET\",namespace=\"shop\",path=\"/\",service=\"web\",status=\"{status}\"}} {value}\n"
    )
}

/// An exposition with this many requests to either version, all answered.
fn exposition(stable: u64, canary: u64) -> Result<String, ScrapeError> {
    let mut text = "go_goroutines 8\nnginx_ingress_controller_success{controller_class=\"x\"} 2\n".to_owned();
    for (version, count) in [("", stable), ("shop-web-canary-80", canary)] {
        text += &line("requests", version, 200, count);
        text += &line("response_duration_seconds_bucket", version, 200, count);
        text += &line("response_duration_seconds_count", version, 200, count);
    }
    Ok(text)
}

async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_unless_somebody_subscribes() {
    let rig = Rig::new();
    rig.pod("a", "10.0.0.1");
    rig.said.say("a", exposition(1, 1));
    pass(60.0).await;
    assert_eq!((rig.calls(), rig.said.asked()), (0, 0));

    let first = rig.subscribe();
    let second = rig.subscribe();
    pass(9.5).await;
    // One list and one watch; one request a second, whatever the number of subscribers.
    assert_eq!((rig.calls(), rig.said.asked()), (2, 10));

    drop(first);
    pass(1.0).await;
    assert_eq!(rig.said.asked(), 11);
    drop(second);
    let (calls, asked) = (rig.calls(), rig.said.asked());
    pass(600.0).await;
    assert_eq!((rig.calls(), rig.said.asked()), (calls, asked));

    let again = rig.subscribe();
    pass(0.5).await;
    assert_eq!((rig.calls(), rig.said.asked()), (calls + 2, asked + 1));
    drop(again);
}

#[tokio::test(start_paused = true)]
async fn requests_to_both_versions_are_counted_from_the_subscription_on() {
    let rig = Rig::new();
    rig.pod("a", "10.0.0.1");
    rig.pod("b", "fd00::2");
    rig.labelled_pod("webhook", "10.0.0.3", "admission");
    rig.said.say("a", exposition(100, 10));
    rig.said.say("b", exposition(900, 90));
    pass(10.0).await;
    let subscription = rig.subscribe();
    assert_eq!(subscription.counts(), None);
    pass(0.5).await;
    let counts = subscription.counts().unwrap();
    assert!(counts.complete);
    assert_eq!(
        (counts.exposed, counts.stable.total(), counts.canary.total()),
        (Exposed::Requests, 0, 0)
    );

    rig.said.say("a", exposition(105, 11));
    rig.said.say("b", exposition(900, 92));
    pass(1.0).await;
    rig.pod("c", "10.0.0.4");
    rig.said.say("c", exposition(7, 0));
    pass(1.0).await;
    let counts = subscription.counts().unwrap();
    assert_eq!((counts.stable.total(), counts.canary.total()), (12, 3));
    assert_eq!(counts.canary.judged(), BTreeMap::from([(Status::Code(200), 3)]));
    assert_eq!(counts.missing, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn pods_that_do_not_answer_are_told_and_do_not_hold_up_the_others() {
    let rig = Rig::new();
    for (name, ip) in [
        ("a", "10.0.0.1"),
        ("hangs", "10.0.0.2"),
        ("html", "10.0.0.3"),
        ("refuses", "10.0.0.4"),
    ] {
        rig.pod(name, ip);
    }
    rig.said.say("a", exposition(1, 1));
    rig.said.say("html", Ok("<!DOCTYPE html>\n<p>\n".to_owned()));
    rig.said.say("refuses", Err(ScrapeError::Connect("refused".to_owned())));
    let subscription = rig.subscribe();
    pass(3.5).await;
    rig.said.say("a", exposition(2, 1));
    pass(6.0).await;
    let counts = subscription.counts().unwrap();
    assert!(!counts.complete);
    assert_eq!(counts.stable.total(), 1);
    assert_eq!(
        counts.missing,
        [
            "ingress-nginx/hangs: no whole answer within 3s",
            "ingress-nginx/html: 2 unreadable lines, the first of them line 1: no metric name",
            "ingress-nginx/refuses: no connection: refused",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn only_ready_pods_are_asked() {
    let rig = Rig::new();
    rig.pod("a", "10.0.0.1");
    rig.pod("b", "10.0.0.2");
    rig.said.say("a", exposition(5, 0));
    rig.said.say("b", exposition(5, 0));
    let subscription = rig.subscribe();
    pass(0.5).await;
    rig.status("b", |status| status["conditions"][0]["status"] = json!("False"));
    rig.said.say("b", exposition(50, 0));
    pass(1.0).await;
    let counts = subscription.counts().unwrap();
    assert_eq!((counts.complete, counts.stable.total()), (true, 0));
    rig.status("b", |status| status["conditions"][0]["status"] = json!("True"));
    pass(1.0).await;
    assert_eq!(subscription.counts().unwrap().stable.total(), 45);
    rig.server.delete(&pod_key("a"), &Default::default()).unwrap();
    rig.server.delete(&pod_key("b"), &Default::default()).unwrap();
    pass(1.0).await;
    let counts = subscription.counts().unwrap();
    assert_eq!((counts.complete, counts.stable.total()), (false, 45));
    assert_eq!(
        counts.missing,
        [format!(
            "none of the ingress-nginx controllers' pods in the namespace ingress-nginx (labels {SELECTOR}) is ready"
        )]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_about_to_end_counts_as_long_as_it_answers_and_holds_nobody_up() {
    let rig = Rig::new();
    rig.pod("a", "10.0.0.1");
    rig.pod("old", "10.0.0.2");
    rig.said.say("a", exposition(5, 0));
    rig.said.say("old", exposition(5, 0));
    rig.server
        .edit(&pod_key("old"), |pod| {
            pod["metadata"]["finalizers"] = json!(["test/held"])
        })
        .unwrap();
    let subscription = rig.subscribe();
    pass(0.5).await;
    rig.server.delete(&pod_key("old"), &Default::default()).unwrap();
    rig.said.say("old", exposition(7, 0));
    pass(1.0).await;
    assert_eq!(subscription.counts().unwrap().stable.total(), 2);

    rig.said.answers.lock().unwrap().remove("old");
    rig.said.say("a", exposition(6, 0));
    pass(2.0).await;
    let counts = subscription.counts().unwrap();
    assert_eq!((counts.complete, counts.stable.total()), (true, 3));
}

#[tokio::test(start_paused = true)]
async fn a_controller_without_metrics_is_not_one_without_traffic() {
    for (text, expected) in [
        ("go_goroutines 8\n", Exposed::Nothing),
        ("nginx_ingress_controller_success 2\n", Exposed::NoRequests),
        (
            "nginx_ingress_controller_requests{namespace=\"other\"} 2\n",
            Exposed::Requests,
        ),
    ] {
        let rig = Rig::new();
        rig.pod("a", "10.0.0.1");
        rig.said.say("a", Ok(text.to_owned()));
        let subscription = rig.subscribe();
        pass(0.5).await;
        let counts = subscription.counts().unwrap();
        assert_eq!(
            (counts.complete, counts.exposed, counts.stable.total()),
            (true, expected, 0),
            "{text}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_subscribes_is_woken_after_each_round_and_may_ask_at_once() {
    let rig = Rig::new();
    rig.pod("a", "10.0.0.1");
    rig.said.say("a", exposition(1, 1));
    let woken = Arc::new(AtomicUsize::new(0));
    let held = Arc::new(Mutex::new(None::<Subscription>));
    let subscription = rig.scraper.subscribe(interest(), {
        let (woken, held) = (woken.clone(), held.clone());
        move || {
            assert!(held.lock().unwrap().as_ref().is_none_or(|s| s.counts().is_some()));
            woken.fetch_add(1, Ordering::Relaxed);
        }
    });
    *held.lock().unwrap() = Some(subscription);
    pass(4.5).await;
    assert_eq!(woken.load(Ordering::Relaxed), 5);
    let subscription = held.lock().unwrap().take();
    drop(subscription);
    pass(4.0).await;
    assert_eq!(woken.load(Ordering::Relaxed), 5);
}

/// A subscription that counts how often it was woken.
fn counted_wakes(rig: &Rig) -> (Subscription, Arc<AtomicUsize>) {
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = woken.clone();
    let subscription = rig.scraper.subscribe(interest(), move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    (subscription, woken)
}

#[tokio::test(start_paused = true)]
async fn controllers_are_asked_as_often_as_the_most_eager_subscriber_wants_and_each_is_woken_at_its_own_pace() {
    let rig = Rig::new();
    rig.pod("a", "10.0.0.1");
    rig.said.say("a", exposition(1, 1));
    let (slow, slowly_woken) = counted_wakes(&rig);
    slow.every(Duration::from_secs(5));
    pass(20.5).await;
    assert_eq!((rig.said.asked(), slowly_woken.load(Ordering::Relaxed)), (5, 5));

    let (eager, eagerly_woken) = counted_wakes(&rig);
    pass(10.0).await;
    assert_eq!((rig.said.asked(), slowly_woken.load(Ordering::Relaxed)), (15, 7));
    assert_eq!(eagerly_woken.load(Ordering::Relaxed), 10);
    // Whoever is not woken can still have the newest.
    assert_eq!(slow.counts().map(|c| c.at), eager.counts().map(|c| c.at));

    drop(eager);
    pass(20.0).await;
    assert_eq!((rig.said.asked(), slowly_woken.load(Ordering::Relaxed)), (19, 11));
}

#[tokio::test(start_paused = true)]
async fn a_faster_pace_is_taken_up_at_once_and_no_pace_is_faster_than_the_settings() {
    let rig = Rig::new();
    rig.pod("a", "10.0.0.1");
    rig.said.say("a", exposition(1, 1));
    let (subscription, woken) = counted_wakes(&rig);
    subscription.every(Duration::from_secs(60));
    pass(10.0).await;
    assert_eq!(rig.said.asked(), 1);
    subscription.every(Duration::from_secs(5));
    pass(0.1).await;
    assert_eq!(rig.said.asked(), 2, "the five seconds are over");
    subscription.every(Duration::from_millis(10));
    pass(9.8).await;
    assert_eq!((rig.said.asked(), woken.load(Ordering::Relaxed)), (11, 11));
}

#[tokio::test(start_paused = true)]
async fn rounds_that_take_longer_than_their_pace_follow_each_other_without_a_crowd() {
    let rig = Rig::new();
    rig.pod("hangs", "10.0.0.1");
    let (_subscription, woken) = counted_wakes(&rig);
    pass(9.5).await;
    // Three seconds each.
    assert_eq!((rig.said.asked(), woken.load(Ordering::Relaxed)), (4, 3));
}

#[tokio::test(start_paused = true)]
async fn values_that_are_not_counts_and_answers_that_are_too_large_are_errors() {
    let settings = Settings {
        limit: 1000,
        ..Settings::default()
    };
    let controller = Controller {
        namespace: "ingress-nginx".to_owned(),
        name: "a".to_owned(),
        uid: "a".to_owned(),
        started: None,
        address: "10.0.0.1:10254".parse().unwrap(),
    };
    let subscribers = Subscribers::new([(1, Arc::new(interest()))].into_iter());
    let ours = line("requests", "", 200, 0);
    let not_a_count = |value: &str| ours.replace(" 0\n", &format!(" {value}\n"));
    for (text, expected) in [
        (not_a_count("NaN"), ScrapeError::NotACount("NaN".to_owned())),
        (not_a_count("-1"), ScrapeError::NotACount("-1".to_owned())),
        (not_a_count("+Inf"), ScrapeError::NotACount("inf".to_owned())),
        (format!("# {}\n", "a".repeat(1000)), ScrapeError::TooLarge(1000)),
    ] {
        let said = Said::default();
        said.say("a", Ok(text));
        let answer = scrape(&said, &controller, &settings, &subscribers).await;
        assert_eq!(answer.err(), Some(expected));
    }
}
