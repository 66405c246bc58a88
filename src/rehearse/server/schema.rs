//! What a CustomResourceDefinition says about its objects: unknown fields go, defaults come, and values are checked.
//!
//! Rules in CEL (`x-kubernetes-validations`) are not evaluated; see [`super::ApiServer::admit`].

use super::super::json::{items, text};
use super::error::Cause;
use super::resource::Resource;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// The schema of one custom resource, and the fields that it may be selected by.
#[derive(Clone, Debug)]
pub struct Definition {
    schema: Value,
    selectable: Vec<String>,
}

impl Definition {
    /// What a definition says; None where it has no version.
    pub fn of(definition: &Value) -> Option<(Resource, Self)> {
        let resource = Resource::new(text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
        let version = items(definition, "/spec/versions").first()?;
        let fields = items(version, "/selectableFields").iter();
        let this = Self {
            schema: version.pointer("/schema/openAPIV3Schema")?.clone(),
            selectable: fields
                .map(|field| text(field, "/jsonPath").trim_start_matches('.').to_owned())
                .collect(),
        };
        Some((resource, this))
    }

    /// Whether objects may be selected by this field.
    pub fn selects_by(&self, field: &str) -> bool {
        self.selectable.iter().any(|known| known == field)
    }

    /// Removes what the schema does not know; answers the paths of it.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut unknown = Vec::new();
        prune(&self.schema, object, "", &mut unknown);
        unknown
    }

    /// Fills in the defaults.
    pub fn fill(&self, object: &mut Value) {
        fill(&self.schema, object);
    }

    /// What is wrong with the object; of `status` alone where only that is written.
    pub fn check(&self, object: &Value, status: bool) -> Vec<Cause> {
        let mut causes = Vec::new();
        let of = |name: &str| (self.schema.pointer(&format!("/properties/{name}")), object.get(name));
        if status {
            if let (Some(schema), Some(value)) = of("status") {
                // The real server checks it by itself, and forgets where it stands in all sentences but the path.
                check(schema, value, "", &mut causes);
                for cause in &mut causes {
                    let dot = if cause.field.is_empty() || cause.field.starts_with('[') {
                        ""
                    } else {
                        "."
                    };
                    cause.field = format!("status{dot}{}", cause.field);
                }
            }
        } else {
            check(&self.schema, object, "", &mut causes);
        }
        if !causes.is_empty() && causes.iter().any(|cause| cause.reason != "FieldValueDuplicate") {
            let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            causes.push(Cause::value("<nil>", &Value::Null, why));
        }
        causes
    }
}

fn below(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}

fn truth(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or_default()
}

fn is_metadata(at: &str, name: &str) -> bool {
    at.is_empty() && matches!(name, "apiVersion" | "kind" | "metadata")
}

fn prune(schema: &Value, value: &mut Value, at: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let known = |name: &str| schema.get("properties").and_then(|p| p.get(name));
            let others = schema.get("additionalProperties").filter(|s| s.is_object());
            let keep = truth(schema, "x-kubernetes-preserve-unknown-fields");
            map.retain(|name, value| {
                if is_metadata(at, name) {
                    return true;
                }
                match known(name).or(others) {
                    Some(schema) => prune(schema, value, &below(at, name), unknown),
                    None if keep => {}
                    None => {
                        unknown.push(below(at, name));
                        return false;
                    }
                }
                true
            });
        }
        Value::Array(list) => {
            let Some(schema) = schema.get("items") else { return };
            for (n, item) in list.iter_mut().enumerate() {
                prune(schema, item, &format!("{at}[{n}]"), unknown);
            }
        }
        _ => {}
    }
}

fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, schema) in schema
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                let null = map.get(name).is_some_and(Value::is_null) && !truth(schema, "nullable");
                if null {
                    map.remove(name);
                }
                if let Some(default) = schema.get("default").filter(|_| !map.contains_key(name)) {
                    map.insert(name.clone(), default.clone());
                }
                if let Some(member) = map.get_mut(name) {
                    fill(schema, member);
                }
            }
        }
        Value::Array(list) => {
            let Some(schema) = schema.get("items") else { return };
            list.iter_mut().for_each(|item| fill(schema, item));
        }
        _ => {}
    }
}

