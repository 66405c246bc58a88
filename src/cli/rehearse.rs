//! `canary-operator rehearse`

use canary_operator::{
    api::Outcome,
    rehearse::play::{PlayError, Script, play},
};
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Args)]
pub struct Options {
    /// Manifests, one CanaryRelease or more among them; what it needs and they lack is made up.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Version 2's image prints this line and exits, unless the release gives it another command.
    #[arg(long, value_name = "LINE")]
    crash: Option<String>,
    /// Version 2's image answers so many percent of its requests with 500.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    failing: f64,
    /// Requests a second, divided evenly among the paths of all Ingresses.
    #[arg(long, value_name = "REQUESTS", default_value_t = 50)]
    traffic: u32,
    /// Seed of everything that is random in the simulated cluster.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Why a rehearsal was not played.
#[derive(Debug, thiserror::Error)]
pub enum RehearseError {
    #[error("{file}: {error}")]
    Read { file: String, error: std::io::Error },
    #[error("{file} is not YAML: {error}")]
    Yaml {
        file: String,
        error: Box<serde_saphyr::Error>,
    },
    #[error(transparent)]
    Play(#[from] PlayError),
}

/// Plays the releases in virtual time and prints their timeline; whether the last was promoted.
pub fn rehearse(options: &Options) -> Result<bool, RehearseError> {
    let mut manifests = Vec::new();
    for file in &options.files {
        let shown = || file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| RehearseError::Read { file: shown(), error })?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| RehearseError::Yaml {
            file: shown(),
            error: Box::new(error),
        })?;
        manifests.extend(documents.into_iter().filter(|document| !document.is_null()));
    }
    println!("simulated: no cluster is involved; times are virtual\n");
    let script = Script {
        crash: options.crash.clone(),
        failing: options.failing / 100.0,
        traffic: options.traffic,
        seed: options.seed,
    };
    let outcome = play(manifests, &script, &mut std::io::stdout())?;
    Ok(outcome == Outcome::Promoted)
}
