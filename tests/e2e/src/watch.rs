//! Everything that happens to some objects, from `kubectl get --watch`.
//!
//! A watch misses nothing where polling would, costs one process instead of one per look, and stamps each change
//! with the time it was seen here.

use std::{
    io::BufReader,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Deserializer, Value};

use crate::{
    namespace::Namespace,
    process::{Background, read_aside},
};

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it was seen.
    pub at: Timestamp,
    /// Whether the object is gone with it.
    pub gone: bool,
    /// The object, as it last was where it is gone.
    pub object: Value,
}

impl Seen {
    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// The object's annotation `key`.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.object["metadata"]["annotations"][key].as_str()
    }
}

#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    /// Why no more will come.
    ended: Option<String>,
}

#[derive(Default)]
struct Shared {
    log: Mutex<Log>,
    grown: Condvar,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        // A panic elsewhere leaves nothing half-done in the log.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running watch; dropping it ends it.
pub struct Watch {
    what: String,
    shared: Arc<Shared>,
    process: Background,
}

#[derive(Deserialize)]
struct WatchEvent {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

impl Watch {
    /// Watches the objects that `kubectl get ARGS` names in `namespace`, first as they are and then as they change.
    pub fn start(namespace: &Namespace, args: &[&str]) -> Result<Self> {
        let mut command = namespace.kubectl(&["get"]);
        command
            .args(args)
            .args(["--watch", "--output-watch-events", "--output=json"]);
        let (mut process, stdout) = Background::start(&mut command)?;
        let stderr = process.stderr().map(read_aside);
        let shared = Arc::new(Shared::default());
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let mut broken = None;
                for event in Deserializer::from_reader(BufReader::new(stdout)).into_iter::<WatchEvent>() {
                    match event {
                        Ok(WatchEvent { kind, object })
                            if matches!(kind.as_str(), "ADDED" | "MODIFIED" | "DELETED") =>
                        {
                            shared.log().seen.push(Seen {
                                at: Timestamp::now(),
                                gone: kind == "DELETED",
                                object,
                            });
                            shared.grown.notify_all();
                        }
                        Ok(WatchEvent { kind, .. }) if kind == "BOOKMARK" => {}
                        Ok(WatchEvent { kind, object }) => broken = Some(format!("{kind}: {object}")),
                        Err(error) => broken = Some(error.to_string()),
                    }
                    if broken.is_some() {
                        break;
                    }
                }
                let complaint = stderr.and_then(|reader| reader.join().ok()).unwrap_or_default();
                shared.log().ended = Some(broken.unwrap_or_else(|| complaint.trim().to_owned()));
                shared.grown.notify_all();
            }
        });
        Ok(Self {
            what: args.join(" "),
            shared,
            process,
        })
    }

    /// Everything seen so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.log().seen.clone()
    }

    /// What `question` makes of everything seen so far.
    pub fn look<T>(&self, question: impl FnOnce(&[Seen]) -> T) -> T {
        question(&self.shared.log().seen)
    }

    /// Waits until `find` finds something in what was seen, oldest first. After `within`, or when the watch ended,
    /// an error that names `what`.
    pub fn until<T>(&self, what: &str, within: Duration, mut find: impl FnMut(&[Seen]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + within;
        let mut log = self.shared.log();
        loop {
            if let Some(found) = find(&log.seen) {
                return Ok(found);
            }
            if let Some(why) = &log.ended {
                bail!("the watch of {} ended before {what}: {why}", self.what);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {} s in vain until {what}", within.as_secs());
            }
            log = self
                .shared
                .grown
                .wait_timeout(log, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// An error where the watch ended early, for those who conclude something from what was *not* seen.
    pub fn still_runs(&self) -> Result<()> {
        match &self.shared.log().ended {
            Some(why) => bail!("the watch of {} ended early: {why}", self.what),
            None => Ok(()),
        }
    }

    /// Ends the watch; everything it saw, or an error where it had ended early.
    pub fn finish(self) -> Result<Vec<Seen>> {
        self.still_runs()?;
        let seen = self.seen();
        drop(self.process);
        Ok(seen)
    }
}
