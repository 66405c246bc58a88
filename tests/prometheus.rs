//! Prometheus servers that are slow, broken or without end, and whose keys change: what an answer takes is bounded in time and
//! memory, and nobody has to restart the operator.

// clippy.toml's leave for tests reaches #[test] functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{Response, StatusCode, header},
    serve::Listener,
};
use canary_operator::{
    analysis::{
        Interest,
        prometheus::{Prometheus, Servers, Watch},
    },
    cluster::SystemClock,
};
use futures::{StreamExt, stream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

const MIB: usize = 1 << 20;
const ONE: &str = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"0.25"]}]}}"#;

/// An empty folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn json(text: &str) -> Response<Body> {
    answer(StatusCode::OK, "application/json", text)
}

fn answer(status: StatusCode, kind: &str, text: &str) -> Response<Body> {
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
    response.body(Body::from(text.to_owned())).unwrap()
}

fn streamed(pieces: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    response
        .body(Body::from_stream(pieces.map(Ok::<_, io::Error>)))
        .unwrap()
}

/// A server that answers every request so.
async fn serve(
    listener: impl Listener<Addr = SocketAddr>,
    answer: impl Fn(Request) -> Response<Body> + Clone + Send + Sync + 'static,
) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(move |request: Request| {
        let answer = answer(request);
        async move { answer }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn bind() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// A server that does so with every connection.
async fn connects(talk: impl Fn(std::net::TcpStream) -> io::Result<()> + Clone + Send + 'static) -> SocketAddr {
    let listener = bind().await.into_std().unwrap();
    listener.set_nonblocking(false).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let talk = talk.clone();
            std::thread::spawn(move || talk(stream.unwrap()));
        }
    });
    address
}

fn open(config: &Path) -> Prometheus {
    Prometheus::new(Arc::new(Servers::open(config).unwrap()), Arc::new(SystemClock))
}

/// The first answer, as a number or a sentence.
async fn ask(prometheus: &Prometheus, server: &str) -> Result<Option<f64>, String> {
    let woken = Arc::new(Notify::new());
    let waker = woken.clone();
    let watch = prometheus.watch(server, "sum(up)".to_owned(), Duration::from_secs(60), move || {
        waker.notify_one();
    });
    woken.notified().await;
    told(&watch).unwrap()
}

fn told(watch: &Watch) -> Option<Result<Option<f64>, String>> {
    watch
        .latest()
        .map(|latest| latest.value.map_err(|error| error.to_string()))
}

