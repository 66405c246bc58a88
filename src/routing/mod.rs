//! What a traffic backend can express, and how. ingress-nginx is the first behind this seam.

mod ingress_nginx;

pub use ingress_nginx::IngressNginx;

use crate::{
    api::{Traffic, Weight},
    render::Owner,
};
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend};
use serde_json::Value;

/// The split that a canary Ingress is to express.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Split {
    /// Share of the requests that go to version 2.
    pub weight: Weight,
    /// Number of the step that asks for it, noted beside the weight.
    pub step: u32,
}

/// Everything that a canary Ingress is to express.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// Between which Services.
    pub services: Services<'a>,
    /// In which proportion.
    pub split: Split,
    /// For whom whatever the proportion is.
    pub traffic: Option<&'a Traffic>,
    /// Since when, noted beside it where that takes a write.
    pub since: Timestamp,
}

/// Turns a route into objects of one kind of controller, and reads it back from them.
pub trait Routing: Send + Sync {
    /// The canary Ingress for one of version 1's, leading the same requests to version 2's Service as `route` says.
    fn canary(&self, stable: &Ingress, name: &str, owner: &Owner, route: Route<'_>) -> Value;

    /// A merge patch that makes `live` equal to `wanted` in everything that steers traffic; nothing where it does already.
    fn correction(&self, live: &Ingress, wanted: &Value) -> Option<Value>;

    /// Whether an Ingress is somebody's canary rather than a route of its own.
    fn is_canary(&self, ingress: &Ingress) -> bool;

    /// Since when a live canary Ingress leads requests as it does, where it says so.
    fn since(&self, live: &Ingress) -> Option<Timestamp>;

    /// The split that a live canary Ingress expresses, as its controller reads it.
    fn split(&self, live: &Ingress) -> Split;

    /// Whether one of version 1's Ingresses makes clients stay with the version that they met first, so that chance does not
    /// decide about each request.
    fn pins_clients(&self, stable: &Ingress) -> bool;

    /// Whether a live canary Ingress leads anybody to version 2: by weight, header or cookie.
    fn exposes(&self, live: &Ingress) -> bool;

    /// What an Ingress says of being a canary, where its controller does not read that as yes.
    fn misread_canary<'a>(&self, ingress: &'a Ingress) -> Option<&'a str>;

    /// Why no controller of this kind serves an Ingress; nothing where one does. `controller` is that of the IngressClass
    /// that the Ingress names, if it names one.
    fn unserved(&self, ingress: &Ingress, controller: Option<&str>) -> Option<String>;

    /// What one of version 1's Ingresses does to the split of its requests to `service` that people do not expect.
    fn cautions(&self, stable: &Ingress, service: &str) -> Vec<String>;
}

/// The two Services of a release.
#[derive(Clone, Copy, Debug)]
pub struct Services<'a> {
    /// Version 1's.
    pub stable: &'a str,
    /// Version 2's.
    pub canary: &'a str,
}

/// Every backend that an Ingress leads to.
pub fn backends(ingress: &Ingress) -> impl Iterator<Item = &IngressBackend> {
    let spec = ingress.spec.as_ref();
    let default = spec.and_then(|spec| spec.default_backend.as_ref());
    default.into_iter().chain(paths(ingress).map(|(_, path)| &path.backend))
}

/// Every path of an Ingress with its host.
pub fn paths(ingress: &Ingress) -> impl Iterator<Item = (Option<&str>, &HTTPIngressPath)> {
    let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
    rules.flat_map(|rule| {
        rule.http
            .iter()
            .flat_map(|http| &http.paths)
            .map(|path| (rule.host.as_deref(), path))
    })
}

/// Whether a backend is this Service.
#[must_use]
pub fn leads_to(backend: &IngressBackend, service: &str) -> bool {
    backend.service.as_ref().is_some_and(|s| s.name == service)
}

/// Stands for the hosts that a route without one takes.
pub const ANY_HOST: &str = "hosts that no Ingress names";

/// The hosts whose requests an Ingress leads to a Service, each once.
#[must_use]
pub fn claimed_hosts(ingress: &Ingress, service: &str) -> Vec<String> {
    let default = ingress.spec.as_ref().and_then(|spec| spec.default_backend.as_ref());
    let default = default.filter(|backend| leads_to(backend, service)).map(|_| ANY_HOST);
    let leading = paths(ingress).filter(|(_, path)| leads_to(&path.backend, service));
    let hosts = leading.map(|(host, _)| host.filter(|host| !host.is_empty()).unwrap_or(ANY_HOST));
    let mut named = Vec::new();
    for host in default.into_iter().chain(hosts) {
        if !named.iter().any(|known| known == host) {
            named.push(host.to_owned());
        }
    }
    named
}

/// The ports of a Service that an Ingress leads to, as written: by number or by name.
pub fn ports<'a>(ingress: &'a Ingress, service: &'a str) -> impl Iterator<Item = String> + 'a {
    backends(ingress)
        .filter(move |backend| leads_to(backend, service))
        .filter_map(|backend| {
            let port = backend.service.as_ref()?.port.as_ref()?;
            port.name
                .clone()
                .or_else(|| port.number.map(|number| number.to_string()))
        })
}
