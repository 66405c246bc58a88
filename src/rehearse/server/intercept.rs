//! The seam at which tests make requests fail, and the record of all requests.

use super::{
    error::ApiError,
    resource::{Key, Resource},
    routes::Call,
    store::Version,
};
use jiff::Timestamp;
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// Decides the fate of requests and watch events. The default lets everything pass.
pub trait Interceptor: Send + Sync {
    /// Before the request takes effect.
    fn before(&self, _call: &Call) -> Before {
        Before::Pass
    }

    /// After it took effect and before the client hears of it.
    fn after(&self, _call: &Call, _outcome: Outcome<'_>) -> After {
        After::Pass
    }

    /// Before a watch passes on a change.
    fn event(&self, _watch: &Call, _version: &Version) -> EventFate {
        EventFate::Deliver
    }
}

/// What became of a request that was carried out: its code, and the answer's JSON if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// HTTP status code.
    pub code: u16,
    /// The answer, None for watches and logs.
    pub body: Option<&'a Value>,
}

/// The fate of a request before it takes effect.
#[derive(Clone, Debug)]
pub enum Before {
    /// Carry it out.
    Pass,
    /// Answer this instead.
    Answer(ApiError),
    /// Never answer.
    Hang,
    /// Carry it out later, if the client still waits then.
    Delay(Duration),
    /// Carry it out later even if the client has gone: a request in flight.
    InFlight(Duration),
    /// The client dies: signalled by [`super::ApiServer::crashed`], and never answered.
    Crash,
    /// Answer a list or get from this past version, as a lagging API server does.
    At(u64),
}

/// The fate of an answer.
#[derive(Clone, Debug)]
pub enum After {
    /// Send it.
    Pass,
    /// Send this instead, though the request took effect.
    Answer(ApiError),
    /// Never send it.
    Hang,
    /// Send it later.
    Delay(Duration),
    /// The client dies before it hears.
    Crash,
}

/// The fate of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFate {
    /// Send it.
    Deliver,
    /// Skip it: a later one stands for it.
    Drop,
    /// Send it, and all that follow, later.
    Delay(Duration),
    /// Close the connection instead.
    Cut,
    /// 410 Expired inside the stream, then close.
    Gone,
}

/// The interceptor that intercepts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl Interceptor for NoFaults {}

/// One request that was made.
#[derive(Clone, Debug)]
pub struct Record {
    /// When, in virtual time.
    pub at: Timestamp,
    /// Whose client.
    pub client: Arc<str>,
    /// As in RBAC rules.
    pub verb: &'static str,
    /// Group and plural.
    pub resource: Resource,
    /// Namespace, "" across all.
    pub namespace: String,
    /// Name, "" for collections.
    pub name: String,
    /// Subresource, or "".
    pub subresource: String,
    /// Whether nothing was to be stored.
    pub dry_run: bool,
    /// What was sent.
    pub body: Arc<Value>,
    /// The code the client got; 0 when it never got an answer.
    pub code: u16,
    /// The version counter after the request took effect, when it did.
    pub applied: Option<u64>,
}

impl Record {
    pub(super) fn of(call: &Call, at: Timestamp) -> Self {
        Self {
            at,
            client: call.client.clone(),
            verb: call.verb,
            resource: call.resource.clone(),
            namespace: call.namespace.clone(),
            name: call.name.clone(),
            subresource: call.subresource.clone(),
            dry_run: call.dry_run(),
            body: call.body.clone(),
            code: 0,
            applied: None,
        }
    }

    /// Whether the request was one that changes things.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch") && !self.dry_run
    }

    /// The object meant.
    pub fn key(&self) -> Key {
        Key {
            resource: self.resource.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}
