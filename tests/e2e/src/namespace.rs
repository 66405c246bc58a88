//! A namespace of its own for each scenario.

use std::process::{self, Command};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    process::{attempt, output, output_of_input},
};

/// Label on the namespaces made here; its value is the scenario.
const LABEL: &str = "canary-e2e/scenario";

/// A namespace.
#[derive(Debug)]
pub struct Namespace {
    cluster: &'static Cluster,
    name: String,
}

impl Namespace {
    /// A fresh namespace for `scenario`. What an earlier run of it kept for inspection is removed first: it would
    /// share the host name and the CPU.
    pub fn create(cluster: &'static Cluster, scenario: &str) -> Result<Self> {
        let kept = cluster.ask(&["get", "namespaces", "-l", &format!("{LABEL}={scenario}"), "-o=name"])?;
        for name in kept.lines().filter_map(|line| line.strip_prefix("namespace/")) {
            Self {
                cluster,
                name: name.to_owned(),
            }
            .remove_the_hard_way()?;
        }
        // Unique without randomness: another run at the same second is another process.
        Self::make(
            cluster,
            scenario,
            format!(
                "{scenario}-{:x}-{:x}",
                process::id(),
                Timestamp::now().as_second() & 0xfffff
            ),
        )
    }

    /// A fresh namespace of this very name, in place of one that was made here before.
    pub fn named(cluster: &'static Cluster, name: &str) -> Result<Self> {
        let kept = Self {
            cluster,
            name: name.to_owned(),
        };
        kept.remove_if_ours(name)?;
        Self::make(cluster, name, name.to_owned())
    }

    fn make(cluster: &'static Cluster, scenario: &str, name: String) -> Result<Self> {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {LABEL: scenario}},
        });
        cluster.tell(&["create", "-f", "-"], &namespace.to_string())?;
        Ok(Self { cluster, name })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies.
    #[must_use]
    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    /// `kubectl` for this namespace.
    #[must_use]
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = self.cluster.kubectl(&["--namespace", &self.name]);
        command.args(args);
        command
    }

    /// What `kubectl` answers.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl(args).arg("--request-timeout=30s"))
    }

    /// What `kubectl get ARGS -o json` answers.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = output(
            self.kubectl(&["get"])
                .args(args)
                .args(["--output=json", "--request-timeout=30s"]),
        )?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {} answered no JSON", args.join(" ")))
    }

    /// What a path below the namespace answers, such as that of a Service's proxy.
    pub fn get_raw(&self, path: &str) -> Result<Value> {
        let path = format!("--raw=/api/v1/namespaces/{}/{path}", self.name);
        let text = self.cluster.ask(&["get", &path])?;
        serde_json::from_str(&text).with_context(|| format!("{path} answered no JSON"))
    }

    /// `kubectl apply` of these objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        output_of_input(
            &mut self.kubectl(&["apply", "--request-timeout=30s", "-f", "-"]),
            &list(objects),
        )?;
        Ok(())
    }

    /// `kubectl apply` of an object that should be refused: what it was told, or nothing where it was accepted.
    pub fn apply_in_vain(&self, object: &Value) -> Result<Option<String>> {
        let mut command = self.kubectl(&["apply", "--request-timeout=30s", "-f", "-"]);
        let ended = attempt(&mut command, &object.to_string())?;
        Ok((!ended.success).then_some(ended.stderr))
    }

    /// Names, as `kind.group/name`, of the objects of these kinds (separated by commas) with this label selector.
    pub fn names(&self, kinds: &str, selector: &str) -> Result<Vec<String>> {
        let answer = self.ask(&["get", kinds, "--selector", selector, "--output=name"])?;
        Ok(answer.lines().map(str::to_owned).collect())
    }

    /// Deletes the namespace, without waiting for the last of it to go.
    pub fn delete(&self) -> Result<()> {
        // The releases go first, while the rest still stands, so that the operator can bring traffic back in order.
        self.ask(&["delete", "canaryreleases.canary-operator.dev", "--all", "--wait=false"])?;
        self.cluster
            .ask(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"])?;
        Ok(())
    }

    /// Removes the namespace `name` where it was made here, and waits until it is gone; false where it was not.
    pub fn remove_if_ours(&self, name: &str) -> Result<bool> {
        let label = self.cluster.ask(&[
            "get",
            "namespaces",
            "-l",
            LABEL,
            "--field-selector",
            &format!("metadata.name={name}"),
            "-o=name",
        ])?;
        if label.trim().is_empty() {
            return Ok(false);
        }
        Self {
            cluster: self.cluster,
            name: name.to_owned(),
        }
        .remove_the_hard_way()?;
        Ok(true)
    }

    /// Deletes the namespace, and waits until it is gone.
    pub fn delete_and_wait(&self) -> Result<()> {
        self.delete()?;
        self.wait_until_gone()
    }

    fn wait_until_gone(&self) -> Result<()> {
        output(&mut self.cluster.kubectl(&[
            "wait",
            "--for=delete",
            &format!("namespace/{}", self.name),
            "--timeout=120s",
        ]))?;
        Ok(())
    }

    /// Deletes what a failed run left, and waits. An operator that is not running, or the very fault under
    /// investigation, may never take its finalizer off; here that is done for it.
    fn remove_the_hard_way(&self) -> Result<()> {
        let releases = attempt(
            &mut self.kubectl(&["get", "canaryreleases.canary-operator.dev", "-o=name"]),
            "",
        )?;
        self.cluster
            .ask(&["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"])?;
        for release in releases.stdout.lines() {
            let no_finalizers = r#"--patch={"metadata":{"finalizers":null}}"#;
            attempt(
                &mut self.kubectl(&["patch", release, "--type=merge", no_finalizers]),
                "",
            )?;
        }
        self.wait_until_gone()
    }
}

/// The objects as one `List`, which `kubectl apply` takes in one go.
fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}
