//! Performs decided writes, one after the other, each bound to the version it was decided on.

use super::{CallError, bounded};
use crate::release::{Kind, Op, Write};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service, networking::v1::Ingress};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use serde_json::{Value, json};

/// Name under which the API server records who wrote a field.
const FIELD_MANAGER: &str = "canary-operator";

/// How objects are created and replaced: in the operator's name.
#[must_use]
pub fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// How objects are patched: in the operator's name.
#[must_use]
pub fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// What a write left.
#[derive(Clone, Debug)]
pub enum Applied {
    /// The object as the API server stored it.
    Stored(Box<DynamicObject>),
    /// It is gone, or going.
    Deleted,
}

/// The API resource of a kind.
#[must_use]
pub fn object_ref(kind: Kind) -> ApiResource {
    match kind {
        Kind::CanaryRelease => ApiResource::erase::<crate::api::CanaryRelease>(&()),
        Kind::Deployment => ApiResource::erase::<Deployment>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::Ingress => ApiResource::erase::<Ingress>(&()),
    }
}

/// Performs one write.
///
/// # Errors
/// What the API server says: a conflict where the object is not the one decided on.
pub async fn perform(client: &Client, namespace: &str, write: &Write) -> Result<Applied, CallError> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &object_ref(write.kind));
    let name = &write.name;
    let params = patch_params();
    let stored = match &write.op {
        Op::Create(object) => {
            let object: DynamicObject = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
            bounded(api.create(&post_params(), &object)).await?
        }
        Op::Merge { version, patch } => bounded(api.patch(name, &params, &Patch::Merge(at(version, patch)))).await?,
        Op::StrategicMerge { version, patch } => {
            bounded(api.patch(name, &params, &Patch::Strategic(at(version, patch)))).await?
        }
        Op::Delete { uid, version } => {
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Background),
                preconditions: Some(Preconditions {
                    uid: Some(uid.clone()),
                    resource_version: version.clone(),
                }),
                ..Default::default()
            };
            return match bounded(api.delete(name, &params)).await {
                Ok(_) => Ok(Applied::Deleted),
                Err(CallError::Kube(kube::Error::Api(status))) if status.is_not_found() => Ok(Applied::Deleted),
                Err(error) => Err(error),
            };
        }
    };
    Ok(Applied::Stored(Box::new(stored)))
}

/// The patch, valid only for `version`.
fn at(version: &str, patch: &Value) -> Value {
    let mut patch = patch.clone();
    if let Some(root) = patch.as_object_mut() {
        let metadata = root.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("resourceVersion".to_owned(), json!(version));
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_names_the_version_it_was_decided_on() {
        let patched = at("7", &json!({"metadata": {"annotations": {"a": "b"}}}));
        assert_eq!(
            patched,
            json!({"metadata": {"annotations": {"a": "b"}, "resourceVersion": "7"}})
        );
        assert_eq!(
            at("7", &json!({"spec": {}})),
            json!({"spec": {}, "metadata": {"resourceVersion": "7"}})
        );
    }
}
