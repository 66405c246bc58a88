//! What the API server's audit log says of releases: every write, whoever made it, in the order in which it was answered.
//! Beside what the operator says of itself, this is the only account of what it did.

mod rules;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::{cluster::Cluster, operator::NAME};

/// One write that was answered.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it was answered.
    pub at: Timestamp,
    /// `create`, `update`, `patch` or `delete`.
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
    /// for it, and answers 504 where nobody waits for the answer any more.
    pub in_doubt: bool,
    /// What was sent.
    pub request: Value,
    /// What was answered: the object as stored, or a `Status`.
    pub response: Value,
}

impl Entry {
    /// Reads a line of the log; nothing where it tells of no write, or of one that was only tried.
    fn parse(line: &str) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Line {
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

        // Most lines tell of reading, and are left unread.
        if !line.contains(r#""level":"RequestResponse""#) {
            return Ok(None);
        }
        let line: Line = serde_json::from_str(line).with_context(|| format!("the audit log has the line {line}"))?;
        if line.stage != "ResponseComplete" || line.request_uri.contains("dryRun=") {
            return Ok(None);
        }
        let mut extra = line.user.extra;
        let mut told = |name: &str| extra.remove(&format!("authentication.kubernetes.io/{name}"))?.pop();
        let process = told("pod-name").or_else(|| told("credential-id")).unwrap_or_default();
        let name = match &*line.object_ref.name {
            "" => text(&line.response_object, "/metadata/name").to_owned(),
            name => name.to_owned(),
        };
        Ok(Some(Self {
            at: line.stage_timestamp,
            verb: line.verb,
            is_operators: line.user.username == format!("system:serviceaccount:{NAME}:{NAME}"),
            is_persons: !line.user.username.is_empty() && !line.user.username.starts_with("system:"),
            process,
            resource: line.object_ref.resource,
            subresource: line.object_ref.subresource,
            namespace: line.object_ref.namespace,
            name,
            done: (200..300).contains(&line.response_status.code),
            in_doubt: line.response_status.code >= 500,
            request: line.request_object,
            response: line.response_object,
        }))
    }
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
                entries.extend(Entry::parse(line)?);
            }
        }
        ensure!(
            !entries.is_empty(),
            "the audit log {} tells of no write",
            file.display()
        );
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
        let counts = |entry: &&Entry| entry.is_operators && entry.done && entry.resource != "leases";
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
