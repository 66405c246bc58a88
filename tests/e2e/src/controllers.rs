//! The ingress-nginx controllers: what they counted, and how they are disturbed.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    metrics::{Sample, parse},
    process::{attempt, output, until},
};

const NAMESPACE: &str = "ingress-nginx";
const SELECTOR: &str = "--selector=app.kubernetes.io/name=ingress-nginx,app.kubernetes.io/component=controller";
/// Where they serve their metrics.
const PORT: &str = "10254";
/// What the names of their metrics begin with.
const PREFIX: &str = "nginx_ingress_controller_";
const LAST_RELOAD: &str = "nginx_ingress_controller_config_last_reload_successful_timestamp_seconds";
const TO_COME_BACK: Duration = Duration::from_secs(90);

/// A controller's pod at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    name: String,
    container: String,
    ready: bool,
}

fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let list = cluster.ask(&["--namespace", NAMESPACE, "get", "pods", SELECTOR, "--output=json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pod = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        let id = text(&container["containerID"]);
        Pod {
            name: text(&pod["metadata"]["name"]),
            container: id.rsplit_once("//").map_or_else(String::new, |(_, id)| id.to_owned()),
            ready: container["ready"].as_bool().unwrap_or_default() && pod["metadata"]["deletionTimestamp"].is_null(),
        }
    };
    let pods: Vec<_> = list["items"].as_array().into_iter().flatten().map(pod).collect();
    Ok(pods)
}

/// Waits until every controller is ready and none is one of `old`.
fn until_replaced(cluster: &Cluster, old: &[Pod]) -> Result<()> {
    until("other ingress controllers are ready", TO_COME_BACK, || {
        let now = pods(cluster)?;
        let other = |pod: &Pod| pod.ready && old.iter().all(|old| old.container != pod.container);
        Ok(if !now.is_empty() && now.iter().all(other) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        })
    })
}

/// What all controllers counted so far of the requests with this label `canary` to Ingresses of a namespace: by family, such as
/// `requests`, and status.
pub fn counted(cluster: &Cluster, namespace: &str, canary: &str) -> Result<BTreeMap<(String, String), u64>> {
    let mut counted = BTreeMap::new();
    for pod in pods(cluster)? {
        for Sample { name, labels, value } in samples(cluster, &pod)? {
            let label = |name: &str| labels.get(name).map_or("", String::as_str);
            if let Some(family) = name.strip_prefix(PREFIX)
                && (label("namespace"), label("canary")) == (namespace, canary)
            {
                *counted
                    .entry((family.to_owned(), label("status").to_owned()))
                    .or_default() += value as u64;
            }
        }
    }
    Ok(counted)
}

/// When each controller last reloaded nginx: what hung in a worker that a reload ended may never be counted.
pub fn reloads(cluster: &Cluster) -> Result<Vec<u64>> {
    let mut reloads = Vec::new();
    for pod in pods(cluster)? {
        let mut samples = samples(cluster, &pod)?.into_iter();
        let at = samples.find(|sample| sample.name == LAST_RELOAD);
        let at = at.with_context(|| format!("{} does not say when it last reloaded", pod.name))?;
        reloads.push(at.value as u64);
    }
    Ok(reloads)
}

fn samples(cluster: &Cluster, pod: &Pod) -> Result<Vec<Sample>> {
    let path = format!(
        "--raw=/api/v1/namespaces/{NAMESPACE}/pods/{}:{PORT}/proxy/metrics",
        pod.name
    );
    parse(&cluster.ask(&["get", &path])?)
}

/// Kills the controllers' processes with signal 9, and waits until the kubelet has started the next ones in the same pods,
/// whose counters begin at zero; false where the node's processes are out of reach.
pub fn kill(cluster: &Cluster) -> Result<bool> {
    let old = pods(cluster)?;
    for pod in &old {
        if !cluster.kill_container(&pod.container)? {
            return Ok(false);
        }
    }
    until_replaced(cluster, &old)?;
    Ok(true)
}

/// Deletes the controllers' pods, and waits until others are ready.
pub fn delete(cluster: &Cluster) -> Result<()> {
    let old = pods(cluster)?;
    cluster.ask(&["--namespace", NAMESPACE, "delete", "pods", SELECTOR, "--wait=false"])?;
    until_replaced(cluster, &old)
}

/// No pod reaches the controllers' metrics; dropping it mends that.
#[derive(Debug)]
pub struct Unreachable {
    cluster: &'static Cluster,
}

/// Lets the node drop what pods send to the controllers' metrics. The kubelet still finds them ready, and requests pass.
pub fn cut_off_metrics(cluster: &'static Cluster) -> Result<Option<Unreachable>> {
    let Some(mut drop) = rule(cluster, "--insert") else {
        return Ok(None);
    };
    output(&mut drop).context("the node's packet filter cannot be set")?;
    Ok(Some(Unreachable { cluster }))
}

fn rule(cluster: &Cluster, what: &str) -> Option<Command> {
    cluster.on_node(
        "iptables",
        &["--wait", what, "FORWARD", "-p", "tcp", "--dport", PORT, "-j", "DROP"],
    )
}

impl Drop for Unreachable {
    fn drop(&mut self) {
        // Whatever follows fails by itself where this does.
        if let Some(mut restore) = rule(self.cluster, "--delete") {
            drop(attempt(&mut restore, ""));
        }
    }
}
