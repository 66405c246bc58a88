//! A query of a release's own, asked again and again.

use super::{Prometheus, answer, answer::Number, error::QueryError};
use jiff::Timestamp;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// Bytes of the answer at most; one number takes some hundreds.
const LIMIT: usize = 1 << 20;
/// No query is asked more often.
const SHORTEST: Duration = Duration::from_secs(1);

/// An answer, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Latest {
    /// When it came.
    pub at: Timestamp,
    /// The number; none where no series has what was asked for.
    pub value: Result<Option<f64>, QueryError>,
}

/// Has a query asked; dropping it ends that.
#[derive(Debug)]
pub struct Watch {
    latest: Arc<Mutex<Option<Latest>>>,
    // Dropping the set ends the asking.
    _asking: JoinSet<()>,
}

impl Watch {
    /// The last answer; none before the first.
    #[must_use]
    pub fn latest(&self) -> Option<Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Prometheus {
    /// Asks a rendered query now and then `every` so often, and calls `wake` after each answer. Each watch asks for itself,
    /// so that none waits for another's. Takes a tokio runtime.
    #[must_use]
    pub fn watch(&self, server: &str, query: String, every: Duration, wake: impl Fn() + Send + 'static) -> Watch {
        let latest = Arc::new(Mutex::new(None));
        let (prometheus, server, told) = (self.clone(), server.to_owned(), latest.clone());
        let mut asking = JoinSet::new();
        asking.spawn(async move {
            let mut ticks = interval(every.max(SHORTEST));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut warnings = Vec::new();
            loop {
                ticks.tick().await;
                let value = prometheus.number(&server, &query).await.map(|number| {
                    if number.warnings != warnings && !number.warnings.is_empty() {
                        tracing::warn!(server, query, warnings = ?number.warnings, "Prometheus answers with warnings");
                    }
                    warnings = number.warnings;
                    number.value
                });
                let at = prometheus.clock.now();
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(Latest { at, value });
                wake();
            }
        });
        Watch {
            latest,
            _asking: asking,
        }
    }

    async fn number(&self, server: &str, query: &str) -> Result<Number, QueryError> {
        let body = self.ask.ask(server, query, LIMIT).await?;
        answer::number(&body).map_err(|problem| QueryError::of(server, problem))
    }
}
