//! What the API server's audit log says of releases: every write, whoever made it, in the order in which it was answered.
//! Beside what the operator says of itself, this is the only account of what it did.

mod rules;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::{cluster::Cluster, operator::NAME};

/// One write; or an Ingress that was read by its name.
#[derive(Clone, Debug)]
pub struct Entry {
    /// By which the stages of one request are known.
    id: String,
    /// When it reached the API server.
    received: Timestamp,
    /// When it was answered; when it came where it never was.
    pub at: Timestamp,
    /// Whether it was answered: what was under way when the API server was killed never is.
    answered: bool,
    /// `create`, `update`, `patch`, `delete` or `get`.
    pub verb: String,
    /// Whether it is of an operator.
    pub is_operators: bool,
    /// Whether a person made it, or a test.
    pub is_persons: bool,
    /// Which process, where it is an operator's: its pod or its token.
    pub process: String,
    /// Such as `ingresses`.
    pub resource: String,
    /// Such as `status`.
    pub subresource: String,
    /// Where the object lies.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// Whether it was done.
    pub done: bool,
    /// Whether it may have been done though it was answered with a failure: an API server that was stalled carries out what waited
    /// for it, and answers 504 where nobody waits for the answer any more. So may what was never answered.
    pub in_doubt: bool,
    /// Whether the object was there when this was carried out; none where the answer does not tell.
    found: Option<bool>,
    /// What was sent.
    pub request: Value,
    /// What was answered: the object as stored, or a `Status`.
    pub response: Value,
}

