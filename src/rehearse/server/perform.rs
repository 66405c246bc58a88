//! Carrying out a call on the store.

use super::{
    ApiServer,
    error::{self, ApiError, Cause},
    metadata_of,
    patch::PatchKind,
    routes::Call,
    selector::Selector,
    store::{DeleteOptions, WriteOptions},
};
use crate::rehearse::json::{items, remove, set, text};
use serde_json::{Value, json};
use std::{fmt, sync::Arc};

/// What a call comes to.
pub(super) enum Answer {
    Json(u16, Value),
    Text(String),
    Watch(Selector),
    Refused(ApiError),
}

impl Answer {
    pub(super) fn code(&self) -> u16 {
        match self {
            Self::Json(code, _) => *code,
            Self::Text(_) | Self::Watch(_) => 200,
            Self::Refused(refusal) => refusal.code,
        }
    }

    pub(super) fn json(&self) -> Option<&Value> {
        match self {
            Self::Json(_, body) => Some(body),
            _ => None,
        }
    }
}

impl ApiServer {
    /// Carries out the call; reads may be answered from a past version.
    pub(super) fn perform(&self, call: &Call, at: Option<u64>, record: usize) -> Answer {
        let outcome = self.attempt(call, at);
        if outcome.is_ok() {
            let version = self.with(|s| s.version());
            self.note(record, |r| r.applied = Some(version));
        }
        outcome.unwrap_or_else(Answer::Refused)
    }

    fn attempt(&self, call: &Call, at: Option<u64>) -> Result<Answer, ApiError> {
        let here = match call.subresource.as_str() {
            "status" => call.resource.has_status(),
            _ => call.resource.exists(),
        };
        if !here {
            return Err(error::no_such_path());
        }
        let selector = Selector::parse(call.parameter("labelSelector"), call.parameter("fieldSelector"))?;
        self.selectable(call, &selector)?;
        options_are_known(call)?;
        let options = WriteOptions {
            dry_run: call.dry_run(),
            strict: call.parameter("fieldValidation") == "Strict",
            status: call.subresource == "status",
        };
        match (call.verb, call.subresource.as_str()) {
            ("get", "log") => self.pod_log(call).map(Answer::Text),
            ("get", "" | "status") => self.read(call, at),
            ("list", "") => self.collection(call, &selector, at),
            ("watch", "") => match misversioned(call) {
                Some(why) => Err(error::unforeseen(&why)),
                None => Ok(Answer::Watch(selector)),
            },
            ("create", "") => {
                let mut object = (*call.body).clone();
                typed(call, &mut object)?;
                let stored = self.with(|s| s.create(&call.resource, &call.namespace, object, options))?;
                Ok(Answer::Json(201, (*stored).clone()))
            }
            ("update", "" | "status") => {
                let object = (*call.body).clone();
                if text(&object, "/metadata/name") != call.name {
                    return Err(error::misnamed(text(&object, "/metadata/name"), &call.name));
                }
                let (stored, new) = self.with(|s| s.replace(&call.key(), object, options))?;
                Ok(Answer::Json(if new { 201 } else { 200 }, (*stored).clone()))
            }
            ("patch", "" | "status") => {
                let mut patch = (*call.body).clone();
                let kind = call.patch.unwrap_or(PatchKind::Merge);
                if kind == PatchKind::Strategic && !call.resource.is_built_in() {
                    return Err(error::failure(415, "UnsupportedMediaType", NO_STRATEGY));
                }
                if kind == PatchKind::Apply {
                    typed(call, &mut patch)?;
                    if call.parameter("fieldManager").is_empty() {
                        let cause = Cause::required("fieldManager", "is required for apply patch");
                        return Err(error::invalid_option("PatchOptions", cause));
                    }
                }
                let (stored, new) = self.with(|s| s.patch(&call.key(), kind, &patch, options))?;
                Ok(Answer::Json(if new { 201 } else { 200 }, (*stored).clone()))
            }
            ("delete", "") => {
                let mut options = DeleteOptions::parse(&call.body);
                options.dry_run |= call.dry_run();
                if !call.parameter("propagationPolicy").is_empty() {
                    options.propagation = Some(call.parameter("propagationPolicy").into());
                }
                let (object, gone) = self.with(|s| s.delete(&call.key(), &options))?;
                Ok(Answer::Json(
                    200,
                    if gone && !call.resource.answers_the_deleted() {
                        deleted(call, &object)
                    } else {
                        (*object).clone()
                    },
                ))
            }
            ("deletecollection", "") => {
                let chosen = self.with(|s| s.list(&call.resource, &call.namespace));
                let options = DeleteOptions {
                    grace_period: None,
                    ..DeleteOptions::parse(&call.body)
                };
                let mut gone = Vec::new();
                for (key, object) in chosen.into_iter().filter(|(_, o)| selector.matches(o)) {
                    self.with(|s| s.delete(&key, &options))?;
                    gone.push(object);
                }
                Ok(Answer::Json(200, list_of(call, self.with(|s| s.version()), gone)))
            }
            _ => Err(error::no_such_path()),
        }
    }

