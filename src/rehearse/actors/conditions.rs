//! Writing `status.conditions` as controllers do: a condition's transition time moves only when its status does.

use super::super::json::{items, text};
use serde_json::{Value, json};

/// Sets the condition `kind` in `conditions`; times are `metav1.Time`.
pub fn set_condition(conditions: &mut Vec<Value>, kind: &str, status: bool, reason: &str, message: &str, now: &str) {
    let status = if status { "True" } else { "False" };
    let old = conditions.iter().find(|c| text(c, "/type") == kind);
    let since = old
        .filter(|c| text(c, "/status") == status)
        .map_or(now, |c| text(c, "/lastTransitionTime"))
        .to_string();
    let mut new = json!({"type": kind, "status": status, "lastTransitionTime": since});
    for (field, value) in [("/reason", reason), ("/message", message)] {
        if !value.is_empty() {
            super::super::json::set(&mut new, field, json!(value));
        }
    }
    match conditions.iter_mut().find(|c| text(c, "/type") == kind) {
        Some(slot) => *slot = new,
        None => conditions.push(new),
    }
}

/// The conditions of an object, to be changed and written back.
pub fn conditions_of(object: &Value) -> Vec<Value> {
    items(object, "/status/conditions").to_vec()
}
