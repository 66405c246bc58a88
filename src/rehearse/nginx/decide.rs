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

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Went to a pod of the stable Service.
    Stable {
        /// Which.
        pod: String,
    },
    /// Went to a pod of the canary Service.
    Canary {
        /// Which.
        pod: String,
    },
    /// Answered by nginx itself.
    Status(u16),
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

/// Which side an upstream decision falls to.
#[derive(Clone, Copy, PartialEq)]
enum Choice {
    Stable,
    Canary,
    Weight,
}

impl Model {
    /// Routes one request.
    pub fn route(&self, request: &SimRequest, rng: &mut Rng) -> Outcome {
        let Some(key) = self.upstream_of(&request.host, &request.path) else {
            return Outcome::Status(404);
        };
        let Some(stable) = self.upstreams.get(key).filter(|u| !u.endpoints.is_empty()) else {
            return Outcome::Status(503);
        };
        let alternative = self.alternative(stable);
        let canary = alternative.filter(|(name, canary)| match choose(request, key, stable, name, canary) {
            Choice::Stable => false,
            Choice::Canary => true,
            Choice::Weight => rng.i64(1..=total(&canary.policy)) <= canary.policy.weight,
        });
        let pick = |upstream: &Upstream, rng: &mut Rng| {
            let n = rng.usize(..upstream.endpoints.len().max(1));
            upstream.endpoints.get(n).map(|e| e.pod.clone()).unwrap_or_default()
        };
        match canary {
            Some((_, canary)) => Outcome::Canary { pod: pick(canary, rng) },
            None => Outcome::Stable { pod: pick(stable, rng) },
        }
    }

    /// How requests without header or cookie divide.
    pub fn share(&self, host: &str, path: &str) -> Split {
        let Some(key) = self.upstream_of(host, path) else {
            return Split::Status(404);
        };
        let Some(stable) = self.upstreams.get(key).filter(|u| !u.endpoints.is_empty()) else {
            return Split::Status(503);
        };
        let canary = self.alternative(stable).map_or(0.0, |(_, c)| {
            let (weight, total) = (c.policy.weight.clamp(0, total(&c.policy)), total(&c.policy));
            // Weights are far below the size at which f64 loses integers.
            weight as f64 / total as f64
        });
        Split::Shares {
            stable: 1.0 - canary,
            canary,
        }
    }

    /// The pods of the upstream that a pod is of, itself included.
    pub fn peers<'a>(&'a self, pod: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let of = |upstream: &&Upstream| upstream.endpoints.iter().any(|e| e.pod == pod);
        let upstream = self.upstreams.values().find(of);
        upstream.into_iter().flat_map(|u| &u.endpoints).map(|e| e.pod.as_str())
    }

    /// The canary that counts: the first, if it has endpoints.
    fn alternative<'a>(&'a self, stable: &'a Upstream) -> Option<(&'a str, &'a Upstream)> {
        let name = stable.alternatives.first()?;
        let upstream = self.upstreams.get(name).filter(|u| !u.endpoints.is_empty())?;
        Some((name, upstream))
    }

    /// The upstream behind a host and path; None when it is the default backend.
    pub fn upstream_of(&self, host: &str, path: &str) -> Option<&str> {
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
        let found = exact.or_else(longest)?;
        Some(found.upstream.as_str()).filter(|u| *u != DEFAULT_UPSTREAM)
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
