//! What the API server refuses: unknown fields when asked to be strict, wrong types, immutable fields, exceeded quotas.

use super::super::json::{int, is_ending, items, map, remove, set, text};
use super::error::{ApiError, Cause, invalid};
use super::resource::{Key, Resource};
use super::selector::label_selector_matches;
use k8s_openapi::api::{
    apps::v1::Deployment, coordination::v1::Lease, core::v1::ConfigMap, core::v1::Service, events::v1::Event,
    networking::v1::Ingress,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use regex::Regex;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::LazyLock};

static SUBDOMAIN: LazyLock<Format> = LazyLock::new(|| {
    Format::new(
        r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '",
    )
});
static DNS_LABEL: LazyLock<Format> = LazyLock::new(|| {
    Format::new(
        r"[a-z]([-a-z0-9]*[a-z0-9])?",
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '",
    )
});
static LABEL: LazyLock<Format> = LazyLock::new(|| {
    Format::new(
        r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '",
    )
});
/// Bytes of an event's note.
const LONGEST_NOTE: usize = 1024;

/// How a name may look.
struct Format {
    whole: Option<Regex>,
    why: String,
}

impl Format {
    fn new(pattern: &str, why: &str) -> Self {
        Self {
            whole: Regex::new(&format!("^(?:{pattern})$")).ok(),
            why: format!("{why}{pattern}')"),
        }
    }
}

/// Why `value` does not follow a format, if so.
fn unlike<'a>(value: &str, format: &'a Format) -> Option<&'a str> {
    let whole = format.whole.as_ref()?;
    (!whole.is_match(value)).then_some(format.why.as_str())
}

/// Checks an object about to be stored; `old` is what it replaces.
pub fn check(key: &Key, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    metadata(key, object, old, &mut causes);
    match (key.resource.group.as_str(), key.resource.plural.as_str()) {
        ("apps", "deployments") => deployment(object, old, &mut causes),
        ("", "services") => service(object, old, &mut causes),
        ("networking.k8s.io", "ingresses") => ingress(object, &mut causes),
        ("coordination.k8s.io", "leases") => lease(object, &mut causes),
        ("events.k8s.io", "events") => event(object, &mut causes),
        _ => {}
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(invalid(key, &causes))
    }
}

fn metadata(key: &Key, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let format = if key.resource == Resource::new("", "services") {
        &DNS_LABEL
    } else {
        &SUBDOMAIN
    };
    if key.name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if key.name.len() > 253 {
        let why = "must be no more than 253 characters";
        causes.push(Cause::value("metadata.name", &json!(key.name), why));
    // The kinds of RBAC alone have colons in their names.
    } else if let Some(why) = unlike(&key.name.replace(':', "-"), format) {
        causes.push(Cause::value("metadata.name", &json!(key.name), why));
    }
    for value in map(object, "/metadata/labels")
        .into_iter()
        .flat_map(|labels| labels.values())
    {
        let given = value.as_str().unwrap_or_default();
        if given.len() > 63 {
            causes.push(Cause::value(
                "metadata.labels",
                value,
                "must be no more than 63 characters",
            ));
        } else if let Some(why) = unlike(given, &LABEL) {
            causes.push(Cause::value("metadata.labels", value, why));
        }
    }
    let finalizers = items(object, "/metadata/finalizers");
    for (n, finalizer) in finalizers.iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        if !name.contains('/') && !matches!(name, "orphan" | "foregroundDeletion" | "kubernetes") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::value(&format!("metadata.finalizers[{n}]"), finalizer, why));
        }
    }
    let owners = items(object, "/metadata/ownerReferences");
    for owner in owners {
        for field in ["uid", "name", "kind", "apiVersion"] {
            if text(owner, &format!("/{field}")).is_empty() {
                let at = format!("metadata.ownerReferences.{field}");
                causes.push(Cause::value(&at, &json!(""), "must not be empty"));
            }
        }
    }
    let mut controls = owners
        .iter()
        .filter(|owner| owner.get("controller") == Some(&json!(true)));
    if let (Some(first), Some(second)) = (controls.next(), controls.next()) {
        let shown = |owner: &Value| format!("{}/{}", text(owner, "/kind"), text(owner, "/name"));
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
            shown(first),
            shown(second)
        );
        causes.push(Cause::value("metadata.ownerReferences", &json!(owners), &why));
    }
    if let Some(old) = old.filter(|old| is_ending(old)) {
        let known = items(old, "/metadata/finalizers");
        let new: Vec<_> = finalizers
            .iter()
            .filter(|f| !known.contains(f))
            .map(Value::to_string)
            .collect();
        if !new.is_empty() {
            let why = format!(
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                new.join(", ")
            );
            causes.push(Cause::new("metadata.finalizers", "FieldValueForbidden", why));
        }
    }
}

