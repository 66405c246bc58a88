//! What the controller makes of version 1's Ingresses: whether it serves them, and what they do to a split.

use super::IngressNginx;
use crate::routing::{Routing, claimed_hosts};
use k8s_openapi::api::networking::v1::Ingress;
use kube::ResourceExt;

/// Annotations that make nginx itself answer some requests.
const LIMITS: [&str; 3] = ["limit-rps", "limit-rpm", "limit-connections"];

/// Why the controller does not serve an Ingress: by the IngressClass that it names, else by the annotation from before
/// there were any, else only where it takes what has no class.
pub(super) fn unserved(nginx: &IngressNginx, ingress: &Ingress, controller: Option<&str>) -> Option<String> {
    let name = ingress.name_any();
    let among = |known: &[String], one: &str| known.iter().any(|known| known == one);
    if let Some(controller) = controller {
        let class = ingress
            .spec
            .as_ref()
            .and_then(|spec| spec.ingress_class_name.as_deref());
        return (!among(&nginx.controllers, controller)).then(|| {
            format!(
                "IngressClass {} of Ingress {name} belongs to controller {controller}, which is not ingress-nginx as this operator knows it ({}): use another class, or name that controller in the operator's --ingress-controller",
                class.unwrap_or_default(),
                nginx.controllers.join(", ")
            )
        });
    }
    match ingress.annotations().get(super::LEGACY_CLASS) {
        Some(class) => (!among(&nginx.classes, class)).then(|| {
            format!(
                "Ingress {name} has class {class} by its annotation {}, which is not ingress-nginx as this operator knows it ({}): set spec.ingressClassName, or name that class in the operator's --ingress-class",
                super::LEGACY_CLASS,
                nginx.classes.join(", ")
            )
        }),
        None => (!nginx.classless).then(|| {
            format!(
                "Ingress {name} names no class, so that ingress-nginx does not serve it: set spec.ingressClassName, or run the operator with --watch-ingress-without-class if ingress-nginx runs with it"
            )
        }),
    }
}

/// What an Ingress does to the split of its requests.
pub(super) fn cautions(nginx: &IngressNginx, stable: &Ingress, service: &str) -> Vec<String> {
    let name = stable.name_any();
    let mut cautions = Vec::new();
    if nginx.pins_clients(stable) {
        cautions.push(format!(
            "Ingress {name} has session affinity: a client stays with the version that it met first, whatever weight, header or cookie say, so that version 2's share is one of clients rather than of requests; a rollback frees them, for it deletes the canary Ingress"
        ));
    }
    let limits: Vec<_> = LIMITS
        .into_iter()
        .filter(|limit| nginx.annotation(stable, limit).is_some())
        .collect();
    if !limits.is_empty() {
        cautions.push(format!(
            "Ingress {name} limits requests ({}): nginx refuses what is too much with 503 before it picks a pod, and counts these answers for either version by the weight: they are no errors of version 2",
            limits.join(", ")
        ));
    }
    let unseen: Vec<_> = claimed_hosts(stable, service)
        .into_iter()
        .filter(|host| host.starts_with('*') || host == crate::routing::ANY_HOST)
        .collect();
    if !unseen.is_empty() {
        cautions.push(format!(
            "Ingress {name}: ingress-nginx by default counts no requests of {}, so that checks see none of them; name the hosts, or run it with --metrics-per-undefined-host",
            unseen.join(", ")
        ));
    }
    cautions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ingress(class: Option<&str>, annotation: Option<&str>) -> Ingress {
        let annotations = annotation.map(|class| json!({super::super::LEGACY_CLASS: class}));
        serde_json::from_value(
            json!({"metadata": {"name": "shop", "annotations": annotations}, "spec": {"ingressClassName": class}}),
        )
        .unwrap()
    }

    #[test]
    fn an_ingress_is_served_by_its_class_else_by_its_annotation_else_where_classless_ones_are() {
        let nginx = IngressNginx::default();
        let both = ingress(Some("nginx"), Some("other"));
        assert_eq!(
            unserved(&nginx, &both, Some("k8s.io/ingress-nginx")),
            None,
            "the annotation does not count"
        );
        assert_eq!(unserved(&nginx, &ingress(None, Some("nginx")), None), None);
        assert!(unserved(&nginx, &ingress(Some("nginx"), None), Some("haproxy.org/ingress")).is_some());
        assert!(unserved(&nginx, &ingress(None, Some("internal")), None).is_some());
        assert!(unserved(&nginx, &ingress(None, None), None).is_some());
    }

    #[test]
    fn controllers_classes_and_classless_ingresses_are_settings() {
        let nginx = IngressNginx {
            controllers: vec!["k8s.io/internal".to_owned()],
            classes: vec!["internal".to_owned()],
            classless: true,
            ..Default::default()
        };
        assert_eq!(
            unserved(&nginx, &ingress(Some("nginx"), None), Some("k8s.io/internal")),
            None
        );
        assert_eq!(unserved(&nginx, &ingress(None, Some("internal")), None), None);
        assert_eq!(unserved(&nginx, &ingress(None, None), None), None);
    }
}
