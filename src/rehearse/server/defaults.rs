//! The fields that the API server fills in when a manifest leaves them out.
//!
//! A controller which compares what it rendered with what is stored meets these first, so they are filled in here too.

use super::super::json::{default, set, text};
use super::resource::Resource;
use serde_json::{Value, json};

/// Fills in the defaults of the kinds that have any.
pub fn fill(resource: &Resource, object: &mut Value) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("apps", "deployments") => deployment(object),
        ("", "pods") => pod_spec(object, "/spec"),
        ("", "services") => service(object),
        _ => {}
    }
}

fn deployment(object: &mut Value) {
    default(object, "/spec/replicas", json!(1));
    default(object, "/spec/revisionHistoryLimit", json!(10));
    default(object, "/spec/progressDeadlineSeconds", json!(600));
    default(object, "/spec/strategy/type", json!("RollingUpdate"));
    if text(object, "/spec/strategy/type") == "RollingUpdate" {
        default(object, "/spec/strategy/rollingUpdate/maxSurge", json!("25%"));
        default(object, "/spec/strategy/rollingUpdate/maxUnavailable", json!("25%"));
    }
    pod_spec(object, "/spec/template/spec");
}

fn pod_spec(object: &mut Value, at: &str) {
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("securityContext", json!({})),
    ] {
        default(object, &format!("{at}/{field}"), value);
    }
    for list in ["containers", "initContainers"] {
        let containers = object
            .pointer_mut(&format!("{at}/{list}"))
            .and_then(Value::as_array_mut);
        containers.into_iter().flatten().for_each(container);
    }
}

fn container(container: &mut Value) {
    default(container, "/terminationMessagePath", json!("/dev/termination-log"));
    default(container, "/terminationMessagePolicy", json!("File"));
    default(container, "/resources", json!({}));
    let image = text(container, "/image");
    let tag = image
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'))
        .map_or("latest", |(_, tag)| tag);
    let policy = if tag == "latest" && !image.contains('@') {
        "Always"
    } else {
        "IfNotPresent"
    };
    default(container, "/imagePullPolicy", json!(policy));
    for port in container
        .pointer_mut("/ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        default(port, "/protocol", json!("TCP"));
    }
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) else {
            continue;
        };
        for (field, value) in [
            ("/timeoutSeconds", 1),
            ("/periodSeconds", 10),
            ("/successThreshold", 1),
            ("/failureThreshold", 3),
        ] {
            default(probe, field, json!(value));
        }
        if probe.get("httpGet").is_some() {
            default(probe, "/httpGet/scheme", json!("HTTP"));
            default(probe, "/httpGet/path", json!("/"));
        }
    }
}

fn service(object: &mut Value) {
    default(object, "/spec/type", json!("ClusterIP"));
    default(object, "/spec/sessionAffinity", json!("None"));
    default(object, "/spec/internalTrafficPolicy", json!("Cluster"));
    for port in object
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        default(port, "/protocol", json!("TCP"));
        let own = port.get("port").cloned().unwrap_or(Value::Null);
        default(port, "/targetPort", own);
    }
    if text(object, "/spec/type") != "ExternalName" {
        default(object, "/spec/ipFamilies", json!(["IPv4"]));
        default(object, "/spec/ipFamilyPolicy", json!("SingleStack"));
    }
    default(object, "/status", json!({"loadBalancer": {}}));
}

/// What a new object's status is, whatever the manifest says.
pub fn initial_status(resource: &Resource, object: &mut Value) {
    if resource.has_status() {
        super::super::json::remove(object, "/status");
        match resource.plural.as_str() {
            "pods" => set(object, "/status", json!({"phase": "Pending", "qosClass": "BestEffort"})),
            "ingresses" | "services" => set(object, "/status", json!({"loadBalancer": {}})),
            "deployments" | "replicasets" => set(object, "/status", json!({})),
            "namespaces" => set(object, "/status", json!({"phase": "Active"})),
            _ => {}
        }
    }
}
