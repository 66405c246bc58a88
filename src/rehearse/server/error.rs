//! The API server's refusals, worded as the real one words them.

use super::resource::Key;
use kube::core::{
    Status,
    response::{StatusCause, StatusDetails},
};
use serde_json::{Value, json};

/// A refusal: what the server would answer. Boxed, for a `Status` is large.
pub type ApiError = Box<Status>;

/// A failure with code, reason and message.
pub fn failure(code: u16, reason: &str, message: &str) -> ApiError {
    Status::failure(message, reason).with_code(code).boxed()
}

fn about(key: &Key, code: u16, reason: &str, message: &str) -> ApiError {
    detailed(
        code,
        reason,
        message,
        details(&key.resource.group, &key.resource.plural, &key.name),
    )
}

fn detailed(code: u16, reason: &str, message: &str, details: StatusDetails) -> ApiError {
    Status::failure(message, reason)
        .with_code(code)
        .with_details(details)
        .boxed()
}

fn details(group: &str, kind: &str, name: &str) -> StatusDetails {
    StatusDetails {
        name: name.into(),
        group: group.into(),
        kind: kind.into(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    }
}

/// `Deployment.apps`, or `ConfigMap` of the core.
fn qualified(key: &Key) -> (&str, String) {
    let kind = key.resource.kind().unwrap_or(&key.resource.plural);
    let shown = match key.resource.group.as_str() {
        "" => kind.to_owned(),
        group => format!("{kind}.{group}"),
    };
    (kind, shown)
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field.
    pub field: String,
    /// FieldValueInvalid, FieldValueRequired, …
    pub reason: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl Cause {
    /// A value that may not be.
    pub fn value(field: &str, value: &Value, why: &str) -> Self {
        let message = format!("Invalid value: {value}: {why}");
        Self::new(field, "FieldValueInvalid", message)
    }

    /// A value that is missing.
    pub fn required(field: &str, why: &str) -> Self {
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        Self::new(field, "FieldValueRequired", format!("Required value{why}"))
    }

    /// A value that is there twice.
    pub fn duplicate(field: &str, value: &Value) -> Self {
        Self::new(field, "FieldValueDuplicate", format!("Duplicate value: {value}"))
    }

    /// Anything else.
    pub fn new(field: &str, reason: &'static str, message: String) -> Self {
        Self {
            field: field.into(),
            reason,
            message,
        }
    }
}

/// 404: no such object.
pub fn not_found(key: &Key) -> ApiError {
    about(
        key,
        404,
        "NotFound",
        &format!("{} \"{}\" not found", key.resource, key.name),
    )
}

/// 404: no such path.
pub fn no_such_path() -> ApiError {
    let message = "the server could not find the requested resource";
    detailed(404, "NotFound", message, details("", "", ""))
}

/// 409: the name is taken.
pub fn already_exists(key: &Key, being_deleted: bool) -> ApiError {
    let prefix = if being_deleted { "object is being deleted: " } else { "" };
    about(
        key,
        409,
        "AlreadyExists",
        &format!("{prefix}{} \"{}\" already exists", key.resource, key.name),
    )
}

/// 409: somebody else wrote first.
pub fn conflict(key: &Key) -> ApiError {
    let message = "the object has been modified; please apply your changes to the latest version and try again";
    about(
        key,
        409,
        "Conflict",
        &format!(
            "Operation cannot be fulfilled on {} \"{}\": {message}",
            key.resource, key.name
        ),
    )
}

/// 409: a precondition of a delete does not hold.
pub fn precondition(key: &Key, field: &str, wanted: &str, found: &str) -> ApiError {
    let (kind, shown) = qualified(key);
    let fate = if field == "UID" {
        "deleted and then recreated"
    } else {
        "modified"
    };
    let message = format!(
        "Operation cannot be fulfilled on {shown} \"{}\": the {field} in the precondition ({wanted}) does not match the {field} in record ({found}). The object might have been {fate}",
        key.name
    );
    detailed(409, "Conflict", &message, details(&key.resource.group, kind, &key.name))
}

/// 409: what is to be replaced is another object of this name, or none.
pub fn another(key: &Key, wanted: &str, found: &str) -> ApiError {
    let message = format!(
        "Operation cannot be fulfilled on {} \"{}\": StorageError: invalid object, Code: 4, Key: /registry/{}/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}",
        key.resource, key.name, key.resource.plural, key.namespace, key.name
    );
    about(key, 409, "Conflict", &message)
}

/// 422: the object breaks rules of its kind.
pub fn invalid(key: &Key, causes: &[Cause]) -> ApiError {
    let (kind, shown) = qualified(key);
    if key.resource.group == "events.k8s.io" {
        // Checked as the event of the core that it is stored as.
        return invalid_kind("", kind, kind, &key.name, causes);
    }
    invalid_kind(&key.resource.group, kind, &shown, &key.name, causes)
}

/// 422: a replacement that does not say what it replaces, of a kind that insists on that.
pub fn unversioned(key: &Key) -> ApiError {
    let cause = Cause::value("metadata.resourceVersion", &json!(0), "must be specified for an update");
    let resource = &key.resource;
    invalid_kind(
        &resource.group,
        &resource.plural,
        &resource.to_string(),
        &key.name,
        &[cause],
    )
}

/// 422: an option of the request is none.
pub fn invalid_option(kind: &str, cause: Cause) -> ApiError {
    invalid_kind("meta.k8s.io", kind, &format!("{kind}.meta.k8s.io"), "", &[cause])
}

/// 422: what a patch makes of an object cannot be read as one.
pub fn invalid_patch(patch: &str, why: &str) -> ApiError {
    let cause = Cause::value("patch", &json!(patch), why);
    invalid_kind("", "", "", "", &[cause])
}

fn invalid_kind(group: &str, kind: &str, shown: &str, name: &str, causes: &[Cause]) -> ApiError {
    let told: Vec<_> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    let told = match told.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let mut details = details(group, kind, name);
    details.causes = causes
        .iter()
        .map(|cause| StatusCause {
            reason: cause.reason.into(),
            message: cause.message.clone(),
            field: cause.field.clone(),
        })
        .collect();
    detailed(
        422,
        "Invalid",
        &format!("{shown} \"{name}\" is invalid: {told}"),
        details,
    )
}

/// 422: a JSON patch that cannot be carried out.
pub fn impossible_patch() -> ApiError {
    let message = "the server rejected our request due to an error in our request";
    detailed(422, "Invalid", message, details("", "", ""))
}

/// 415: a patch of a type that the resource does not take.
pub fn unsupported(message: &str) -> ApiError {
    detailed(415, "UnsupportedMediaType", message, details("", "", ""))
}

/// 500: what the real server did not foresee.
pub fn unforeseen(message: &str) -> ApiError {
    failure(500, "", message)
}

/// 400: not to be understood.
pub fn bad_request(message: &str) -> ApiError {
    failure(400, "BadRequest", message)
}

/// 400: another name in the body than in the path.
pub fn misnamed(given: &str, wanted: &str) -> ApiError {
    let why = format!("the name of the object ({given}) does not match the name on the URL ({wanted})");
    bad_request(&why)
}

/// 403: not allowed.
pub fn forbidden(key: &Key, why: &str) -> ApiError {
    about(
        key,
        403,
        "Forbidden",
        &format!("{} \"{}\" is forbidden: {why}", key.resource, key.name),
    )
}

/// 405: the path does not take this verb.
pub fn method_not_allowed() -> ApiError {
    let message = "the server does not allow this method on the requested resource";
    detailed(405, "MethodNotAllowed", message, details("", "", ""))
}

/// 410: the version asked for is no longer kept.
pub fn expired(version: u64, oldest: u64) -> ApiError {
    failure(
        410,
        "Expired",
        &format!("too old resource version: {version} ({oldest})"),
    )
}

/// The `Status` object as it goes over the wire.
pub fn body(status: &Status) -> Value {
    let mut out = serde_json::to_value(status).unwrap_or_else(|_| json!({}));
    super::super::json::set(&mut out, "/apiVersion", json!("v1"));
    super::super::json::set(&mut out, "/kind", json!("Status"));
    super::super::json::set(&mut out, "/metadata", json!({}));
    out
}
