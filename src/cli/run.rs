//! `canary-operator run`

#[cfg(debug_assertions)]
use canary_operator::cluster::WrongClock;
use canary_operator::{
    analysis::{
        Http, Scraper,
        prometheus::{ConfigError, Prometheus, Servers},
        scraper,
    },
    api::Duration,
    cluster::{Contact, SteadyClock, SystemClock, Term, connect},
    controller::{self, Settings, Sources},
    leader::{Elector, Standing, Timing},
    release::decide,
    routing::IngressNginx,
    telemetry::{Metrics, ServeError, serve},
};
use clap::{Args, ValueEnum};
use futures::{FutureExt, future};
use kube::{Api, Config};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

#[derive(Args)]
pub struct Options {
    /// Address for /metrics, /healthz and /readyz.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Namespace to watch; may be given several times. All when omitted.
    #[arg(long = "watch-namespace", value_name = "NAMESPACE")]
    watch_namespaces: Vec<String>,
    /// How long a written weight takes to reach every ingress-nginx controller: its sync rate limit allows 3.3 s, its workers poll for another.
    #[arg(long, default_value = "6s")]
    settle: Duration,
    /// Prefix of the annotations that ingress-nginx reads (its --annotations-prefix).
    #[arg(long, default_value = "nginx.ingress.kubernetes.io")]
    annotations_prefix: String,
    /// spec.controller of the IngressClasses that ingress-nginx serves (its --controller-class); may be given several times.
    #[arg(
        long = "ingress-controller",
        value_name = "CONTROLLER",
        default_value = "k8s.io/ingress-nginx"
    )]
    ingress_controllers: Vec<String>,
    /// Value of the annotation kubernetes.io/ingress.class that ingress-nginx serves (its --ingress-class); may be given several times.
    #[arg(long = "ingress-class", value_name = "CLASS", default_value = "nginx")]
    ingress_classes: Vec<String>,
    /// ingress-nginx serves Ingresses without a class too (its --watch-ingress-without-class).
    #[arg(long)]
    watch_ingress_without_class: bool,
    /// Namespace of the ingress-nginx controllers, whose metrics count the requests of releases; empty for all namespaces.
    #[arg(long, value_name = "NAMESPACE", default_value = "ingress-nginx")]
    controller_namespace: String,
    /// Label selector of the ingress-nginx controllers' pods.
    #[arg(long, value_name = "SELECTOR", default_value = scraper::SELECTOR)]
    controller_selector: String,
    /// Port on which the ingress-nginx controllers serve /metrics (their --healthz-port).
    #[arg(long, value_name = "PORT", default_value_t = scraper::PORT)]
    controller_metrics_port: u16,
    /// File that names the Prometheus servers which releases may ask; none when omitted. It is read anew when it changes.
    #[arg(long, value_name = "FILE")]
    prometheus_config: Option<PathBuf>,
    /// What to log: a level, or directives such as info,kube=debug.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// How to log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Name of this process in events and in the Lease.
    #[arg(long, env = "POD_NAME", default_value = "canary-operator")]
    instance: String,
    /// Namespace of the Lease by which one replica leads; the current one when omitted.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// Name of that Lease: the same for all replicas of one operator, and for no other.
    #[arg(long, value_name = "NAME", default_value = "canary-operator")]
    lease_name: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Why the operator did not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("--log-level {0:?} is not a level nor a list of directives: {1}")]
    LogLevel(String, tracing_subscriber::filter::ParseError),
    #[error("no cluster: {0}; run in a Pod with a ServiceAccount, or set KUBECONFIG")]
    Cluster(#[from] kube::config::InferConfigError),
    #[error("the cluster's configuration cannot be used: {0}")]
    Client(#[from] kube::Error),
    #[error("--prometheus-config {}: {error}", path.display())]
    Prometheus { path: PathBuf, error: ConfigError },
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the asynchronous runtime cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Runs until SIGTERM or Ctrl-C; rounds in flight are finished.
pub fn run(options: Options) -> Result<(), RunError> {
    // kube-runtime wraps every line in a span that says less than the line.
    let filter = EnvFilter::try_new(format!("kube_runtime=warn,{}", options.log_level))
        .map_err(|error| RunError::LogLevel(options.log_level.clone(), error))?;
    match options.log_format {
        LogFormat::Text => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .init(),
        LogFormat::Json => tracing_subscriber::fmt().json().with_env_filter(filter).init(),
    }
    // One thread does: a round computes for microseconds and otherwise waits for the API server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(operate(options))
}

async fn operate(options: Options) -> Result<(), RunError> {
    let metrics = Metrics::new()?;
    let servers = match &options.prometheus_config {
        Some(path) => Servers::open(path).map_err(|error| RunError::Prometheus {
            path: path.clone(),
            error,
        })?,
        None => Servers::default(),
    };
    let wall = SystemClock;
    #[cfg(debug_assertions)]
    let wall = WrongClock::from_environment(wall);
    let clock = Arc::new(SteadyClock::new(wall));
    let (config, term, contact) = (Config::infer().await?, Term::none(), Contact::new(clock.clone()));
    let client = connect(&config, &metrics.api, &term, &contact)?;
    let prometheus = Prometheus::new(Arc::new(servers), clock.clone());
    let controllers = scraper::Settings {
        namespace: Some(options.controller_namespace).filter(|namespace| !namespace.is_empty()),
        selector: options.controller_selector,
        port: options.controller_metrics_port,
        ..scraper::Settings::default()
    };
    let settings = Settings {
        sources: Sources {
            scraper: Some(Scraper::new(
                client.clone(),
                clock.clone(),
                Arc::new(Http::default()),
                controllers,
            )),
            prometheus: Some(prometheus.clone()),
        },
        client,
        contact: contact.clone(),
        clock,
        routing: Arc::new(IngressNginx {
            prefix: options.annotations_prefix,
            controllers: options.ingress_controllers,
            classes: options.ingress_classes,
            classless: options.watch_ingress_without_class,
        }),
        decide,
        settle: options.settle.get(),
        instance: options.instance.clone(),
        metrics: metrics.clone(),
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async move {
        let _ = future::select(Box::pin(terminate.recv()), Box::pin(interrupt.recv())).await;
        tracing::info!("stopping; traffic stays where it is");
    }
    .shared();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), settle = %options.settle, namespaces = ?options.watch_namespaces, prometheus = ?prometheus.names(), "starting");
    let scopes: Vec<Option<String>> = match options.watch_namespaces.as_slice() {
        [] => vec![None],
        names => names.iter().cloned().map(Some).collect(),
    };
    // Renewing is what makes a term, so it is not bound to one.
    let unbound = connect(&config, &metrics.api, &Term::unlimited(), &contact)?;
    let (standing, stands) = watch::channel(Standing::Unknown("the Lease was not read yet".to_owned()));
    let elector = Elector {
        leases: match &options.lease_namespace {
            Some(namespace) => Api::namespaced(unbound, namespace),
            None => Api::default_namespaced(unbound),
        },
        name: options.lease_name,
        identity: format!("{}_{:016x}", options.instance, fastrand::u64(..)),
        timing: Timing::default(),
        clock: settings.clock.clone(),
        term,
        standing,
    };
    let lead = || {
        metrics.step_down();
        metrics.ready.expect(scopes.len());
        let controllers = scopes
            .iter()
            .map(|namespace| controller::run(settings.clone(), namespace.as_deref(), shutdown.clone()));
        future::join_all(controllers).map(drop)
    };
    tokio::select! {
        ended = serve(options.listen, metrics.clone(), stands) => Ok(ended?),
        () = elector.run(shutdown.clone(), lead) => Ok(()),
    }
}
