//! The operator: installed as users install it, watched, and killed.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::{
    cluster::{Cluster, repository, setting},
    metrics::{Counts, Sample, parse},
    process::{attempt, output, until},
    prometheus,
};

/// Namespace and name of the Helm release, and so of the Deployment.
pub(crate) const NAME: &str = "canary-operator";
/// The operator's pods.
const SELECTOR: &str = "--selector=app.kubernetes.io/name=canary-operator";
/// Counter of the requests that the operator sends to the API server.
const REQUESTS: &str = "canary_operator_api_requests_total";

/// The installed operator.
#[derive(Debug)]
pub struct Operator {
    cluster: &'static Cluster,
}

/// The pod that leads.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorPod {
    /// Its name.
    pub name: String,
    /// Its process in the Lease; another one after every start.
    pub identity: String,
    /// Id of its container without the runtime's prefix; another one after every restart.
    pub container: String,
    /// How often its container was restarted.
    pub restarts: u64,
    /// Whether it is ready.
    pub ready: bool,
}

impl Operator {
    /// The operator of this process, installed or upgraded by `helm` at the first call: the chart of this
    /// repository with the image `OPERATOR_IMAGE`, which must be there for the node to run.
    pub fn installed(cluster: &'static Cluster) -> Result<&'static Self> {
        static OPERATOR: OnceLock<Result<Operator, String>> = OnceLock::new();
        match OPERATOR.get_or_init(|| install(cluster).map_err(|error| format!("{error:#}"))) {
            Ok(operator) => Ok(operator),
            Err(error) => bail!("the operator cannot be installed: {error}"),
        }
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        output(
            self.cluster
                .kubectl(&["--namespace", NAME])
                .args(args)
                .arg("--request-timeout=30s"),
        )
    }

    /// The pod that leads, unless it is about to go.
    pub fn pod(&self) -> Result<Option<OperatorPod>> {
        let identity = self.ask(&[
            "get",
            "lease",
            NAME,
            "--ignore-not-found",
            "--output=jsonpath={.spec.holderIdentity}",
        ])?;
        let pods: Value = serde_json::from_str(&self.ask(&["get", "pods", SELECTOR, "--output=json"])?)?;
        let leads = |pod: &&Value| {
            let name = identity.split_once('_').map(|(name, _)| name);
            pod["metadata"]["deletionTimestamp"].is_null() && pod["metadata"]["name"].as_str() == name
        };
        let Some(pod) = pods["items"].as_array().into_iter().flatten().find(leads) else {
            return Ok(None);
        };
        let container = &pod["status"]["containerStatuses"][0];
        Ok(Some(OperatorPod {
            name: pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            identity,
            container: container_id(container),
            restarts: container["restartCount"].as_u64().unwrap_or_default(),
            ready: container["ready"].as_bool().unwrap_or_default(),
        }))
    }

    /// Waits for a leader that is ready and that `which` holds for.
    pub fn until_ready(&self, within: Duration, which: impl Fn(&OperatorPod) -> bool) -> Result<OperatorPod> {
        until("the operator is ready", within, || {
            Ok(match self.pod()? {
                Some(pod) if pod.ready && which(&pod) => Ok(pod),
                other => Err(format!("its pod is {other:?}")),
            })
        })
    }

    /// Deletes the leader's pod as an upgrade does, and waits for the next leader.
    pub fn delete_pod(&self, within: Duration) -> Result<OperatorPod> {
        let old = self.until_ready(within, |_| true)?;
        self.ask(&["delete", "pod", &old.name, "--wait=false"])?;
        self.until_ready(within, |pod| pod.identity != old.identity)
    }

    /// What `/readyz` answers, by pod.
    pub fn readiness(&self) -> Result<Vec<(String, String)>> {
        let names = self.ask(&["get", "pods", SELECTOR, "--output=jsonpath={.items[*].metadata.name}"])?;
        let answers = names.split_whitespace().map(|name| {
            let path = format!("--raw=/api/v1/namespaces/{NAME}/pods/{name}:8080/proxy/readyz");
            Ok((name.to_owned(), self.ask(&["get", &path])?))
        });
        answers.collect()
    }

    /// Deletes the leader's pod as if its node had died, and waits for the next leader.
    pub fn delete_pod_by_force(&self, within: Duration) -> Result<()> {
        let old = self.until_ready(within, |_| true)?;
        self.ask(&[
            "delete",
            "pod",
            &old.name,
            "--force",
            "--grace-period=0",
            "--wait=false",
        ])?;
        self.until_ready(within, |pod| pod.identity != old.identity)?;
        Ok(())
    }

    /// Kills the leader with signal 9 and waits for the next one; false where the node's processes are out of reach.
    pub fn kill_process(&self, within: Duration) -> Result<bool> {
        let old = self.until_ready(within, |_| true)?;
        if !self.cluster.kill_container(&old.container)? {
            return Ok(false);
        }
        self.until_ready(within, |pod| pod.identity != old.identity)?;
        Ok(true)
    }

    /// The leader's own metrics.
    pub fn metrics(&self) -> Result<Vec<Sample>> {
        let pod = self.until_ready(Duration::from_secs(30), |_| true)?;
        let path = format!("--raw=/api/v1/namespaces/{NAME}/pods/{}:8080/proxy/metrics", pod.name);
        parse(&self.ask(&["get", &path])?).context("the operator's metrics cannot be read")
    }

    /// The requests it has sent to the API server since it started, by verb, resource and code; without those by which it
    /// goes on leading.
    pub fn requests(&self) -> Result<Counts> {
        let samples = self.metrics()?;
        if !samples.iter().any(|sample| sample.name == REQUESTS) {
            bail!("the operator's metrics have no {REQUESTS}");
        }
        let of_leading = |sample: &Sample| {
            sample
                .labels
                .get("resource")
                .is_some_and(|resource| resource == "leases")
        };
        let others: Vec<_> = samples.into_iter().filter(|sample| !of_leading(sample)).collect();
        Ok(Counts::of(REQUESTS, &others))
    }

    /// Resident memory of its process now, and at most so far, in MiB; none where the node's processes are out of reach.
    pub fn resident_mib(&self) -> Result<Option<(f64, f64)>> {
        let pod = self.until_ready(Duration::from_secs(30), |_| true)?;
        self.resident(&pod.container)
    }

    /// Resident memory of each of its containers now, in MiB, by pod and the container's id.
    pub fn memory(&self) -> Result<Vec<(String, f64)>> {
        let pods: Value = serde_json::from_str(&self.ask(&["get", "pods", SELECTOR, "--output=json"])?)?;
        let mut memory = Vec::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let container = container_id(&pod["status"]["containerStatuses"][0]);
            if let Some((now, _)) = self.resident(&container)? {
                memory.push((format!("{name} {}", container.get(..6).unwrap_or_default()), now));
            }
        }
        Ok(memory)
    }

