//! Whether version 2 can be judged as the spec asks.

use super::Finding;
use crate::{
    analysis::{Rules, prometheus::Template},
    api::{CanaryReleaseSpec, CheckKind, Source},
};

/// Servers that do not exist, and queries that cannot be read.
pub(super) fn findings(spec: &CanaryReleaseSpec, servers: &[String]) -> Vec<Finding> {
    let rules = Rules::of(spec.analysis.as_ref(), None);
    let mut findings = Vec::new();
    if rules.source == Source::Prometheus && rules.counts_requests() {
        findings.extend(unknown("spec.analysis.prometheus", rules.server.as_deref(), servers));
    }
    for rule in &rules.checks {
        let Some(CheckKind::Query(query)) = rule.check.kind() else {
            continue;
        };
        let at = format!("spec.analysis.checks[{}].prometheus", rule.check.name);
        if let Err(error) = Template::parse(&query.query) {
            let message = format!("{at}.query: {error}");
            findings.push(Finding::new("QueryInvalid", message));
        }
        let named = query.server.as_deref();
        let field = named.map_or_else(|| "spec.analysis.prometheus".to_owned(), |_| format!("{at}.server"));
        findings.extend(unknown(&field, named.or(rules.server.as_deref()), servers));
    }
    findings.dedup();
    findings
}

fn unknown(field: &str, name: Option<&str>, servers: &[String]) -> Option<Finding> {
    let message = match server(name, servers) {
        Ok(_) => return None,
        Err(why) => format!("{field}: {why}"),
    };
    // Servers are of the operator's configuration, which no watch shows.
    Some(Finding::new("PrometheusUnknown", message).unwatched())
}

/// The server that is meant: the one of this name, or the only one.
///
/// # Errors
/// A sentence with those that there are.
pub fn server(name: Option<&str>, servers: &[String]) -> Result<String, String> {
    let known = match servers {
        [] => "the operator is configured with none (--prometheus-config, prometheus.servers of its chart)".to_owned(),
        some => format!("the operator is configured with {}", some.join(", ")),
    };
    match (name, servers) {
        (Some(name), _) if servers.iter().any(|server| server == name) => Ok(name.to_owned()),
        (Some(name), _) => Err(format!("there is no Prometheus server {name}: {known}")),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(format!("say which Prometheus server: {known}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(analysis: Value, servers: &[&str]) -> Vec<String> {
        let spec = json!({"target": {"deployment": "web"}, "canary": {"image": "web:2"},
            "steps": [{"weight": 10, "hold": "1m"}], "analysis": analysis});
        let servers: Vec<_> = servers.iter().map(|name| (*name).to_owned()).collect();
        let found = findings(&serde_json::from_value(spec).unwrap(), &servers);
        found
            .into_iter()
            .map(|finding| format!("{}: {}", finding.reason, finding.message))
            .collect()
    }

    fn query(query: &str) -> Value {
        json!({"checks": [{"name": "orders", "prometheus": {"query": query, "min": 1}}]})
    }

    #[test]
    fn without_prometheus_none_is_needed() {
        assert_eq!(told(Value::Null, &[]), [""; 0]);
    }

    #[test]
    fn the_only_server_needs_no_name() {
        assert_eq!(told(json!({"source": "prometheus"}), &["main"]), [""; 0]);
        assert_eq!(told(query("sum(orders)"), &["main"]), [""; 0]);
        assert_eq!(
            told(json!({"source": "prometheus", "prometheus": "b"}), &["a", "b"]),
            [""; 0]
        );
    }

    #[test]
    fn a_server_that_does_not_exist_is_told_with_those_that_do() {
        insta::assert_snapshot!(
            [
                told(json!({"source": "prometheus"}), &[]),
                told(json!({"source": "prometheus"}), &["a", "b"]),
                told(json!({"source": "prometheus", "prometheus": "c"}), &["a", "b"]),
                told(
                    json!({"checks": [{"name": "orders", "prometheus": {"query": "1", "min": 1, "server": "c"}}]}),
                    &["a"]
                ),
            ]
            .concat()
            .join("\n")
        );
    }

    #[test]
    fn a_query_that_cannot_be_read_is_told_with_its_field() {
        let [told] = &told(query("sum(orders"), &["main"])[..] else {
            panic!()
        };
        assert!(
            told.starts_with("QueryInvalid: spec.analysis.checks[orders].prometheus.query: "),
            "{told}"
        );
    }
}
