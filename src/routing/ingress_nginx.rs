//! ingress-nginx: a second Ingress with `canary` annotations.
//!
//! Its controller swallows every mistake in these annotations (a bad weight is 0, a lost total makes 1 of 10,000
//! one percent), so they are only ever written from a validated [`Weight`], weight and total in one write.

mod stable;

use super::{Route, Routing, Services, Split, leads_to};
use crate::{
    api::{ANNOTATION_SINCE, ANNOTATION_STEP, Header, Weight},
    render::Owner,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::networking::v1::{HTTPIngressRuleValue, Ingress},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::ResourceExt;
use serde_json::{Map, Value, json};

/// Annotations of version 1's Ingress that the controller reads on a canary too: how pods are picked within the upstream.
/// Everything else there is ignored on a canary, or leaks into the whole server (`auth-tls-*`, `proxy-ssl-*`).
const HONOURED: [&str; 5] = [
    "load-balance",
    "upstream-hash-by",
    "upstream-hash-by-subset",
    "upstream-hash-by-subset-size",
    "service-upstream",
];
const LEGACY_CLASS: &str = "kubernetes.io/ingress.class";
const CANARY: &str = "canary";
const WEIGHT: &str = "canary-weight";
const WEIGHT_TOTAL: &str = "canary-weight-total";
const HEADER: &str = "canary-by-header";
const HEADER_VALUE: &str = "canary-by-header-value";
const HEADER_PATTERN: &str = "canary-by-header-pattern";
const COOKIE: &str = "canary-by-cookie";

/// Writes and reads the annotations of ingress-nginx.
#[derive(Clone, Debug)]
pub struct IngressNginx {
    /// The controller's `--annotations-prefix`.
    pub prefix: String,
    /// `spec.controller` of the IngressClasses that it serves (its `--controller-class`).
    pub controllers: Vec<String>,
    /// Values of the annotation `kubernetes.io/ingress.class` that it serves (its `--ingress-class`).
    pub classes: Vec<String>,
    /// Whether it serves Ingresses without a class (its `--watch-ingress-without-class`).
    pub classless: bool,
}

impl Default for IngressNginx {
    fn default() -> Self {
        Self {
            prefix: "nginx.ingress.kubernetes.io".to_owned(),
            controllers: vec!["k8s.io/ingress-nginx".to_owned()],
            classes: vec!["nginx".to_owned()],
            classless: false,
        }
    }
}

impl IngressNginx {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn annotation<'a>(&self, ingress: &'a Ingress, name: &str) -> Option<&'a str> {
        ingress.annotations().get(&self.key(name)).map(String::as_str)
    }

    fn annotations(&self, stable: &Ingress, route: &Route<'_>) -> Map<String, Value> {
        let (weight, total) = route.split.weight.ratio();
        let mut annotations = Map::new();
        annotations.insert(self.key(CANARY), json!("true"));
        annotations.insert(self.key(WEIGHT), json!(weight.to_string()));
        // A total that nobody asked for is one more thing to be lost: 100 is the controller's own default.
        if total != 100 {
            annotations.insert(self.key(WEIGHT_TOTAL), json!(total.to_string()));
        }
        if let Some(Header { name, value, pattern }) = route.traffic.and_then(|traffic| traffic.header.as_ref()) {
            annotations.insert(self.key(HEADER), json!(name));
            for (key, text) in [(HEADER_VALUE, value), (HEADER_PATTERN, pattern)] {
                annotations.extend(text.as_ref().map(|text| (self.key(key), json!(text))));
            }
        }
        if let Some(cookie) = route.traffic.and_then(|traffic| traffic.cookie.as_ref()) {
            annotations.insert(self.key(COOKIE), json!(cookie));
        }
        annotations.insert(ANNOTATION_STEP.to_owned(), json!(route.split.step.to_string()));
        annotations.insert(ANNOTATION_SINCE.to_owned(), json!(MicroTime(route.since)));
        let copied = HONOURED
            .iter()
            .map(|name| self.key(name))
            .chain([LEGACY_CLASS.to_owned()]);
        for key in copied {
            if let Some(value) = stable.annotations().get(&key) {
                annotations.insert(key, json!(value));
            }
        }
        annotations
    }

    fn steers_traffic(&self, key: &str) -> bool {
        key == ANNOTATION_STEP
            || key == LEGACY_CLASS
            || key.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl Routing for IngressNginx {
    fn canary(&self, stable: &Ingress, name: &str, owner: &Owner, route: Route<'_>) -> Value {
        let mut metadata = owner.metadata(name);
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert(
                "annotations".to_owned(),
                Value::Object(self.annotations(stable, &route)),
            );
        }
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": metadata,
            "spec": spec(stable, route.services),
        })
    }

    fn correction(&self, live: &Ingress, wanted: &Value) -> Option<Value> {
        let empty = Map::new();
        let wanted_annotations = wanted
            .pointer("/metadata/annotations")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        let mut annotations = Map::new();
        // When it is written is no reason to write it.
        for (key, value) in wanted_annotations.iter().filter(|(key, _)| *key != ANNOTATION_SINCE) {
            if live.annotations().get(key).map(String::as_str) != value.as_str() {
                annotations.insert(key.clone(), value.clone());
            }
        }
        for key in live
            .annotations()
            .keys()
            .filter(|key| self.steers_traffic(key) && !wanted_annotations.contains_key(*key))
        {
            annotations.insert(key.clone(), Value::Null);
        }
        let mut patch = Map::new();
        let live_spec = json!(live.spec);
        let wanted_spec = wanted.get("spec").cloned().unwrap_or_default();
        if live_spec != wanted_spec {
            // A merge patch keeps what it does not name: fields that are to go are named as null.
            let mut spec = wanted_spec;
            if let (Some(spec), Some(live)) = (spec.as_object_mut(), live_spec.as_object()) {
                for key in live.keys() {
                    spec.entry(key.clone()).or_insert(Value::Null);
                }
            }
            patch.insert("spec".to_owned(), spec);
        }
        if annotations.is_empty() && patch.is_empty() {
            return None;
        }
        let since = wanted_annotations.get(ANNOTATION_SINCE);
        annotations.extend(since.map(|since| (ANNOTATION_SINCE.to_owned(), since.clone())));
        patch.insert("metadata".to_owned(), json!({"annotations": annotations}));
        Some(Value::Object(patch))
    }

    fn is_canary(&self, ingress: &Ingress) -> bool {
        self.annotation(ingress, CANARY)
            .is_some_and(|v| ["1", "t", "T", "true", "TRUE", "True"].contains(&v))
    }

    fn since(&self, live: &Ingress) -> Option<Timestamp> {
        live.annotations().get(ANNOTATION_SINCE)?.parse().ok()
    }

    fn split(&self, live: &Ingress) -> Split {
        let number = |name| self.annotation(live, name).and_then(|text| text.parse::<u32>().ok());
        let total = number(WEIGHT_TOTAL).filter(|total| *total > 100).unwrap_or(100);
        let weight = if self.is_canary(live) {
            number(WEIGHT).unwrap_or(0)
        } else {
            0
        };
        let step = live
            .annotations()
            .get(ANNOTATION_STEP)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        Split {
            weight: Weight::from_ratio(weight, total),
            step,
        }
    }

    fn pins_clients(&self, stable: &Ingress) -> bool {
        self.annotation(stable, "affinity") == Some("cookie")
    }

    fn exposes(&self, live: &Ingress) -> bool {
        let asked = |name| self.annotation(live, name).is_some_and(|text| !text.trim().is_empty());
        self.is_canary(live) && (self.split(live).weight > Weight::ZERO || asked(HEADER) || asked(COOKIE))
    }

    fn misread_canary<'a>(&self, ingress: &'a Ingress) -> Option<&'a str> {
        self.annotation(ingress, CANARY).filter(|_| !self.is_canary(ingress))
    }

    fn unserved(&self, ingress: &Ingress, controller: Option<&str>) -> Option<String> {
        stable::unserved(self, ingress, controller)
    }

    fn cautions(&self, stable: &Ingress, service: &str) -> Vec<String> {
        stable::cautions(self, stable, service)
    }
}

