//! The API server's refusals, worded as the real one words them.

use super::resource::{Key, Resource};
use kube::core::{Status, response::StatusDetails};
use serde_json::{Value, json};

/// A refusal: what the server would answer. Boxed, for a `Status` is large.
pub type ApiError = Box<Status>;

/// A failure with code, reason and message.
pub fn failure(code: u16, reason: &str, message: &str) -> ApiError {
    Status::failure(message, reason).with_code(code).boxed()
}

fn about(key: &Key, code: u16, reason: &str, message: &str) -> ApiError {
    let details = StatusDetails {
        name: key.name.clone(),
        group: key.resource.group.clone(),
        kind: key.resource.plural.clone(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    };
    Status::failure(message, reason)
        .with_code(code)
        .with_details(details)
        .boxed()
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
    failure(404, "NotFound", "the server could not find the requested resource")
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
    let message = format!(
        "Operation cannot be fulfilled on {} \"{}\": Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}",
        key.resource, key.name
    );
    about(key, 409, "Conflict", &message)
}

/// 422: the object breaks a rule of its kind.
pub fn invalid(key: &Key, kind: &str, why: &str) -> ApiError {
    about(
        key,
        422,
        "Invalid",
        &format!("{kind} \"{}\" is invalid: {why}", key.name),
    )
}

/// 400: not to be understood.
pub fn bad_request(message: &str) -> ApiError {
    failure(400, "BadRequest", message)
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

/// 405: the resource does not take this verb.
pub fn method_not_allowed(resource: &Resource) -> ApiError {
    failure(
        405,
        "MethodNotAllowed",
        &format!("the server does not allow this method on the requested resource {resource}"),
    )
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
