//! Which kinds exist, and how an object is named among them.

use serde_json::Value;
use std::fmt;

/// A kind of object as the URL names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// API group, "" for the core.
    pub group: String,
    /// Plural name, as in `deployments`.
    pub plural: String,
}

impl Resource {
    /// A resource by group and plural.
    pub fn new(group: &str, plural: &str) -> Self {
        Self {
            group: group.into(),
            plural: plural.into(),
        }
    }

    /// The kind's name, for the kinds that are known.
    pub fn kind(&self) -> Option<&'static str> {
        self.known().map(|k| k.kind)
    }

    /// Whether `/status` is a subresource of its own, so that ordinary writes leave `.status` alone.
    pub fn has_status(&self) -> bool {
        self.known().is_some_and(|k| k.status)
    }

    /// Whether changes of the spec are counted in `metadata.generation`.
    pub fn has_generation(&self) -> bool {
        let without = match self.group.as_str() {
            "" => self.plural != "pods",
            "coordination.k8s.io" | "events.k8s.io" | "autoscaling" => true,
            _ => false,
        };
        !without
    }

    /// Whether a PUT need not say which version it replaces.
    pub fn updates_unconditionally(&self) -> bool {
        self.is_built_in() && self.plural != "leases"
    }

    /// Whether a DELETE answers what was deleted, and not that it was.
    pub fn answers_the_deleted(&self) -> bool {
        self.group.is_empty()
            && matches!(
                self.plural.as_str(),
                "services" | "pods" | "serviceaccounts" | "resourcequotas"
            )
    }

    /// Whether there is such a resource; any custom one may be.
    pub fn exists(&self) -> bool {
        !self.is_built_in() || self.known().is_some()
    }

    /// Whether lists leave `apiVersion` and `kind` out of the items, as the built-in kinds do.
    pub fn is_built_in(&self) -> bool {
        !self.group.contains('.') || self.group.ends_with(".k8s.io")
    }

    fn known(&self) -> Option<&'static Known> {
        KNOWN.iter().find(|k| k.group == self.group && k.plural == self.plural)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.plural)
        } else {
            write!(f, "{}.{}", self.plural, self.group)
        }
    }
}

/// One object's name: resource, namespace ("" when cluster-wide), name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What kind of object.
    pub resource: Resource,
    /// Namespace, "" for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(group: &str, plural: &str, namespace: &str, name: &str) -> Self {
        Self {
            resource: Resource::new(group, plural),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of a Deployment.
    pub fn deployment(namespace: &str, name: &str) -> Self {
        Self::new("apps", "deployments", namespace, name)
    }

    /// The key of a Pod.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::new("", "pods", namespace, name)
    }

    /// The key of a Service.
    pub fn service(namespace: &str, name: &str) -> Self {
        Self::new("", "services", namespace, name)
    }

    /// The key of an Ingress.
    pub fn ingress(namespace: &str, name: &str) -> Self {
        Self::new("networking.k8s.io", "ingresses", namespace, name)
    }

    /// The key of a CanaryRelease.
    pub fn release(namespace: &str, name: &str) -> Self {
        Self::new("canary-operator.dev", "canaryreleases", namespace, name)
    }

    /// The key of a manifest, whose kind must be a known one or have a regular plural.
    pub fn of(object: &Value) -> Self {
        let group = super::super::json::text(object, "/apiVersion")
            .rsplit_once('/')
            .map_or("", |(g, _)| g);
        let kind = super::super::json::text(object, "/kind");
        let known = KNOWN.iter().find(|k| k.group == group && k.kind == kind);
        let plural = known.map_or_else(|| format!("{}s", kind.to_lowercase()), |k| k.plural.into());
        let namespaced = known.is_none_or(|k| k.namespaced);
        let namespace = match super::super::json::text(object, "/metadata/namespace") {
            _ if !namespaced => "",
            "" => "default",
            given => given,
        };
        Self::new(
            group,
            &plural,
            namespace,
            super::super::json::text(object, "/metadata/name"),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.resource, self.namespace, self.name)
    }
}

struct Known {
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    status: bool,
}

const fn known(group: &'static str, plural: &'static str, kind: &'static str, namespaced: bool, status: bool) -> Known {
    Known {
        group,
        plural,
        kind,
        namespaced,
        status,
    }
}

const KNOWN: &[Known] = &[
    known("", "configmaps", "ConfigMap", true, false),
    known("", "endpoints", "Endpoints", true, false),
    known("", "events", "Event", true, false),
    known("", "namespaces", "Namespace", false, true),
    known("", "nodes", "Node", false, true),
    known("", "pods", "Pod", true, true),
    known("", "resourcequotas", "ResourceQuota", true, true),
    known("", "secrets", "Secret", true, false),
    known("", "serviceaccounts", "ServiceAccount", true, false),
    known("", "services", "Service", true, true),
    known("apps", "deployments", "Deployment", true, true),
    known("apps", "replicasets", "ReplicaSet", true, true),
    known(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        false,
        true,
    ),
    known(
        "autoscaling",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        true,
        true,
    ),
    known("canary-operator.dev", "canaryreleases", "CanaryRelease", true, true),
    known("coordination.k8s.io", "leases", "Lease", true, false),
    known("discovery.k8s.io", "endpointslices", "EndpointSlice", true, false),
    known("events.k8s.io", "events", "Event", true, false),
    known("networking.k8s.io", "ingressclasses", "IngressClass", false, false),
    known("networking.k8s.io", "ingresses", "Ingress", true, true),
    known("networking.k8s.io", "networkpolicies", "NetworkPolicy", true, false),
    known("policy", "poddisruptionbudgets", "PodDisruptionBudget", true, true),
];
