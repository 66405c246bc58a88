//! Whether this process may write at all.

use super::around::{Answer, Around};
use http::{Method, Request};
use kube::client::Body;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::{Instant, timeout_at};

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

impl Around for Fence {
    fn around<B: 'static>(&self, request: Request<Body>, send: impl FnOnce(Request<Body>) -> Answer<B>) -> Answer<B> {
        let end = match request.method() {
            &Method::GET => Ok(None),
            _ => self.term.end_of_writes(),
        };
        let answer = match end {
            Err(refused) => return Box::pin(async move { Err(refused.into()) }),
            Ok(None) => return send(request),
            Ok(Some(end)) => timeout_at(end, send(request)),
        };
        Box::pin(async move { answer.await? })
    }
}
