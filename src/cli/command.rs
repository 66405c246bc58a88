//! `kubectl canary approve|promote|abort|retry NAME`

use canary_operator::{
    api::{ANNOTATION_COMMAND, CanaryRelease},
    release::{Command, Verb, commanded},
};
use clap::Args;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{
        wait::{self, await_condition},
        watcher,
    },
};
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};

/// How long the operator may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often somebody else may write between reading and writing.
const TRIES: u32 = 10;

#[derive(Args)]
pub struct Options {
    /// Name of the CanaryRelease.
    name: String,
    /// Its namespace; that of the kubeconfig's context when omitted.
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Why a command was not given, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("no cluster: {0}; set KUBECONFIG")]
    Cluster(#[from] kube::config::InferConfigError),
    #[error("the runtime cannot start: {0}")]
    Runtime(#[from] std::io::Error),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the release cannot be watched: {0}")]
    Watch(#[from] watcher::Error),
    #[error("CanaryRelease {0} has not started a release yet: see kubectl get canaryrelease {0}")]
    NotStarted(String),
    #[error("the release cannot be watched: {0}")]
    Wait(#[from] wait::Error),
    #[error(
        "CanaryRelease {name} has the command {command}, which the operator did not answer within {PATIENCE:?}: does it run?"
    )]
    Unanswered { name: String, command: String },
    #[error("CanaryRelease {0} went on in the meantime: look at it, and say it again")]
    Moved(String),
    #[error(
        "no answer to {0} within {PATIENCE:?}: if the CanaryRelease still has its annotation, the operator does not run"
    )]
    Silence(String),
}

/// What is to be done; the step of an approval is the one in force.
#[derive(Clone, Copy)]
pub enum Asked {
    Approve,
    Promote,
    Abort,
    Retry,
}

/// Writes the command for the revision that is there now, waits for the operator and prints its answer;
/// whether it carried the command out.
pub fn command(options: &Options, asked: Asked) -> Result<bool, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(give(options, asked))
}

async fn give(options: &Options, asked: Asked) -> Result<bool, CommandError> {
    let config = Config::infer().await?;
    let namespace = options
        .namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)?;
    let api: Api<CanaryRelease> = Api::namespaced(client.clone(), &namespace);
    let release = api.get(&options.name).await?;
    let text = meant(&release, asked)?.to_string();
    let events: Api<Event> = Api::namespaced(client, &namespace);
    let about = about(&release);
    let told = write(&api, release, asked, &text, async || {
        let told = events.list(&ListParams::default().fields(&about)).await?;
        Ok(told.items.iter().map(ResourceExt::name_any).collect())
    })
    .await?;
    let answer = tokio::time::timeout(PATIENCE, answer(events, &about, &told, &text)).await;
    let answer = answer.map_err(|_| CommandError::Silence(text))??;
    println!("{}", answer.note.unwrap_or_default());
    Ok(answer.reason.as_deref() == Some("CommandCarriedOut"))
}

/// Writes the command where it is still what is meant, and after those before it: the operator takes a command off only
/// after it has answered it. While a release is judged its status changes every few seconds: that another version is there
/// is no obstacle by itself. Answers what had been `told` before it was written.
async fn write(
    api: &Api<CanaryRelease>,
    mut release: CanaryRelease,
    asked: Asked,
    text: &str,
    told: impl AsyncFn() -> Result<BTreeSet<String>, CommandError>,
) -> Result<BTreeSet<String>, CommandError> {
    let name = release.name_any();
    for _ in 0..TRIES {
        if let Some(command) = commanded(&release) {
            let free = |release: Option<&CanaryRelease>| release.and_then(commanded).is_none();
            let free = await_condition(api.clone(), &name, free);
            let unanswered = |_| CommandError::Unanswered {
                name: name.clone(),
                command: command.to_owned(),
            };
            let freed = tokio::time::timeout(PATIENCE, free).await.map_err(unanswered)??;
            release = match freed {
                Some(freed) => freed,
                None => api.get(&name).await?,
            };
        }
        if meant(&release, asked)?.to_string() != text {
            break;
        }
        let patch = json!({"metadata": {
            "resourceVersion": release.resource_version(),
            "annotations": {ANNOTATION_COMMAND: text},
        }});
        // The answer to one before, which may have been the same, is none to this one.
        let told = told().await?;
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => release = api.get(&name).await?,
            written => return Ok(written.map(|_| told)?),
        }
    }
    Err(CommandError::Moved(name))
}

fn about(release: &CanaryRelease) -> String {
    let (name, uid) = (release.name_any(), release.uid().unwrap_or_default());
    format!("regarding.kind=CanaryRelease,regarding.name={name},regarding.uid={uid}")
}

/// The command for the revision, and for an approval the step, that the release is at.
fn meant(release: &CanaryRelease, asked: Asked) -> Result<Command, CommandError> {
    let not_started = || CommandError::NotStarted(release.name_any());
    let status = release.status.as_ref().ok_or_else(not_started)?;
    let rollout = status.rollout.as_ref().ok_or_else(not_started)?;
    Ok(Command {
        verb: match asked {
            Asked::Approve => Verb::Approve(rollout.step),
            Asked::Promote => Verb::Promote,
            Asked::Abort => Verb::Abort,
            Asked::Retry => Verb::Retry,
        },
        revision: status.revision.clone().ok_or_else(not_started)?,
    })
}

/// The operator's first event about the command that was not there before.
async fn answer(events: Api<Event>, about: &str, told: &BTreeSet<String>, text: &str) -> Result<Event, CommandError> {
    let mut events = watcher(events, watcher::Config::default().fields(about)).boxed();
    while let Some(event) = events.try_next().await? {
        if let watcher::Event::Apply(event) | watcher::Event::InitApply(event) = event {
            let new = !told.contains(&event.name_any());
            let note = event.note.as_deref().unwrap_or_default();
            // `approve/r/1` begins as `approve/r/10` does.
            if new && note.strip_prefix(text).is_some_and(|rest| rest.starts_with([':', ' '])) {
                return Ok(event);
            }
        }
    }
    Err(CommandError::Silence(text.to_owned()))
}
