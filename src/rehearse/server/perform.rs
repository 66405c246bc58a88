//! Carrying out a call on the store.

use super::{
    ApiServer,
    error::{self, ApiError},
    metadata_of,
    patch::PatchKind,
    routes::Call,
    selector::Selector,
    store::{DeleteOptions, WriteOptions},
};
use crate::rehearse::json::{items, remove, set, text};
use serde_json::{Value, json};
use std::sync::Arc;

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
        let selector = Selector::parse(call.parameter("labelSelector"), call.parameter("fieldSelector"))?;
        let options = WriteOptions {
            dry_run: call.dry_run(),
            strict: call.parameter("fieldValidation") == "Strict",
            status: call.subresource == "status",
        };
        match (call.verb, call.subresource.as_str()) {
            ("get", "log") => self.pod_log(call).map(Answer::Text),
            ("get", "" | "status") => self.read(call, at),
            ("list", "") => Ok(self.collection(call, &selector, at)),
            ("watch", "") => Ok(Answer::Watch(selector)),
            ("create", "") => {
                let mut object = (*call.body).clone();
                typed(call, &mut object)?;
                let stored = self.with(|s| s.create(&call.resource, &call.namespace, object, options))?;
                Ok(Answer::Json(201, (*stored).clone()))
            }
            ("update", "" | "status") => {
                let object = (*call.body).clone();
                if text(&object, "/metadata/name") != call.name {
                    return Err(error::bad_request(
                        "the name of the object does not match the name on the URL",
                    ));
                }
                let stored = self.with(|s| s.replace(&call.key(), object, options))?;
                Ok(Answer::Json(200, (*stored).clone()))
            }
            ("patch", "" | "status") => {
                let mut patch = (*call.body).clone();
                let kind = call.patch.unwrap_or(PatchKind::Merge);
                if kind == PatchKind::Strategic && !call.resource.is_built_in() {
                    return Err(error::failure(
                        415,
                        "UnsupportedMediaType",
                        "strategic merge patch is not supported for custom resources",
                    ));
                }
                if kind == PatchKind::Apply {
                    typed(call, &mut patch)?;
                    if call.parameter("fieldManager").is_empty() {
                        return Err(error::bad_request(
                            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
                        ));
                    }
                }
                let stored = self.with(|s| s.patch(&call.key(), kind, &patch, options))?;
                Ok(Answer::Json(200, (*stored).clone()))
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
                    if gone {
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
                for (key, _) in chosen.iter().filter(|(_, o)| selector.matches(o)) {
                    self.with(|s| s.delete(key, &options))?;
                }
                Ok(Answer::Json(200, list_of(call, self.with(|s| s.version()), Vec::new())))
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

    fn collection(&self, call: &Call, selector: &Selector, at: Option<u64>) -> Answer {
        let (objects, version) = self.with(|s| match at {
            None => (s.list(&call.resource, &call.namespace), s.version()),
            Some(version) => (s.list_at(&call.resource, &call.namespace, version), version),
        });
        let chosen = objects.into_iter().map(|(_, o)| o).filter(|o| selector.matches(o));
        Answer::Json(200, list_of(call, version, chosen.collect()))
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
    if !given.is_empty() && given != expected {
        let why = format!("the API version in the data ({given}) does not match the expected API version ({expected})");
        return Err(error::bad_request(&why));
    }
    set(object, "/apiVersion", json!(expected));
    if let Some(kind) = call.resource.kind() {
        set(object, "/kind", json!(kind));
    }
    Ok(())
}

fn deleted(call: &Call, object: &Value) -> Value {
    let details = json!({"name": call.name, "group": call.resource.group, "kind": call.resource.plural, "uid": text(object, "/metadata/uid")});
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
