//! From Ingresses, Services and endpoints to servers, locations and upstreams, in the controller's own order.

use crate::rehearse::json::{int, items, map, text};
use regex::Regex;
use serde_json::{Map, Value};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The server for requests that no other host takes.
pub const CATCH_ALL: &str = "_";
/// The upstream that answers 404.
pub const DEFAULT_UPSTREAM: &str = "upstream-default-backend";
/// The controller name that an IngressClass must have to be served.
pub const CONTROLLER: &str = "k8s.io/ingress-nginx";

/// One pod behind an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: String,
    /// The pod's name, "" when the slice does not say.
    pub pod: String,
}

/// What the canary annotations say, as the controller parses them: mistakes become defaults in silence.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// `canary-weight`.
    pub weight: i64,
    /// `canary-weight-total`; below 100 it counts as 100.
    pub total: i64,
    /// `canary-by-header`.
    pub header: String,
    /// `canary-by-header-value`.
    pub header_value: String,
    /// `canary-by-header-pattern`; None within when it does not compile.
    pub header_pattern: Option<Option<Regex>>,
    /// `canary-by-cookie`.
    pub cookie: String,
}

/// A Service:port that requests can go to.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// Of the Service and its pods.
    pub namespace: String,
    /// Ready endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The first Ingress that names it is a canary.
    pub no_server: bool,
    /// The canary's policy; meaningful only with `no_server`.
    pub policy: Policy,
    /// The canaries of this upstream; only the first is ever used.
    pub alternatives: Vec<String>,
    /// The name of the affinity cookie, if sessions stick.
    pub sticky: Option<String>,
}

/// One path of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// The path, never empty.
    pub path: String,
    /// Exact, or prefix (which ImplementationSpecific is taken for).
    pub exact: bool,
    /// The upstream behind it.
    pub upstream: String,
    /// Namespace of the Ingress that it is of; empty where it is of none.
    pub namespace: String,
    /// Name of that Ingress.
    pub ingress: String,
    /// Name of the Service behind it.
    pub service: String,
    /// What each client may ask for.
    pub limit: Option<Limit>,
}

/// `limit-rps` or `limit-rpm`: requests beyond it nginx answers itself, with 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Requests in a minute.
    pub per_minute: u32,
    /// Requests at once: five times what the annotation says, in its own unit.
    pub burst: u32,
}

/// The compiled configuration.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Locations by host.
    pub servers: BTreeMap<String, Vec<Location>>,
    /// Upstreams by key.
    pub upstreams: BTreeMap<String, Upstream>,
}

struct Ingress {
    object: Arc<Value>,
    canary: bool,
}

impl Model {
    /// Compiles a configuration from the objects it depends on.
    pub fn compile(
        ingresses: &[Arc<Value>],
        classes: &[Arc<Value>],
        services: &[Arc<Value>],
        slices: &[Arc<Value>],
    ) -> Self {
        let served: BTreeSet<&str> = classes
            .iter()
            .filter(|c| text(c, "/spec/controller") == CONTROLLER)
            .map(|c| text(c, "/metadata/name"))
            .collect();
        let mut chosen: Vec<Ingress> = ingresses
            .iter()
            .filter(|i| is_served(i, &served))
            .map(|i| Ingress {
                object: i.clone(),
                canary: flag(annotation(i, "canary")),
            })
            .collect();
        // Oldest first, ties by namespace/name from the end of the alphabet.
        chosen.sort_by_key(|i| {
            let name = format!(
                "{}/{}",
                text(&i.object, "/metadata/namespace"),
                text(&i.object, "/metadata/name")
            );
            (
                text(&i.object, "/metadata/creationTimestamp").to_string(),
                Reverse(name),
            )
        });
        let mut model = Self::default();
        model.upstreams.insert(DEFAULT_UPSTREAM.into(), Upstream::default());
        let root = Location {
            path: "/".into(),
            exact: false,
            upstream: DEFAULT_UPSTREAM.into(),
            ..Location::default()
        };
        model.servers.insert(CATCH_ALL.into(), vec![root.clone()]);
        for ingress in &chosen {
            model.create_upstreams(ingress, services, slices);
        }
        for ingress in chosen.iter().filter(|i| !i.canary) {
            for rule in items(&ingress.object, "/spec/rules") {
                model.servers.entry(host(rule)).or_insert_with(|| vec![root.clone()]);
            }
        }
        for ingress in &chosen {
            model.add_locations(ingress);
        }
        for ingress in chosen.iter().filter(|i| i.canary) {
            model.merge_default(ingress);
            model.merge(ingress);
        }
        model
    }

    /// A host and path of every location that is of an Ingress, for whoever wants to send requests to all of them.
    pub fn addresses(&self) -> impl Iterator<Item = (String, &str)> {
        self.servers.iter().flat_map(|(host, locations)| {
            let of_ingresses = locations.iter().filter(|l| !l.ingress.is_empty());
            of_ingresses.map(move |l| (host.replace(['*', '_'], "any"), l.path.as_str()))
        })
    }

