use super::Metrics;
use crate::leader::Standing;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus::TextEncoder;
use std::net::SocketAddr;
use tokio::sync::watch;

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}; choose another --listen")]
    Listen(SocketAddr, std::io::Error),
    /// The listener broke.
    #[error("the HTTP server ended: {0}")]
    Ended(std::io::Error),
}

/// Serves `/metrics`, `/healthz` and `/readyz` until the process ends.
///
/// # Errors
/// Where the address is taken.
pub async fn serve(
    listen: SocketAddr,
    metrics: Metrics,
    standing: watch::Receiver<Standing>,
) -> Result<(), ServeError> {
    let app = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Shown { metrics, standing });
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| ServeError::Listen(listen, error))?;
    axum::serve(listener, app).await.map_err(ServeError::Ended)
}

/// What the server shows.
#[derive(Clone)]
struct Shown {
    metrics: Metrics,
    standing: watch::Receiver<Standing>,
}

async fn exposition(State(shown): State<Shown>) -> Result<String, (StatusCode, String)> {
    let leads = *shown.standing.borrow() == Standing::Leading;
    shown.metrics.leader.set(i64::from(leads));
    if !leads {
        shown.metrics.step_down();
    }
    TextEncoder::new()
        .encode_to_string(&shown.metrics.registry.gather())
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// A replica that follows is ready: to take over.
async fn ready(State(shown): State<Shown>) -> (StatusCode, String) {
    match &*shown.standing.borrow() {
        Standing::Leading if shown.metrics.ready.get() => (StatusCode::OK, "leader\n".to_owned()),
        Standing::Leading => (
            StatusCode::SERVICE_UNAVAILABLE,
            "leader; CanaryReleases were not listed yet: is the CRD installed, and may the operator list them?\n"
                .to_owned(),
        ),
        Standing::Following(leader) => (StatusCode::OK, format!("follower; {leader} leads\n")),
        Standing::Unknown(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("no leader is known: {why}\n")),
    }
}
