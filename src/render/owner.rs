use crate::api::{CanaryRelease, GROUP, LABEL_RELEASE};
use kube::{Resource, ResourceExt, api::ObjectMeta};
use serde_json::{Value, json};

/// The `CanaryRelease` that objects are made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl Owner {
    /// The release as owner.
    #[must_use]
    pub fn of(release: &CanaryRelease) -> Self {
        Self {
            name: release.name_any(),
            uid: release.uid().unwrap_or_default(),
        }
    }

    /// Metadata of an object made for this release.
    #[must_use]
    pub fn metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "labels": {LABEL_RELEASE: self.name, "app.kubernetes.io/managed-by": "canary-operator"},
            "ownerReferences": [{
                "apiVersion": format!("{GROUP}/v1alpha1"),
                "kind": CanaryRelease::kind(&()),
                "name": self.name,
                "uid": self.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        })
    }
}

/// Whether an object was made for the release with this uid.
#[must_use]
pub fn owned_by(metadata: &ObjectMeta, uid: &str) -> bool {
    metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.uid == uid && owner.controller == Some(true))
}
