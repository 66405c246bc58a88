//! How to reach a cluster: the rig beside this crate, or whatever the caller's kubeconfig points to.

use std::{
    env,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

use crate::process::{attempt, output, output_of_input};

/// A cluster with ingress-nginx.
#[derive(Debug)]
pub struct Cluster {
    /// The rig's script; none where plain `kubectl` and `helm` are to be used.
    rig: Option<PathBuf>,
    ingress_address: String,
    audit_log: Option<PathBuf>,
}

/// Whether there is a cluster to test on.
#[derive(Debug)]
pub enum Found {
    /// Yes.
    Cluster(&'static Cluster),
    /// No, for this reason.
    Nothing(String),
}

impl Cluster {
    /// The cluster for this process. Where the rig is used and does not run yet, it is started, which takes
    /// minutes where it has to be built first; its progress goes to standard error.
    ///
    /// `CLUSTER=current` takes the cluster of the caller's kubeconfig, with `INGRESS_ADDRESS` for the traffic.
    pub fn find() -> Result<Found> {
        static FOUND: OnceLock<Result<Result<Cluster, String>, String>> = OnceLock::new();
        let look = || {
            if env::var("CLUSTER").as_deref() == Ok("current") {
                current()
            } else {
                rig()
            }
        };
        match FOUND.get_or_init(|| look().map_err(|error| format!("{error:#}"))) {
            Ok(Ok(cluster)) => Ok(Found::Cluster(cluster)),
            Ok(Err(reason)) => Ok(Found::Nothing(reason.clone())),
            Err(error) => bail!("the cluster cannot be used: {error}"),
        }
    }

    /// For a test: the cluster, or nothing after having said what is left out. Where `CI=true`, nothing is an error.
    pub fn for_test(name: &str) -> Result<Option<&'static Self>> {
        match Self::find()? {
            Found::Cluster(cluster) => Ok(Some(cluster)),
            Found::Nothing(reason) if env::var("CI").as_deref() == Ok("true") => {
                bail!("there must be a cluster where CI=true, and there is none: {reason}")
            }
            Found::Nothing(reason) => {
                // Written past the test harness, which swallows what a passing test prints.
                writeln!(io::stderr(), "LEFT OUT: {name}: no cluster: {reason}")?;
                Ok(None)
            }
        }
    }

    /// `kubectl` with these arguments.
    #[must_use]
    pub fn kubectl(&self, args: &[&str]) -> Command {
        self.tool("kubectl", args)
    }

    /// `helm` with these arguments.
    #[must_use]
    pub fn helm(&self, args: &[&str]) -> Command {
        self.tool("helm", args)
    }

    fn tool(&self, tool: &str, args: &[&str]) -> Command {
        let mut command = match &self.rig {
            Some(rig) => {
                let mut command = Command::new(rig);
                command.arg(tool);
                command
            }
            None => Command::new(tool),
        };
        command.args(args);
        command
    }

    /// `program` with these arguments, where the addresses of the cluster can be reached.
    #[must_use]
    pub fn beside(&self, program: &str, args: &[&str]) -> Command {
        self.on_node(program, args).unwrap_or_else(|| {
            let mut command = Command::new(program);
            command.args(args);
            command
        })
    }

    /// `program` with these arguments on the node itself, where every process of every pod is seen; only the rig
    /// lets one in.
    #[must_use]
    pub fn on_node(&self, program: &str, args: &[&str]) -> Option<Command> {
        let mut command = Command::new(self.rig.as_ref()?);
        command.args(["exec", "--", program]).args(args);
        Some(command)
    }

    /// Numbers of the processes of the container with this id; none where the node's processes are out of reach.
    pub fn processes(&self, container: &str) -> Result<Option<Vec<String>>> {
        // Every process's cgroup names its container. Processes end while this looks, hence the `2>/dev/null`.
        let script = r#"grep -l "$0" /proc/[0-9]*/cgroup 2>/dev/null | cut -d/ -f3"#;
        let Some(mut look) = self.on_node("sh", &["-c", script, container]) else {
            return Ok(None);
        };
        let found: Vec<String> = output(&mut look)?.lines().map(str::to_owned).collect();
        if container.is_empty() || found.is_empty() {
            bail!("no process of the container {container:?} was found on the node");
        }
        Ok(Some(found))
    }

    /// Kills the processes of the container with this id by signal 9; false where the node's processes are out of reach.
    pub fn kill_container(&self, container: &str) -> Result<bool> {
        // Those that nginx was about to end, or that go with the first of them, are gone when it is their turn.
        let script = r#"for process; do kill -9 "$process" 2>/dev/null || [ ! -d "/proc/$process" ] || exit 1; done"#;
        let (Some(processes), Some(mut kill)) =
            (self.processes(container)?, self.on_node("sh", &["-c", script, "kill"]))
        else {
            return Ok(false);
        };
        output(kill.args(&processes))?;
        Ok(true)
    }

    /// What `kubectl` answers.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl(args).arg("--request-timeout=30s"))
    }

    /// What `kubectl` answers to this input.
    pub fn tell(&self, args: &[&str], input: &str) -> Result<String> {
        output_of_input(self.kubectl(args).arg("--request-timeout=30s"), input)
    }

    /// Address of the ingress controller for [`Self::beside`].
    #[must_use]
    pub fn ingress_address(&self) -> &str {
        &self.ingress_address
    }

    /// The API server's audit log; none where it is out of reach.
    #[must_use]
    pub fn audit_log(&self) -> Option<&Path> {
        self.audit_log.as_deref()
    }

    /// Lets the rig write down everything it knows.
    pub fn collect_logs(&self, folder: &Path) -> Result<()> {
        if let Some(rig) = &self.rig {
            output(Command::new(rig).arg("logs").arg(folder))?;
        }
        Ok(())
    }

    /// How to call `kubectl` for this cluster by hand.
    #[must_use]
    pub fn kubectl_by_hand(&self) -> String {
        match &self.rig {
            Some(rig) => format!("{} kubectl", rig.strip_prefix(repository()).unwrap_or(rig).display()),
            None => "kubectl".to_owned(),
        }
    }

    /// How to stop this cluster by hand; none where it is not ours to stop.
    #[must_use]
    pub fn stop_by_hand(&self) -> Option<String> {
        let rig = self.rig.as_ref()?;
        Some(format!(
            "{} down",
            rig.strip_prefix(repository()).unwrap_or(rig).display()
        ))
    }
}