impl Entry {
    /// Reads a line of the log; nothing where it tells of no write and no Ingress, or of a write that was only tried.
    fn parse(line: &str) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Line {
            #[serde(default, rename = "auditID")]
            audit_id: String,
            stage: String,
            #[serde(rename = "requestURI")]
            request_uri: String,
            verb: String,
            #[serde(default)]
            user: User,
            #[serde(default)]
            object_ref: ObjectRef,
            #[serde(default)]
            response_status: ResponseStatus,
            #[serde(default)]
            request_object: Value,
            #[serde(default)]
            response_object: Value,
            request_received_timestamp: Option<Timestamp>,
            stage_timestamp: Timestamp,
        }
        // Whoever gave up before he was known has no name.
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct User {
            username: String,
            extra: BTreeMap<String, Vec<String>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct ObjectRef {
            resource: String,
            subresource: String,
            namespace: String,
            name: String,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct ResponseStatus {
            code: u16,
        }

        if !matters(line) {
            return Ok(None);
        }
        let line: Line = serde_json::from_str(line).with_context(|| format!("the audit log has the line {line}"))?;
        let answered = match &*line.stage {
            "ResponseComplete" | "Panic" => true,
            "RequestReceived" => false,
            _ => return Ok(None),
        };
        // What is read at a version comes from a cache, which may be late.
        let tells_nothing = line.verb == "get" && (!answered || line.request_uri.contains("resourceVersion="));
        if tells_nothing || line.request_uri.contains("dryRun=") {
            return Ok(None);
        }
        let code = match &*line.stage {
            "Panic" => 500,
            _ => line.response_status.code,
        };
        let mut extra = line.user.extra;
        let mut told = |name: &str| extra.remove(&format!("authentication.kubernetes.io/{name}"))?.pop();
        let process = told("pod-name").or_else(|| told("credential-id")).unwrap_or_default();
        let name = match &*line.object_ref.name {
            "" => text(&line.response_object, "/metadata/name").to_owned(),
            name => name.to_owned(),
        };
        Ok(Some(Self {
            id: line.audit_id,
            received: line.request_received_timestamp.unwrap_or(line.stage_timestamp),
            at: line.stage_timestamp,
            answered,
            found: found(&line.verb, code).filter(|_| answered),
            verb: line.verb,
            is_operators: line.user.username == format!("system:serviceaccount:{NAME}:{NAME}"),
            is_persons: !line.user.username.is_empty() && !line.user.username.starts_with("system:"),
            process,
            resource: line.object_ref.resource,
            subresource: line.object_ref.subresource,
            namespace: line.object_ref.namespace,
            name,
            done: answered && (200..300).contains(&code),
            in_doubt: !answered || code >= 500,
            request: line.request_object,
            response: line.response_object,
        }))
    }
}

/// Most lines tell of reading, and are left unread.
fn matters(line: &str) -> bool {
    line.contains(r#""level":"RequestResponse""#)
        || (line.contains(r#""verb":"get""#) && line.contains(r#""resource":"ingresses""#))
}

/// Whether the object was there, by how this was answered.
fn found(verb: &str, code: u16) -> Option<bool> {
    match (verb, code) {
        (_, 201) => Some(false),
        // What is created may miss its namespace.
        ("create", 404) => None,
        (_, 404) => Some(false),
        (_, 200 | 202 | 409) => Some(true),
        _ => None,
    }
}

/// Without what is told by two stages: that a request came says nothing where it was answered.
fn once_each(mut entries: Vec<Entry>) -> Vec<Entry> {
    let answered = entries.iter().filter(|entry| entry.answered);
    let answered: BTreeSet<_> = answered.map(|entry| entry.id.clone()).collect();
    entries.retain(|entry| entry.answered || !answered.contains(&entry.id));
    entries
}

/// An API server that is killed leaves half a line, which the next one goes on with.
fn after_a_kill(line: &str) -> &str {
    let begins = line.rfind(r#"{"kind":"Event","apiVersion":"audit.k8s.io/"#);
    begins.and_then(|at| line.get(at..)).unwrap_or(line)
}

/// All writes of a cluster so far.
#[derive(Debug)]
pub struct Log {
    entries: Vec<Entry>,
}

impl Log {
    /// Reads the log of the rig's API server; none where the cluster is another.
    pub fn of(cluster: &Cluster) -> Result<Option<Self>> {
        cluster.audit_log().map(Self::read).transpose()
    }

    /// Reads this file, and the older parts beside it.
    pub fn read(file: &Path) -> Result<Self> {
        let folder = file.parent().context("the audit log lies nowhere")?;
        let mut entries = Vec::new();
        for part in fs::read_dir(folder)? {
            let part = part?.path();
            let name = part.file_name().map(|name| name.to_string_lossy().into_owned());
            if !name.is_some_and(|name| name.starts_with("audit") && name.ends_with(".log")) {
                continue;
            }
            let text = fs::read_to_string(&part)?;
            // The last line may be half written.
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                entries
                    .extend(Entry::parse(line).or_else(|error| Entry::parse(after_a_kill(line)).map_err(|_| error))?);
            }
        }
        ensure!(
            !entries.is_empty(),
            "the audit log {} tells of no write",
            file.display()
        );
        let mut entries = once_each(entries);
        entries.sort_by_key(|entry| entry.at);
        Ok(Self { entries })
    }

    /// The log of one namespace, and who led when.
    #[must_use]
    pub fn within(self, namespace: &str) -> Self {
        self.among(|other| other == namespace)
    }

    /// The log of these namespaces, and who led when.
    #[must_use]
    pub fn among(mut self, namespaces: impl Fn(&str) -> bool) -> Self {
        self.entries.retain(|entry| {
            namespaces(&entry.namespace) || (entry.resource == "leases" && (entry.is_operators || entry.is_persons))
        });
        self
    }

    /// The writes of operators that were done, without those by which they lead.
    pub fn of_operators(&self) -> impl Iterator<Item = &Entry> {
        let counts =
            |entry: &&Entry| entry.is_operators && entry.done && entry.verb != "get" && entry.resource != "leases";
        self.entries.iter().filter(counts)
    }

    /// From when until when a Service had no ready endpoint; until now where that has no end.
    #[must_use]
    pub fn outages(&self, namespace: &str, service: &str) -> Vec<(Timestamp, Timestamp)> {
        let (mut outages, mut since) = (Vec::new(), None);
        for entry in self
            .entries
            .iter()
            .filter(|entry| entry.done && entry.namespace == namespace)
        {
            if text(&entry.response, "/metadata/labels/kubernetes.io~1service-name") != service {
                continue;
            }
            let mut endpoints = entry.response["endpoints"].as_array().into_iter().flatten();
            let is_there = endpoints.any(|endpoint| endpoint["conditions"]["ready"] == true);
            match since {
                Some(from) if is_there => {
                    outages.push((from, entry.at));
                    since = None;
                }
                None if !is_there => since = Some(entry.at),
                _ => {}
            }
        }
        outages.extend(since.map(|from| (from, Timestamp::MAX)));
        outages
    }

    /// Every rule of every release that was broken, in words; and what was looked at, so that nothing is proved by silence.
    #[must_use]
    pub fn judged(&self) -> Judged {
        rules::judge(&self.entries)
    }
}

/// What became of the rules.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// What was broken.
    pub broken: Vec<String>,
    /// How often each kind of thing was looked at.
    pub looked: BTreeMap<&'static str, u64>,
}

impl Judged {
    /// An error where a rule was broken, or where not one write of these kinds was looked at.
    pub fn all_well(&self, kinds: &[&str]) -> Result<()> {
        ensure!(self.broken.is_empty(), "by the audit log:\n{}", self.broken.join("\n"));
        let missing: Vec<_> = kinds.iter().filter(|kind| !self.looked.contains_key(**kind)).collect();
        ensure!(
            missing.is_empty(),
            "the audit log tells nothing of {missing:?}, only of {:?}",
            self.looked
        );
        Ok(())
    }
}

/// The text there, or none.
fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}
