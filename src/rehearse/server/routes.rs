//! From an HTTP request to a call: path, query, body.

use super::error::{ApiError, bad_request, no_such_path};
use super::patch::PatchKind;
use super::resource::{Key, Resource};
use http::{Method, request::Parts};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// One request as an authorizer would see it, and what it carries.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whose client made it; see [`super::ApiServer::named`].
    pub client: Arc<str>,
    /// get, list, watch, create, update, patch, delete or deletecollection.
    pub verb: &'static str,
    /// Group and plural.
    pub resource: Resource,
    /// The API version in the path.
    pub version: String,
    /// Namespace, "" when across all or cluster-wide.
    pub namespace: String,
    /// Name, "" for collections.
    pub name: String,
    /// `status`, `log`, … or "".
    pub subresource: String,
    /// Query parameters, decoded.
    pub query: BTreeMap<String, String>,
    /// The body, null when there is none.
    pub body: Arc<Value>,
    /// How to read the body of a PATCH.
    pub patch: Option<PatchKind>,
    /// Whether only metadata is asked for.
    pub metadata_only: bool,
}

impl Call {
    /// Parses a request.
    pub fn parse(client: Arc<str>, parts: &Parts, body: &[u8]) -> Result<Self, ApiError> {
        let segments: Vec<String> = parts
            .uri
            .path()
            .split('/')
            .filter(|s| !s.is_empty())
            .map(decode)
            .collect();
        let path: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match path.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(no_such_path()),
        };
        let (namespace, plural, name, subresource) = match rest {
            // A Namespace is itself cluster-wide, and has subresources.
            ["namespaces"] => ("", "namespaces", "", ""),
            ["namespaces", name] => ("", "namespaces", *name, ""),
            ["namespaces", name, sub @ ("status" | "finalize")] => ("", "namespaces", *name, *sub),
            ["namespaces", ns, plural] => (*ns, *plural, "", ""),
            ["namespaces", ns, plural, name] => (*ns, *plural, *name, ""),
            ["namespaces", ns, plural, name, sub] => (*ns, *plural, *name, *sub),
            [plural] => ("", *plural, "", ""),
            [plural, name] => ("", *plural, *name, ""),
            [plural, name, sub] => ("", *plural, *name, *sub),
            _ => return Err(no_such_path()),
        };
        let query = parse_query(parts.uri.query().unwrap_or_default());
        let watching = query.get("watch").is_some_and(|w| w == "true" || w == "1");
        let verb = match (parts.method.clone(), name.is_empty()) {
            (Method::GET, true) if watching => "watch",
            (Method::GET, true) => "list",
            (Method::GET, false) => "get",
            (Method::POST, true) => "create",
            (Method::PUT, false) => "update",
            (Method::PATCH, false) => "patch",
            (Method::DELETE, false) => "delete",
            (Method::DELETE, true) => "deletecollection",
            _ => {
                return Err(super::error::method_not_allowed());
            }
        };
        let header = |name: http::HeaderName| {
            parts
                .headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default()
        };
        let patch = if verb == "patch" {
            Some(PatchKind::of(header(http::header::CONTENT_TYPE))?)
        } else {
            None
        };
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(|e| bad_request(&format!("the body is not JSON: {e}")))?
        };
        Ok(Self {
            client,
            verb,
            resource: Resource::new(group, plural),
            version: version.into(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
            metadata_only: header(http::header::ACCEPT).contains("as=PartialObjectMetadata"),
            query,
            body: Arc::new(body),
            patch,
        })
    }

    /// The object meant.
    pub fn key(&self) -> Key {
        Key {
            resource: self.resource.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// A query parameter, "" when absent.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Whether nothing is to be stored.
    pub fn dry_run(&self) -> bool {
        self.parameter("dryRun") == "All"
    }

    /// Whether the request changes anything when it succeeds.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch") && !self.dry_run()
    }

    /// `apps/v1`, or `v1` for the core.
    pub fn api_version(&self) -> String {
        if self.resource.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.resource.group, self.version)
        }
    }
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

/// Percent-decoding, with `+` for a space.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let rest = bytes.clone();
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) => out.push(u8::try_from(high * 16 + low).unwrap_or(b'?')),
                    // Not an escape: a percent sign as it stands.
                    _ => {
                        out.push(b'%');
                        bytes = rest;
                    }
                }
            }
            b => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