fn deployment(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    if let Some(replicas) = int(object, "/spec/replicas").filter(|n| *n < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::value("spec.replicas", &json!(replicas), why));
    }
    let selector = object.pointer("/spec/selector").unwrap_or(&Value::Null);
    let labels = map(object, "/spec/template/metadata/labels");
    let none =
        map(selector, "/matchLabels").is_none_or(|m| m.is_empty()) && items(selector, "/matchExpressions").is_empty();
    if none {
        causes.push(Cause::required("spec.selector", ""));
    }
    if none || !label_selector_matches(selector, labels) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::value("spec.template.metadata.labels", &json!(labels), why));
    }
    if old.is_some_and(|old| old.pointer("/spec/selector") != Some(selector)) {
        causes.push(Cause::value("spec.selector", selector, "field is immutable"));
    }
    let at = "spec.template.spec.containers";
    let containers = items(object, "/spec/template/spec/containers");
    if containers.is_empty() {
        causes.push(Cause::required(at, ""));
    }
    let volumes: BTreeSet<_> = items(object, "/spec/template/spec/volumes")
        .iter()
        .map(|volume| text(volume, "/name"))
        .collect();
    let mut names = BTreeSet::new();
    for (n, container) in containers.iter().enumerate() {
        for field in ["name", "image"] {
            if text(container, &format!("/{field}")).is_empty() {
                causes.push(Cause::required(&format!("{at}[{n}].{field}"), ""));
            }
        }
        let name = text(container, "/name");
        if !name.is_empty() && !names.insert(name) {
            causes.push(Cause::duplicate(&format!("{at}[{n}].name"), &json!(name)));
        }
        for (m, mount) in items(container, "/volumeMounts").iter().enumerate() {
            let volume = text(mount, "/name");
            if !volumes.contains(volume) {
                let field = format!("{at}[{n}].volumeMounts[{m}].name");
                causes.push(Cause::new(
                    &field,
                    "FieldValueNotFound",
                    format!("Not found: {volume:?}"),
                ));
            }
        }
    }
}

fn service(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let ports = items(object, "/spec/ports");
    let headless = text(object, "/spec/clusterIP") == "None";
    if ports.is_empty() && !headless && text(object, "/spec/type") != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    for (n, port) in ports.iter().enumerate() {
        if ports.len() > 1 && text(port, "/name").is_empty() {
            causes.push(Cause::required(&format!("spec.ports[{n}].name"), ""));
        }
    }
    let address = text(object, "/spec/clusterIP");
    let before = old.map(|old| text(old, "/spec/clusterIP")).unwrap_or_default();
    if !before.is_empty() && address != before && text(object, "/spec/type") != "ExternalName" {
        causes.push(Cause::value(
            "spec.clusterIPs[0]",
            &json!([address]),
            "may not change once set",
        ));
    }
}

fn ingress(object: &Value, causes: &mut Vec<Cause>) {
    let rules = items(object, "/spec/rules");
    let default = object.pointer("/spec/defaultBackend");
    if rules.is_empty() && default.is_none() {
        let why = "either `defaultBackend` or `rules` must be specified";
        causes.push(Cause::value("spec", &Value::Null, why));
    }
    if let Some(default) = default {
        backend(default, "spec.defaultBackend", causes);
    }
    for (n, rule) in rules.iter().enumerate() {
        let host = text(rule, "/host");
        let at = format!("spec.rules[{n}]");
        if host.parse::<std::net::IpAddr>().is_ok() {
            let why = "must be a DNS name, not an IP address";
            causes.push(Cause::value(&format!("{at}.host"), &json!(host), why));
        } else if let Some(why) = Some(host.trim_start_matches("*."))
            .filter(|host| !host.is_empty())
            .and_then(|host| unlike(host, &SUBDOMAIN))
        {
            causes.push(Cause::value(&format!("{at}.host"), &json!(host), why));
        }
        for (m, path) in items(rule, "/http/paths").iter().enumerate() {
            let at = format!("{at}.http.paths[{m}]");
            let kind = text(path, "/pathType");
            let value = text(path, "/path");
            if kind.is_empty() {
                causes.push(Cause::required(&format!("{at}.pathType"), "pathType must be specified"));
            } else if !value.starts_with('/') && (kind != "ImplementationSpecific" || !value.is_empty()) {
                let why = "must be an absolute path";
                causes.push(Cause::value(&format!("{at}.path"), &json!(value), why));
            }
            if let Some(of) = path.get("backend") {
                backend(of, &format!("{at}.backend"), causes);
            }
        }
    }
}

