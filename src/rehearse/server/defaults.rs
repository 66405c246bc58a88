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
        ("events.k8s.io", "events") => {
            default(object, "/deprecatedSource", json!({}));
            for field in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
                default(object, &format!("/{field}"), json!(null));
            }
        }
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
    let volumes = object
        .pointer_mut(&format!("{at}/volumes"))
        .and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        for source in ["configMap", "secret", "projected", "downwardAPI"] {
            if volume.get(source).is_some() {
                default(volume, &format!("/{source}/defaultMode"), json!(0o644));
            }
        }
    }
}

fn container(container: &mut Value) {
    default(container, "/terminationMessagePath", json!("/dev/termination-log"));
    default(container, "/terminationMessagePolicy", json!("File"));
    default(container, "/resources", json!({}));
    for amounts in ["requests", "limits"] {
        let amounts = container.pointer_mut(&format!("/resources/{amounts}"));
        for amount in amounts
            .and_then(Value::as_object_mut)
            .into_iter()
            .flat_map(|map| map.values_mut())
        {
            let given = amount.as_str().map(String::from).unwrap_or_else(|| amount.to_string());
            *amount = json!(canonical(&given));
        }
    }
    for variable in container
        .pointer_mut("/env")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if variable.pointer("/valueFrom/fieldRef").is_some() {
            default(variable, "/valueFrom/fieldRef/apiVersion", json!("v1"));
        }
    }
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

/// A quantity as the server writes it: with the largest unit that leaves no fraction. Those with an exponent stay.
fn canonical(quantity: &str) -> String {
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = quantity
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = |base: i128, places: usize| base.checked_pow(u32::try_from(places).ok()?);
    // In billionths, or in billionths of a byte.
    let value = || {
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let unit = match (
            DECIMAL.iter().position(|u| *u == unit),
            BINARY.iter().position(|u| *u == unit),
        ) {
            (Some(place), _) => scale(1000, place)?,
            (None, Some(place)) => scale(1024, place)?.checked_mul(1_000_000_000)?,
            (None, None) => return None,
        };
        let tenths = scale(10, fraction.len())?;
        let exact = digits.checked_mul(unit)?;
        (exact % tenths == 0).then_some(exact / tenths)
    };
    let Some(value) = value() else { return quantity.into() };
    if value == 0 {
        return "0".into();
    }
    let units = if unit.ends_with('i') {
        let bytes = BINARY.iter().enumerate().rev();
        bytes
            .filter_map(|(place, unit)| Some((scale(1024, place)?.checked_mul(1_000_000_000)?, *unit)))
            .find(|(size, _)| value % size == 0)
    } else {
        let parts = DECIMAL.iter().enumerate().rev();
        parts
            .filter_map(|(place, unit)| Some((scale(1000, place)?, *unit)))
            .find(|(size, _)| value % size == 0)
    };
    units.map_or_else(|| quantity.into(), |(size, unit)| format!("{}{unit}", value / size))
}

fn service(object: &mut Value) {
    default(object, "/spec/type", json!("ClusterIP"));
    default(object, "/spec/sessionAffinity", json!("None"));
    if text(object, "/spec/type") != "ExternalName" {
        default(object, "/spec/internalTrafficPolicy", json!("Cluster"));
    }
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

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn a_quantity_is_written_with_the_largest_unit_that_leaves_no_fraction() {
        for (given, stored) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000Mi", "1000Mi"),
            ("1000M", "1G"),
            ("128974848", "128974848"),
            ("2e9", "2e9"),
            ("0", "0"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(canonical(given), stored, "{given}");
        }
    }
}
