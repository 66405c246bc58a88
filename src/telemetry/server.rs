use super::Metrics;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus::TextEncoder;
use std::net::SocketAddr;

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
pub async fn serve(listen: SocketAddr, metrics: Metrics) -> Result<(), ServeError> {
    let app = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(metrics);
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| ServeError::Listen(listen, error))?;
    axum::serve(listener, app).await.map_err(ServeError::Ended)
}

async fn exposition(State(metrics): State<Metrics>) -> Result<String, (StatusCode, String)> {
    TextEncoder::new()
        .encode_to_string(&metrics.registry.gather())
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn ready(State(metrics): State<Metrics>) -> (StatusCode, &'static str) {
    if metrics.ready.get() {
        (StatusCode::OK, "ok\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "CanaryReleases were not listed yet: is the CRD installed, and may the operator list them?\n",
        )
    }
}
