//! Canary Ingresses that went without an answer that says so: deletions that failed, or were never answered, and may have been done
//! all the same (soak).

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Entry, LATE, Space, is_held, release_of, tell, text, weight};

/// A deletion that may have been done. It is taken for done, for so it is by whoever sees that the Ingress has gone. What that
/// excuses is told where the API server shows later that the Ingress was there all the while.
pub struct Doubt {
    ingress: Value,
    release: String,
    /// When it may have been done at the earliest.
    at: Timestamp,
    /// Whatever came from then on met what it had left.
    over: Timestamp,
    /// What was remembered of the release until then.
    since: Option<Timestamp>,
    withdrawn: Option<Timestamp>,
    excused: Vec<String>,
}

impl Doubt {
    /// Whether the Ingress is still there, by this answer; none where that does not tell.
    fn is_there(&self, entry: &Entry) -> Option<bool> {
        // What was made anew, perhaps, says by being there nothing of the one before.
        let anew = is_another(text(&entry.response, "/metadata/uid"), &self.ingress)
            || (entry.verb == "create" && entry.in_doubt);
        // What was under way beside the deletion may have come before it; but what was written was not gone.
        let later = (entry.done && entry.verb != "get") || entry.received >= self.over;
        match entry.found {
            Some(true) if !anew => later.then_some(true),
            found => (anew || found == Some(false)).then_some(false),
        }
    }
}

impl Space {
    /// Takes a deletion for done that may have been done.
    pub fn doubt(&mut self, entry: &Entry) {
        // Nobody knows when an API server died that never answered: whoever came right after that may have met it alive.
        let margin = if entry.answered { SignedDuration::ZERO } else { LATE };
        let over = entry.at + margin;
        if let Some(doubt) = self.perhaps_gone.get_mut(&entry.name)
            && entry.verb == "delete"
        {
            doubt.over = doubt.over.max(over);
        }
        let Some(ingress) = self.would_take_away(entry).cloned() else {
            return;
        };
        let release = release_of(&ingress).to_owned();
        let known = self.releases.get(&release);
        let doubt = Doubt {
            at: entry.received,
            over,
            since: known.and_then(|known| known.since.get(&entry.name).copied()),
            withdrawn: known.and_then(|known| known.withdrawn),
            excused: Vec::new(),
            ingress,
            release,
        };
        self.take_away(entry);
        self.perhaps_gone.insert(entry.name.clone(), doubt);
    }

    /// What an answer tells of an Ingress whose deletion is in doubt; returns what turns out to be broken.
    pub fn settle_deletion(&mut self, entry: &Entry) -> Vec<String> {
        let is_there = match self.perhaps_gone.get(&entry.name) {
            Some(doubt) => doubt.is_there(entry),
            None => {
                // The API server says itself that it has gone. Who deleted it is not in the log where the API server was killed
                // before it had answered.
                if entry.is_operators && entry.found == Some(false) {
                    self.take_away(entry);
                }
                None
            }
        };
        match is_there.and_then(|is_there| Some((is_there, self.perhaps_gone.remove(&entry.name)?))) {
            Some((true, doubt)) => self.bring_back(&entry.name, doubt),
            _ => Vec::new(),
        }
    }

    /// The canary Ingress that is gone if this was done.
    fn would_take_away(&self, entry: &Entry) -> Option<&Value> {
        let named = text(&entry.request, "/preconditions/uid");
        self.object(&entry.resource, &entry.name).filter(|ingress| {
            (&*entry.verb, &*entry.resource) == ("delete", "ingresses")
                && !release_of(ingress).is_empty()
                && !is_held(ingress)
                && !is_another(named, ingress)
        })
    }

    /// Takes the canary Ingress away, as soon as that may have been done.
    pub fn take_away(&mut self, entry: &Entry) {
        let Some(ingress) = self.would_take_away(entry).cloned() else {
            return;
        };
        let mut done = entry.clone();
        done.at = entry.received;
        self.note_weight(&done, release_of(&ingress), Some(&ingress));
        self.objects.remove(&(entry.resource.clone(), entry.name.clone()));
    }

    /// It was there all the while; returns what its absence had excused.
    fn bring_back(&mut self, name: &str, doubt: Doubt) -> Vec<String> {
        let release = self.releases.entry(doubt.release).or_default();
        if let Some(since) = doubt.since {
            release.since.insert(name.to_owned(), since);
        }
        if release.withdrawn == Some(doubt.at) {
            release.withdrawn = doubt.withdrawn;
        }
        let key = ("ingresses".to_owned(), name.to_owned());
        self.objects.insert(key, doubt.ingress);
        doubt.excused
    }

    /// The weight of a release's Ingresses that are perhaps there; none where there are no such.
    pub fn weight_in_doubt(&self, release: &str) -> Option<f64> {
        let doubts = self.perhaps_gone.values().filter(|doubt| doubt.release == release);
        doubts.map(|doubt| weight(&doubt.ingress)).reduce(f64::max)
    }

    /// Keeps what this write breaks if an Ingress of the release is there after all.
    pub fn excuse(&mut self, entry: &Entry, release: &str, breaks: impl Fn(&str, &Value) -> Option<String>) {
        let doubts = self.perhaps_gone.iter_mut();
        for (name, doubt) in doubts.filter(|(_, doubt)| doubt.release == release) {
            let broken = breaks(name, &doubt.ingress);
            doubt.excused.extend(broken.map(|what| tell(&what, entry)));
        }
    }
}

/// Whether this is the uid of another object, as far as both are known.
fn is_another(uid: &str, object: &Value) -> bool {
    let known = text(object, "/metadata/uid");
    !uid.is_empty() && !known.is_empty() && uid != known
}