/// The repository's folder.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// A setting from the environment.
#[must_use]
pub fn setting(name: &str, default: &str) -> String {
    env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| default.to_owned())
}

fn current() -> Result<Result<Cluster, String>> {
    let ready = attempt(
        Command::new("kubectl").args(["get", "--raw=/readyz", "--request-timeout=10s"]),
        "",
    )?;
    if !ready.success {
        return Ok(Err(format!(
            "CLUSTER=current, and the cluster of this kubeconfig does not answer: {}",
            ready.stderr
        )));
    }
    let ingress_address = setting("INGRESS_ADDRESS", "");
    if ingress_address.is_empty() {
        return Ok(Err(
            "CLUSTER=current needs INGRESS_ADDRESS, the address at which ingress-nginx answers from here, such as that \
             of its LoadBalancer or of a port-forward"
                .to_owned(),
        ));
    }
    if Command::new("vegeta")
        .arg("-version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        return Ok(Err("CLUSTER=current needs vegeta on PATH for the traffic".to_owned()));
    }
    Ok(Ok(Cluster {
        rig: None,
        ingress_address,
        audit_log: None,
    }))
}

fn rig() -> Result<Result<Cluster, String>> {
    let rig = repository().join("tests/cluster/cluster");
    if !attempt(Command::new(&rig).arg("status"), "")?.success {
        let check = attempt(Command::new(&rig).arg("check"), "")?;
        if !check.success {
            return Ok(Err(check.stderr));
        }
        let up = Command::new(&rig)
            .arg("up")
            .stdin(Stdio::null())
            .status()
            .context("cannot start the rig")?;
        if !up.success() {
            bail!("{} up failed; what it said stands above", rig.display());
        }
    }
    let exports = output(Command::new(&rig).arg("env"))?;
    let Some(ingress_address) = exported(&exports, "INGRESS_ADDRESS") else {
        bail!("{} env tells no INGRESS_ADDRESS", rig.display());
    };
    Ok(Ok(Cluster {
        rig: Some(rig),
        ingress_address: ingress_address.to_owned(),
        audit_log: exported(&exports, "AUDIT_LOG").map(PathBuf::from),
    }))
}

/// The value of `name` among lines of `export NAME=VALUE`; good for values that need no quotes.
fn exported<'a>(exports: &'a str, name: &str) -> Option<&'a str> {
    let pairs = exports
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("export ").split_once('='));
    pairs
        .filter(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value)
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read() {
        let exports = "export A=1\nexport INGRESS_ADDRESS=10.96.0.80\nexport EMPTY=\n";
        assert_eq!(exported(exports, "INGRESS_ADDRESS"), Some("10.96.0.80"));
        assert_eq!((exported(exports, "EMPTY"), exported(exports, "B")), (None, None));
    }

    #[test]
    fn the_repository_is_where_this_crate_lies() {
        assert!(repository().join("tests/e2e/Cargo.toml").is_file());
    }
}