/// Most memory that this process ever had, in bytes.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn every_way_not_to_answer_with_a_number_is_told_within_the_deadline() {
    let mut servers: Vec<(&str, SocketAddr, Result<_, &str>)> = Vec::new();
    let one = bind().await;
    servers.push(("one", serve(one, |_| json(ONE)).await, Ok(Some(0.25))));
    for (name, text, expected) in [
        (
            "empty",
            r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#.to_owned(),
            Ok(None),
        ),
        (
            "scalar",
            r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#.to_owned(),
            Ok(Some(3.0)),
        ),
        (
            "nan",
            ONE.replace("0.25", "NaN"),
            Err("the query returned NaN, which can be"),
        ),
        (
            "infinite",
            ONE.replace("0.25", "+Inf"),
            Err("the query returned inf, which can be"),
        ),
        (
            "two",
            ONE.replace("}]}}", r#"},{"metric":{"a":"b"},"value":[1,"1"]}]}}"#),
            Err("the query returned 2 series: aggregate them, e.g. sum(…)"),
        ),
        (
            "string",
            r#"{"status":"success","data":{"resultType":"string","result":[1,"x"]}}"#.to_owned(),
            Err("the query returned a string; a check takes a scalar"),
        ),
        (
            "refused",
            r#"{"status":"error","errorType":"timeout","error":"query timed out in expression evaluation"}"#.to_owned(),
            Err("the query failed: query timed out in expression evaluation"),
        ),
        (
            "not-json",
            "up 1\n".to_owned(),
            Err("an answer that is not of Prometheus: expected value"),
        ),
    ] {
        let address = serve(bind().await, move |_| json(&text)).await;
        servers.push((name, address, expected));
    }
    for (name, status, kind, text, expected) in [
        (
            "bad-data",
            StatusCode::BAD_REQUEST,
            "application/json",
            r#"{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": 1:5: parse error"}"#,
            "HTTP status 400 Bad Request: invalid parameter \"query\": 1:5: parse error",
        ),
        (
            "unauthorized",
            StatusCode::UNAUTHORIZED,
            "text/plain",
            "Unauthorized\n",
            "HTTP status 401 Unauthorized: Unauthorized",
        ),
        (
            "unavailable",
            StatusCode::SERVICE_UNAVAILABLE,
            "text/html",
            "<html>\n<h1>503</h1>",
            "HTTP status 503 Service Unavailable",
        ),
        (
            "login",
            StatusCode::OK,
            "text/html; charset=utf-8",
            "<html>",
            "it answers with text/html and not with JSON: is its url right",
        ),
    ] {
        let address = serve(bind().await, move |_| answer(status, kind, text)).await;
        servers.push((name, address, Err(expected)));
    }
    let asked_elsewhere = Arc::new(AtomicUsize::new(0));
    let asked = asked_elsewhere.clone();
    let elsewhere = serve(bind().await, move |_| {
        asked.fetch_add(1, Ordering::Relaxed);
        json(ONE)
    })
    .await;
    let redirects = serve(bind().await, move |request| {
        let location = format!("http://{elsewhere}{}", request.uri());
        let response = Response::builder()
            .status(StatusCode::FOUND)
            .header(header::LOCATION, location);
        response.body(Body::empty()).unwrap()
    })
    .await;
    servers.push(("redirects", redirects, Err("it redirects to \"http://127.0.0.1:")));
    let untyped = serve(bind().await, |_| Response::new(Body::from(Bytes::from(ONE)))).await;
    servers.push((
        "untyped",
        untyped,
        Err("it answers with no content type and not with JSON"),
    ));
    let piece = Bytes::from(vec![b' '; 64 * 1024]);
    let sent = Arc::new(AtomicU64::new(0));
    let (text, told) = (piece.clone(), sent.clone());
    let huge = serve(bind().await, move |_| {
        let told = told.clone();
        streamed(
            stream::iter(vec![text.clone(); 100 * MIB / text.len()]).inspect(move |piece| {
                told.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }),
        )
    })
    .await;
    let too_large = "an answer of more than 1024 KiB: the query returns too many series";
    servers.push(("huge", huge, Err(too_large)));
    let text = piece.clone();
    let endless = serve(bind().await, move |_| streamed(stream::repeat(text.clone()))).await;
    servers.push(("endless", endless, Err(too_large)));
    let drips = serve(bind().await, |_| {
        streamed(stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Bytes::from(" ")
        }))
    })
    .await;
    let late = "no whole answer within 1s";
    servers.push(("drips", drips, Err(late)));
    let silent = connects(|mut stream| io::copy(&mut stream, &mut io::sink()).map(drop)).await;
    servers.push(("silent", silent, Err(late)));
    let breaks_off = connects(|mut stream| {
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
    })
    .await;
    servers.push(("breaks-off", breaks_off, Err("the answer broke off: ")));
    let not_http = connects(|mut stream| {
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    })
    .await;
    servers.push(("not-http", not_http, Err("the answer broke off: ")));
    let endless_head = connects(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    })
    .await;
    servers.push(("endless-head", endless_head, Err("the answer broke off: ")));
    let refuses = bind().await.local_addr().unwrap();
    servers.push(("refuses", refuses, Err("no connection: Connection refused")));

    let config = folder("answers").join("config.yaml");
    let listed = servers
        .iter()
        .map(|(name, address, _)| format!("  - {{name: {name}, url: \"http://{address}/a/prefix/\", deadline: 1s}}\n"));
    fs::write(&config, format!("servers:\n{}", listed.collect::<String>())).unwrap();
    let prometheus = open(&config);
    let (before, begin) = (peak(), Instant::now());
    let answers = servers
        .iter()
        .map(async |(name, ..)| (*name, ask(&prometheus, name).await));
    let answers = futures::future::join_all(answers).await;
    let (took, grown) = (begin.elapsed(), peak() - before);
    for ((name, answer), (_, _, expected)) in answers.into_iter().zip(&servers) {
        match (&answer, expected) {
            (Ok(number), Ok(expected)) => assert_eq!(number, expected, "{name}"),
            (Err(told), Err(expected)) => {
                let expected = format!("Prometheus {name}: {expected}");
                assert!(told.starts_with(&expected), "{name}: {told}");
            }
            _ => panic!("{name}: {answer:?}, not {expected:?}"),
        }
    }
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(asked_elsewhere.load(Ordering::Relaxed), 0);
    // What the sockets hold beyond what was read is some MiB.
    let sent = sent.load(Ordering::Relaxed) as usize;
    assert!(
        sent < 20 * MIB && grown < 24 * MIB,
        "{sent} bytes sent, {grown} bytes more memory"
    );
}

