use super::Owner;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Version 2's Service: version 1's ports, version 2's pods. Always a plain ClusterIP: node ports and
/// load balancers of version 1 are not doubled, and nothing unready is ever published.
#[must_use]
pub fn service(stable: &Service, name: &str, owner: &Owner, selector: &BTreeMap<String, String>) -> Value {
    let ports = stable.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let ports: Vec<Value> = ports
        .map(|port| {
            let mut port = json!(port);
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
            port
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(name),
        "spec": {"type": "ClusterIP", "selector": selector, "ports": ports},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_version_1s_without_node_ports_and_the_type_is_plain() {
        let stable: Service = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "publishNotReadyAddresses": true, "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080, "protocol": "TCP", "appProtocol": "http"}]}}))
        .unwrap();
        let owner = Owner {
            name: "web".to_owned(),
            uid: "u1".to_owned(),
        };
        let selector = BTreeMap::from([("app".to_owned(), "web-v2".to_owned())]);
        insta::assert_yaml_snapshot!(service(&stable, "web-v2", &owner, &selector));
    }
}
