//! The API server and its store, stalled, killed, made to forget and cut off: on the rig's node alone.

use std::{
    io::{self, Write as _},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    operator::NAME,
    process::{attempt, output, until},
};

/// How long the API server may take to be ready again.
const TO_COME_BACK: Duration = Duration::from_secs(60);
/// Where etcd takes requests as JSON.
const ETCD: &str = "http://127.0.0.1:2379/v3";
/// The API server's port on the node.
const PORT: &str = "6443";

/// The control plane of the rig's node.
#[derive(Clone, Copy, Debug)]
pub struct ControlPlane {
    cluster: &'static Cluster,
}

impl ControlPlane {
    /// Of this cluster; none where its node is out of reach.
    #[must_use]
    pub fn of(cluster: &'static Cluster) -> Option<Self> {
        cluster.on_node("true", &[]).map(|_| Self { cluster })
    }

    fn on_node(self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self
            .cluster
            .on_node(program, args)
            .context("the node is out of reach")?;
        output(&mut command)
    }

    fn signal(self, signal: &str) -> Result<()> {
        // The shell that starts it again has no name of its own, and must not be hit.
        self.on_node("pkill", &["--exact", signal, "kube-apiserver"])?;
        Ok(())
    }

    /// Stops the API server as a machine would that swaps: connections stay, and nothing is answered.
    pub fn stall(self) -> Result<Stalled> {
        self.signal("-STOP")?;
        Ok(Stalled(self))
    }

    /// The same for so long.
    pub fn stall_for(self, time: Duration) -> Result<()> {
        let _stalled = self.stall()?;
        // Not a wait for something: the time itself is the fault.
        thread::sleep(time);
        Ok(())
    }

    /// Kills the API server by signal 9, and waits until its successor is ready.
    pub fn kill_api_server(self) -> Result<()> {
        let old = self.on_node("pgrep", &["--exact", "kube-apiserver"])?;
        self.signal("-KILL")?;
        until("the API server is another process", TO_COME_BACK, || {
            let mut look = self
                .cluster
                .on_node("pgrep", &["--exact", "kube-apiserver"])
                .context("no node")?;
            let new = attempt(&mut look, "")?.stdout;
            Ok(if new.is_empty() || new == old { Err(new) } else { Ok(()) })
        })?;
        self.until_ready()
    }

    /// Waits until the API server is ready.
    pub fn until_ready(self) -> Result<()> {
        until("the API server is ready", TO_COME_BACK, || {
            let mut ask = self.cluster.kubectl(&["get", "--raw=/readyz", "--request-timeout=5s"]);
            let ended = attempt(&mut ask, "")?;
            Ok(if ended.success { Ok(()) } else { Err(ended.stderr) })
        })
    }

    /// Makes etcd forget every version of every object but the present one.
    pub fn compact(self) -> Result<()> {
        let ask = |path: &str, body: &str| {
            let url = format!("{ETCD}/{path}");
            let answer = self.on_node("curl", &["--silent", "--show-error", "--fail", "--data", body, &url])?;
            serde_json::from_str::<Value>(&answer).with_context(|| format!("{url} answered {answer}"))
        };
        let status = ask("maintenance/status", "{}")?;
        let revision = status["header"]["revision"]
            .as_str()
            .context("etcd tells no revision")?;
        ask(
            "kv/compaction",
            &format!(r#"{{"revision": "{revision}", "physical": true}}"#),
        )?;
        Ok(())
    }

    /// Lets nothing of the operator's pods through to the API server; all others still reach it.
    pub fn cut_the_operator_off(self) -> Result<CutOff> {
        let pods = self.cluster.ask(&[
            "get",
            "pods",
            "--namespace",
            NAME,
            "--selector",
            &format!("app.kubernetes.io/name={NAME}"),
            "--output=jsonpath={.items[*].status.podIP}",
        ])?;
        let mut cut = CutOff {
            control_plane: self,
            addresses: Vec::new(),
        };
        for address in pods.split_whitespace() {
            self.on_node("iptables", &rule("--insert", address))?;
            cut.addresses.push(address.to_owned());
        }
        Ok(cut)
    }
}

fn rule<'a>(what: &'a str, address: &'a str) -> [&'a str; 10] {
    [
        what,
        "INPUT",
        "--source",
        address,
        "--protocol",
        "tcp",
        "--dport",
        PORT,
        "--jump",
        "DROP",
    ]
}

/// An API server that is stalled until this is dropped.
#[derive(Debug)]
pub struct Stalled(ControlPlane);

impl Drop for Stalled {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal("-CONT") {
            drop(writeln!(io::stderr(), "the API server was not continued: {error:#}"));
        }
    }
}

/// Pods that do not reach the API server until this is dropped.
#[derive(Debug)]
pub struct CutOff {
    control_plane: ControlPlane,
    addresses: Vec<String>,
}

impl Drop for CutOff {
    fn drop(&mut self) {
        for address in &self.addresses {
            if let Err(error) = self.control_plane.on_node("iptables", &rule("--delete", address)) {
                drop(writeln!(io::stderr(), "{address} stays cut off: {error:#}"));
            }
        }
    }
}
