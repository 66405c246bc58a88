//! What a person commands by annotation: approve, promote, abort, retry. A command names the revision it is for, and
//! an approval its step too, so that one that comes late cannot hit what it was not meant for.

use super::{Level, draft::Draft, ending};
use crate::api::{ANNOTATION_COMMAND, CanaryRelease, Commanded, Outcome, Rollout, Stage};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use std::{fmt, str::FromStr};

/// Commands that a release remembers, as in the schema.
const REMEMBERED: usize = 20;
/// The longest text that is repeated in a message.
const LONGEST: usize = 100;

/// A command with the revision (`status.revision`) that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What is to be done.
    pub verb: Verb,
    /// `status.revision` of the release that is meant.
    pub revision: String,
}

/// What can be commanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Go on after the step with this number.
    Approve(u32),
    /// Skip the rest of the schedule.
    Promote,
    /// Give version 1 all requests back.
    Abort,
    /// Release a version again that was rolled back or aborted.
    Retry,
}

/// A text that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is none of approve/<revision>/<step>, promote/<revision>, abort/<revision> and retry/<revision>, with <revision> from status.revision"
)]
pub struct CommandError;

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Self, CommandError> {
        let mut parts = text.split('/');
        let (verb, revision) = (parts.next(), parts.next().filter(|revision| !revision.is_empty()));
        let (step, more) = (parts.next(), parts.next());
        let verb = match (verb, step, more) {
            (Some("approve"), Some(step), None) => Verb::Approve(step.parse().map_err(|_| CommandError)?),
            (Some("promote"), None, None) => Verb::Promote,
            (Some("abort"), None, None) => Verb::Abort,
            (Some("retry"), None, None) => Verb::Retry,
            _ => return Err(CommandError),
        };
        let revision = revision.ok_or(CommandError)?.to_owned();
        Ok(Self { verb, revision })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = &self.revision;
        match self.verb {
            Verb::Approve(step) => write!(f, "approve/{revision}/{step}"),
            Verb::Promote => write!(f, "promote/{revision}"),
            Verb::Abort => write!(f, "abort/{revision}"),
            Verb::Retry => write!(f, "retry/{revision}"),
        }
    }
}

/// The command that a release's annotation carries.
#[must_use]
pub fn commanded(release: &CanaryRelease) -> Option<&str> {
    release.annotations().get(ANNOTATION_COMMAND).map(String::as_str)
}

/// Carries out what the annotation commands, or says why not. The status remembers it before the annotation goes, so that
/// an operator that dies in between neither loses a command nor carries it out twice.
pub(super) fn obey(draft: &mut Draft<'_>) {
    let Some(text) = commanded(&draft.seen.release) else {
        draft.status.command = None;
        return;
    };
    draft.decision.answered = true;
    let short: String = text.chars().take(LONGEST).collect();
    if draft.status.command.as_ref() == Some(&short) {
        return;
    }
    let before = draft.decision.notes.len();
    let outcome = text
        .parse::<Command>()
        .map_err(|error| error.to_string())
        .and_then(|command| carry_out(draft, &command));
    match outcome {
        Ok(what) => draft.note(Level::Normal, "CommandCarriedOut", format!("{short}: {what}")),
        Err(why) => draft.note(
            Level::Warning,
            "CommandIgnored",
            format!("{short} changes nothing: {why}"),
        ),
    }
    // Told before what follows from it.
    let follows = draft.decision.notes.len() > before + 1;
    draft.decision.notes.rotate_right(usize::from(follows));
    draft.status.command = Some(short);
}

