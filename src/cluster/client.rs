//! A client whose every call is counted and bounded.

use super::{
    Contact, Fence, Term,
    around::{Answer, Around, Wrap},
};
use http::{Method, Request};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt},
};
use prometheus::{IntCounterVec, Opts, Registry};
use std::time::Duration;
use tower::{BoxError, ServiceBuilder};

/// No call takes longer.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// For so long a refusal may pass: an API server that starts refuses what it does not know yet to be granted. A soak test
/// had releases told `Stalled` by that.
pub const IN_PASSING: Duration = Duration::from_secs(5);

/// How long it may take to reach the API server at all.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// After so long without a word the kernel asks whether the other end is still there, and again, until [`DELIVERY_DEADLINE`]
/// is over: oftener than that, so that one lost packet ends no watch.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// The kernel delivers what it was given for no longer than this, also after the call was given up: less than lies between the
/// end of a term and the next leader's. A leader that was cut off had a write delivered 3 s after another led.
#[cfg(target_os = "linux")]
pub const DELIVERY_DEADLINE: Duration = Duration::from_secs(4);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The API server answered with an error, or could not be reached.
    #[error("{}", describe(.0))]
    Kube(#[from] kube::Error),
    /// No answer in time; whether it was applied is unknown.
    #[error("the API server did not answer within {CALL_DEADLINE:?}")]
    Deadline,
}

fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// End of what the API server says, as an error of its own, of such an item.
const NO_MERGE_KEY: &str = "does not contain declared merge key: name";

/// What is wrong with a patch, without the patch itself, which the API server prints as Go does, where the fields are named.
fn without_echo(message: &str) -> &str {
    let echoed = message.split_once("Invalid value: \"map[").map(|(_, rest)| rest);
    let told = echoed.and_then(|rest| rest.split_once("]\": ")).map(|(_, what)| what);
    told.filter(|what| what.starts_with("strict decoding error"))
        .unwrap_or(message)
}

impl CallError {
    /// The object changed since it was read, or is not what was decided on: look again at once.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() || status.is_not_found())
    }

    /// The API server refuses what was sent, so that sending it again is of no use.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        match self {
            // An item of a list without the name by which such items are merged is answered so (v1.34).
            Self::Kube(kube::Error::Api(status)) if status.message.ends_with(NO_MERGE_KEY) => {
                Some("a container, port, volume or variable of it has no name".to_owned())
            }
            Self::Kube(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                Some(without_echo(&status.message).to_owned())
            }
            _ => None,
        }
    }

    /// The operator may not do this.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 403)
    }
}

/// Bounds a call by [`CALL_DEADLINE`].
///
/// # Errors
/// What the call says, or that it took too long.
pub async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::Deadline),
    }
}

/// Counts requests to the API server.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    requests: IntCounterVec,
}

impl ApiMetrics {
    /// Registers `canary_operator_api_requests_total{verb,resource,code}`.
    ///
    /// # Errors
    /// Where the registry has it already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let opts = Opts::new(
            "canary_operator_api_requests_total",
            "Requests to the Kubernetes API server.",
        );
        let requests = IntCounterVec::new(opts, &["verb", "resource", "code"])?;
        registry.register(Box::new(requests.clone()))?;
        Ok(Self { requests })
    }
}

/// Counts each request, and gives it up at its deadline.
#[derive(Clone, Debug)]
pub struct Metered {
    /// Where calls are counted.
    pub metrics: ApiMetrics,
}

impl Around for Metered {
    fn around<B: 'static>(&self, request: Request<Body>, send: impl FnOnce(Request<Body>) -> Answer<B>) -> Answer<B> {
        let (verb, resource) = label(&request);
        let requests = self.metrics.requests.clone();
        let answer = send(request);
        Box::pin(async move {
            // Until the answer begins: calls are bounded as a whole by [`bounded`], what a watcher reads by its own timeout and
            // the connection's.
            let outcome = tokio::time::timeout(CALL_DEADLINE, answer).await;
            let (code, outcome) = match outcome {
                Ok(Ok(response)) => (response.status().as_str().to_owned(), Ok(response)),
                Ok(Err(error)) => ("error".to_owned(), Err(error)),
                Err(elapsed) => ("timeout".to_owned(), Err(elapsed.into())),
            };
            requests
                .with_label_values(&[verb, resource.as_str(), code.as_str()])
                .inc();
            outcome
        })
    }
}

