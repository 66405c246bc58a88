//! What went wrong, told on the object itself.

use super::{Context, Guarded, RoundError, round::replace_status};
use crate::{
    api::{CanaryRelease, Phase, conditions as types, set_condition},
    cluster::{CallError, IN_PASSING, bounded, object_ref, patch_params, publish},
    release::{Kind, Level, Note},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ObjectMeta, Patch},
};
use serde_json::{Value, json};

/// Tells that a person is needed; once.
pub(super) async fn stalled(
    context: &Context,
    release: &CanaryRelease,
    reason: &str,
    message: &str,
) -> Result<(), CallError> {
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let mut status = release.status.clone().unwrap_or_default();
    let known = status.phase == Some(Phase::Stalled) && status.message.as_deref() == Some(message);
    let same = |condition: &Condition| condition.type_ == types::STALLED && condition.reason == reason;
    let alike = status.phase == Some(Phase::Stalled) && status.conditions.iter().any(same);
    if known || (alike && !context.memory.may_tell_again(&namespace, &name)) {
        return Ok(());
    }
    status.phase = Some(Phase::Stalled);
    status.message = Some(message.to_owned());
    status.next_advance_at = None;
    for condition in failed_conditions(context, reason, message) {
        set_condition(&mut status.conditions, condition);
    }
    let settings = &context.settings;
    let written = replace_status(context, release, Some(status), false).await?;
    context.memory.recorded(&namespace, &name);
    context.memory.wrote(&namespace, written.into());
    let note = Note {
        level: Level::Warning,
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let _ = publish(
        &settings.client,
        release,
        &note,
        &settings.instance,
        settings.clock.now(),
    )
    .await;
    Ok(())
}

fn failed_conditions(context: &Context, reason: &str, message: &str) -> [Condition; 3] {
    let condition = |type_: &str, status: &str| Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: None,
        last_transition_time: Time(context.settings.clock.now()),
    };
    [
        condition(types::READY, "False"),
        condition(types::RECONCILING, "False"),
        condition(types::STALLED, "True"),
    ]
}

/// A round that the API server refused: retrying alone does not mend it, so that it is told.
pub(super) async fn failed(context: &Context, object: &Guarded, error: &RoundError) {
    let Ok(release) = &object.0 else { return };
    let (namespace, name) = (release.namespace().unwrap_or_default(), release.name_any());
    let (reason, remedy) = match error {
        RoundError::Call(call) if call.is_forbidden() => {
            if context.memory.refused(&namespace, &name) < IN_PASSING {
                return;
            }
            ("Forbidden", "grant the operator this right (docs/install.md)")
        }
        RoundError::Call(call) if call.refusal().is_some() => ("Refused", "see the message of the API server"),
        RoundError::Call(_) => return,
        RoundError::Panicked => ("InternalError", "report it with the operator's log"),
    };
    let release = context.memory.newest(&namespace, release);
    let message =
        format!("{error}; no more requests are led to version 2 meanwhile, and the operator tries again: {remedy}");
    if let Err(error) = stalled(context, &release, reason, &message).await {
        tracing::warn!(namespace, name, %error, "status not written");
    }
}

/// An object that does not decode: stored before the schema refused it, or written by a newer operator.
pub(super) async fn undecodable(context: &Context, metadata: &ObjectMeta, error: &str) -> Result<(), CallError> {
    let (namespace, name) = (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    );
    let settings = &context.settings;
    let api: Api<DynamicObject> =
        Api::namespaced_with(settings.client.clone(), &namespace, &object_ref(Kind::CanaryRelease));
    let Some(object) = bounded(api.get_opt(&name)).await? else {
        return Ok(());
    };
    let message = format!("this CanaryRelease cannot be read: {error}; correct the field named there");
    if object.data.pointer("/status/message").and_then(Value::as_str) == Some(&message) {
        return Ok(());
    }
    let conditions = failed_conditions(context, "InvalidObject", &message);
    let patch = json!({
        "metadata": {"resourceVersion": object.resource_version()},
        "status": {"phase": Phase::Stalled, "message": message, "conditions": conditions},
    });
    bounded(api.patch_status(&name, &patch_params(), &Patch::Merge(patch))).await?;
    tracing::warn!(namespace, name, error, "CanaryRelease cannot be read");
    Ok(())
}