    fn read(&self, call: &Call, at: Option<u64>) -> Result<Answer, ApiError> {
        let key = call.key();
        let found = match at {
            None => self.get(&key),
            Some(version) => self
                .with(|s| s.list_at(&key.resource, &key.namespace, version))
                .into_iter()
                .find(|(k, _)| *k == key)
                .map(|(_, o)| o),
        };
        let object = found.ok_or_else(|| error::not_found(&key))?;
        Ok(Answer::Json(
            200,
            if call.metadata_only {
                metadata_of(&object)
            } else {
                (*object).clone()
            },
        ))
    }

    fn collection(&self, call: &Call, selector: &Selector, at: Option<u64>) -> Result<Answer, ApiError> {
        if let Some(why) = misversioned(call) {
            return Err(error::bad_request(&format!("invalid resource version: {why}")));
        }
        let page = Page::parse(call.parameter("continue"))?;
        let at = page.as_ref().map(|page| page.version).or(at);
        let (objects, version, oldest) = self.with(|s| match at {
            None => (s.list(&call.resource, &call.namespace), s.version(), s.compacted()),
            Some(version) => (
                s.list_at(&call.resource, &call.namespace, version),
                version,
                s.compacted(),
            ),
        });
        if page.is_some() && version < oldest {
            return Err(error::failure(410, "Expired", TOO_OLD_A_PAGE));
        }
        let mut chosen: Vec<_> = objects.into_iter().filter(|(_, o)| selector.matches(o)).collect();
        if let Some(page) = page {
            chosen.retain(|(key, _)| (&key.namespace, &key.name) > (&page.namespace, &page.name));
        }
        let most = call.parameter("limit").parse().ok().filter(|most| *most > 0);
        let rest = chosen.len().saturating_sub(most.unwrap_or(usize::MAX));
        chosen.truncate(most.unwrap_or(usize::MAX));
        let next = chosen.last().filter(|_| rest > 0).map(|(key, _)| Page {
            version,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        });
        let mut list = list_of(call, version, chosen.into_iter().map(|(_, o)| o).collect());
        if !call.resource.is_built_in() && !call.metadata_only {
            set(&mut list, "/metadata/continue", json!(""));
        }
        if let Some(next) = next {
            set(&mut list, "/metadata/continue", json!(next.to_string()));
            // What is left out by a selector is not counted.
            if selector.is_everything() {
                set(&mut list, "/metadata/remainingItemCount", json!(rest));
            }
        }
        Ok(Answer::Json(200, list))
    }

    /// Whether the resource may be selected by these fields.
    fn selectable(&self, call: &Call, selector: &Selector) -> Result<(), ApiError> {
        for field in selector.fields() {
            let resource = &call.resource;
            if matches!(field.as_str(), "metadata.name" | "metadata.namespace") {
                continue;
            }
            if !resource.is_built_in() {
                let known = self.with(|s| s.definition(resource).is_none_or(|d| d.selects_by(&field)));
                if !known {
                    return Err(error::bad_request(&format!("field label not supported: {field}")));
                }
            } else if matches!(
                resource.plural.as_str(),
                "configmaps" | "services" | "deployments" | "ingresses" | "endpointslices" | "leases"
            ) {
                let why =
                    format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
                return Err(error::bad_request(&why));
            }
        }
        Ok(())
    }

    fn pod_log(&self, call: &Call) -> Result<String, ApiError> {
        let key = call.key();
        let pod = self.get(&key).ok_or_else(|| error::not_found(&key))?;
        let containers = items(&pod, "/spec/containers");
        let name = match call.parameter("container") {
            "" if containers.len() > 1 => {
                let names: Vec<_> = containers.iter().map(|c| text(c, "/name")).collect();
                let why = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    key.name,
                    names.join(" ")
                );
                return Err(error::bad_request(&why));
            }
            "" => containers.first().map_or("", |c| text(c, "/name")),
            given => given,
        };
        let log = self.container_log(&key, name).unwrap_or_default();
        let full = if call.parameter("previous") == "true" {
            log.previous.ok_or_else(|| {
                error::bad_request(&format!(
                    "previous terminated container \"{name}\" in pod \"{}\" not found",
                    key.name
                ))
            })?
        } else {
            log.current.ok_or_else(|| {
                error::bad_request(&format!(
                    "container \"{name}\" in pod \"{}\" is waiting to start: {}",
                    key.name,
                    waiting_reason(&pod, name)
                ))
            })?
        };
        let Ok(wanted) = call.parameter("tailLines").parse::<usize>() else {
            return Ok(full);
        };
        let lines: Vec<&str> = full.split_inclusive('\n').collect();
        Ok(lines
            .get(lines.len().saturating_sub(wanted)..)
            .unwrap_or_default()
            .concat())
    }
}

const NO_STRATEGY: &str = "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

