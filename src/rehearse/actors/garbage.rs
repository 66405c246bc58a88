//! The garbage collector: what is owned goes when its owners are gone; foreground and orphan deletions are seen through.

use crate::rehearse::{
    ApiServer, Key,
    json::{is_ending, items, set, text},
    server::store::{ChangeKind, DeleteOptions},
};
use serde_json::Value;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

const LAG: Duration = Duration::from_millis(800);

/// Runs for ever.
pub async fn run(server: ApiServer) {
    let mut changes = server.subscribe_from_start();
    loop {
        let mut batch = changes.next().await;
        let relevant = |v: &Arc<crate::rehearse::server::store::Version>| {
            v.change == ChangeKind::Deleted
                || is_ending(&v.object)
                || (v.change == ChangeKind::Added && owned(&v.object))
        };
        if batch.iter().any(relevant) {
            tokio::time::sleep(LAG).await;
            batch.clear();
            changes.pending();
            collect(&server);
        }
    }
}

fn owned(object: &Value) -> bool {
    !items(object, "/metadata/ownerReferences").is_empty()
}

fn collect(server: &ApiServer) {
    let all: Vec<(Key, Arc<Value>)> = server.with(|s| s.all().map(|(k, o)| (k.clone(), o.clone())).collect());
    let alive: BTreeSet<&str> = all.iter().map(|(_, o)| text(o, "/metadata/uid")).collect();
    let has = |object: &Value, finalizer: &str| {
        is_ending(object) && items(object, "/metadata/finalizers").iter().any(|f| f == finalizer)
    };
    let owners = |object: &Arc<Value>| -> Vec<String> {
        items(object, "/metadata/ownerReferences")
            .iter()
            .map(|r| text(r, "/uid").to_string())
            .collect()
    };
    for (key, object) in &all {
        let uid = text(object, "/metadata/uid");
        let dependents = || all.iter().filter(|(_, o)| owners(o).iter().any(|owner| owner == uid));
        if has(object, "orphan") {
            for (dependent, _) in dependents() {
                server.edit(dependent, |o| {
                    without(o, "/metadata/ownerReferences", |r| text(r, "/uid") == uid)
                });
            }
            server.edit(key, |o| without(o, "/metadata/finalizers", |f| f == "orphan"));
        } else if has(object, "foregroundDeletion") {
            let mut waiting = false;
            for (dependent, o) in dependents() {
                waiting = true;
                if !is_ending(o) {
                    let options = DeleteOptions {
                        propagation: Some("Foreground".into()),
                        ..DeleteOptions::default()
                    };
                    // Somebody else deleted it first: as wanted.
                    let _ = server.delete(dependent, &options);
                }
            }
            if !waiting {
                server.edit(key, |o| {
                    without(o, "/metadata/finalizers", |f| f == "foregroundDeletion")
                });
            }
        }
        let orphaned = owned(object) && owners(object).iter().all(|owner| !alive.contains(owner.as_str()));
        if orphaned && !is_ending(object) {
            let options = DeleteOptions {
                uid: Some(uid.to_string()),
                ..DeleteOptions::default()
            };
            // Somebody else deleted it first: as wanted.
            let _ = server.delete(key, &options);
        } else if owners(object).iter().any(|owner| !alive.contains(owner.as_str())) {
            // Other owners keep it: it forgets those that are gone.
            server.edit(key, |o| {
                without(o, "/metadata/ownerReferences", |r| !alive.contains(text(r, "/uid")))
            });
        }
    }
}

fn without(object: &mut Value, list: &str, gone: impl Fn(&Value) -> bool) {
    let kept: Vec<Value> = items(object, list).iter().filter(|i| !gone(i)).cloned().collect();
    if kept.is_empty() {
        crate::rehearse::json::remove(object, list);
    } else {
        set(object, list, Value::Array(kept));
    }
}
