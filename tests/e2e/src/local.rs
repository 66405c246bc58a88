//! Operators as processes beside the test, so that they can be made to die, or to believe in another time: only builds
//! with debug assertions can. Each watches one namespace and leads by a Lease of its own there, with the rights that the
//! chart gives the operator and no others.

use std::{env, fs, os::unix::process::ExitStatusExt as _, path::PathBuf, thread::JoinHandle, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, repository, setting},
    namespace::Namespace,
    operator::NAME,
    process::{Background, attempt, read_aside},
};

/// After which of its writes an operator dies.
pub const DIE_AFTER_WRITE: &str = "CANARY_OPERATOR_DIE_AFTER_WRITE";
/// File with the seconds by which an operator's wall clock is wrong.
pub const CLOCK_OFFSET: &str = "CANARY_OPERATOR_CLOCK_OFFSET_FILE";

/// The Lease of such an operator, in the namespace that it watches.
const LEASE: &str = "operator";

/// Where operators of one namespace are started.
pub struct Nest<'a> {
    namespace: &'a Namespace,
    binary: PathBuf,
    folder: PathBuf,
}

impl<'a> Nest<'a> {
    /// For operators of `namespace`. The operator's ServiceAccount gets the rights on a Lease there that it has in its own.
    pub fn in_namespace(namespace: &'a Namespace) -> Result<Self> {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        let default = target.join("debug/canary-operator");
        let binary = PathBuf::from(setting("OPERATOR_TEST_BINARY", &default.to_string_lossy()));
        ensure!(
            binary.is_file(),
            "{} is missing: run cargo build --bin canary-operator",
            binary.display()
        );
        let folder = target.join("e2e-operators").join(namespace.name());
        fs::create_dir_all(&folder)?;
        let subject = json!({"kind": "ServiceAccount", "name": NAME, "namespace": NAME});
        let rule = json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "list", "watch", "update"]});
        namespace.apply(&[
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": LEASE}, "rules": [rule]}),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": LEASE},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": LEASE}, "subjects": [subject],
            }),
        ])?;
        Ok(Self {
            namespace,
            binary,
            folder,
        })
    }

    /// A file of this operator's.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts an operator with these variables in its environment. Its token is its own: by that the API server's audit log
    /// tells it from the one before.
    pub fn start(&self, environment: &[(&str, &str)]) -> Result<Process> {
        let cluster = self.namespace.cluster();
        let kubeconfig = self.file("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_of_the_operator(cluster)?.to_string())?;
        let variables = environment.iter().map(|(name, value)| format!("{name}={value}"));
        let mut command = cluster.beside("env", &[]);
        command.arg(format!("KUBECONFIG={}", kubeconfig.display()));
        command.args(variables).arg(&self.binary).args([
            "run",
            "--listen=127.0.0.1:0",
            "--lease-name",
            LEASE,
            "--lease-namespace",
            self.namespace.name(),
            "--watch-namespace",
            self.namespace.name(),
        ]);
        let (process, stdout) = Background::start(&mut command)?;
        Ok(Process {
            process,
            log: Some(read_aside(stdout)),
        })
    }

    /// Frees the Lease of an operator that has died, so that the next one need not wait until it has run out. How long that
    /// takes is measured elsewhere.
    pub fn free_the_lease(&self) -> Result<()> {
        self.namespace.ask(&["delete", "lease", LEASE, "--ignore-not-found"])?;
        Ok(())
    }
}

/// A running operator; dropping it ends it.
pub struct Process {
    process: Background,
    log: Option<JoinHandle<String>>,
}

impl Process {
    /// Whether it has died as it was asked to; an error where it ended otherwise.
    pub fn has_died(&mut self) -> Result<bool> {
        let Some(status) = self.process.ended()? else {
            return Ok(false);
        };
        // Whoever enters a cluster's namespaces ends by the signal that ended what he started there, or tells it as a shell does.
        let abort = Signal::ABORT.as_raw();
        if status.signal() == Some(abort) || status.code() == Some(128 + abort) {
            return Ok(true);
        }
        bail!("the operator ended with {status}: {}", self.log())
    }

    /// What it logged, of one that has ended.
    fn log(&mut self) -> String {
        self.log.take().and_then(|log| log.join().ok()).unwrap_or_default()
    }

    /// Ends it as its pod would be ended, and tells what it logged.
    pub fn stop(mut self, within: Duration) -> Result<String> {
        self.process.interrupt();
        self.process.wait(within)?;
        Ok(self.log())
    }
}

/// A kubeconfig for the operator's ServiceAccount, with a new token.
fn kubeconfig_of_the_operator(cluster: &Cluster) -> Result<Value> {
    let view = cluster.ask(&["config", "view", "--raw", "--minify", "--output=json"])?;
    let mut config: Value = serde_json::from_str(&view)?;
    let token = cluster.ask(&["create", "token", NAME, "--namespace", NAME, "--duration=4h"])?;
    let user = config
        .pointer_mut("/users/0/user")
        .context("the kubeconfig names no user")?;
    *user = json!({"token": token.trim()});
    Ok(config)
}

/// The chart's operator, sent away while other processes do its work; dropping this brings it back.
pub struct Away {
    cluster: &'static Cluster,
    replicas: String,
}

impl Away {
    /// Sends it away, and waits until it has gone.
    pub fn send(cluster: &'static Cluster) -> Result<Self> {
        let ask = |args: &[&str]| cluster.ask(&[&["--namespace", NAME], args].concat());
        let replicas = ask(&["get", "deployment", NAME, "--output=jsonpath={.spec.replicas}"])?;
        let away = Self { cluster, replicas };
        ask(&["scale", "deployment", NAME, "--replicas=0"])?;
        let selector = format!("--selector=app.kubernetes.io/name={NAME}");
        let mut wait = cluster.kubectl(&[
            "--namespace",
            NAME,
            "wait",
            "pods",
            &selector,
            "--for=delete",
            "--timeout=60s",
        ]);
        let gone = attempt(&mut wait, "")?;
        ensure!(gone.success, "the operator does not go: {}", gone.stderr);
        Ok(away)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let replicas = format!("--replicas={}", self.replicas);
        let mut scale = self
            .cluster
            .kubectl(&["--namespace", NAME, "scale", "deployment", NAME, &replicas]);
        // The next to install it would bring it back as well; here nothing more can be done about it.
        if let Err(error) = attempt(&mut scale, "") {
            eprintln!("the operator was not brought back: {error:#}");
        }
    }
}
