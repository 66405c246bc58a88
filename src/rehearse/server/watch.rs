//! Watches: the log replayed from a version on, through selectors, as lines of JSON.

use super::{
    ApiServer, error,
    intercept::EventFate,
    routes::Call,
    selector::Selector,
    store::{ChangeKind, Version},
};
use bytes::Bytes;
use futures::{Stream, stream};
use serde_json::{Value, json};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{sync::watch::Receiver, time::Instant};

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

struct Watch {
    server: ApiServer,
    call: Call,
    record: usize,
    selector: Selector,
    seen: u64,
    changed: Receiver<u64>,
    ends: Option<Instant>,
    bookmark: Option<Instant>,
    ready: VecDeque<Bytes>,
    over: bool,
}

/// The body of the answer to a watch.
pub fn lines(
    server: ApiServer,
    (call, record): (Call, usize),
    selector: Selector,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let now = Instant::now();
    let changed = server.changed();
    let seconds: Option<u64> = call.parameter("timeoutSeconds").parse().ok();
    let bookmark = (call.parameter("allowWatchBookmarks") == "true").then(|| now + BOOKMARK_EVERY);
    let ends = seconds.map(|s| now + Duration::from_secs(s));
    let from = call.parameter("resourceVersion").parse().unwrap_or(0);
    let mut watch = Watch {
        server,
        call,
        record,
        selector,
        seen: from,
        changed,
        ends,
        bookmark,
        ready: VecDeque::new(),
        over: false,
    };
    if from == 0 {
        watch.begin_with_everything();
    }
    stream::unfold(watch, |mut watch| async move {
        watch.next().await.map(|line| (line, watch))
    })
}

impl Watch {
    /// Without a version, a watch begins with what exists.
    fn begin_with_everything(&mut self) {
        let (objects, version) = self
            .server
            .with(|s| (s.list(&self.call.resource, &self.call.namespace), s.version()));
        for (_, object) in objects.iter().filter(|(_, o)| self.selector.matches(o)) {
            let line = self.line("ADDED", object);
            self.ready.push_back(line);
        }
        self.seen = version;
        if self.call.parameter("sendInitialEvents") == "true" {
            let mark = self.bookmark_line(true);
            self.ready.push_back(mark);
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            let (version, oldest) = self
                .server
                .with(|s| (s.since(self.seen).first().cloned(), s.compacted()));
            if self.seen < oldest {
                self.over = true;
                let gone = error::body(&error::expired(self.seen, oldest));
                return Some(line("ERROR", &gone));
            }
            match version {
                Some(version) => self.take(&version).await,
                None => self.idle().await,
            }
        }
    }

    /// Queues the event that a change means for this watch, if any.
    async fn take(&mut self, version: &Arc<Version>) {
        self.seen = version.resource_version;
        let namespace = &self.call.namespace;
        if version.key.resource != self.call.resource || !(namespace.is_empty() || *namespace == version.key.namespace)
        {
            return;
        }
        let before = version.previous.as_ref().filter(|o| self.selector.matches(o));
        let now = Some(&version.object).filter(|o| version.change != ChangeKind::Deleted && self.selector.matches(o));
        let line = match (before, now) {
            (None, Some(object)) => self.line("ADDED", object),
            (Some(_), Some(object)) => self.line("MODIFIED", object),
            (Some(_), None) if version.change == ChangeKind::Deleted => self.line("DELETED", &version.object),
            (Some(old), None) => {
                // It stopped matching: a deletion of what was, at the version of the change.
                let mut last = (**old).clone();
                super::super::json::set(
                    &mut last,
                    "/metadata/resourceVersion",
                    json!(version.resource_version.to_string()),
                );
                self.line("DELETED", &last)
            }
            (None, None) => return,
        };
        match self.server.interceptor().event(&self.call, version) {
            EventFate::Deliver => self.ready.push_back(line),
            EventFate::Drop => {}
            EventFate::Delay(by) => {
                tokio::time::sleep(by).await;
                self.ready.push_back(line);
            }
            EventFate::Cut => self.over = true,
            EventFate::Gone => {
                self.over = true;
                let gone = error::body(&error::expired(version.resource_version, version.resource_version));
                self.ready.push_back(self::line("ERROR", &gone));
            }
        }
    }

    async fn idle(&mut self) {
        let at = |when: Option<Instant>| async move {
            match when {
                Some(when) => tokio::time::sleep_until(when).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = self.changed.changed() => self.over = changed.is_err(),
            () = at(self.ends) => self.over = true,
            () = self.server.lost(self.record) => self.over = true,
            () = at(self.bookmark) => {
                self.bookmark = Some(Instant::now() + BOOKMARK_EVERY);
                let mark = self.bookmark_line(false);
                self.ready.push_back(mark);
            }
        }
    }

    fn bookmark_line(&self, initial_end: bool) -> Bytes {
        let kind = self.call.resource.kind().unwrap_or("Unknown");
        let mut object = json!({"apiVersion": self.call.api_version(), "kind": kind, "metadata": {"resourceVersion": self.seen.to_string()}});
        if initial_end {
            super::super::json::set(
                &mut object,
                "/metadata/annotations",
                json!({"k8s.io/initial-events-end": "true"}),
            );
        }
        line("BOOKMARK", &object)
    }

    fn line(&self, kind: &str, object: &Value) -> Bytes {
        if self.call.metadata_only {
            line(kind, &super::metadata_of(object))
        } else {
            line(kind, object)
        }
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    Bytes::from(text)
}