    /// The first Ingress that mentions an upstream defines it.
    fn create_upstreams(&mut self, ingress: &Ingress, services: &[Arc<Value>], slices: &[Arc<Value>]) {
        let namespace = text(&ingress.object, "/metadata/namespace");
        let paths = items(&ingress.object, "/spec/rules")
            .iter()
            .flat_map(|r| items(r, "/http/paths"))
            .filter_map(|p| p.pointer("/backend/service"));
        for backend in ingress
            .object
            .pointer("/spec/defaultBackend/service")
            .into_iter()
            .chain(paths)
        {
            let policy = if ingress.canary {
                Policy::of(&ingress.object)
            } else {
                Policy::default()
            };
            let key = upstream_key(namespace, backend);
            self.upstreams.entry(key).or_insert_with(|| Upstream {
                namespace: namespace.to_owned(),
                endpoints: endpoints(namespace, backend, services, slices),
                no_server: ingress.canary,
                policy,
                ..Upstream::default()
            });
        }
    }

    /// The first Ingress that takes a host and path keeps it; upstreams known only as canaries take none.
    fn add_locations(&mut self, ingress: &Ingress) {
        let namespace = text(&ingress.object, "/metadata/namespace");
        let location = |key: &str, backend: &Value, (path, exact): (String, bool)| Location {
            path,
            exact,
            upstream: key.to_owned(),
            namespace: namespace.to_owned(),
            ingress: text(&ingress.object, "/metadata/name").to_owned(),
            service: text(backend, "/name").to_owned(),
            limit: Limit::of(&ingress.object),
        };
        let sticky = (annotation(&ingress.object, "affinity") == "cookie").then(|| {
            match annotation(&ingress.object, "session-cookie-name") {
                "" => "INGRESSCOOKIE".to_string(),
                name => name.to_string(),
            }
        });
        if let Some(backend) = ingress.object.pointer("/spec/defaultBackend/service") {
            let key = upstream_key(namespace, backend);
            let usable = self.upstreams.get(&key).is_some_and(|u| !u.no_server);
            let root = self.servers.get_mut(CATCH_ALL).and_then(|l| l.first_mut());
            if let Some(root) = root.filter(|l| usable && l.upstream == DEFAULT_UPSTREAM) {
                *root = location(&key, backend, ("/".to_owned(), false));
            }
        }
        for rule in items(&ingress.object, "/spec/rules") {
            let host = Some(host(rule))
                .filter(|h| self.servers.contains_key(h))
                .unwrap_or_else(|| CATCH_ALL.into());
            for path in items(rule, "/http/paths") {
                let Some(backend) = path.pointer("/backend/service") else {
                    continue;
                };
                let key = upstream_key(namespace, backend);
                let Some(upstream) = self.upstreams.get_mut(&key).filter(|u| !u.no_server) else {
                    continue;
                };
                if upstream.sticky.is_none() {
                    upstream.sticky.clone_from(&sticky);
                }
                let Some(locations) = self.servers.get_mut(&host) else {
                    continue;
                };
                let wanted = location(&key, backend, location_of(path));
                let same = |l: &&mut Location| (&l.path, l.exact) == (&wanted.path, wanted.exact);
                match locations.iter_mut().find(same) {
                    Some(taken) if taken.upstream != DEFAULT_UPSTREAM => {}
                    Some(free) => *free = wanted,
                    None => locations.push(wanted),
                }
            }
        }
    }

    fn merge_default(&mut self, ingress: &Ingress) {
        let Some(backend) = ingress.object.pointer("/spec/defaultBackend/service") else {
            return;
        };
        let key = upstream_key(text(&ingress.object, "/metadata/namespace"), backend);
        self.merge_into(ingress, &key, CATCH_ALL, None);
    }

    fn merge(&mut self, ingress: &Ingress) {
        for rule in items(&ingress.object, "/spec/rules") {
            for path in items(rule, "/http/paths") {
                let Some(backend) = path.pointer("/backend/service") else {
                    continue;
                };
                let key = upstream_key(text(&ingress.object, "/metadata/namespace"), backend);
                self.merge_into(ingress, &key, &host(rule), Some(location_of(path)));
            }
        }
    }

    /// Makes `key` an alternative of what serves the location; one location that does not match drops the whole canary.
    fn merge_into(&mut self, ingress: &Ingress, key: &str, host: &str, wanted: Option<(String, bool)>) {
        if !self.upstreams.contains_key(key) {
            return;
        }
        let Some(locations) = self.servers.get(host) else {
            return;
        };
        let legacy = annotation(&ingress.object, "affinity-canary-behavior") == "legacy";
        let (mut merged, mut primary_itself) = (false, false);
        for location in locations {
            primary_itself = location.upstream == key;
            if primary_itself {
                break;
            }
            let fits = wanted
                .as_ref()
                .is_none_or(|(path, exact)| location.path == *path && location.exact == *exact);
            let Some(primary) = self.upstreams.get_mut(&location.upstream) else {
                continue;
            };
            if !fits || location.upstream == DEFAULT_UPSTREAM || primary.no_server {
                continue;
            }
            merged = true;
            if primary.alternatives.iter().all(|a| a != key) {
                primary.alternatives.push(key.to_string());
                let sticky = primary.sticky.clone();
                if let Some(alternative) = self.upstreams.get_mut(key).filter(|_| !legacy) {
                    alternative.sticky = sticky;
                }
            }
        }
        if !merged && !primary_itself {
            self.upstreams.remove(key);
        }
    }
}

