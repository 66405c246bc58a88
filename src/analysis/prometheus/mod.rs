//! Prometheus, where the operator is told of one: numbers by PromQL of a release's own, and requests for those who would
//! not have every controller asked every few seconds.
//!
//! [`Servers`] are those of a configuration file. A [`Template`] is a query with placeholders, checked when it is written;
//! [`Prometheus::watch`] asks it for as long as somebody wants to know. [`Prometheus::subscribe`] counts requests, from the
//! controllers' counters as Prometheus stored them, by the rules by which scraped ones are counted.

mod answer;
mod config;
mod error;
mod requests;
mod rounds;
mod servers;
mod template;
mod watch;

pub use config::{Address, ConfigError, LabelNames, ServerConfig};
pub use error::{Problem, QueryError};
pub use requests::Subscription;
pub use servers::{Ask, Labelling, Servers};
pub use template::{LONGEST_QUERY, MOST_WORDS, Place, Placeholder, Template, TemplateError};
pub use watch::{Latest, Watch};

use crate::cluster::Clock;
use std::sync::Arc;

/// Asks Prometheus, while somebody wants to know. Clones share everything.
#[derive(Clone)]
pub struct Prometheus {
    ask: Arc<dyn Ask>,
    clock: Arc<dyn Clock>,
}

impl Prometheus {
    /// Asks nobody until somebody watches or subscribes.
    #[must_use]
    pub fn new(ask: Arc<dyn Ask>, clock: Arc<dyn Clock>) -> Self {
        Self { ask, clock }
    }

    /// The names that a release may give, as they are configured now.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.ask.names()
    }

    /// Whether there is a server of this name, now.
    ///
    /// # Errors
    /// [`QueryError::Unknown`], with those there are.
    pub fn find(&self, server: &str) -> Result<(), QueryError> {
        self.ask.labelling(server).map(drop)
    }
}
