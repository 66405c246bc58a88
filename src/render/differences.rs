use serde_json::{Map, Value};

/// The JSON merge patch that makes `from` equal to `to`, naming nothing that is equal already.
#[must_use]
pub fn differences(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return to.clone();
    };
    let mut patch = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, wanted) in to {
        match from.get(key) {
            Some(have) if have == wanted => {}
            Some(have) => drop(patch.insert(key.clone(), differences(have, wanted))),
            None => drop(patch.insert(key.clone(), wanted.clone())),
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_named_and_what_is_to_go_is_null() {
        let from = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1, 2], "f": 4});
        let to = json!({"a": 1, "b": {"c": 2, "d": 5}, "e": [2], "g": {"h": 6}});
        let patch = json!({"b": {"d": 5}, "e": [2], "f": null, "g": {"h": 6}});
        assert_eq!(differences(&from, &to), patch);
    }

    fn json_without_nulls() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<i8>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_patch_makes_one_into_the_other(from in json_without_nulls(), to in json_without_nulls()) {
            let mut patched = from.clone();
            json_patch::merge(&mut patched, &differences(&from, &to));
            prop_assert_eq!(patched, to);
        }
    }
}
