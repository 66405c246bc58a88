//! A Prometheus of a scenario's own, which it may stop and start again.

use std::{env, fs, process, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, setting},
    namespace::Namespace,
    process::{attempt, output, until},
};

const MANIFEST: &str = include_str!("../manifests/prometheus.yaml");
/// The image in the manifest.
const IMAGE: &str = "localhost/prometheus:v2";
const TO_START: Duration = Duration::from_secs(60);

/// Names under which the operator knows a Prometheus, whether it runs or not. Each is one scenario's, so that it may be
/// stopped.
const SERVERS: [&str; 3] = ["steady", "stopped", SECURED];
/// The one that speaks TLS, and only with the operator.
pub const SECURED: &str = "secured";

/// A running Prometheus that asks the ingress controllers every 5 s.
#[derive(Debug)]
pub struct Prometheus {
    name: String,
    namespace: Namespace,
}

impl Prometheus {
    /// Starts the one with this name among those that the operator knows, and waits until it has asked a controller.
    pub fn start(cluster: &'static Cluster, name: &str) -> Result<Self> {
        ensure!(SERVERS.contains(&name), "the operator knows no Prometheus {name}");
        let prometheus = Self {
            name: name.to_owned(),
            namespace: Namespace::named(cluster, &namespace_of(name))?,
        };
        let manifest = MANIFEST.replace(IMAGE, &setting("PROMETHEUS_IMAGE", IMAGE));
        let mut objects: Vec<Value> =
            serde_saphyr::from_multiple(&manifest).context("prometheus.yaml cannot be read")?;
        if name == SECURED {
            let deployment = objects.iter_mut().find(|object| object["kind"] == "Deployment");
            secure(deployment.context("prometheus.yaml has no Deployment")?);
            objects.push(certificates_of_server(cluster)?);
        }
        prometheus.namespace.apply(&objects)?;
        prometheus.until_it_asks()?;
        Ok(prometheus)
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
        // It answers nobody but the operator.
        if self.name == SECURED {
            return Ok(());
        }
        until("Prometheus has asked a controller", TO_START, || {
            let targets = self
                .namespace
                .get_raw("services/prometheus:9090/proxy/api/v1/targets?state=active")?;
            let targets = targets["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
            let up = !targets.is_empty() && targets.iter().all(|target| target["health"] == "up");
            Ok(if up {
                Ok(())
            } else {
                Err(format!("its targets are {targets:?}"))
            })
        })
    }
}

fn namespace_of(name: &str) -> String {
    format!("e2e-prometheus-{name}")
}

/// Name of the Service by which the operator asks.
fn host(name: &str) -> String {
    format!("prometheus.{}.svc", namespace_of(name))
}

/// The chart's value `prometheus`.
#[must_use]
pub fn chart_value() -> Value {
    let folder = format!("/etc/canary-operator/prometheus/secrets/{CLIENT}");
    let server = |name: &str| match name {
        SECURED => json!({
            "name": name,
            "url": format!("https://{}:9090", host(name)),
            "caFile": format!("{folder}/ca.crt"),
            "certFile": format!("{folder}/client.crt"),
            "keyFile": format!("{folder}/client.key"),
        }),
        _ => json!({"name": name, "url": format!("http://{}:9090", host(name))}),
    };
    json!({"servers": SERVERS.map(server), "secretNames": [CLIENT]})
}

// --- the one that speaks TLS ------------------------------------------------------------

/// Secret of the operator with its certificate, and with the server's for whoever starts it.
const CLIENT: &str = "prometheus-client";
const SERVER: &str = "prometheus-server";
const FILES: [&str; 5] = ["ca.crt", "client.crt", "client.key", "server.crt", "server.key"];

/// Makes the certificates in the current folder; `$0` is the server's name.
const MAKE_CERTIFICATES: &str = r#"
set -eu
printf '[req]\ndistinguished_name = name\n[name]\n' >req.cnf
certificate() {
    name=$1
    shift
    openssl req -x509 -config req.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -subj "/CN=$name" -keyout "$name.key" -out "$name.crt" "$@"
}
certificate ca -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign
certificate server -CA ca.crt -CAkey ca.key -addext "subjectAltName=DNS:$0"
certificate client -CA ca.crt -CAkey ca.key -addext extendedKeyUsage=clientAuth
"#;

/// Sees to it that the operator's namespace has the Secret that its chart mounts. One that is there stays: a pod would see
/// another one a minute later.
pub fn make_certificates(cluster: &Cluster, namespace: &str) -> Result<()> {
    let found = attempt(
        &mut cluster.kubectl(&["--namespace", namespace, "get", "secret", CLIENT]),
        "",
    )?;
    if found.success {
        return Ok(());
    }
    let folder = env::temp_dir().join(format!("canary-e2e-{}", process::id()));
    fs::create_dir_all(&folder)?;
    let host = host(SECURED);
    let made = output(
        Command::new("sh")
            .args(["-c", MAKE_CERTIFICATES, &host])
            .current_dir(&folder),
    );
    let read = |file: &str| anyhow::Ok((file.to_owned(), Value::from(fs::read_to_string(folder.join(file))?)));
    let files = made.and_then(|_| FILES.iter().map(|file| read(file)).collect::<Result<_>>());
    fs::remove_dir_all(&folder)?;
    let secret = secret(CLIENT, Some(namespace), Value::Object(files?));
    let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    cluster.tell(
        &["apply", "-f", "-"],
        &json!({"apiVersion": "v1", "kind": "List", "items": [home, secret]}).to_string(),
    )?;
    Ok(())
}

/// The server's Secret, from what the operator's namespace has.
fn certificates_of_server(cluster: &Cluster) -> Result<Value> {
    let namespace = crate::operator::NAME;
    let made = cluster.ask(&["--namespace", namespace, "get", "secret", CLIENT, "--output=json"])?;
    let made: Value = serde_json::from_str(&made)?;
    let mut server = secret(SERVER, None, json!({}));
    server["data"] = made["data"].clone();
    Ok(server)
}

fn secret(name: &str, namespace: Option<&str>, files: Value) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files})
}

