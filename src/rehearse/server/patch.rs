//! The four ways to patch: JSON patch, merge patch, strategic merge patch, and server-side apply.

use super::super::json::object;
use super::error::{ApiError, bad_request, failure};
use serde_json::{Map, Value};

/// What the content type of a PATCH says about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Lists merged by key, `$patch` directives.
    Strategic,
    /// Server-side apply, here a deep merge that always wins.
    Apply,
}

impl PatchKind {
    /// The kind for a content type.
    pub fn of(content_type: &str) -> Result<Self, ApiError> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Ok(Self::Apply),
            other => Err(failure(
                415,
                "UnsupportedMediaType",
                &format!("the body of the request was in an unknown format: {other:?}"),
            )),
        }
    }
}

/// Applies `patch` to `target`.
pub fn apply(kind: PatchKind, target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    match kind {
        PatchKind::Json => json_patch(target, patch),
        PatchKind::Merge => {
            json_patch::merge(target, patch);
            Ok(())
        }
        PatchKind::Strategic | PatchKind::Apply => {
            strategic(target, patch, "");
            Ok(())
        }
    }
}

fn json_patch(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(|e| bad_request(&e.to_string()))?;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Test(test) = operation {
            // Go's library takes a missing path for null; the Rust one fails.
            if test.value.is_null() && target.pointer(test.path.as_str()).is_none() {
                continue;
            }
        }
        json_patch::patch(target, std::slice::from_ref(operation)).map_err(|e| {
            failure(
                422,
                "Invalid",
                &format!("the server rejected our request due to an error in our request: {e}"),
            )
        })?;
    }
    Ok(())
}

/// The key by which items of the list `field` are told apart; None for lists replaced as a whole.
fn merge_key(field: &str, items: &[Value]) -> Option<&'static str> {
    match field {
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets" => {
            Some("name")
        }
        // A container's ports merge by containerPort, a Service's by port.
        "ports" if items.iter().any(|p| p.get("containerPort").is_some()) => Some("containerPort"),
        "ports" => Some("port"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "hostAliases" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        "ownerReferences" => Some("uid"),
        "conditions" => Some("type"),
        _ => None,
    }
}

fn strategic(target: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(map) => strategic_map(target, map),
        Value::Array(items) => strategic_list(target, items, field),
        other => *target = other.clone(),
    }
}

fn strategic_map(target: &mut Value, patch: &Map<String, Value>) {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => *target = Value::Object(Map::new()),
        Some("delete") => {
            *target = Value::Object(Map::new());
            return;
        }
        _ => {}
    }
    // `$retainKeys` keeps only the named members, as for a union such as a volume's source.
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        object(target).retain(|name, _| keep.iter().any(|k| k == name.as_str()));
    }
    let out = object(target);
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(Value::Array(items)) = out.get_mut(list) {
                items.retain(|i| !gone.contains(i));
            }
        } else if name.starts_with('$') {
            // The other directives ($setElementOrder) only order lists.
        } else if value.is_null() || value.get("$patch").and_then(Value::as_str) == Some("delete") {
            out.remove(name);
        } else {
            strategic(out.entry(name.clone()).or_insert(Value::Null), value, name);
        }
    }
}

fn strategic_list(target: &mut Value, patch: &[Value], field: &str) {
    let directive = |item: &Value| item.get("$patch").and_then(Value::as_str).map(String::from);
    let mut old = target.as_array_mut().map(std::mem::take).unwrap_or_default();
    if field == "finalizers" {
        // A primitive list with merge strategy: a union.
        old.extend(patch.iter().filter(|i| !old.contains(i)).cloned().collect::<Vec<_>>());
        *target = Value::Array(old);
        return;
    }
    let Some(key) = merge_key(field, if old.is_empty() { patch } else { &old }) else {
        *target = Value::Array(patch.iter().map(without_directives).collect());
        return;
    };
    if patch.iter().any(|i| directive(i).as_deref() == Some("replace")) {
        let kept = patch.iter().filter(|i| directive(i).is_none());
        *target = Value::Array(kept.map(without_directives).collect());
        return;
    }
    // New items come first, as the real server puts them.
    let mut fresh = Vec::new();
    for item in patch {
        let found = item
            .get(key)
            .and_then(|id| old.iter_mut().find(|o| o.get(key) == Some(id)));
        match (found, directive(item).as_deref()) {
            (_, Some("delete")) => old.retain(|o| o.get(key) != item.get(key)),
            (Some(existing), _) => strategic(existing, item, ""),
            (None, _) => fresh.push(without_directives(item)),
        }
    }
    fresh.append(&mut old);
    *target = Value::Array(fresh);
}

