//! The API server for other processes: plain HTTP on a socket.

use super::ApiServer;
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use http_body_util::BodyExt;
use tokio::net::TcpListener;

impl ApiServer {
    /// Serves whoever connects, without TLS and without asking who it is, until the future is dropped.
    ///
    /// # Errors
    /// Where the listener breaks.
    pub async fn serve(&self, listener: TcpListener) -> std::io::Result<()> {
        let server = self.clone();
        let app = Router::new().fallback(move |request: Request| server.clone().answer_http(request));
        let listener = listener.tap_io(|stream| {
            // An answer in two packets would otherwise wait for the first to be acknowledged. Slower is not wrong.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, app).await
    }

    async fn answer_http(self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        // Of a request that broke off nobody reads the answer.
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        match self.handle(&parts, &body).await {
            Ok(response) => response.map(Body::new),
            Err(unreachable) => (StatusCode::BAD_GATEWAY, unreachable.to_string()).into_response(),
        }
    }
}
