//! The scraper against HTTP servers that are slow, broken or without end: what it takes is bounded in time and memory.

// clippy.toml's leave for tests reaches #[test] functions only, not what they call.
#![allow(clippy::unwrap_used)]

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Response, StatusCode, header},
};
use canary_operator::{
    analysis::{Counts, Exposed, Http, Interest, Scraper, Side, Status, Subscription, scraper::Settings},
    cluster::SystemClock,
    rehearse::{ApiServer, Key, Resource, clock::VirtualClock},
};
use futures::{StreamExt, stream};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Notify};

const MIB: usize = 1 << 20;

/// One server per case, each on a loopback address of its own, all on one port: that is a setting.
struct Rig {
    server: ApiServer,
    port: u16,
    pods: u8,
}

impl Rig {
    async fn new() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self {
            server: ApiServer::new(VirtualClock::new(), 1),
            port,
            pods: 1,
        }
    }

    /// A ready controller pod of this name, and what listens there.
    async fn pod(&mut self, name: &str) -> TcpListener {
        self.pods += 1;
        let ip = format!("127.0.0.{}", self.pods);
        let labels = json!({"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"});
        let metadata = json!({"name": name, "namespace": "ingress-nginx", "labels": labels});
        let spec = json!({"containers": [{"name": "controller", "image": "x"}]});
        self.server
            .create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
            .unwrap();
        let key = Key {
            resource: Resource::new("", "pods"),
            namespace: "ingress-nginx".to_owned(),
            name: name.to_owned(),
        };
        self.server.edit(&key, |pod| {
            pod["status"] = json!({"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]});
        });
        TcpListener::bind((ip, self.port)).await.unwrap()
    }

    /// A pod that answers every request so.
    async fn answers(&mut self, name: &str, answer: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static) {
        let listener = self.pod(name).await;
        let app = Router::new().fallback(move || {
            let answer = answer();
            async move { answer }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
    }

    /// A pod that does so with every connection.
    async fn connects(&mut self, name: &str, talk: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) {
        let listener = self.pod(name).await.into_std().unwrap();
        listener.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let talk = talk.clone();
                std::thread::spawn(move || talk(stream.unwrap()));
            }
        });
    }

    /// What has been counted after so many rounds, and how long they took.
    async fn rounds(&self, rounds: usize, settings: Settings) -> (Counts, Duration) {
        let settings = Settings {
            port: self.port,
            ..settings
        };
        let scraper = Scraper::new(
            self.server.client(),
            Arc::new(SystemClock),
            Arc::new(Http::default()),
            settings,
        );
        let woken = Arc::new(Notify::new());
        let begin = Instant::now();
        let interest = Interest {
            namespace: "shop".to_owned(),
            ingresses: BTreeSet::from(["web".to_owned()]),
            service: "web".to_owned(),
            canaries: BTreeSet::from(["shop-web-canary-80".to_owned()]),
            latency: false,
        };
        let waker = woken.clone();
        let subscription: Subscription = scraper.subscribe(interest, move || waker.notify_one());
        for _ in 0..rounds {
            woken.notified().await;
        }
        (subscription.counts().unwrap(), begin.elapsed())
    }
}

/// Most memory that this process ever had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A stretch of other releases' histograms, as most of an exposition is.
fn others() -> Bytes {
    let mut text = String::new();
    for line in 0.. {
        if text.len() >= 64 * 1024 {
            break;
        }
        text += &format!(
            "nginx_ingress_controller_request_duration_seconds_bucket{{canary=\"\",controller_class=\"k8s.io/ingress-nginx\",\
             controller_namespace=\"ingress-nginx\",controller_pod=\"ingress-nginx-controller-0\",host=\"host-{line}.example\",\
             ingress=\"web-{line}\",method=\"GET\",namespace=\"team-{line}\",path=\"/\",service=\"web\",status=\"200\",le=\"0.25\"}} {line}\n"
        );
    }
    text.into()
}

/// Requests to both versions.
fn ours(stable: u64, canary: u64) -> String {
    [("", stable), ("shop-web-canary-80", canary)]
        .iter()
        .flat_map(|(version, count)| {
            ["requests", "response_duration_seconds_count"].map(|family| {
                format!(
                    "nginx_ingress_controller_{family}{{canary=\"{version}\",ingress=\"web\",namespace=\"shop\",path=\"/a,b=\\\"}}\",\
                     service=\"web\",status=\"200\"}} {count}\n"
                )
            })
        })
        .collect()
}

fn streamed(pieces: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    Response::new(Body::from_stream(pieces.map(Ok::<_, io::Error>)))
}

/// 30 MB of others with ours in the middle.
fn thirty_megabytes(others: &Bytes, ours: String) -> Response<Body> {
    let half = 15 * MIB / others.len();
    let (before, after) = (vec![others.clone(); half], vec![others.clone(); half]);
    streamed(stream::iter(before.into_iter().chain([ours.into()]).chain(after)))
}