/// The JSON type, as the server's sentences name it.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() && n.as_f64().is_some_and(|f| f.fract() != 0.0) => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check(schema: &Value, value: &Value, at: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && truth(schema, "nullable") {
        return;
    }
    let given = kind(value);
    let wanted = match text(schema, "/type") {
        "" if truth(schema, "x-kubernetes-int-or-string") => "integer,string",
        other => other,
    };
    let fits = wanted.is_empty()
        || wanted
            .split(',')
            .any(|w| w == given || (w == "number" && given == "integer"));
    if !fits {
        let why = format!("Invalid value: \"{given}\": {at} in body must be of type {wanted}: \"{given}\"");
        causes.push(Cause::new(at, "FieldValueTypeInvalid", why));
        return;
    }
    let options = items(schema, "/enum");
    if !options.is_empty() && !options.contains(value) {
        let options: Vec<_> = options.iter().map(Value::to_string).collect();
        let why = format!("Unsupported value: {value}: supported values: {}", options.join(", "));
        causes.push(Cause::new(at, "FieldValueNotSupported", why));
    }
    match value {
        Value::String(string) => check_text(schema, string, at, causes),
        Value::Number(_) => check_number(schema, value, at, causes),
        Value::Array(list) => check_list(schema, list, at, causes),
        Value::Object(map) => {
            for name in items(schema, "/required").iter().filter_map(Value::as_str) {
                if !map.contains_key(name) {
                    causes.push(Cause::required(&below(at, name), ""));
                }
            }
            for (name, member) in map {
                let known = schema.get("properties").and_then(|p| p.get(name));
                let others = schema.get("additionalProperties").filter(|s| s.is_object());
                if let Some(schema) = known.or(others).filter(|_| !is_metadata(at, name)) {
                    check(schema, member, &below(at, name), causes);
                }
            }
        }
        _ => {}
    }
}

fn limit(schema: &Value, name: &str) -> Option<usize> {
    schema.get(name)?.as_u64()?.try_into().ok()
}

/// A pattern of a schema, compiled once: that takes a hundred times as long as using it.
fn compiled(pattern: &str) -> Option<Regex> {
    static COMPILED: Mutex<BTreeMap<String, Option<Regex>>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = compiled.get(pattern) {
        return known.clone();
    }
    let new = Regex::new(pattern).ok();
    compiled.insert(pattern.to_owned(), new.clone());
    new
}

fn check_text(schema: &Value, string: &str, at: &str, causes: &mut Vec<Cause>) {
    let value = json!(string);
    let length = string.chars().count();
    if let Some(most) = limit(schema, "maxLength").filter(|most| length > *most) {
        let why = format!("Too long: may not be more than {most} bytes");
        causes.push(Cause::new(at, "FieldValueTooLong", why));
    }
    if let Some(least) = limit(schema, "minLength").filter(|least| length < *least) {
        let why = format!("{at} in body should be at least {least} chars long");
        causes.push(Cause::value(at, &value, &why));
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && compiled(pattern).is_some_and(|whole| !whole.is_match(string))
    {
        causes.push(Cause::value(
            at,
            &value,
            &format!("{at} in body should match '{pattern}'"),
        ));
    }
    if text(schema, "/format") == "date-time" && string.parse::<jiff::Timestamp>().is_err() {
        let why = format!("Invalid value: {value}: {at} in body must be of type date-time: {value}");
        causes.push(Cause::new(at, "FieldValueTypeInvalid", why));
    }
}

fn check_number(schema: &Value, value: &Value, at: &str, causes: &mut Vec<Cause>) {
    let Some(number) = value.as_f64() else { return };
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(most) = bound("maximum").filter(|most| number > *most) {
        let why = format!("{at} in body should be less than or equal to {most}");
        causes.push(Cause::value(at, value, &why));
    }
    if let Some(least) = bound("minimum").filter(|least| number < *least) {
        let why = format!("{at} in body should be greater than or equal to {least}");
        causes.push(Cause::value(at, value, &why));
    }
}

fn check_list(schema: &Value, list: &[Value], at: &str, causes: &mut Vec<Cause>) {
    if let Some(most) = limit(schema, "maxItems").filter(|most| list.len() > *most) {
        let why = format!("Too many: {}: must have at most {most} items", list.len());
        causes.push(Cause::new(at, "FieldValueTooMany", why));
    }
    if let Some(least) = limit(schema, "minItems").filter(|least| list.len() < *least) {
        let why = format!("{at} in body should have at least {least} items");
        causes.push(Cause::value(at, &json!(list.len()), &why));
    }
    let keys = items(schema, "/x-kubernetes-list-map-keys");
    let id = |item: &Value| -> Map<String, Value> {
        let named = keys.iter().filter_map(Value::as_str);
        named
            .filter_map(|key| Some((key.to_owned(), item.get(key)?.clone())))
            .collect()
    };
    for (n, item) in list.iter().enumerate() {
        let at = format!("{at}[{n}]");
        if !keys.is_empty() && list.iter().take(n).any(|other| id(other) == id(item)) {
            causes.push(Cause::duplicate(&at, &Value::Object(id(item))));
        }
        if let Some(schema) = schema.get("items") {
            check(schema, item, &at, causes);
        }
    }
}
