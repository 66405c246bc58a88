//! Which Prometheus servers there are.
//!
//! Whoever runs the operator names them; a release picks a name and never an address, or every tenant could have the
//! operator call whatever it can reach.

use crate::api;
use http::Uri;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

/// The file of `--prometheus-config`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    servers: Vec<ServerConfig>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerConfig {
    /// What releases call it.
    pub name: String,
    /// Where it is.
    pub url: Address,
    /// With a token that is sent along.
    #[serde(default)]
    pub bearer_token_file: Option<PathBuf>,
    /// With the certificates of those who may have signed the server's, in PEM; the system's where there is none.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// With the operator's certificate, in PEM.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// With the key of that certificate, in PEM.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// What it calls ingress-nginx's labels.
    #[serde(default)]
    pub labels: LabelNames,
    /// What labels the series of this cluster have besides, where the server has those of several.
    #[serde(default)]
    pub select: BTreeMap<String, String>,
    /// How long it may take for a whole answer.
    #[serde(default = "ServerConfig::deadline")]
    pub deadline: api::Duration,
}

/// Where a server is: its url without `/api/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    query: Uri,
}

impl Address {
    /// Where queries go.
    #[must_use]
    pub fn query(&self) -> &Uri {
        &self.query
    }

    /// Whether it is asked over TLS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.query.scheme_str() == Some("https")
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let query = || {
            let uri: Uri = text.parse().ok()?;
            let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
            // What is before an @ would be a password.
            let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
            if uri.query().is_some() || text.contains('#') {
                return None;
            }
            let path = uri.path().trim_end_matches('/');
            format!("{scheme}://{authority}{path}/api/v1/query").parse().ok()
        };
        match query() {
            Some(query) => Ok(Self { query }),
            None => {
                Err("url is not the address of a server, such as https://prometheus.monitoring.svc:9090".to_owned())
            }
        }
    }
}

/// What ingress-nginx's labels are called in a server: where Prometheus adds labels of the same name to what it scrapes, it
/// renames these to `exported_…`, as the Prometheus operator's ServiceMonitor has it do unless told otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LabelNames {
    /// Of the Ingress.
    pub namespace: String,
    /// Name of the Ingress.
    pub ingress: String,
    /// Name of version 1's Service.
    pub service: String,
    /// The canary's upstream.
    pub canary: String,
    /// HTTP status.
    pub status: String,
    /// Name of the controller's pod.
    pub controller_pod: String,
}

impl Default for LabelNames {
    fn default() -> Self {
        Self {
            namespace: "namespace".to_owned(),
            ingress: "ingress".to_owned(),
            service: "service".to_owned(),
            canary: "canary".to_owned(),
            status: "status".to_owned(),
            controller_pod: "controller_pod".to_owned(),
        }
    }
}

impl LabelNames {
    pub(super) fn all(&self) -> [&str; 6] {
        [
            &self.namespace,
            &self.ingress,
            &self.service,
            &self.canary,
            &self.status,
            &self.controller_pod,
        ]
    }
}

/// What is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It is not YAML of this form.
    #[error("{0}")]
    Malformed(String),
    /// No name, or one that cannot be written in a release.
    #[error(
        "servers[{0}].name {1:?}: a name has lower-case letters, digits, - and ., and begins and ends with a letter or digit"
    )]
    Name(usize, String),
    /// Two servers of one name.
    #[error("two servers are called {0:?}")]
    Twice(String),
    /// Something else that cannot be used.
    #[error("server {server}: {what}")]
    Server {
        /// Its name.
        server: String,
        /// A sentence.
        what: String,
    },
}

/// The servers of a configuration file, by name.
///
/// # Errors
/// Where it is not YAML of that form, or something in it cannot be used.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, ServerConfig>, ConfigError> {
    let config: Config =
        serde_saphyr::from_str(text).map_err(|error| ConfigError::Malformed(error.without_snippet().to_string()))?;
    let mut servers = BTreeMap::new();
    for (index, server) in config.servers.into_iter().enumerate() {
        if !is_name(&server.name) {
            return Err(ConfigError::Name(index, server.name));
        }
        if let Some(what) = server.mistake() {
            let server = server.name;
            return Err(ConfigError::Server { server, what });
        }
        if let Some(twice) = servers.insert(server.name.clone(), server) {
            return Err(ConfigError::Twice(twice.name));
        }
    }
    Ok(servers)
}

fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&name.len()) && name.chars().all(inner) && name.starts_with(edge) && name.ends_with(edge)
}

fn is_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(inner) && !name.starts_with(|c: char| c.is_ascii_digit())
}

impl ServerConfig {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(60);

    fn deadline() -> api::Duration {
        api::Duration::seconds(10)
    }