impl Limit {
    fn of(ingress: &Value) -> Option<Self> {
        let number = |name: &str| {
            annotation(ingress, name)
                .parse::<u32>()
                .ok()
                .filter(|number| *number > 0)
        };
        let limit = |number: u32, minutely: u32| Self {
            per_minute: number.saturating_mul(minutely),
            burst: number.saturating_mul(5),
        };
        let each_second = number("limit-rps").map(|number| limit(number, 60));
        each_second.or_else(|| number("limit-rpm").map(|number| limit(number, 1)))
    }
}

impl Policy {
    /// Parses the annotations of a canary Ingress.
    pub fn of(ingress: &Value) -> Self {
        let number = |name: &str, default: i64| annotation(ingress, name).parse().unwrap_or(default);
        let valid = |name: &str, extra: &str| {
            let value: String = annotation(ingress, name).chars().filter(|c| *c != ' ').collect();
            let good = value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "/-._~:".contains(c) || extra.contains(c));
            if good { value } else { String::new() }
        };
        Self {
            weight: number("canary-weight", 0),
            total: number("canary-weight-total", 100),
            header: valid("canary-by-header", ""),
            header_value: valid("canary-by-header-value", ""),
            header_pattern: Some(valid("canary-by-header-pattern", "^$[](){}*+?|&=\\"))
                .filter(|p| !p.is_empty())
                .map(|p| Regex::new(&p).ok()),
            cookie: valid("canary-by-cookie", ""),
        }
    }
}

fn annotation<'a>(ingress: &'a Value, name: &str) -> &'a str {
    let annotations: Option<&Map<String, Value>> = map(ingress, "/metadata/annotations");
    annotations
        .and_then(|a| a.get(&format!("nginx.ingress.kubernetes.io/{name}")))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `strconv.ParseBool`.
fn flag(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn is_served(ingress: &Value, classes: &BTreeSet<&str>) -> bool {
    match text(ingress, "/spec/ingressClassName") {
        "" => text(ingress, "/metadata/annotations/kubernetes.io~1ingress.class") == "nginx",
        class => classes.contains(class),
    }
}

fn host(rule: &Value) -> String {
    match text(rule, "/host") {
        "" => CATCH_ALL.into(),
        host => host.into(),
    }
}

fn location_of(path: &Value) -> (String, bool) {
    let exact = text(path, "/pathType") == "Exact";
    match text(path, "/path") {
        "" => ("/".into(), exact),
        path => (path.into(), exact),
    }
}

/// `namespace-service-port`, the port as written: by number and by name are two upstreams.
pub fn upstream_key(namespace: &str, backend: &Value) -> String {
    let port = int(backend, "/port/number").map_or_else(|| text(backend, "/port/name").to_string(), |n| n.to_string());
    format!("{namespace}-{}-{port}", text(backend, "/name"))
}

/// The ready endpoints of the Service port that a backend names.
fn endpoints(namespace: &str, backend: &Value, services: &[Arc<Value>], slices: &[Arc<Value>]) -> Vec<Endpoint> {
    let name = text(backend, "/name");
    let in_namespace = |o: &&Arc<Value>| text(o, "/metadata/namespace") == namespace;
    let Some(service) = services
        .iter()
        .filter(in_namespace)
        .find(|s| text(s, "/metadata/name") == name)
    else {
        return Vec::new();
    };
    let (number, port_name) = (int(backend, "/port/number"), text(backend, "/port/name"));
    let wanted = items(service, "/spec/ports")
        .iter()
        .find(|p| number.map_or_else(|| text(p, "/name") == port_name, |n| int(p, "/port") == Some(n)));
    let Some(wanted) = wanted.map(|p| text(p, "/name")) else {
        return Vec::new();
    };
    slices
        .iter()
        .filter(in_namespace)
        .filter(|s| text(s, "/metadata/labels/kubernetes.io~1service-name") == name)
        .filter(|s| items(s, "/ports").iter().any(|p| text(p, "/name") == wanted))
        .flat_map(|s| items(s, "/endpoints"))
        // An endpoint that does not say is ready.
        .filter(|e| e.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true))
        .flat_map(|e| items(e, "/addresses").iter().map(|a| (a, text(e, "/targetRef/name"))))
        .map(|(address, pod)| Endpoint {
            address: address.as_str().unwrap_or_default().into(),
            pod: pod.into(),
        })
        .collect()
}
