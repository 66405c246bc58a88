//! What the API server refuses: unknown fields when asked to be strict, wrong types, immutable fields, exceeded quotas.

use super::super::json::{items, map, text};
use super::error::{ApiError, bad_request, invalid};
use super::resource::{Key, Resource};
use super::selector::label_selector_matches;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service, networking::v1::Ingress};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Checks an object about to be stored; `old` is what it replaces.
pub fn check(key: &Key, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let kind = text(object, "/kind");
    let name_ok = !key.name.is_empty()
        && key.name.len() <= 253
        && key
            .name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c));
    if !name_ok {
        return Err(invalid(
            key,
            kind,
            &format!(
                "metadata.name: Invalid value: {:?}: must be a lowercase RFC 1123 subdomain",
                key.name
            ),
        ));
    }
    for (label, value) in map(object, "/metadata/labels").into_iter().flatten() {
        if value.as_str().is_none_or(|v| v.len() > 63) {
            return Err(invalid(
                key,
                kind,
                &format!("metadata.labels: Invalid value: {value}: label {label} must be no more than 63 characters"),
            ));
        }
    }
    if key.resource == Resource::new("apps", "deployments") {
        return deployment(key, object, old);
    }
    if key.resource == Resource::new("", "services")
        && items(object, "/spec/ports").is_empty()
        && text(object, "/spec/type") != "ExternalName"
    {
        return Err(invalid(key, kind, "spec.ports: Required value"));
    }
    Ok(())
}

fn deployment(key: &Key, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let selector = object.pointer("/spec/selector").unwrap_or(&Value::Null);
    if old.is_some_and(|old| old.pointer("/spec/selector") != Some(selector)) {
        return Err(invalid(
            key,
            "Deployment",
            &format!("spec.selector: Invalid value: {selector}: field is immutable"),
        ));
    }
    let labels = map(object, "/spec/template/metadata/labels");
    if map(selector, "/matchLabels").is_none_or(|m| m.is_empty()) && items(selector, "/matchExpressions").is_empty() {
        return Err(invalid(key, "Deployment", "spec.selector: Required value"));
    }
    if !label_selector_matches(selector, labels) {
        let why = "`selector` does not match template `labels`";
        return Err(invalid(
            key,
            "Deployment",
            &format!("spec.template.metadata.labels: Invalid value: {why}"),
        ));
    }
    let containers = items(object, "/spec/template/spec/containers");
    if containers.is_empty() {
        return Err(invalid(
            key,
            "Deployment",
            "spec.template.spec.containers: Required value",
        ));
    }
    for (n, container) in containers.iter().enumerate() {
        for field in ["name", "image"] {
            if text(container, &format!("/{field}")).is_empty() {
                return Err(invalid(
                    key,
                    "Deployment",
                    &format!("spec.template.spec.containers[{n}].{field}: Required value"),
                ));
            }
        }
    }
    if super::super::json::int(object, "/spec/replicas").is_some_and(|n| n < 0) {
        return Err(invalid(
            key,
            "Deployment",
            "spec.replicas: Invalid value: must be greater than or equal to 0",
        ));
    }
    Ok(())
}

/// Checks the types of the kinds a controller writes, and with `strict` refuses fields that the kind does not have.
pub fn schema(resource: &Resource, object: &Value, strict: bool) -> Result<(), ApiError> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("apps", "deployments") => typed::<Deployment>("Deployment", object, strict),
        ("", "services") => typed::<Service>("Service", object, strict),
        ("networking.k8s.io", "ingresses") => typed::<Ingress>("Ingress", object, strict),
        _ => Ok(()),
    }
}

fn typed<T: DeserializeOwned + Serialize>(kind: &str, object: &Value, strict: bool) -> Result<(), ApiError> {
    let cannot = |why: String| {
        bad_request(&format!(
            "{kind} in version \"v1\" cannot be handled as a {kind}: {why}"
        ))
    };
    let parsed: T = serde_json::from_value(object.clone()).map_err(|e| cannot(e.to_string()))?;
    let known = serde_json::to_value(parsed).map_err(|e| cannot(e.to_string()))?;
    let mut unknown = Vec::new();
    if strict {
        lost(object, &known, "", &mut unknown);
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let fields: Vec<_> = unknown.iter().map(|f| format!("unknown field {f:?}")).collect();
    Err(bad_request(&format!(
        "{kind} in version \"v1\" cannot be handled as a {kind}: strict decoding error: {}",
        fields.join(", ")
    )))
}

/// The paths that a typed round trip dropped: the type does not have them.
fn lost(before: &Value, after: &Value, at: &str, out: &mut Vec<String>) {
    let join = |name: &str| {
        if at.is_empty() {
            name.to_string()
        } else {
            format!("{at}.{name}")
        }
    };
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before.iter().filter(|(_, v)| !v.is_null()) {
                match after.get(name) {
                    Some(kept) => lost(value, kept, &join(name), out),
                    None => out.push(join(name)),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (n, (b, a)) in before.iter().zip(after).enumerate() {
                lost(b, a, &format!("{at}[{n}]"), out);
            }
        }
        _ => {}
    }
}
