//! Label and field selectors.

use super::super::json::{items, map, text};
use super::error::{ApiError, bad_request};
use serde_json::{Map, Value};

/// Which objects a list or watch is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    /// Parses the query parameters `labelSelector` and `fieldSelector`.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split(labels).into_iter().map(requirement).collect::<Result<_, _>>()?;
        let mut parsed = Vec::new();
        for part in fields.split(',').filter(|p| !p.is_empty()) {
            let (field, value, wanted) = if let Some((f, v)) = part.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (f, v, true)
            } else {
                let why = format!("invalid selector: '{fields}'; can't understand '{part}'");
                return Err(bad_request(&why));
            };
            parsed.push((format!("/{}", field.replace('.', "/")), value.to_string(), wanted));
        }
        Ok(Self { labels, fields: parsed })
    }

    /// Names of the fields that are asked about.
    pub fn fields(&self) -> impl Iterator<Item = String> {
        self.fields
            .iter()
            .map(|(at, _, _)| at.trim_start_matches('/').replace('/', "."))
    }

    /// Whether anything is left out.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = map(object, "/metadata/labels");
        self.labels.iter().all(|r| r.holds(labels))
            && self
                .fields
                .iter()
                .all(|(at, v, wanted)| (text(object, at) == v) == *wanted)
    }
}

impl Requirement {
    fn holds(&self, labels: Option<&Map<String, Value>>) -> bool {
        let value = labels.and_then(|l| l.get(&self.key)).and_then(Value::as_str);
        match &self.rule {
            Rule::Exists => value.is_some(),
            Rule::Absent => value.is_none(),
            Rule::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Rule::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
        }
    }
}

/// Splits at commas outside brackets.
fn split(text: &str) -> Vec<String> {
    let (mut out, mut depth, mut part) = (Vec::new(), 0, String::new());
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            out.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    out.push(part);
    out.into_iter()
        .map(|p| p.trim().to_string())
        .filter(|p| !p.is_empty())
        .collect()
}

fn requirement(part: String) -> Result<Requirement, ApiError> {
    let of = |key: &str, rule| Requirement {
        key: key.trim().into(),
        rule,
    };
    let values = |list: &str| {
        list.trim()
            .trim_start_matches('(')
            .trim_end_matches(')')
            .split(',')
            .map(|v| v.trim().into())
            .collect()
    };
    Ok(if let Some(key) = part.strip_prefix('!') {
        of(key, Rule::Absent)
    } else if let Some((key, list)) = part.split_once(" notin ") {
        of(key, Rule::NotIn(values(list)))
    } else if let Some((key, list)) = part.split_once(" in ") {
        of(key, Rule::In(values(list)))
    } else if let Some((key, value)) = part.split_once("!=") {
        of(key, Rule::NotIn(vec![value.trim().into()]))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        of(key, Rule::In(vec![value.trim().into()]))
    } else if part.contains([' ', '(', ')', '<', '>']) {
        let found = part.split_whitespace().nth(1).unwrap_or_default();
        let why = format!("unable to parse requirement: found '{found}', expected: in, notin, =, ==, !=, gt, lt");
        return Err(bad_request(&why));
    } else {
        of(&part, Rule::Exists)
    })
}

/// Whether `labels` satisfy a `metav1.LabelSelector` (matchLabels and matchExpressions).
pub fn label_selector_matches(selector: &Value, labels: Option<&Map<String, Value>>) -> bool {
    let equal = map(selector, "/matchLabels")
        .into_iter()
        .flatten()
        .all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    let strings = |list: &[Value]| list.iter().filter_map(|v| v.as_str().map(String::from)).collect();
    equal
        && items(selector, "/matchExpressions").iter().all(|e| {
            let rule = match text(e, "/operator") {
                "In" => Rule::In(strings(items(e, "/values"))),
                "NotIn" => Rule::NotIn(strings(items(e, "/values"))),
                "Exists" => Rule::Exists,
                _ => Rule::Absent,
            };
            Requirement {
                key: text(e, "/key").into(),
                rule,
            }
            .holds(labels)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selects(selector: &str) -> bool {
        let pod = json!({"metadata": {"name": "a", "namespace": "x", "labels": {"app": "web", "tier": "front"}}});
        Selector::parse(selector, "").unwrap().matches(&pod)
    }

    #[test]
    fn every_form_of_label_selector_is_understood() {
        for yes in [
            "app=web",
            "app==web",
            "app",
            "!gone",
            "app!=api",
            "gone!=x",
            "app in (web, api),tier",
            "app notin (api)",
            "gone notin (x)",
            "",
        ] {
            assert!(selects(yes), "{yes}");
        }
        for no in [
            "app=api",
            "gone",
            "!app",
            "app!=web",
            "app in (api)",
            "app notin (web,api)",
            "app=web,gone=x",
        ] {
            assert!(!selects(no), "{no}");
        }
        assert!(Selector::parse("a b", "").is_err());
    }

    #[test]
    fn a_field_selector_compares_name_and_namespace() {
        let pod = json!({"metadata": {"name": "a", "namespace": "x"}});
        let with = |fields| Selector::parse("", fields).unwrap().matches(&pod);
        assert!(with("metadata.name=a,metadata.namespace!=y"));
        assert!(!with("metadata.name=b"));
    }
}