    fn mistake(&self) -> Option<String> {
        let tls = [&self.ca_file, &self.cert_file, &self.key_file];
        let deadline = self.deadline.get();
        if !self.url.is_encrypted() && tls.into_iter().any(Option::is_some) {
            return Some("caFile, certFile and keyFile take a url that begins with https://".to_owned());
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Some("certFile and keyFile go together".to_owned());
        }
        let names = self.labels.all();
        let mut labels = names.into_iter().chain(self.select.keys().map(String::as_str));
        if let Some(label) = labels.find(|name| !is_label(name)) {
            return Some(format!("{label:?} is no name of a label"));
        }
        if names.into_iter().collect::<BTreeSet<_>>().len() < names.len() {
            return Some("labels: two of them have one name".to_owned());
        }
        if !(Self::SHORTEST..=Self::LONGEST).contains(&deadline) {
            return Some(format!("deadline {} is not between 100ms and 1m", self.deadline));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_server_takes_a_name_and_a_url_and_the_rest_has_defaults() {
        let servers = parse("servers: [{name: main, url: http://prometheus.monitoring:9090}]").unwrap();
        let main = &servers["main"];
        assert_eq!(main.url.query(), "http://prometheus.monitoring:9090/api/v1/query");
        assert_eq!(main.labels, LabelNames::default());
        assert_eq!(main.deadline, api::Duration::seconds(10));
        assert_eq!(parse("servers: []"), Ok(BTreeMap::new()));
    }

    #[test]
    fn everything_of_a_server_can_be_set() {
        let text = "
servers:
  - name: eu.1
    url: https://thanos.example/prometheus/
    bearerTokenFile: /etc/prometheus/token
    caFile: /etc/prometheus/ca.crt
    certFile: /etc/prometheus/tls.crt
    keyFile: /etc/prometheus/tls.key
    labels: {namespace: exported_namespace, service: exported_service, controllerPod: pod}
    select: {cluster: eu-1}
    deadline: 1500ms
";
        let servers = parse(text).unwrap();
        let server = &servers["eu.1"];
        assert_eq!(server.url.query(), "https://thanos.example/prometheus/api/v1/query");
        assert_eq!(
            server.labels.all(),
            [
                "exported_namespace",
                "ingress",
                "exported_service",
                "canary",
                "status",
                "pod"
            ]
        );
        assert_eq!(server.deadline.get(), Duration::from_millis(1500));
        assert_eq!(server.select["cluster"], "eu-1");
        assert_eq!(server.key_file.as_deref(), Some("/etc/prometheus/tls.key".as_ref()));
    }

    #[test]
    fn the_servers_of_the_charts_example_are_accepted() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/examples/prometheus.yaml");
        let values: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let servers = parse(&json!({"servers": values["prometheus"]["servers"]}).to_string()).unwrap();
        assert_eq!(servers.keys().collect::<Vec<_>>(), ["fleet", "main"]);
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let server = |rest: &str| format!("servers: [{{name: main, url: https://prometheus:9090, {rest}}}]");
        let url = |url: &str| format!("servers: [{{name: main, url: '{url}'}}]");
        for (text, expected) in [
            ("{}".to_owned(), "missing field `servers`"),
            ("servers: 5".to_owned(), "expected sequence"),
            (
                "server: []".to_owned(),
                "unknown field `server`, expected one of servers",
            ),
            (server("token: x"), "unknown field `token`, expected one of"),
            (server("labels: {path: x}"), "unknown field `path`, expected one of"),
            (server("deadline: 5"), "\"5\" is not a duration"),
            (
                server("deadline: 0s"),
                "server main: deadline 0s is not between 100ms and 1m",
            ),
            (
                server("deadline: 2m"),
                "server main: deadline 2m is not between 100ms and 1m",
            ),
            (server("certFile: /x"), "server main: certFile and keyFile go together"),
            (
                server("labels: {canary: a-b}"),
                "server main: \"a-b\" is no name of a label",
            ),
            (
                server("labels: {canary: status}"),
                "server main: labels: two of them have one name",
            ),
            (server("select: {'': x}"), "server main: \"\" is no name of a label"),
            (
                "servers: [{name: main, url: http://a, caFile: /ca}]".to_owned(),
                "server main: caFile, certFile and keyFile take a url that begins with https://",
            ),
            (
                "servers: [{name: a, url: http://a}, {name: a, url: http://b}]".to_owned(),
                "two servers are called \"a\"",
            ),
            (
                "servers: [{name: Main, url: http://a}]".to_owned(),
                "servers[0].name \"Main\": a name has lower-case letters",
            ),
            (url("prometheus:9090"), "url is not the address of a server"),
            (url("ftp://a"), "url is not the address of a server"),
            (url("http://me:secret@a"), "url is not the address of a server"),
            (url("http://a/?b=c"), "url is not the address of a server"),
            (url("http://a/#b"), "url is not the address of a server"),
            (url("/api"), "url is not the address of a server"),
        ] {
            let told = parse(&text).unwrap_err().to_string();
            assert!(told.contains(expected), "{text}: {told}");
            assert!(!told.contains('\n'), "{told}");
        }
    }
}
