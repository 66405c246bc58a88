//! Labels for version 2's pods that no selector of version 1 matches.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

/// Why version 2's pods cannot be told apart from version 1's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{selector} would select version 2's pods too, because it names no label by value: add a label with a value to it"
)]
pub struct LabelError {
    /// The object whose selector cannot be escaped.
    pub selector: String,
}

/// Whether a selector selects these labels. An empty selector selects everything.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(k, v)| labels.get(k) == Some(v));
    let expressed = selector.match_expressions.iter().flatten().all(|e| {
        let value = labels.get(&e.key);
        let listed = value.is_some_and(|v| e.values.iter().flatten().any(|other| other == v));
        match e.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal && expressed
}

/// `labels` with the fewest values suffixed such that no selector of `selectors` (each with the name of its object) matches.
/// Keys that take part in the most selectors go first, then by name, so that `app: web` becomes `app: web-v2`.
///
/// # Errors
/// Where a selector matches whatever the values are.
pub fn escape(
    labels: &BTreeMap<String, String>,
    selectors: &[(String, LabelSelector)],
    suffix: &str,
) -> Result<BTreeMap<String, String>, LabelError> {
    let mut escaped = labels.clone();
    loop {
        let matching: Vec<_> = selectors
            .iter()
            .filter(|(_, selector)| matches(selector, &escaped))
            .collect();
        let Some((stubborn, _)) = matching.first() else {
            return Ok(escaped);
        };
        let uses = |key: &String| {
            matching
                .iter()
                .filter(|(_, selector)| names_value(selector, key, &escaped))
                .count()
        };
        let unchanged = escaped.keys().filter(|key| escaped.get(*key) == labels.get(*key));
        // max_by_key keeps the last of equals: walking the keys backwards, that is the first by name.
        let best = unchanged
            .rev()
            .map(|key| (uses(key), key.clone()))
            .max_by_key(|(uses, _)| *uses);
        match best {
            Some((uses, key)) if uses > 0 => {
                if let Some(value) = escaped.get_mut(&key) {
                    *value = suffixed(value, suffix);
                }
            }
            _ => {
                return Err(LabelError {
                    selector: stubborn.clone(),
                });
            }
        }
    }
}

/// Whether the selector asks for the value that `key` has now, so that another value escapes it.
fn names_value(selector: &LabelSelector, key: &String, labels: &BTreeMap<String, String>) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_some_and(|wanted| wanted.get(key).is_some_and(|v| labels.get(key) == Some(v)))
        || selector
            .match_expressions
            .iter()
            .flatten()
            .any(|e| e.key == *key && e.operator == "In")
}

/// A label value has at most 63 characters.
fn suffixed(value: &str, suffix: &str) -> String {
    let room = 63usize.saturating_sub(suffix.len());
    format!("{}{suffix}", value.chars().take(room).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn selector(pairs: &[(&str, &str)]) -> (String, LabelSelector) {
        (
            "Service web".to_owned(),
            LabelSelector {
                match_labels: Some(labels(pairs)),
                ..Default::default()
            },
        )
    }

    #[test]
    fn the_one_label_that_all_selectors_share_is_changed() {
        let pod = labels(&[("app", "web"), ("tier", "front"), ("team", "a")]);
        let selectors = [
            selector(&[("app", "web"), ("tier", "front")]),
            selector(&[("app", "web")]),
        ];
        assert_eq!(
            escape(&pod, &selectors, "-v2").unwrap(),
            labels(&[("app", "web-v2"), ("tier", "front"), ("team", "a")])
        );
    }

    #[test]
    fn as_many_labels_are_changed_as_are_needed() {
        let pod = labels(&[("app", "web"), ("tier", "front")]);
        let selectors = [selector(&[("app", "web")]), selector(&[("tier", "front")])];
        assert_eq!(
            escape(&pod, &selectors, "-v2").unwrap(),
            labels(&[("app", "web-v2"), ("tier", "front-v2")])
        );
    }

    #[test]
    fn a_selector_that_takes_any_value_is_named() {
        let exists = LabelSelector {
            match_expressions: Some(vec![
                serde_json::from_str(r#"{"key": "app", "operator": "Exists"}"#).unwrap(),
            ]),
            ..Default::default()
        };
        let error = escape(&labels(&[("app", "web")]), &[("Service all".to_owned(), exists)], "-v2").unwrap_err();
        assert!(error.to_string().starts_with("Service all would select"), "{error}");
    }

    proptest! {
        #[test]
        fn whatever_comes_out_is_escaped_and_valid(
            pod in proptest::collection::btree_map("[a-c]", "[a-z]{1,63}", 1..4),
            keys in proptest::collection::vec(proptest::collection::vec("[a-c]", 1..3), 1..4),
        ) {
            let selectors: Vec<_> = keys.iter().map(|keys| {
                let wanted = keys.iter().filter_map(|k| Some((k.clone(), pod.get(k)?.clone()))).collect();
                ("s".to_owned(), LabelSelector { match_labels: Some(wanted), ..Default::default() })
            }).collect();
            match escape(&pod, &selectors, "-canary") {
                Ok(escaped) => {
                    prop_assert!(selectors.iter().all(|(_, s)| !matches(s, &escaped)));
                    prop_assert!(escaped.values().all(|v| v.len() <= 63));
                }
                Err(_) => prop_assert!(selectors.iter().any(|(_, s)| s.match_labels.as_ref().unwrap().is_empty() || pod.values().any(|v| v.len() > 56))),
            }
        }
    }
}