const TOO_OLD_A_PAGE: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.";

/// The place behind the last object of a page, in the list of a version.
struct Page {
    version: u64,
    namespace: String,
    name: String,
}

impl Page {
    fn parse(token: &str) -> Result<Option<Self>, ApiError> {
        if token.is_empty() {
            return Ok(None);
        }
        let mut parts = token.split('~');
        let version = parts.next().and_then(|version| version.parse().ok());
        match (version, parts.next(), parts.next()) {
            (Some(version), Some(namespace), Some(name)) => Ok(Some(Self {
                version,
                namespace: namespace.into(),
                name: name.into(),
            })),
            _ => Err(error::bad_request("invalid continue token: continue key is not valid")),
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~{}~{}", self.version, self.namespace, self.name)
    }
}

/// What is wrong with the parameter `resourceVersion`, if anything.
fn misversioned(call: &Call) -> Option<String> {
    let given = call.parameter("resourceVersion");
    let wrong = !given.is_empty() && given.parse::<u64>().is_err();
    wrong.then(|| {
        format!("resourceVersion: Invalid value: {given:?}: strconv.ParseUint: parsing {given:?}: invalid syntax")
    })
}

/// Refuses options with values that mean nothing.
fn options_are_known(call: &Call) -> Result<(), ApiError> {
    let dry_run = call.parameter("dryRun");
    let of = |value: &str, options: &str| format!("Unsupported value: {value}: supported values: {options}");
    if !matches!(dry_run, "" | "All") {
        let kind = match call.verb {
            "create" => "CreateOptions",
            "patch" => "PatchOptions",
            "update" => "UpdateOptions",
            _ => "DeleteOptions",
        };
        let why = of(&format!("[{dry_run:?}]"), "\"All\"");
        return Err(error::invalid_option(
            kind,
            Cause::new("dryRun", "FieldValueNotSupported", why),
        ));
    }
    let propagation = match call.verb {
        "delete" => text(&call.body, "/propagationPolicy"),
        _ => "",
    };
    if !matches!(propagation, "" | "Background" | "Foreground" | "Orphan") {
        let options = "\"Foreground\", \"Background\", \"Orphan\", \"nil\"";
        let why = of(&format!("{propagation:?}"), options);
        let cause = Cause::new("propagationPolicy", "FieldValueNotSupported", why);
        return Err(error::invalid_option("DeleteOptions", cause));
    }
    Ok(())
}

fn waiting_reason(pod: &Value, container: &str) -> String {
    let statuses = items(pod, "/status/containerStatuses")
        .iter()
        .chain(items(pod, "/status/initContainerStatuses"));
    let reason = statuses
        .filter(|s| text(s, "/name") == container)
        .map(|s| text(s, "/state/waiting/reason"))
        .next()
        .unwrap_or_default();
    match reason {
        "ImagePullBackOff" | "ErrImagePull" => "trying and failing to pull image".into(),
        "" => "ContainerCreating".into(),
        other => other.into(),
    }
}

/// The type of a sent object must be that of the URL; a missing one is filled in.
fn typed(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let expected = call.api_version();
    let given = text(object, "/apiVersion");
    let (kind, wanted) = (text(object, "/kind"), call.resource.kind().unwrap_or_default());
    if (!given.is_empty() && given != expected) || (!kind.is_empty() && !wanted.is_empty() && kind != wanted) {
        let version = given.rsplit_once('/').map_or(given, |(_, version)| version);
        let why = format!("{kind} in version \"{version}\" cannot be handled as a {wanted}");
        return Err(error::bad_request(&why));
    }
    set(object, "/apiVersion", json!(expected));
    if let Some(kind) = call.resource.kind() {
        set(object, "/kind", json!(kind));
    }
    Ok(())
}

fn deleted(call: &Call, object: &Value) -> Value {
    let mut details = json!({"name": call.name, "kind": call.resource.plural, "uid": text(object, "/metadata/uid")});
    if !call.resource.group.is_empty() {
        set(&mut details, "/group", json!(call.resource.group));
    }
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "details": details})
}

fn list_of(call: &Call, version: u64, objects: Vec<Arc<Value>>) -> Value {
    let first = objects.first().map(|o| text(o, "/kind").to_string());
    let kind = call
        .resource
        .kind()
        .map(String::from)
        .or(first)
        .unwrap_or_else(|| "Unknown".into());
    let items: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            if call.metadata_only {
                return metadata_of(&object);
            }
            let mut item = (*object).clone();
            if call.resource.is_built_in() {
                remove(&mut item, "/apiVersion");
                remove(&mut item, "/kind");
            }
            item
        })
        .collect();
    let (api_version, kind) = if call.metadata_only {
        ("meta.k8s.io/v1".into(), "PartialObjectMetadata".into())
    } else {
        (call.api_version(), kind)
    };
    json!({"apiVersion": api_version, "kind": format!("{kind}List"), "metadata": {"resourceVersion": version.to_string()}, "items": items})
}
