//! The EndpointSlice controller: a slice per Service, following pods within a second.

use super::{Queue, deployment::owner_reference};
use crate::rehearse::{
    ApiServer, Key, Resource,
    json::{int, is_ending, is_true, items, map, set, text},
    server::store::{DeleteOptions, Version},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// Runs for ever.
pub async fn run(server: ApiServer) {
    let mut queue = Queue::new(&server, Duration::from_millis(500));
    loop {
        for key in queue.next(|v| concerned(&server, v)).await {
            sync(&server, &key);
        }
    }
}

/// The Services that a change is about: itself, or for a pod, those of its namespace.
fn concerned(server: &ApiServer, version: &Version) -> Vec<Key> {
    let namespace = &version.key.namespace;
    match (
        version.key.resource.group.as_str(),
        version.key.resource.plural.as_str(),
    ) {
        ("", "services") => vec![version.key.clone()],
        ("", "pods") => {
            let services = server.with(|s| s.list(&Resource::new("", "services"), namespace));
            let chosen = |service: &Value| {
                selects(service, &version.object) || version.previous.as_ref().is_some_and(|p| selects(service, p))
            };
            services
                .into_iter()
                .filter(|(_, s)| chosen(s))
                .map(|(k, _)| k)
                .collect()
        }
        ("discovery.k8s.io", "endpointslices") => {
            let service = text(&version.object, "/metadata/labels/kubernetes.io~1service-name");
            vec![Key::service(namespace, service)]
        }
        _ => Vec::new(),
    }
}

/// Whether a Service's selector selects a pod; a Service without one selects nothing.
fn selects(service: &Value, pod: &Value) -> bool {
    let labels = map(pod, "/metadata/labels");
    let selector = map(service, "/spec/selector").filter(|s| !s.is_empty());
    selector.is_some_and(|s| s.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)))
}

/// The name of the slice of a Service.
pub fn slice_key(service: &Key) -> Key {
    Key::new(
        "discovery.k8s.io",
        "endpointslices",
        &service.namespace,
        &format!("{}-slice", service.name),
    )
}

fn sync(server: &ApiServer, key: &Key) {
    let slice = slice_key(key);
    let service = server.get(key).filter(|s| !is_ending(s));
    let Some(service) = service.filter(|s| map(s, "/spec/selector").is_some_and(|m| !m.is_empty())) else {
        if server.get(key).is_some() && server.get(&slice).is_some() {
            // Gone already is as good.
            let _ = server.delete(&slice, &DeleteOptions::default());
        }
        return;
    };
    let pods = server.list(&Resource::new("", "pods"), &key.namespace);
    let mut chosen: Vec<_> = pods
        .iter()
        .filter(|p| selects(&service, p) && !text(p, "/status/podIP").is_empty())
        .collect();
    chosen.retain(|p| !matches!(text(p, "/status/phase"), "Failed" | "Succeeded"));
    let endpoints: Vec<Value> = chosen.iter().map(|p| endpoint(&service, p)).collect();
    let ports: Vec<Value> = items(&service, "/spec/ports")
        .iter()
        .filter_map(|p| port(p, &chosen))
        .collect();
    let mut labels = map(&service, "/metadata/labels").cloned().unwrap_or_default();
    labels.insert("kubernetes.io/service-name".into(), json!(key.name));
    labels.insert(
        "endpointslice.kubernetes.io/managed-by".into(),
        json!("endpointslice-controller.k8s.io"),
    );
    let wanted = json!({"endpoints": endpoints, "ports": ports});
    let metadata = json!({
        "name": slice.name, "generateName": format!("{}-", key.name), "namespace": key.namespace, "labels": labels,
        "ownerReferences": [owner_reference(&service)],
    });
    let existing = server.edit(&slice, |o| {
        for (field, value) in map(&wanted, "").into_iter().flatten() {
            set(o, &format!("/{field}"), value.clone());
        }
        for field in ["labels", "ownerReferences"] {
            set(
                o,
                &format!("/metadata/{field}"),
                metadata.get(field).cloned().unwrap_or_default(),
            );
        }
    });
    if existing.is_none() {
        let mut object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": metadata});
        for (field, value) in map(&wanted, "").into_iter().flatten() {
            set(&mut object, &format!("/{field}"), value.clone());
        }
        // A refusal (namespace ending) leaves the Service without endpoints, which is what it means.
        let _ = server.create(object);
    }
}

fn endpoint(service: &Value, pod: &Arc<Value>) -> Value {
    let serving = is_true(pod, "Ready");
    let terminating = is_ending(pod);
    let always = service.pointer("/spec/publishNotReadyAddresses") == Some(&json!(true));
    json!({
        "addresses": [text(pod, "/status/podIP")],
        "conditions": {"ready": always || (serving && !terminating), "serving": serving, "terminating": terminating},
        "nodeName": text(pod, "/spec/nodeName"),
        "targetRef": {"kind": "Pod", "namespace": text(pod, "/metadata/namespace"), "name": text(pod, "/metadata/name"), "uid": text(pod, "/metadata/uid")},
    })
}

/// A port of the slice; a named target port is looked up in the pods.
fn port(port: &Value, pods: &[&Arc<Value>]) -> Option<Value> {
    let number = match port.get("targetPort") {
        Some(Value::String(name)) => pods
            .iter()
            .flat_map(|p| items(p, "/spec/containers"))
            .flat_map(|c| items(c, "/ports"))
            .find(|p| text(p, "/name") == name)
            .and_then(|p| int(p, "/containerPort")),
        Some(target) => target.as_i64(),
        None => int(port, "/port"),
    }?;
    Some(json!({"name": text(port, "/name"), "port": number, "protocol": "TCP"}))
}
