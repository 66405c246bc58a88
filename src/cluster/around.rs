//! What is put around every request to the API server.

use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::Body;
use std::task::{Context, Poll};
use tower::{BoxError, Layer, Service};

/// The answer to a request, once it is there.
pub type Answer<B> = BoxFuture<'static, Result<Response<B>, BoxError>>;

/// Decides whether a request is sent, and sees what comes of it.
pub trait Around: Clone + Send + 'static {
    /// `send` may be left alone, or what it begins given up.
    fn around<B: 'static>(&self, request: Request<Body>, send: impl FnOnce(Request<Body>) -> Answer<B>) -> Answer<B>;
}

/// Puts it around a client's transport.
#[derive(Clone, Debug)]
pub struct Wrap<A>(pub A);

impl<A: Clone, S> Layer<S> for Wrap<A> {
    type Service = Wrapped<A, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Wrapped {
            around: self.0.clone(),
            inner,
        }
    }
}

/// See [`Wrap`].
#[derive(Clone, Debug)]
pub struct Wrapped<A, S> {
    around: A,
    inner: S,
}

impl<A, S, B> Service<Request<Body>> for Wrapped<A, S>
where
    A: Around,
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Answer<B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = &mut self.inner;
        self.around.around(request, |request| {
            let answer = inner.call(request);
            Box::pin(async move { answer.await.map_err(Into::into) })
        })
    }
}