fn backend(backend: &Value, at: &str, causes: &mut Vec<Cause>) {
    let Some(service) = backend.get("service") else { return };
    if text(service, "/port/name").is_empty() && int(service, "/port/number").is_none() {
        causes.push(Cause::required(at, "port name or number is required"));
    }
}

fn lease(object: &Value, causes: &mut Vec<Cause>) {
    if let Some(seconds) = int(object, "/spec/leaseDurationSeconds").filter(|s| *s <= 0) {
        let why = "must be greater than 0";
        causes.push(Cause::value("spec.leaseDurationSeconds", &json!(seconds), why));
    }
}

fn event(object: &Value, causes: &mut Vec<Cause>) {
    let controller = text(object, "/reportingController");
    if controller.is_empty() {
        causes.push(Cause::required("reportingController", ""));
        for why in [
            "name part must be non-empty",
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ] {
            causes.push(Cause::value("reportingController", &json!(""), why));
        }
    }
    for field in ["reportingInstance", "action", "reason"] {
        if text(object, &format!("/{field}")).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    if text(object, "/note").len() > LONGEST_NOTE {
        // By its old name, and without what it was.
        let why = format!("can have at most {LONGEST_NOTE} characters");
        causes.push(Cause::value("message", &json!(""), &why));
    }
}

/// Reads an object as its kind: fields that the kind does not have are dropped, or with `strict` the reason why it cannot be
/// read. Kinds that no controller here writes are taken as they are.
pub fn decode(resource: &Resource, object: &mut Value, strict: bool) -> Result<(), String> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("apps", "deployments") => typed::<Deployment>(object, strict),
        ("", "services") => typed::<Service>(object, strict),
        ("", "configmaps") => {
            typed::<ConfigMap>(object, strict)?;
            if map(object, "/data").is_some_and(|data| data.is_empty()) {
                remove(object, "/data");
            }
            Ok(())
        }
        ("networking.k8s.io", "ingresses") => typed::<Ingress>(object, strict),
        ("coordination.k8s.io", "leases") => typed::<Lease>(object, strict),
        ("events.k8s.io", "events") => typed::<Event>(object, strict),
        _ => Ok(()),
    }
}

/// Reads the metadata of a custom resource; answers the paths of what it does not have.
pub fn decode_metadata(object: &mut Value) -> Result<Vec<String>, String> {
    let Some(given) = object.get("metadata").cloned() else {
        return Ok(Vec::new());
    };
    let known: ObjectMeta = serde_json::from_value(given.clone()).map_err(|e| e.to_string())?;
    let known = serde_json::to_value(known).map_err(|e| e.to_string())?;
    let mut unknown = Vec::new();
    lost(&given, &known, "metadata", &mut unknown);
    set(object, "/metadata", known);
    Ok(unknown)
}

/// Removes what says nothing from the metadata.
pub fn tidy(object: &mut Value) {
    remove(object, "/metadata/managedFields");
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    });
}

fn typed<T: DeserializeOwned + Serialize>(object: &mut Value, strict: bool) -> Result<(), String> {
    let parsed: T = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
    let known = serde_json::to_value(parsed).map_err(|e| e.to_string())?;
    if strict {
        let mut unknown = Vec::new();
        lost(object, &known, "", &mut unknown);
        refuse_unknown(&unknown)?;
    }
    *object = known;
    Ok(())
}

/// The refusal of unknown fields.
pub fn refuse_unknown(fields: &[String]) -> Result<(), String> {
    if fields.is_empty() {
        return Ok(());
    }
    let fields: Vec<_> = fields.iter().map(|f| format!("unknown field {f:?}")).collect();
    Err(format!("strict decoding error: {}", fields.join(", ")))
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
