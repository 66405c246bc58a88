//! Where one request goes: the balancer's decision, step by step in its own order.

use super::model::{CATCH_ALL, DEFAULT_UPSTREAM, Location, Model, Policy, Upstream};
use fastrand::Rng;
use std::collections::BTreeMap;

/// A request, as far as routing looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimRequest {
    /// The `Host` header.
    pub host: String,
    /// The path, without query.
    pub path: String,
    /// Other headers; names in any case.
    pub headers: BTreeMap<String, String>,
    /// Cookies. The value of an affinity cookie is the key of the upstream that it pins to.
    pub cookies: BTreeMap<String, String>,
}

impl SimRequest {
    /// A plain request.
    pub fn to(host: &str, path: &str) -> Self {
        Self {
            host: host.into(),
            path: path.into(),
            ..Self::default()
        }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// With one more cookie.
    #[must_use]
    pub fn cookie(mut self, name: &str, value: &str) -> Self {
        self.cookies.insert(name.into(), value.into());
        self
    }

    /// nginx drops headers with underscores, and compares names without regard to case and with `-` for `_`.
    fn header_value(&self, name: &str) -> Option<&str> {
        let plain = |n: &str| n.to_ascii_lowercase().replace('_', "-");
        self.headers
            .iter()
            .find(|(n, _)| !n.contains('_') && plain(n) == plain(name))
            .map(|(_, v)| v.as_str())
    }
}

/// How plain requests to one host and path divide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Split {
    /// nginx answers with this code.
    Status(u16),
    /// Fractions that add up to one.
    Shares {
        /// To the stable Service.
        stable: f64,
        /// To the canary Service.
        canary: f64,
    },
}

impl Split {
    /// The canary's share; none when nginx answers by itself.
    pub fn canary(&self) -> f64 {
        match self {
            Self::Status(_) => 0.0,
            Self::Shares { canary, .. } => *canary,
        }
    }
}

/// Where requests that are alike may go.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The location that takes them.
    pub location: &'a Location,
    /// The stable upstream; none where it has no endpoint.
    pub stable: Option<&'a Upstream>,
    /// The canary that counts, with its key, and what these requests' headers and cookies decide.
    pub canary: Option<(&'a str, &'a Upstream, Choice)>,
}

/// Which side a request falls to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To the stable Service.
    Stable,
    /// To the canary.
    Canary,
    /// Chance decides.
    Weight,
}

impl<'a> Plan<'a> {
    /// Throws the dice for one request: whether it goes to the canary.
    pub fn toss(&self, rng: &mut Rng) -> bool {
        self.canary.is_some_and(|(_, canary, choice)| match choice {
            Choice::Stable => false,
            Choice::Canary => true,
            Choice::Weight => rng.i64(1..=total(&canary.policy)) <= canary.policy.weight,
        })
    }

    /// The share of the canary's requests, from 0 to 1.
    fn share(&self) -> f64 {
        self.canary.map_or(0.0, |(_, canary, choice)| match choice {
            Choice::Stable => 0.0,
            Choice::Canary => 1.0,
            Choice::Weight => {
                let total = total(&canary.policy);
                // Weights are far below the size at which f64 loses integers.
                canary.policy.weight.clamp(0, total) as f64 / total as f64
            }
        })
    }
}

impl Model {
    /// Where requests like this one may go; none where no Ingress takes them.
    pub fn plan(&self, request: &SimRequest) -> Option<Plan<'_>> {
        let location = self.location(&request.host, &request.path)?;
        let stable = self
            .upstreams
            .get(&location.upstream)
            .filter(|u| !u.endpoints.is_empty());
        let canary = stable.and_then(|stable| {
            let (name, canary) = self.alternative(stable)?;
            let choice = choose(request, &location.upstream, stable, name, canary);
            Some((name, canary, choice))
        });
        Some(Plan {
            location,
            stable,
            canary,
        })
    }

    /// How requests without header or cookie divide.
    pub fn share(&self, host: &str, path: &str) -> Split {
        match self.plan(&SimRequest::to(host, path)) {
            None => Split::Status(404),
            Some(plan) if plan.stable.is_none() => Split::Status(503),
            Some(plan) => Split::Shares {
                stable: 1.0 - plan.share(),
                canary: plan.share(),
            },
        }
    }

    /// The canary that counts: the first, if it has endpoints.
    fn alternative<'a>(&'a self, stable: &'a Upstream) -> Option<(&'a str, &'a Upstream)> {
        let name = stable.alternatives.first()?;
        let upstream = self.upstreams.get(name).filter(|u| !u.endpoints.is_empty())?;
        Some((name, upstream))
    }

    /// The location that takes a host and path; none where the default backend does.
    fn location(&self, host: &str, path: &str) -> Option<&Location> {
        let host = host.split(':').next().unwrap_or_default();
        let wildcard = host
            .split_once('.')
            .map(|(_, rest)| format!("*.{rest}"))
            .unwrap_or_default();
        let locations = self
            .servers
            .get(host)
            .or_else(|| self.servers.get(&wildcard))
            .or_else(|| self.servers.get(CATCH_ALL))?;
        let exact = locations.iter().find(|l| l.exact && l.path == path);
        let longest = || {
            locations
                .iter()
                .filter(|l| !l.exact && is_below(path, l))
                .max_by_key(|l| l.path.len())
        };
        exact.or_else(longest).filter(|l| l.upstream != DEFAULT_UPSTREAM)
    }
}

/// Prefixes end at path elements.
fn is_below(path: &str, location: &Location) -> bool {
    let prefix = location.path.trim_end_matches('/');
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn total(policy: &Policy) -> i64 {
    policy.total.max(100)
}

fn choose(request: &SimRequest, key: &str, stable: &Upstream, alternative: &str, canary: &Upstream) -> Choice {
    let pinned = |upstream: &Upstream, to: &str| {
        upstream
            .sticky
            .as_ref()
            .and_then(|name| request.cookies.get(name))
            .is_some_and(|v| v == to)
    };
    if pinned(stable, key) {
        return Choice::Stable;
    }
    if pinned(canary, alternative) {
        return Choice::Canary;
    }
    let policy = &canary.policy;
    if let Some(value) = request
        .header_value(&policy.header)
        .filter(|_| !policy.header.is_empty())
    {
        if !policy.header_value.is_empty() {
            if value == policy.header_value {
                return Choice::Canary;
            }
        } else if let Some(pattern) = &policy.header_pattern {
            match pattern {
                Some(pattern) if pattern.is_match(value) => return Choice::Canary,
                Some(_) => {}
                // A broken pattern does not fall through.
                None => return Choice::Stable,
            }
        } else if value == "always" {
            return Choice::Canary;
        } else if value == "never" {
            return Choice::Stable;
        }
    }
    let cookie = request
        .cookies
        .get(&policy.cookie)
        .filter(|_| !policy.cookie.is_empty());
    match cookie.map(String::as_str) {
        Some("always") => Choice::Canary,
        Some("never") => Choice::Stable,
        _ => Choice::Weight,
    }
}
