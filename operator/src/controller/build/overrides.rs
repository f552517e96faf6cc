//! `podTemplate.overrides`: parts of a PodTemplateSpec that are laid over the one that we build, as `kubectl` merges
//! them. Objects are merged, null removes a field, items of a list with the same `name` are merged; other lists are
//! replaced.

use serde_json::Value;

/// Lays `over` over `base`.
pub(crate) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (field, value) in over {
                match base.get_mut(field) {
                    _ if value.is_null() => {
                        base.remove(field);
                    }
                    Some(present) => merge(present, value),
                    None => {
                        base.insert(field.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(base), Value::Array(over))
            if base.iter().chain(over).all(|item| item["name"].is_string()) =>
        {
            for item in over {
                match base.iter_mut().find(|present| present["name"] == item["name"]) {
                    Some(present) => merge(present, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn objects_merge_and_named_items_meet() {
        let mut base = json!({"spec": {
            "containers": [{"name": "worker", "image": "a", "args": ["x", "y"], "env": [{"name": "A", "value": "1"}]}],
            "dnsPolicy": "Default",
        }});
        merge(
            &mut base,
            &json!({"spec": {
                "containers": [
                    {"name": "worker", "args": ["z"], "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]},
                    {"name": "proxy", "image": "b"},
                ],
                "dnsPolicy": null,
                "hostname": "h",
            }}),
        );
        assert_eq!(
            base,
            json!({"spec": {
                "containers": [
                    {"name": "worker", "image": "a", "args": ["z"],
                     "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]},
                    {"name": "proxy", "image": "b"},
                ],
                "hostname": "h",
            }})
        );
    }
}