    fn resident(&self, container: &str) -> Result<Option<(f64, f64)>> {
        let Some(processes) = self.cluster.processes(container)? else {
            return Ok(None);
        };
        let Some(mut read) = self.cluster.on_node("cat", &[]) else {
            return Ok(None);
        };
        let status = output(read.args(processes.iter().map(|number| format!("/proc/{number}/status"))))?;
        let mib = |field: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(field)?.strip_suffix("kB"));
            let kib: Option<f64> = line.and_then(|number| number.trim().parse().ok());
            kib.map(|kib| kib / 1024.0)
                .ok_or_else(|| anyhow!("the operator's /proc/…/status has no {field}"))
        };
        Ok(Some((mib("VmRSS:")?, mib("VmHWM:")?)))
    }

    /// The last lines it logged, and those of the process before where there was one.
    pub fn log(&self, lines: u32) -> Result<String> {
        let tail = format!("--tail={lines}");
        let mut log = String::new();
        for previous in ["--previous=true", "--previous=false"] {
            let args = ["--namespace", NAME, "logs", SELECTOR, "--prefix=false", &tail, previous];
            log.push_str(&attempt(&mut self.cluster.kubectl(&args), "")?.stdout);
        }
        Ok(log)
    }
}

/// The id of a container without the runtime's prefix, by its status.
fn container_id(container: &Value) -> String {
    let id = container["containerID"].as_str().unwrap_or_default();
    id.rsplit_once("//").map_or(id, |(_, id)| id).to_owned()
}

fn install(cluster: &'static Cluster) -> Result<Operator> {
    let image = setting("OPERATOR_IMAGE", "localhost/canary-operator:e2e");
    let (repository_of_image, tag) = image
        .rsplit_once(':')
        .filter(|(_, tag)| !tag.contains('/'))
        .with_context(|| format!("OPERATOR_IMAGE {image} has no tag"))?;
    let chart = repository().join("charts/canary-operator");
    let set_repository = format!("--set-string=image.repository={repository_of_image}");
    let set_tag = format!("--set-string=image.tag={tag}");
    let set_prometheus = format!("--set-json=prometheus={}", prometheus::chart_value());
    prometheus::make_certificates(cluster, NAME)?;
    let upgrade = attempt(
        &mut cluster.helm(&[
            "upgrade",
            "--install",
            NAME,
            &chart.to_string_lossy(),
            "--namespace",
            NAME,
            "--create-namespace",
            &set_repository,
            &set_tag,
            &set_prometheus,
            "--set=image.pullPolicy=IfNotPresent",
            "--wait",
            "--timeout=2m",
        ]),
        "",
    )?;
    let operator = Operator { cluster };
    if !upgrade.success {
        let pods = operator.ask(&["get", "pods", "--output=wide"]).unwrap_or_default();
        let events = operator
            .ask(&["get", "events", "--sort-by=.lastTimestamp"])
            .unwrap_or_default();
        let log = operator.log(20).unwrap_or_default();
        bail!(
            "helm upgrade with the image {image}: {}\n{pods}\n{events}\n{log}",
            upgrade.stderr
        );
    }
    operator.until_ready(Duration::from_secs(60), |_| true)?;
    Ok(operator)
}