#[tokio::test]
async fn a_slow_query_delays_no_other_and_nobody_is_asked_for_what_nobody_watches() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let address = serve(bind().await, move |request| {
        let query = request.uri().to_string();
        log.lock().unwrap().push(query.clone());
        if query.contains("slow") {
            streamed(stream::pending())
        } else {
            json(ONE)
        }
    })
    .await;
    let config = folder("slow").join("config.yaml");
    fs::write(
        &config,
        format!("servers: [{{name: main, url: \"http://{address}\", deadline: 30s}}]"),
    )
    .unwrap();
    let prometheus = open(&config);
    let slow = prometheus.watch("main", "slow".to_owned(), Duration::from_secs(1), || {});
    let woken = Arc::new(Notify::new());
    let waker = woken.clone();
    let fast = prometheus.watch("main", "fast + 1".to_owned(), Duration::from_secs(1), move || {
        waker.notify_one();
    });
    for _ in 0..3 {
        woken.notified().await;
        assert_eq!(told(&fast), Some(Ok(Some(0.25))));
    }
    assert_eq!(told(&slow), None);
    drop((slow, fast));
    let so_far = asked.lock().unwrap().clone();
    assert_eq!(so_far.iter().filter(|query| query.contains("slow")).count(), 1);
    let expected = "/api/v1/query?query=fast+%2B+1&timeout=30000ms&partial_response=false";
    assert_eq!(
        so_far.iter().filter(|query| query.as_str() == expected).count(),
        3,
        "{so_far:?}"
    );
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(asked.lock().unwrap().len(), so_far.len());
}

