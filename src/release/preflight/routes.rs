//! Other Ingresses that would make the canary ineffective, or be made ineffective by it.

use super::{Finding, own};
use crate::{
    observe::Observed,
    routing::{Routing, backends, leads_to, paths},
};
use k8s_openapi::api::networking::v1::Ingress;
use kube::ResourceExt;
use std::{fmt, sync::Arc};

/// What a route takes: requests of a host and a path, as ingress-nginx compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim<'a> {
    /// "" for requests that no other host takes.
    host: &'a str,
    /// Nothing for the default backend, which meets every path of its host.
    path: Option<Path<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path<'a> {
    text: &'a str,
    /// `ImplementationSpecific` and no pathType at all count as `Prefix`.
    exact: bool,
}

impl Claim<'_> {
    fn meets(&self, other: &Claim<'_>) -> bool {
        let paths = self.path.zip(other.path);
        self.host == other.host && paths.is_none_or(|(one, another)| one == another)
    }
}

impl fmt::Display for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.is_empty() { "any host" } else { self.host };
        match self.path {
            Some(path) if self.host.is_empty() => write!(f, "path {} of any host", path.text),
            Some(path) => write!(f, "{host}{}", path.text),
            None => f.write_str("the default backend"),
        }
    }
}

/// What an Ingress takes, for backends of one Service or of all.
fn claims<'a>(ingress: &'a Ingress, service: Option<&'a str>) -> impl Iterator<Item = Claim<'a>> {
    let wanted = move |backend| service.is_none_or(|service| leads_to(backend, service));
    let default = ingress.spec.as_ref().and_then(|spec| spec.default_backend.as_ref());
    let default = default
        .filter(|backend| wanted(backend))
        .map(|_| Claim { host: "", path: None });
    let paths = paths(ingress).filter(move |(_, path)| wanted(&path.backend));
    default.into_iter().chain(paths.map(|(host, path)| Claim {
        host: host.unwrap_or_default(),
        path: Some(Path {
            text: path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/"),
            exact: path.path_type == "Exact",
        }),
    }))
}

/// Canaries of somebody else on a route that this release splits: the controller uses only the oldest. And Ingresses that
/// are meant as canaries but are none to the controller: they are routes of their own, of which the oldest wins.
pub(super) fn foreign_canaries(
    seen: &Observed,
    routing: &dyn Routing,
    service: &str,
    routes: &[&Arc<Ingress>],
) -> Vec<Finding> {
    let split: Vec<_> = routes.iter().flat_map(|stable| claims(stable, Some(service))).collect();
    let foreign = seen
        .ingresses
        .iter()
        .filter(|i| !own(seen, i) && !routes.iter().any(|stable| stable.name_any() == i.name_any()));
    foreign
        .filter_map(|ingress| {
            let met = claims(ingress, None).find(|claim| split.iter().any(|ours| ours.meets(claim)))?;
            let name = ingress.name_any();
            let message = if routing.is_canary(ingress) {
                format!(
                    "Ingress {name} is a canary of {met} already, and ingress-nginx uses only the oldest canary of a route: delete it"
                )
            } else {
                let text = routing.misread_canary(ingress)?;
                format!(
                    "Ingress {name} has the canary annotation \"{text}\", which ingress-nginx does not read as true: it takes {met} as a route of its own, and the older one wins; delete it, or give it another path"
                )
            };
            Some(Finding::new("ForeignCanary", message))
        })
        .collect()
}

/// Ingresses of somebody else that lead to version 2's Service. To the controller a Service is either a canary's or a
/// route's, whichever Ingress is older: the weight is ignored, or the other Ingress's hosts answer 404.
pub(super) fn references(seen: &Observed, canary: &str) -> Vec<Finding> {
    let referring = seen
        .ingresses
        .iter()
        .filter(|i| !own(seen, i) && backends(i).any(|backend| leads_to(backend, canary)));
    referring
        .map(|ingress| {
            let message = format!(
                "Ingress {} leads to Service {canary}, which is to be version 2's alone: ingress-nginx would ignore the weight, or answer 404 on that Ingress's hosts; remove that backend, or choose another spec.canary.suffix",
                ingress.name_any()
            );
            Finding::new("CanaryServiceReferenced", message)
        })
        .collect()
}

/// Ingresses that lead to version 1 by their default backend. The controller splits with a canary of that every path
/// without a host in the cluster, whoever's it is: 28 of 60 requests to another namespace's path (measured).
pub(super) fn catch_alls<'a>(routes: &'a [Arc<Ingress>], service: &'a str) -> impl Iterator<Item = String> + 'a {
    let default = |ingress: &Ingress| ingress.spec.as_ref().and_then(|spec| spec.default_backend.clone());
    let catching = routes
        .iter()
        .filter(move |i| default(i).is_some_and(|backend| leads_to(&backend, service)));
    catching.map(move |ingress| {
        format!(
            "Ingress {} leads to Service {service} by spec.defaultBackend, and ingress-nginx splits every path without a host with it, those of other namespaces too",
            ingress.name_any()
        )
    })
}
