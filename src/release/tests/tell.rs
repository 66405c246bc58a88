//! A decision in words, for people and for snapshots.

use super::{
    super::{Decision, Kind, Op, Write},
    world::World,
};
use crate::routing::{IngressNginx, Routing};
use serde_json::Value;
use std::fmt::Write as _;

/// The time, every write with the version it was decided on, the status, the events, and when it looks again.
pub fn tell(world: &World, decision: &Decision) -> String {
    let mut told = format!("{}\n", world.now.strftime("%H:%M:%S"));
    for one in &decision.writes {
        writeln!(told, "  {}", write(world, one)).unwrap();
    }
    let status = &decision.status;
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let phase = status.phase.map_or("-".to_owned(), |phase| format!("{phase:?}"));
    writeln!(
        told,
        "  {phase} {} weight {}: {}",
        or(&status.step),
        or(&status.weight),
        or(&status.message)
    )
    .unwrap();
    let holding = status
        .conditions
        .iter()
        .filter(|c| c.status == "True")
        .map(|c| c.type_.as_str());
    writeln!(told, "  true: {}", holding.collect::<Vec<_>>().join(", ")).unwrap();
    for note in &decision.notes {
        writeln!(told, "  event {:?} {}: {}", note.level, note.reason, note.message).unwrap();
    }
    if decision.release_finalizer {
        told.push_str("  finalizer released\n");
    }
    if decision.answered {
        told.push_str("  command removed\n");
    }
    if let Some(next) = &status.next_advance_at {
        writeln!(told, "  next advance at {}", next.0.strftime("%H:%M:%S")).unwrap();
    }
    let watching = if decision.watching { "" } else { ", watching nothing" };
    writeln!(told, "  looks again in {:?}{watching}", decision.again).unwrap();
    told
}

/// The writes alone, a line each.
pub fn writes(world: &World) -> Vec<String> {
    world.decide().writes.iter().map(|one| write(world, one)).collect()
}

fn write(world: &World, write: &Write) -> String {
    let object = format!("{:?} {}", write.kind, write.name);
    let live = world.objects.get(&(write.kind, write.name.clone()));
    let version = live.map_or(world.release.metadata.resource_version.clone(), |live| {
        live["metadata"]["resourceVersion"].as_str().map(str::to_owned)
    });
    let seen = |decided: &str| {
        let same = version.as_deref() == Some(decided);
        if same {
            "as seen".to_owned()
        } else {
            format!("NOT AS SEEN ({decided})")
        }
    };
    let done = match &write.op {
        Op::Create(new) => format!("create {object}{}", content(write.kind, new)),
        Op::Merge { version, patch } => format!("merge {object} {}: {patch}", seen(version)),
        Op::StrategicMerge { version, patch } => format!("strategic merge {object} {}: {patch}", seen(version)),
        Op::Delete {
            version: Some(version), ..
        } => format!("delete {object} {}", seen(version)),
        Op::Delete { version: None, .. } => format!("delete {object}"),
    };
    format!("{done} ({})", write.why)
}

fn content(kind: Kind, new: &Value) -> String {
    match kind {
        Kind::Deployment => {
            let image = new.pointer("/spec/template/spec/containers/0/image").unwrap();
            let labels = new.pointer("/spec/template/metadata/labels/app").unwrap();
            format!(": {} of {image}, app {labels}", new["spec"]["replicas"])
        }
        Kind::Service => format!(": to app {}", new["spec"]["selector"]["app"]),
        Kind::Ingress => {
            let split = IngressNginx::default().split(&serde_json::from_value(new.clone()).unwrap());
            format!(": {}% at step {}", split.weight, split.step)
        }
        Kind::CanaryRelease => String::new(),
    }
}
