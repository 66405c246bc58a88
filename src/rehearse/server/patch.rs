//! The four ways to patch: JSON patch, merge patch, strategic merge patch, and server-side apply.

use super::super::json::object;
use super::error::{ApiError, bad_request, impossible_patch, unforeseen, unsupported};
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
            _ => Err(unsupported("415: Unsupported Media Type")),
        }
    }
}

/// Applies `patch` to `target`.
pub fn apply(kind: PatchKind, target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let undecodable = |wanted: &str| {
        let given = match patch {
            Value::Array(_) => "array",
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            Value::Null => "null",
        };
        let why = format!("error decoding patch: json: cannot unmarshal {given} into Go value of type {wanted}");
        bad_request(&why)
    };
    match kind {
        PatchKind::Json if !patch.is_array() => Err(undecodable("[]handlers.jsonPatchOp")),
        PatchKind::Json => json_patch(target, patch),
        _ if !patch.is_object() => Err(undecodable("map[string]interface {}")),
        PatchKind::Merge => {
            json_patch::merge(target, patch);
            Ok(())
        }
        PatchKind::Strategic | PatchKind::Apply => strategic(target, patch, ""),
    }
}

/// A patch as the server quotes it when it makes no object: a strategic one as Go prints it, otherwise what it made.
pub fn quoted(kind: PatchKind, patch: &Value, made: &Value) -> String {
    match kind {
        PatchKind::Strategic => go(patch),
        _ => made.to_string(),
    }
}

fn go(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let members: Vec<_> = map
                .iter()
                .map(|(name, value)| format!("{name}:{}", go(value)))
                .collect();
            format!("map[{}]", members.join(" "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" ")),
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
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
        json_patch::patch(target, std::slice::from_ref(operation)).map_err(|_| impossible_patch())?;
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

fn strategic(target: &mut Value, patch: &Value, field: &str) -> Result<(), ApiError> {
    match patch {
        Value::Object(map) => strategic_map(target, map),
        Value::Array(items) => strategic_list(target, items, field),
        other => {
            *target = other.clone();
            Ok(())
        }
    }
}

fn strategic_map(target: &mut Value, patch: &Map<String, Value>) -> Result<(), ApiError> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => *target = Value::Object(Map::new()),
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
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
        } else if value.get("$patch").is_some() && !out.contains_key(name) {
            // A directive about what is not there: the real server drops it with all that stands beside it.
        } else {
            strategic(out.entry(name.clone()).or_insert(Value::Null), value, name)?;
        }
    }
    Ok(())
}

fn strategic_list(target: &mut Value, patch: &[Value], field: &str) -> Result<(), ApiError> {
    let directive = |item: &Value| item.get("$patch").and_then(Value::as_str).map(String::from);
    let mut old = target.as_array_mut().map(std::mem::take).unwrap_or_default();
    if field == "finalizers" {
        // A primitive list with merge strategy: a union.
        let same = |a: &Value, b: &Value| a == b;
        let rest: Vec<_> = old.iter().filter(|i| !patch.contains(i)).cloned().collect();
        *target = Value::Array(interleaved(rest, patch.to_vec(), &old, same));
        return Ok(());
    }
    let Some(key) = merge_key(field, if old.is_empty() { patch } else { &old }) else {
        *target = Value::Array(patch.iter().map(without_directives).collect::<Result<_, _>>()?);
        return Ok(());
    };
    if patch.iter().any(|i| directive(i).as_deref() == Some("replace")) {
        let kept = patch.iter().filter(|i| directive(i).is_none());
        *target = Value::Array(kept.map(without_directives).collect::<Result<_, _>>()?);
        return Ok(());
    }
    if let Some(item) = patch.iter().find(|item| item.get(key).is_none()) {
        let why = format!("map: {} does not contain declared merge key: {key}", go(item));
        return Err(unforeseen(&why));
    }
    for item in patch.iter().filter(|i| directive(i).as_deref() == Some("delete")) {
        old.retain(|o| o.get(key) != item.get(key));
    }
    let mut patched = Vec::new();
    for item in patch.iter().filter(|i| directive(i).is_none()) {
        let mut merged = match old.iter().find(|o| o.get(key) == item.get(key)) {
            Some(existing) => existing.clone(),
            None => Value::Null,
        };
        strategic(&mut merged, item, "")?;
        patched.push(merged);
    }
    let same = |a: &Value, b: &Value| a.get(key) == b.get(key);
    let among = |o: &&Value| !patched.iter().any(|p| same(p, o));
    let rest: Vec<_> = old.iter().filter(among).cloned().collect();
    *target = Value::Array(interleaved(rest, patched, &old, same));
    Ok(())
}

/// What the patch does not name goes where the list had it, before what it had behind it; what the patch names keeps the
/// order of the patch.
fn interleaved(
    rest: Vec<Value>,
    patched: Vec<Value>,
    old: &[Value],
    same: impl Fn(&Value, &Value) -> bool,
) -> Vec<Value> {
    let place = |item: &Value| old.iter().position(|o| same(o, item));
    let (mut rest, mut patched) = (rest.into_iter().peekable(), patched.into_iter().peekable());
    let mut out = Vec::new();
    while let (Some(left), Some(right)) = (rest.peek(), patched.peek()) {
        let first = matches!((place(left), place(right)), (Some(left), Some(right)) if left < right);
        out.extend(if first { rest.next() } else { patched.next() });
    }
    out.extend(rest);
    out.extend(patched);
    out
}

/// What a patch value becomes where nothing was before: nulls and directives gone.
fn without_directives(patch: &Value) -> Result<Value, ApiError> {
    let mut out = Value::Null;
    strategic(&mut out, patch, "")?;
    Ok(out)
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
            {"name": "app", "image": "v2", "args": ["b"], "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
             "ports": [{"containerPort": 81}, {"containerPort": 80, "name": "http"}], "volumeMounts": [{"mountPath": "/d", "name": "d", "readOnly": true}]}],
            "tolerations": [{"key": "y"}], "volumes": [{"name": "d", "configMap": {"name": "c"}}]})
        );
    }

    #[test]
    fn a_strategic_merge_patch_orders_a_list_as_the_real_server_does() {
        let names = |list: &[&str]| json!({"env": list.iter().map(|n| json!({"name": n})).collect::<Vec<_>>()});
        for (old, patch, out) in [
            (vec!["a", "b"], vec!["c"], vec!["c", "a", "b"]),
            (vec!["a", "b"], vec!["b", "c"], vec!["a", "b", "c"]),
            (vec!["a", "b", "c"], vec!["c", "a"], vec!["b", "c", "a"]),
            (vec!["a"], vec!["b", "a"], vec!["b", "a"]),
        ] {
            let merged = patched(PatchKind::Strategic, names(&old), names(&patch));
            assert_eq!(merged, names(&out), "{old:?} {patch:?}");
        }
    }

    #[test]
    fn an_item_without_its_merge_key_is_not_foreseen() {
        let patch = json!({"containers": [{"image": "web:v2"}]});
        let refusal = apply(PatchKind::Strategic, &mut json!({}), &patch).unwrap_err();
        assert_eq!((refusal.code, refusal.reason.as_str()), (500, ""));
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
