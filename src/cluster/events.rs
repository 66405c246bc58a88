//! Events for people.

use super::{CallError, bounded};
use crate::{
    api::CanaryRelease,
    release::{Level, Note},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, Resource, ResourceExt, api::PostParams};

/// The API server refuses notes of more bytes.
const LONGEST_NOTE: usize = 1024;

/// Records what happened to a release. Our own instead of `kube::runtime::events`, which folds events of one reason into
/// the first one's text, so that a timeline of weights would be lost, and which reads the machine's clock.
///
/// # Errors
/// What the API server says; an event is never worth failing a round for.
pub async fn publish(
    client: &Client,
    release: &CanaryRelease,
    note: &Note,
    instance: &str,
    now: Timestamp,
) -> Result<(), CallError> {
    let namespace = release.namespace().unwrap_or_default();
    let regarding: ObjectReference = release.object_ref(&());
    let event = Event {
        metadata: kube::api::ObjectMeta {
            // The name of an event tells nobody anything, but has to be new.
            name: Some(format!(
                "{}.{:x}.{}",
                release.name_any(),
                now.as_nanosecond(),
                note.reason.to_lowercase()
            )),
            namespace: Some(namespace.clone()),
            ..Default::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(match note.level {
            Level::Normal => "Normal".to_owned(),
            Level::Warning => "Warning".to_owned(),
        }),
        reason: Some(note.reason.clone()),
        action: Some(note.reason.clone()),
        note: Some(shortened(&note.message).to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some("canary-operator.dev/operator".to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Default::default()
    };
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    bounded(events.create(&PostParams::default(), &event)).await.map(drop)
}

/// A text up to [`LONGEST_NOTE`], without half a character at its end.
fn shortened(text: &str) -> &str {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= LONGEST_NOTE).last().unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_at_1024_bytes_and_not_within_a_character() {
        assert_eq!(shortened("short…"), "short…");
        assert_eq!(shortened(&"a".repeat(2000)).len(), LONGEST_NOTE);
        assert_eq!(shortened(&"…".repeat(600)).len(), 1023);
        assert_eq!(shortened(""), "");
    }
}
