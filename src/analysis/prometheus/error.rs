//! Why there is no number: sentences for the person on call.

use http::StatusCode;
use std::time::Duration;

/// Why a query has no answer. It names the server as the operator's configuration does, never its token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No server of this name is configured.
    #[error("no Prometheus is called {name:?}: {}", names(known))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// It is configured, and gave no answer that can be used.
    #[error("Prometheus {server}: {problem}{}", as_before(outdated))]
    Failed {
        /// Its name.
        server: String,
        /// What is wrong.
        problem: Problem,
        /// Why it is still asked as before its files changed.
        outdated: Option<String>,
    },
}

fn names(names: &[String]) -> String {
    match names {
        [] => "the operator knows none (prometheus.servers of its chart)".to_owned(),
        names => format!("the operator knows {}", names.join(", ")),
    }
}

fn as_before(why: &Option<String>) -> String {
    why.as_ref()
        .map(|why| format!("; it is asked as before, for its new files cannot be used: {why}"))
        .unwrap_or_default()
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Its token, CA or certificate cannot be used, and none of before can.
    #[error("{0}")]
    Files(String),
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// The answer was not whole in time.
    #[error("no whole answer within {0:?}")]
    Deadline(Duration),
    /// The connection broke, or what came is not HTTP.
    #[error("the answer broke off: {0}")]
    Interrupted(String),
    /// It sends elsewhere.
    #[error("it redirects to {0:?}, which is not followed: is its url right?")]
    Redirect(String),
    /// An HTTP status other than success.
    #[error("HTTP status {status}{}", after_colon(message))]
    Status {
        /// The status.
        status: StatusCode,
        /// What it said, as far as it is short and readable.
        message: String,
    },
    /// Something else than JSON, such as a page to log in.
    #[error("it answers with {0} and not with JSON: is its url right, and is no login in front of it?")]
    ContentType(String),
    /// More bytes than are read.
    #[error("an answer of more than {} KiB: the query returns too many series", .0 >> 10)]
    TooLarge(u64),
    /// Prometheus could not evaluate the query.
    #[error("the query failed: {0}")]
    Refused(String),
    /// JSON of another kind.
    #[error("an answer that is not of Prometheus: {0}")]
    Malformed(String),
    /// More than one element.
    #[error("the query returned {0} series: aggregate them, e.g. sum(…)")]
    Several(usize),
    /// NaN or an infinity.
    #[error("the query returned {0}, which can be compared with nothing: does it divide by 0?")]
    NotFinite(String),
    /// A string or a range vector.
    #[error("the query returned a {0}; a check takes a scalar, or an instant vector of one element")]
    Kind(String),
    /// A counter that counts nothing.
    #[error("a counter stands at {0}")]
    NotACount(String),
}

fn after_colon(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(": {message}"),
    }
}

impl QueryError {
    pub(super) fn of(server: &str, problem: Problem) -> Self {
        Self::Failed {
            server: server.to_owned(),
            problem,
            outdated: None,
        }
    }
}
