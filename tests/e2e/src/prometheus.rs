//! A Prometheus of a scenario's own, which it may stop and start again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    cluster::{Cluster, setting},
    namespace::Namespace,
    process::{output, until},
};

const MANIFEST: &str = include_str!("../manifests/prometheus.yaml");
/// The image in the manifest.
const IMAGE: &str = "localhost/prometheus:v2";
const TO_START: Duration = Duration::from_secs(60);

/// Names under which the operator knows a Prometheus, whether it runs or not. Each is one scenario's, so that it may be
/// stopped.
pub const SERVERS: [&str; 2] = ["steady", "stopped"];

/// A running Prometheus that asks the ingress controllers every 5 s.
#[derive(Debug)]
pub struct Prometheus {
    namespace: Namespace,
}

impl Prometheus {
    /// Starts the one with this name among [`SERVERS`], and waits until it has asked a controller.
    pub fn start(cluster: &'static Cluster, name: &str) -> Result<Self> {
        ensure!(SERVERS.contains(&name), "the operator knows no Prometheus {name}");
        let prometheus = Self {
            namespace: Namespace::named(cluster, &namespace_of(name))?,
        };
        let manifest = MANIFEST.replace(IMAGE, &setting("PROMETHEUS_IMAGE", IMAGE));
        let objects: Vec<Value> = serde_saphyr::from_multiple(&manifest).context("prometheus.yaml cannot be read")?;
        prometheus.namespace.apply(&objects)?;
        prometheus.until_it_asks()?;
        Ok(prometheus)
    }

    /// Its address inside the cluster.
    #[must_use]
    pub fn address(name: &str) -> String {
        format!("http://prometheus.{}.svc:9090", namespace_of(name))
    }

    /// Ends it at once, and with it all it remembers.
    pub fn stop(&self) -> Result<()> {
        self.scale(0)?;
        let timeout = format!("--timeout={}s", TO_START.as_secs());
        let gone = ["wait", "--for=delete", "pod", "--selector=app=prometheus", &timeout];
        output(&mut self.namespace.kubectl(&gone))?;
        Ok(())
    }

    /// Starts it again, and waits until it has asked a controller.
    pub fn start_again(&self) -> Result<()> {
        self.scale(1)?;
        self.until_it_asks()
    }

    /// Removes it.
    pub fn remove(self) -> Result<()> {
        self.namespace.delete()
    }

    fn scale(&self, replicas: u32) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        self.namespace.ask(&["scale", "deployment/prometheus", &replicas])?;
        Ok(())
    }

    fn until_it_asks(&self) -> Result<()> {
        let timeout = format!("--timeout={}s", TO_START.as_secs());
        let ready = ["rollout", "status", "deployment/prometheus", &timeout];
        output(&mut self.namespace.kubectl(&ready))?;
        until("Prometheus has asked a controller", TO_START, || {
            let up = self.ask("up")?;
            Ok(match &up[..] {
                [] => Err("it knows of no controller".to_owned()),
                up if up.iter().all(|up| *up == 1.0) => Ok(()),
                up => Err(format!("up is {up:?}")),
            })
        })
    }

    /// The numbers that a query gives now.
    pub fn ask(&self, query: &str) -> Result<Vec<f64>> {
        let path = format!(
            "/api/v1/namespaces/{}/services/prometheus:9090/proxy/api/v1/query?query={}",
            self.namespace.name(),
            encoded(query)
        );
        let answer = self.namespace.cluster().ask(&["get", "--raw", &path])?;
        let answer: Value = serde_json::from_str(&answer).context("Prometheus answered no JSON")?;
        let result = answer["data"]["result"]
            .as_array()
            .context("Prometheus gave no vector")?;
        let value = |sample: &Value| sample["value"][1].as_str()?.parse().ok();
        let values: Option<Vec<f64>> = result.iter().map(value).collect();
        values.with_context(|| format!("Prometheus answered {answer}"))
    }
}

fn namespace_of(name: &str) -> String {
    format!("e2e-prometheus-{name}")
}

/// A text as a part of a URL.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_fits_into_a_url() {
        assert_eq!(encoded("up{a=\"b c\"} > 1"), "up%7Ba%3D%22b%20c%22%7D%20%3E%201");
    }

    #[test]
    fn the_manifest_has_what_is_stopped_and_the_image_that_may_be_another() {
        let objects: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        assert_eq!(deployment["metadata"]["name"], "prometheus");
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], IMAGE);
    }
}