/// Exactly the rules that lead to version 1's Service, leading to version 2's. One path more would make the controller
/// drop the whole canary; a rule without `http` would crash it.
fn spec(stable: &Ingress, services: Services<'_>) -> Value {
    let mut spec = stable.spec.clone().unwrap_or_default();
    spec.tls = None;
    let redirect = |service: &mut Option<k8s_openapi::api::networking::v1::IngressServiceBackend>| {
        if let Some(service) = service {
            services.canary.clone_into(&mut service.name);
        }
    };
    spec.default_backend = spec
        .default_backend
        .filter(|backend| leads_to(backend, services.stable))
        .map(|mut backend| {
            redirect(&mut backend.service);
            backend
        });
    let rules = spec.rules.take().into_iter().flatten().filter_map(|mut rule| {
        let paths = rule
            .http
            .take()?
            .paths
            .into_iter()
            .filter(|path| leads_to(&path.backend, services.stable));
        let paths: Vec<_> = paths
            .map(|mut path| {
                redirect(&mut path.backend.service);
                path
            })
            .collect();
        rule.http = Some(HTTPIngressRuleValue { paths });
        rule.http
            .as_ref()
            .is_some_and(|http| !http.paths.is_empty())
            .then_some(rule)
    });
    spec.rules = Some(rules.collect::<Vec<_>>()).filter(|rules| !rules.is_empty());
    json!(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Traffic;

    fn stable() -> Ingress {
        serde_json::from_value(json!({
            "metadata": {"name": "shop", "annotations": {
                "kubernetes.io/ingress.class": "nginx",
                "nginx.ingress.kubernetes.io/limit-rpm": "175",
                "nginx.ingress.kubernetes.io/load-balance": "ewma",
                "nginx.ingress.kubernetes.io/auth-tls-secret": "default/ca",
                "cert-manager.io/cluster-issuer": "letsencrypt",
            }},
            "spec": {
                "ingressClassName": "nginx",
                "tls": [{"hosts": ["shop.example"], "secretName": "shop-tls"}],
                "defaultBackend": {"service": {"name": "web", "port": {"name": "http"}}},
                "rules": [
                    {"host": "shop.example", "http": {"paths": [
                        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}},
                        {"path": "/api", "pathType": "Exact", "backend": {"service": {"name": "api", "port": {"number": 80}}}},
                    ]}},
                    {"host": "api.example", "http": {"paths": [
                        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "api", "port": {"number": 80}}}},
                    ]}},
                    {"host": "bare.example"},
                ],
            },
        }))
        .unwrap()
    }

    fn routed(weight: &str, step: u32, traffic: Option<&Traffic>) -> Value {
        let owner = Owner {
            name: "shop".to_owned(),
            uid: "u1".to_owned(),
        };
        let split = Split {
            weight: weight.parse().unwrap(),
            step,
        };
        let services = Services {
            stable: "web",
            canary: "web-v2",
        };
        let route = Route {
            services,
            split,
            traffic,
            since: Timestamp::UNIX_EPOCH,
        };
        IngressNginx::default().canary(&stable(), "shop-v2", &owner, route)
    }

    fn canary(weight: &str, step: u32) -> Value {
        routed(weight, step, None)
    }

    fn for_testers(traffic: Value) -> Value {
        routed("0", 1, Some(&serde_json::from_value(traffic).unwrap()))
    }

    fn live(value: Value) -> Ingress {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_rules_to_the_service_and_only_annotations_that_nginx_honours_are_copied() {
        insta::assert_yaml_snapshot!(canary("30", 2));
    }

    #[test]
    fn header_and_cookie_stand_beside_the_weight() {
        let annotations = |traffic| {
            let value = for_testers(traffic);
            let all = value["metadata"]["annotations"].as_object().unwrap().clone();
            let rules = all.into_iter().filter(|(key, _)| key.contains("/canary-by-"));
            rules
                .map(|(key, value)| format!("{} {}", key.rsplit('/').next().unwrap(), value.as_str().unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            annotations(json!({"header": {"name": "X-Canary"}})),
            ["canary-by-header X-Canary"]
        );
        assert_eq!(
            annotations(json!({"header": {"name": "X-Canary", "value": "yes"}, "cookie": "canary"})),
            [
                "canary-by-cookie canary",
                "canary-by-header X-Canary",
                "canary-by-header-value yes"
            ]
        );
        assert_eq!(
            annotations(json!({"header": {"name": "X-Canary", "pattern": "^a"}})),
            ["canary-by-header X-Canary", "canary-by-header-pattern ^a"]
        );
    }

    #[test]
    fn version_2_is_exposed_by_a_weight_a_header_or_a_cookie() {
        let nginx = IngressNginx::default();
        assert!(!nginx.exposes(&live(canary("0", 0))));
        assert!(nginx.exposes(&live(canary("0.01", 1))));
        assert!(nginx.exposes(&live(for_testers(json!({"header": {"name": "X-Canary"}})))));
        assert!(nginx.exposes(&live(for_testers(json!({"cookie": "canary"})))));
    }

    #[test]
    fn a_header_that_is_asked_for_no_more_goes_in_one_write() {
        let patch = IngressNginx::default().correction(
            &live(for_testers(json!({"header": {"name": "X-Canary", "value": "yes"}}))),
            &for_testers(json!({"cookie": "canary"})),
        );
        let expected = json!({"metadata": {"annotations": {
            "canary-operator.dev/since": "1970-01-01T00:00:00.000000Z",
            "nginx.ingress.kubernetes.io/canary-by-cookie": "canary",
            "nginx.ingress.kubernetes.io/canary-by-header": null,
            "nginx.ingress.kubernetes.io/canary-by-header-value": null,
        }}});
        assert_eq!(patch, Some(expected));
    }

    #[test]
    fn a_fraction_is_written_as_weight_and_total_together_and_read_back() {
        let nginx = IngressNginx::default();
        for weight in ["0", "0.01", "0.5", "5", "12.25", "100"] {
            let read = nginx.split(&live(canary(weight, 3)));
            assert_eq!(
                read,
                Split {
                    weight: weight.parse().unwrap(),
                    step: 3
                }
            );
        }
    }

    #[test]
    fn going_from_a_fraction_to_a_whole_number_drops_the_total_in_the_same_write() {
        let patch = IngressNginx::default()
            .correction(&live(canary("0.01", 1)), &canary("5", 2))
            .unwrap();
        let expected = json!({"metadata": {"annotations": {
            "canary-operator.dev/since": "1970-01-01T00:00:00.000000Z",
            "nginx.ingress.kubernetes.io/canary-weight": "5",
            "nginx.ingress.kubernetes.io/canary-weight-total": null,
            "canary-operator.dev/step": "2",
        }}});
        assert_eq!(patch, expected);
    }

    #[test]
    fn an_untouched_canary_needs_no_correction_and_foreign_annotations_are_left_alone() {
        let mut value = canary("30", 2);
        value["metadata"]["annotations"]["example.com/note"] = json!("kept");
        assert_eq!(IngressNginx::default().correction(&live(value), &canary("30", 2)), None);
    }

    #[test]
    fn what_somebody_added_to_the_canary_is_taken_back() {
        let mut value = canary("30", 2);
        value["metadata"]["annotations"]["nginx.ingress.kubernetes.io/canary-by-cookie"] = json!("me");
        value["spec"]["tls"] = json!([{"hosts": ["shop.example"]}]);
        let patch = IngressNginx::default()
            .correction(&live(value), &canary("30", 2))
            .unwrap();
        assert_eq!(
            patch["metadata"]["annotations"],
            json!({
                "canary-operator.dev/since": "1970-01-01T00:00:00.000000Z",
                "nginx.ingress.kubernetes.io/canary-by-cookie": null,
            })
        );
        assert_eq!(patch["spec"]["tls"], Value::Null);
    }

    #[test]
    fn an_annotation_that_nginx_would_misread_is_read_as_nginx_reads_it() {
        let with = |name: &str, text: &str| {
            let mut value = canary("0.5", 1);
            value["metadata"]["annotations"][format!("nginx.ingress.kubernetes.io/{name}")] = json!(text);
            IngressNginx::default().split(&live(value)).weight.to_string()
        };
        assert_eq!(with("canary", "yes"), "0", "not a canary to nginx");
        assert_eq!(with("canary-weight", "30%"), "0");
        assert_eq!(with("canary-weight-total", "lost"), "5", "the total falls back to 100");
        assert_eq!(with("canary-weight", "5000"), "100");
    }
}