/// Has Prometheus speak TLS, with those alone who have a certificate.
fn secure(deployment: &mut Value) {
    let pod = &mut deployment["spec"]["template"]["spec"];
    let container = &mut pod["containers"][0];
    // The kubelet has no certificate.
    container["readinessProbe"] = json!({"tcpSocket": {"port": 9090}, "periodSeconds": 1});
    let list = |value: &mut Value, more: Value| {
        if let Some(list) = value.as_array_mut() {
            list.push(more);
        }
    };
    list(
        &mut container["args"],
        json!("--web.config.file=/etc/prometheus/web.yml"),
    );
    list(
        &mut container["volumeMounts"],
        json!({"name": "certificates", "mountPath": "/etc/certificates", "readOnly": true}),
    );
    list(
        &mut pod["volumes"],
        json!({"name": "certificates", "secret": {"secretName": SERVER}}),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_has_what_is_changed() {
        let objects: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
        let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        let mut deployment = of_kind("Deployment").clone();
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], IMAGE);
        let plain = deployment.clone();
        secure(&mut deployment);
        let pod = |deployment: &Value| deployment["spec"]["template"]["spec"].clone();
        let len = |value: &Value| value.as_array().unwrap().len();
        let (before, after) = (pod(&plain), pod(&deployment));
        assert_eq!(len(&after["volumes"]), len(&before["volumes"]) + 1);
        for field in ["args", "volumeMounts"] {
            assert_eq!(
                len(&after["containers"][0][field]),
                len(&before["containers"][0][field]) + 1
            );
        }
        assert!(
            of_kind("ConfigMap")["data"]["web.yml"]
                .as_str()
                .unwrap()
                .contains("RequireAndVerifyClientCert")
        );
    }

    #[test]
    fn the_operator_knows_every_server() {
        let servers = chart_value()["servers"].clone();
        let names: Vec<_> = servers
            .as_array()
            .unwrap()
            .iter()
            .map(|server| server["name"].clone())
            .collect();
        assert_eq!(names, SERVERS);
        assert_eq!(servers[2]["url"], "https://prometheus.e2e-prometheus-secured.svc:9090");
    }
}