/// Serves over TLS, with what is set at the time of the connection.
struct Tls {
    listener: TcpListener,
    config: Arc<Mutex<Arc<ServerConfig>>>,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            let config = self.config.lock().unwrap().clone();
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key, in PEM.
fn signed(authority: &Authority, name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

/// A server's side: its certificate is of one authority, its clients' have to be of another.
fn server_config(own: &Authority, clients: &Authority) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(clients.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let (certificate, key) = signed(own, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
    let config = builder.with_single_cert(chain.map(Result::unwrap).collect(), key);
    Arc::new(config.unwrap())
}

/// A mounted Secret: Kubernetes writes a new folder and swaps the link to it.
struct Mount {
    folder: PathBuf,
    version: u32,
}

impl Mount {
    fn write(&mut self, files: &[(&str, &str)]) {
        self.version += 1;
        let version = format!("..{}", self.version);
        fs::create_dir(self.folder.join(&version)).unwrap();
        for (name, content) in files {
            fs::write(self.folder.join(&version).join(name), content).unwrap();
            let link = self.folder.join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
        let next = self.folder.join("..data_tmp");
        symlink(&version, &next).unwrap();
        fs::rename(next, self.folder.join("..data")).unwrap();
    }
}

#[tokio::test]
async fn tokens_authorities_and_certificates_that_change_are_used_without_a_restart() {
    let (servers, clients, stranger) = (authority(), authority(), authority());
    let config = Arc::new(Mutex::new(server_config(&servers, &clients)));
    let tokens = Arc::new(Mutex::new("first".to_owned()));
    let expected = tokens.clone();
    let listener = Tls {
        listener: bind().await,
        config: config.clone(),
    };
    let port = serve(listener, move |request| {
        let given = request.headers().get(header::AUTHORIZATION);
        let expected = format!("Bearer {}", expected.lock().unwrap());
        if given.is_some_and(|given| given.as_bytes() == expected.as_bytes()) {
            json(ONE)
        } else {
            answer(StatusCode::FORBIDDEN, "text/plain", "who are you?")
        }
    })
    .await
    .port();
    let folder = folder("tls");
    let mut mount = Mount {
        folder: folder.join("secret"),
        version: 0,
    };
    fs::create_dir(&mount.folder).unwrap();
    let path = folder.join("config.yaml");
    let secret = mount.folder.display().to_string();
    let whole = format!(
        "servers:\n  - name: main\n    url: https://localhost:{port}\n    deadline: 5s\n    bearerTokenFile: {secret}/token\n    \
         caFile: {secret}/ca.crt\n    certFile: {secret}/tls.crt\n    keyFile: {secret}/tls.key\n"
    );
    fs::write(&path, &whole).unwrap();
    let prometheus = open(&path);
    let told = ask(&prometheus, "main").await.unwrap_err();
    assert_eq!(
        told,
        format!("Prometheus main: bearerTokenFile {secret}/token: No such file or directory (os error 2)")
    );

    let (certificate, key) = signed(&clients, "canary-operator", ExtendedKeyUsagePurpose::ClientAuth);
    let secret = |token: &str, ca: &str| {
        vec![
            ("token".to_owned(), token.to_owned()),
            ("ca.crt".to_owned(), ca.to_owned()),
            ("tls.crt".to_owned(), certificate.clone()),
            ("tls.key".to_owned(), key.clone()),
        ]
    };
    let mut write = |files: Vec<(String, String)>| {
        let files: Vec<_> = files
            .iter()
            .map(|(name, content)| (name.as_str(), content.as_str()))
            .collect();
        mount.write(&files);
    };
    write(secret("first\n", &servers.pem()));
    assert_eq!(ask(&prometheus, "main").await, Ok(Some(0.25)));

    // The token of before, once the server wants another.
    *tokens.lock().unwrap() = "second".to_owned();
    let told = ask(&prometheus, "main").await.unwrap_err();
    assert_eq!(told, "Prometheus main: HTTP status 403 Forbidden: who are you?");
    write(secret("second", &servers.pem()));
    assert_eq!(ask(&prometheus, "main").await, Ok(Some(0.25)));

    // Files that cannot be used change nothing but what errors say, and never say what is in them.
    for (files, why) in [
        (
            secret("", &servers.pem()),
            "token: it is empty, or holds what no header may",
        ),
        (
            secret("a\nb", &servers.pem()),
            "token: it is empty, or holds what no header may",
        ),
        (secret("second", "nonsense"), "ca.crt: there is no certificate in it"),
        (
            [
                secret("second", &servers.pem())[..3].to_vec(),
                vec![("tls.key".to_owned(), "x".to_owned())],
            ]
            .concat(),
            "tls.key: no items found",
        ),
    ] {
        write(files);
        assert_eq!(ask(&prometheus, "main").await, Ok(Some(0.25)), "{why}");
        *tokens.lock().unwrap() = "third".to_owned();
        let told = ask(&prometheus, "main").await.unwrap_err();
        assert!(
            told.contains("403 Forbidden: who are you?; it is asked as before, for its new files cannot be used: ")
                && told.contains(why),
            "{told}"
        );
        assert!(!told.contains("second"), "{told}");
        *tokens.lock().unwrap() = "second".to_owned();
    }

    // The server gets a certificate of another authority, and connections of before end.
    *config.lock().unwrap() = server_config(&stranger, &clients);
    write(secret("second", &stranger.pem()));
    assert_eq!(ask(&prometheus, "main").await, Ok(Some(0.25)));
    write(secret("second", &servers.pem()));
    let told = ask(&prometheus, "main").await.unwrap_err();
    assert!(told.contains("no connection: invalid peer certificate: "), "{told}");
    write(secret("second", &format!("{}{}", servers.pem(), stranger.pem())));
    assert_eq!(ask(&prometheus, "main").await, Ok(Some(0.25)));

    // And takes certificates of another authority.
    *config.lock().unwrap() = server_config(&servers, &stranger);
    let (theirs, their_key) = signed(&stranger, "canary-operator", ExtendedKeyUsagePurpose::ClientAuth);
    let mut files = secret("second", &servers.pem());
    write(files.clone());
    assert!(ask(&prometheus, "main").await.is_err());
    (files[2].1, files[3].1) = (theirs, their_key);
    write(files);
    assert_eq!(ask(&prometheus, "main").await, Ok(Some(0.25)));
}

#[tokio::test]
async fn the_servers_are_those_of_the_file_as_it_is_now() {
    let down = Arc::new(AtomicBool::new(false));
    let fails = down.clone();
    let address = serve(bind().await, move |_| match fails.load(Ordering::Relaxed) {
        true => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", ""),
        false => json(ONE),
    })
    .await;
    let path = folder("config").join("config.yaml");
    let server = |name: &str| format!("  - {{name: {name}, url: \"http://{address}\"}}\n");
    fs::write(&path, format!("servers:\n{}", server("a"))).unwrap();
    let prometheus = open(&path);
    assert_eq!(prometheus.names(), ["a"]);
    assert_eq!(ask(&prometheus, "a").await, Ok(Some(0.25)));
    assert_eq!(
        prometheus.find("b").unwrap_err().to_string(),
        "no Prometheus is called \"b\": the operator knows a"
    );
    fs::write(&path, format!("servers:\n{}{}", server("b"), server("c"))).unwrap();
    assert_eq!(prometheus.names(), ["b", "c"]);
    assert_eq!(ask(&prometheus, "b").await, Ok(Some(0.25)));
    let told = ask(&prometheus, "a").await.unwrap_err();
    assert_eq!(told, "no Prometheus is called \"a\": the operator knows b, c");

    fs::write(&path, "servers: [{name: b}]").unwrap();
    assert_eq!(prometheus.names(), ["b", "c"]);
    assert_eq!(ask(&prometheus, "b").await, Ok(Some(0.25)));
    down.store(true, Ordering::Relaxed);
    let told = ask(&prometheus, "b").await.unwrap_err();
    let expected = format!(
        "Prometheus b: HTTP status 500 Internal Server Error; it is asked as before, for its new files cannot be used: {}: \
         missing field `url` at line 1, column 12",
        path.display()
    );
    assert_eq!(told, expected);
    down.store(false, Ordering::Relaxed);
    fs::remove_file(&path).unwrap();
    assert_eq!(prometheus.names(), ["b", "c"]);
    fs::write(&path, "servers: []").unwrap();
    let told = ask(&prometheus, "b").await.unwrap_err();
    assert_eq!(
        told,
        "no Prometheus is called \"b\": the operator knows none (prometheus.servers of its chart)"
    );

    let error = Servers::open(&path.with_file_name("missing.yaml")).err().unwrap();
    assert_eq!(
        error.to_string(),
        "it cannot be read: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn requests_are_counted_over_http() {
    let address = serve(bind().await, |request| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let alive = "nginx_ingress_controller_config_last_reload_successful";
        let series = |name: &str, more: &str| {
            format!(r#"{{"metric":{{"__name__":"{name}","controller_pod":"a"{more}}},"values":[[{now:.3},"7"]]}}"#)
        };
        let query = request.uri().query().unwrap();
        let result = if query.contains("config_last_reload_successful") {
            series(alive, "")
        } else if query.contains("response_duration_seconds_count") {
            let labels = r#","namespace":"shop","ingress":"web","service":"web","status":"200""#;
            series("nginx_ingress_controller_requests", labels)
        } else {
            String::new()
        };
        json(&format!(
            r#"{{"status":"success","data":{{"resultType":"matrix","result":[{result}]}}}}"#
        ))
    })
    .await;
    let path = folder("requests").join("config.yaml");
    fs::write(&path, format!("servers: [{{name: main, url: \"http://{address}\"}}]")).unwrap();
    let interest = Interest {
        namespace: "shop".to_owned(),
        ingresses: BTreeSet::from(["web".to_owned()]),
        service: "web".to_owned(),
        canaries: BTreeSet::from([Interest::canary("shop", "web-canary", 80)]),
        latency: false,
    };
    let woken = Arc::new(Notify::new());
    let waker = woken.clone();
    let subscription = open(&path).subscribe("main", interest, move || waker.notify_one());
    woken.notified().await;
    let counts = subscription.counts().unwrap();
    assert_eq!(
        (counts.complete, counts.missing, counts.stable.total()),
        (true, vec![], 0)
    );
}