/// What a patch value becomes where nothing was before: nulls and directives gone.
fn without_directives(patch: &Value) -> Value {
    let mut out = Value::Null;
    strategic(&mut out, patch, "");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(kind: PatchKind, mut target: Value, patch: Value) -> Value {
        apply(kind, &mut target, &patch).unwrap();
        target
    }

    #[test]
    fn a_json_patch_test_takes_a_missing_path_for_null() {
        let patch = json!([{"op": "test", "path": "/metadata/finalizers", "value": null}, {"op": "add", "path": "/metadata/finalizers", "value": ["x"]}]);
        assert_eq!(
            patched(PatchKind::Json, json!({"metadata": {}}), patch),
            json!({"metadata": {"finalizers": ["x"]}})
        );
        let failing = json!([{"op": "test", "path": "/a", "value": 1}]);
        assert_eq!(
            apply(PatchKind::Json, &mut json!({"a": 2}), &failing).unwrap_err().code,
            422
        );
    }

    #[test]
    fn a_merge_patch_replaces_lists_and_null_deletes() {
        let out = patched(
            PatchKind::Merge,
            json!({"a": {"b": 1, "c": [1]}}),
            json!({"a": {"b": null, "c": [2]}}),
        );
        assert_eq!(out, json!({"a": {"c": [2]}}));
    }

    #[test]
    fn a_strategic_merge_patch_merges_the_lists_of_a_pod_by_their_keys() {
        let pod = json!({"containers": [
            {"name": "app", "image": "v1", "args": ["a"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
             "ports": [{"containerPort": 80, "name": "http"}], "volumeMounts": [{"mountPath": "/d", "name": "d"}]},
            {"name": "sidecar", "image": "s"}],
            "tolerations": [{"key": "x"}], "volumes": [{"name": "d", "emptyDir": {}}]});
        let patch = json!({"containers": [
            {"name": "app", "image": "v2", "args": ["b"], "env": [{"name": "B", "value": "3"}, {"name": "A", "$patch": "delete"}, {"name": "C", "value": "4"}],
             "ports": [{"containerPort": 81}], "volumeMounts": [{"mountPath": "/d", "readOnly": true}]},
            {"name": "sidecar", "$patch": "delete"}],
            "tolerations": [{"key": "y"}], "volumes": [{"name": "d", "emptyDir": null, "configMap": {"name": "c"}}]});
        let out = patched(PatchKind::Strategic, pod, patch);
        assert_eq!(
            out,
            json!({"containers": [
            {"name": "app", "image": "v2", "args": ["b"], "env": [{"name": "C", "value": "4"}, {"name": "B", "value": "3"}],
             "ports": [{"containerPort": 81}, {"containerPort": 80, "name": "http"}], "volumeMounts": [{"mountPath": "/d", "name": "d", "readOnly": true}]}],
            "tolerations": [{"key": "y"}], "volumes": [{"name": "d", "configMap": {"name": "c"}}]})
        );
    }

    #[test]
    fn replace_directives_replace_maps_and_lists() {
        let out = patched(
            PatchKind::Strategic,
            json!({"s": {"a": 1}, "env": [{"name": "A"}]}),
            json!({"s": {"$patch": "replace", "b": 2}, "env": [{"$patch": "replace"}, {"name": "B"}]}),
        );
        assert_eq!(out, json!({"s": {"b": 2}, "env": [{"name": "B"}]}));
        let out = patched(
            PatchKind::Strategic,
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        );
        assert_eq!(out, json!({"strategy": {"type": "Recreate"}}));
    }
}