fn carry_out(draft: &mut Draft<'_>, command: &Command) -> Result<String, String> {
    let revision = draft.status.revision.clone().unwrap_or_default();
    let Some(mut rollout) = draft.status.rollout.clone() else {
        return Err("no release has started".to_owned());
    };
    if revision != command.revision {
        let meant: String = command.revision.chars().take(LONGEST).collect();
        return Err(format!("it is for revision {meant}, and this is {revision}"));
    }
    let what = match command.verb {
        Verb::Approve(step) => approve(draft, &mut rollout, step)?,
        Verb::Promote => promote(draft, &mut rollout)?,
        Verb::Abort => abort(draft, &rollout)?,
        Verb::Retry => retry(&mut rollout)?,
    };
    if rollout.commands.len() < REMEMBERED {
        rollout.commands.push(Commanded {
            command: command.to_string(),
            at: Time(draft.now),
        });
    }
    if command.verb == Verb::Abort {
        let why = "aborted by command".to_owned();
        let _ = ending::turn_back(draft, rollout, Outcome::Aborted, "Aborted", why);
    } else {
        draft.status.rollout = Some(rollout);
    }
    Ok(what)
}

fn approve(draft: &Draft<'_>, rollout: &mut Rollout, step: u32) -> Result<String, String> {
    match rollout.stage {
        Stage::Stepping if rollout.step == step => {
            rollout.approved = Some(step);
            let after = "the release goes on when the step's time is over and nothing else holds it";
            Ok(format!("step {step} is approved; {after}"))
        }
        Stage::Stepping => Err(format!("the release is at step {}", rollout.step)),
        _ => Err(format!("the release is not at a step: {}", told(draft))),
    }
}

fn promote(draft: &Draft<'_>, rollout: &mut Rollout) -> Result<String, String> {
    if draft.seen.release.spec.paused {
        return Err("spec.paused is true: set it to false first".to_owned());
    }
    match rollout.stage {
        Stage::Preparing | Stage::Stepping => {
            rollout.skip_steps = true;
            Ok(
                "the rest of the schedule is skipped, approvals, windows and freezes included; health is not"
                    .to_owned(),
            )
        }
        _ => Err(told(draft)),
    }
}

fn abort(draft: &Draft<'_>, rollout: &Rollout) -> Result<String, String> {
    match rollout.stage {
        Stage::Preparing | Stage::Stepping | Stage::Promoting if !super::promoting::committed(draft, rollout) => {
            Ok("version 1 gets all requests back".to_owned())
        }
        Stage::RollingBack | Stage::Ended => Err(told(draft)),
        _ => Err(format!(
            "Deployment {} is being replaced with version 2 already: to go back, release version 1",
            rollout.deployment
        )),
    }
}

fn retry(rollout: &mut Rollout) -> Result<String, String> {
    match (rollout.stage, rollout.outcome) {
        (Stage::Ended, Some(Outcome::RolledBack | Outcome::Aborted)) => {
            // Another intent than the spec's: what the spec asks for is yet to be released.
            rollout.intent.clear();
            Ok("the release starts again at its first step".to_owned())
        }
        (Stage::Ended, _) => Err("the release was not rolled back".to_owned()),
        _ => Err("the release is under way".to_owned()),
    }
}

/// Where the release stands, for a refusal.
fn told(draft: &Draft<'_>) -> String {
    let message = draft.status.message.clone().unwrap_or_default();
    draft
        .status
        .phase
        .map_or_else(String::new, |phase| format!("it is {phase:?}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_command_is_read_as_it_is_written() {
        for text in [
            "approve/0a1b2c3d4e/3",
            "promote/0a1b2c3d4e",
            "abort/0a1b2c3d4e",
            "retry/0a1b2c3d4e",
        ] {
            assert_eq!(text.parse::<Command>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_names_no_revision_or_no_step_is_no_command() {
        for text in [
            "",
            "promote",
            "promote/",
            "approve/0a1b",
            "approve/0a1b/",
            "approve/0a1b/x",
            "abort/0a1b/1",
            "stop/0a1b",
        ] {
            assert_eq!(text.parse::<Command>(), Err(CommandError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_command_or_none_without_a_panic(text in "(approve|promote)?[/0-9a-z]{0,20}|.{0,20}") {
            let _ = text.parse::<Command>();
        }
    }
}