fn reason<'a>(counts: &'a Counts, pod: &str) -> &'a str {
    let prefix = format!("ingress-nginx/{pod}: ");
    counts
        .missing
        .iter()
        .find_map(|missing| missing.strip_prefix(&prefix))
        .unwrap_or("nothing")
}

#[tokio::test]
async fn thirty_megabytes_are_counted_and_endless_answers_are_cut_in_constant_memory() {
    let mut rig = Rig::new().await;
    let others = others();
    let asked = Arc::new(AtomicU64::new(0));
    let text = others.clone();
    rig.answers("whole", move || {
        let round = asked.fetch_add(1, Ordering::Relaxed);
        thirty_megabytes(&text, ours(1000 + 10 * round, 5 + round))
    })
    .await;
    let text = others.clone();
    rig.answers("endless", move || streamed(stream::repeat(text.clone())))
        .await;
    rig.answers("one-endless-line", || {
        streamed(stream::repeat(Bytes::from(vec![b'a'; 64 * 1024])))
    })
    .await;
    let before = peak();
    let settings = Settings {
        deadline: Duration::from_secs(60),
        limit: 40 * MIB as u64,
        ..Settings::default()
    };
    let (counts, _) = rig.rounds(2, settings).await;
    let grown = peak() - before;

    let by = |count| BTreeMap::from([(Status::Code(200), count)]);
    let side = |count| Side {
        requests: by(count),
        answered: by(count),
        ..Side::default()
    };
    assert_eq!(
        (counts.exposed, &counts.stable, &counts.canary),
        (Exposed::Requests, &side(10), &side(1))
    );
    for pod in ["endless", "one-endless-line"] {
        assert_eq!(reason(&counts, pod), "more than 41943040 bytes", "{pod}");
    }
    assert_eq!(counts.missing.len(), 2, "{:?}", counts.missing);
    assert!(grown < 24 * MIB, "{grown} bytes for {} bytes of answers", 2 * 110 * MIB);
}

#[tokio::test]
async fn every_way_not_to_answer_is_told_within_the_deadline() {
    let mut rig = Rig::new().await;
    let others = others();
    rig.answers("whole", || Response::new(Body::from(ours(1, 1)))).await;
    let text = others.clone();
    rig.answers("trickles", move || {
        let text = text.clone();
        streamed(stream::repeat(()).then(move |()| {
            let text = text.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                text
            }
        }))
    })
    .await;
    let text = others.clone();
    rig.answers("endless", move || streamed(stream::repeat(text.clone())))
        .await;
    rig.connects("silent", |mut stream| io::copy(&mut stream, &mut io::sink()).map(drop))
        .await;
    drop(rig.pod("refuses").await);
    rig.answers("html", || Response::new(Body::from("<!DOCTYPE html>\n")))
        .await;
    rig.answers("malformed", || {
        Response::new(Body::from("# fine\nnginx_ingress_controller_requests{a=\"b} 1\n"))
    })
    .await;
    let elsewhere = format!("http://127.0.0.2:{}/metrics", rig.port);
    rig.answers("redirects", move || {
        let redirect = Response::builder()
            .status(StatusCode::FOUND)
            .header(header::LOCATION, &elsewhere);
        redirect.body(Body::empty()).unwrap()
    })
    .await;
    rig.connects("breaks-off", |mut stream| {
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nnginx_ingress")
    })
    .await;
    rig.connects("not-http", |mut stream| {
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    })
    .await;
    rig.connects("endless-head", |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    })
    .await;
    let deadline = Duration::from_secs(1);
    let settings = Settings {
        deadline,
        limit: 1 << 40,
        ..Settings::default()
    };
    let (counts, took) = rig.rounds(1, settings).await;
    assert!(took < 3 * deadline, "{took:?}");
    assert!(!counts.complete);
    assert_eq!(counts.exposed, Exposed::Requests);
    for (pod, expected) in [
        ("whole", "nothing"),
        ("trickles", "no whole answer within 1s"),
        ("endless", "no whole answer within 1s"),
        ("silent", "no whole answer within 1s"),
        ("refuses", "no connection: Connection refused"),
        ("html", "1 unreadable lines, the first of them line 1: no metric name"),
        (
            "malformed",
            "1 unreadable lines, the first of them line 2: unreadable labels",
        ),
        ("redirects", "HTTP status 302 Found"),
        ("breaks-off", "the answer broke off: "),
        ("not-http", "the answer broke off: "),
        ("endless-head", "the answer broke off: "),
    ] {
        let told = reason(&counts, pod);
        assert!(told.starts_with(expected), "{pod}: {told}");
    }
}
