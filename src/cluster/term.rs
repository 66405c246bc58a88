//! Whether this process may write at all.

use futures::future::BoxFuture;
use http::{Method, Request, Response};
use kube::client::Body;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Layer, Service};

/// Until when this process may write: leading is a matter of time, for who is cut off hears of no successor. Clones share it.
#[derive(Clone, Debug)]
pub struct Term(Arc<Mutex<Until>>);

#[derive(Clone, Copy, Debug)]
enum Until {
    Over,
    At(Instant),
    Forever,
}

/// A write that was not sent, since another process may be writing.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this replica does not lead, so it writes nothing")]
pub struct NotLeading;

impl Term {
    /// Of who has to be elected first.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Mutex::new(Until::Over)))
    }

    /// Of who has no rival.
    #[must_use]
    pub fn unlimited() -> Self {
        Self(Arc::new(Mutex::new(Until::Forever)))
    }

    /// Lasts until then, on this process's monotonic clock.
    pub fn last_until(&self, end: Instant) {
        *self.lock() = Until::At(end);
    }

    /// Ends now.
    pub fn end(&self) {
        *self.lock() = Until::Over;
    }

    /// When a write that begins now has to be given up; never, without rivals.
    ///
    /// # Errors
    /// Where none may begin.
    pub fn end_of_writes(&self) -> Result<Option<Instant>, NotLeading> {
        match *self.lock() {
            Until::Forever => Ok(None),
            Until::At(end) if end > Instant::now() => Ok(Some(end)),
            Until::At(_) | Until::Over => Err(NotLeading),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Until> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets no write through outside of a term: at the one place that every write passes, so that none can forget to ask.
/// What is under way at the term's end is given up; the resourceVersion that it names is what keeps it from undoing more.
#[derive(Clone, Debug)]
pub struct Fence {
    /// Of this process.
    pub term: Term,
}

impl<S> Layer<S> for Fence {
    type Service = FencedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FencedService {
            inner,
            term: self.term.clone(),
        }
    }
}

/// See [`Fence`].
#[derive(Clone, Debug)]
pub struct FencedService<S> {
    inner: S,
    term: Term,
}

impl<S, B> Service<Request<Body>> for FencedService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let end = match request.method() {
            &Method::GET => Ok(None),
            _ => self.term.end_of_writes(),
        };
        let end = match end {
            Ok(end) => end,
            Err(refused) => return Box::pin(async move { Err(refused.into()) }),
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            match end {
                None => answer.await.map_err(Into::into),
                Some(end) => timeout_at(end, answer).await?.map_err(Into::into),
            }
        })
    }
}