/// Verb and resource of a request, of a bounded set: never a name.
fn label(request: &Request<Body>) -> (&'static str, String) {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => &[],
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let (resource, named) = match rest {
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, sub, ..] => (format!("{resource}/{sub}"), true),
        [] => ("other".to_owned(), false),
    };
    let watch = query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1");
    let verb = match *request.method() {
        Method::GET if watch => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

fn connector() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    // TLS is what the next layer makes of it.
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_DEADLINE));
    // Who only listens would not notice for five minutes that the other end is gone without a word: a watch, or the rest of
    // a list.
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(DELIVERY_DEADLINE));
    tcp
}

/// A client for a real cluster, whose writes are bound to a term, and which tells `contact` how it fares. As kube's own, but for
/// the connector, and without its retries, which would block one call for up to six minutes.
///
/// # Errors
/// Where the configuration cannot be used, such as an unreadable CA file or a proxy.
pub fn connect(config: &Config, metrics: &ApiMetrics, term: &Term, contact: &Contact) -> kube::Result<Client> {
    if let Some(proxy) = &config.proxy_url {
        return Err(kube::Error::ProxyProtocolUnsupported {
            proxy_url: Box::new(proxy.clone()),
        });
    }
    let transport =
        Http::builder(TokioExecutor::new()).build(config.rustls_https_connector_with_connector(connector())?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(transport);
    let client = ClientBuilder::new(service, config.default_namespace.clone())
        .with_layer(&Wrap(Metered {
            metrics: metrics.clone(),
        }))
        .with_layer(&Wrap(contact.clone()))
        .with_layer(&Wrap(Fence { term: term.clone() }));
    #[cfg(debug_assertions)]
    let client = client.with_layer(&Wrap(super::faults::Fatal::from_environment()));
    Ok(client.build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::SystemClock;
    use std::sync::Arc;
    use tower::Service;

    #[test]
    fn what_the_api_server_says_of_a_patch_is_told_without_the_patch() {
        let status = |code, message: &str| {
            let status = kube::core::Status::failure(message, "").with_code(code);
            CallError::Kube(kube::Error::Api(Box::new(status))).refusal()
        };
        // As recorded from Kubernetes v1.34 (tests/conformance).
        let strict = r#" "" is invalid: patch: Invalid value: "map[spec:map[replcas:1]]": strict decoding error: unknown field "spec.replcas""#;
        assert_eq!(
            status(422, strict).as_deref(),
            Some(r#"strict decoding error: unknown field "spec.replcas""#)
        );
        let other =
            r#"Deployment.apps "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"#;
        assert_eq!(status(422, other).as_deref(), Some(other));
        let nameless = "map: map[image:web:v2] does not contain declared merge key: name";
        assert!(status(500, nameless).is_some_and(|why| why.contains("has no name")));
        assert_eq!(status(500, "etcd leader changed"), None);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_a_leader_sent_last_is_not_delivered_when_another_may_lead() {
        use crate::leader::Timing;
        let timing = Timing::default();
        assert!(DELIVERY_DEADLINE < timing.lease - timing.renew);
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("https://{}", server.local_addr().unwrap());
        let stream = connector().call(uri.parse().unwrap()).await.unwrap().into_inner();
        let socket = socket2::SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(DELIVERY_DEADLINE));
        // Nor is a watch open to who is gone.
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE);
    }

    #[test]
    fn a_proxy_that_would_not_be_used_is_refused() {
        let mut config = Config::new("https://example.org".parse().unwrap());
        config.proxy_url = Some("http://proxy.example.org".parse().unwrap());
        let metrics = ApiMetrics::register(&Registry::new()).unwrap();
        let refused = connect(&config, &metrics, &Term::none(), &Contact::new(Arc::new(SystemClock)))
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains("proxy.example.org"), "{refused}");
    }

    #[test]
    fn requests_are_labelled_by_verb_and_resource_and_never_by_name() {
        for (method, uri, expected) in [
            (
                Method::GET,
                "/apis/canary-operator.dev/v1alpha1/canaryreleases?watch=true",
                ("watch", "canaryreleases"),
            ),
            (Method::GET, "/api/v1/namespaces/shop/pods?limit=500", ("list", "pods")),
            (
                Method::GET,
                "/api/v1/namespaces/shop/pods/web-1/log?tailLines=20",
                ("get", "pods/log"),
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/shop/deployments/web?dryRun=All",
                ("patch", "deployments"),
            ),
            (
                Method::PUT,
                "/apis/canary-operator.dev/v1alpha1/namespaces/shop/canaryreleases/web/status",
                ("update", "canaryreleases/status"),
            ),
            (Method::GET, "/version", ("list", "other")),
        ] {
            let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
            let (verb, resource) = label(&request);
            assert_eq!((verb, resource.as_str()), expected);
        }
    }
}
