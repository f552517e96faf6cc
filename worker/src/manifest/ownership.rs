//! Which documents are LiteJoin's. A folder of manifests and the output of a template hold others, too, which are passed
//! over: kustomizations, Secrets, values.

use litejoin_crds::complaint::nearest;
use litejoin_crds::kind::{GROUP, Kind};
use litejoin_crds::path;
use serde_json::Value;

/// Whose a document is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Us,
    /// Another program; with words for what the document is.
    Other(String),
}

/// Returns whose a document is. A group that looks like ours misspelt is ours, so that the mistake is told, and so is a
/// document of one of our kinds without a group.
pub(super) fn owner(document: &Value) -> Owner {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let kind = text("kind");
    let is_our_kind = kind.is_some_and(|kind| Kind::from_name(kind).is_some());
    let Some(version) = text("apiVersion") else {
        let is_like_ours = kind.is_some_and(|kind| nearest(kind, Kind::NAMES).is_some());
        return if is_our_kind || is_like_ours {
            Owner::Us
        } else {
            Owner::Other("no apiVersion".to_owned())
        };
    };
    let is_ours = match version.split_once('/') {
        Some((group, _)) => group == GROUP || nearest(group, [GROUP]).is_some(),
        None => version == GROUP || is_our_kind,
    };
    if is_ours { Owner::Us } else { Owner::Other(format!("{} of {version}", kind.unwrap_or("no kind"))) }
}

/// Returns the objects of a `kind: List`, as `kubectl get -o yaml` prints several, with their paths; `None` for any other
/// document.
pub(super) fn items(document: &mut Value) -> Option<Vec<(String, Value)>> {
    if document.get("kind")?.as_str()? != "List" || document.get("apiVersion")?.as_str()? != "v1" {
        return None;
    }
    let Value::Array(items) = document.get_mut("items")?.take() else { return None };
    Some(items.into_iter().enumerate().map(|(index, item)| (path::item("items", index), item)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn documents_have_an_owner() {
        let ours = [
            json!({"apiVersion": "litejoin.io/v1alpha1", "kind": "Pipeline"}),
            json!({"apiVersion": "litejoin.io/v9", "kind": "Whatever"}),
            json!({"apiVersion": "litejoin.oi/v1alpha1", "kind": "Pipeline"}),
            json!({"apiVersion": "Litejoin.io/v1alpha1"}),
            json!({"apiVersion": "litejoin.io", "kind": "Pipeline"}),
            json!({"apiVersion": "v1alpha1", "kind": "Sink"}),
            json!({"kind": "Pipeline"}),
            json!({"kind": "Pipelin", "spec": {}}),
        ];
        for document in ours {
            assert_eq!(owner(&document), Owner::Us, "{document}");
        }
        let others = [
            (json!({"apiVersion": "v1", "kind": "Secret"}), "Secret of v1"),
            (json!({"apiVersion": "tekton.dev/v1", "kind": "Pipeline"}), "Pipeline of tekton.dev/v1"),
            (json!({"resources": ["pipeline.yaml"]}), "no apiVersion"),
            (json!({"kind": "Component", "resources": []}), "no apiVersion"),
            (json!(["a"]), "no apiVersion"),
        ];
        for (document, what) in others {
            assert_eq!(owner(&document), Owner::Other(what.to_owned()), "{document}");
        }
    }
}
