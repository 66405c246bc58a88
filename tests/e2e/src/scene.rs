//! One scenario: a namespace of its own, and everything worth knowing written down where it fails.

use std::{
    env, fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;

use crate::{
    cluster::{Cluster, repository},
    load::{Load, Request},
    namespace::Namespace,
    operator::Operator,
    process::attempt,
    release::RESOURCE,
};

/// What a scenario has to play with.
#[derive(Debug)]
pub struct Scene {
    /// The cluster.
    pub cluster: &'static Cluster,
    /// The operator, shared with the scenarios that run at the same time.
    pub operator: &'static Operator,
    /// The scenario's own namespace.
    pub namespace: Namespace,
}

/// Plays a scenario on the cluster with the operator installed. Where there is no cluster, says so and passes,
/// or fails where `CI=true`.
///
/// `name` becomes part of the namespace's name. Afterwards the namespace is deleted; after a failure it is kept,
/// with all logs in `target/e2e-logs/NAME`.
pub fn play(name: &str, body: impl FnOnce(&Scene) -> Result<()>) -> Outcome {
    let Some(cluster) = Cluster::for_test(name)? else {
        return Ok(());
    };
    let operator = Operator::installed(cluster)?;
    let scene = Scene {
        cluster,
        operator,
        namespace: Namespace::create(cluster, name)?,
    };
    match catch_unwind(AssertUnwindSafe(|| body(&scene))) {
        Ok(Ok(())) => Ok(scene.namespace.delete()?),
        Ok(Err(error)) => Err(Failure(format!("{error:#}\n\n{}", scene.write_down(name)))),
        Err(panic) => {
            eprintln!("{}", scene.write_down(name));
            resume_unwind(panic)
        }
    }
}

/// How a scenario ended.
pub type Outcome = Result<(), Failure>;

/// Why a scenario failed, for people: the test harness shows a test's error by its `Debug`.
pub struct Failure(String);

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self(format!("{error:#}"))
    }
}

impl Scene {
    /// A host name that no other scenario uses.
    #[must_use]
    pub fn host(&self) -> String {
        format!("{}.test", self.namespace.name())
    }

    /// Constant traffic, for at most `most`.
    pub fn load(&self, request: impl Into<Request>, per_second: u32, most: Duration) -> Result<Load> {
        Load::start(self.cluster, request, per_second, most)
    }

    /// Writes everything that helps to find the fault into a folder; the gist of it as text.
    fn write_down(&self, name: &str) -> String {
        let folder = logs_folder().join(name);
        let gist = self.gist();
        let kept = fs::create_dir_all(&folder)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(fs::write(folder.join("gist.txt"), &gist)?))
            .and_then(|()| self.cluster.collect_logs(&folder));
        let kept = match kept {
            Ok(()) => format!("All logs are in {}.", folder.display()),
            Err(error) => format!("The logs could not be kept: {error:#}"),
        };
        format!("{gist}\n{kept} The namespace {} is kept.", self.namespace.name())
    }

    fn gist(&self) -> String {
        const RELEASES: &str = "-o=custom-columns=NAME:.metadata.name,PHASE:.status.phase,STEP:.status.step,WEIGHT:.status.weight,MESSAGE:.status.message";
        const EVENTS: &str = "-o=custom-columns=AT:.metadata.creationTimestamp,ABOUT:.regarding.kind,NAME:.regarding.name,REASON:.reason,NOTE:.note";
        const WEIGHTS: &str = r"-o=custom-columns=INGRESS:.metadata.name,CANARY:.metadata.annotations.nginx\.ingress\.kubernetes\.io/canary,WEIGHT:.metadata.annotations.nginx\.ingress\.kubernetes\.io/canary-weight";
        let looks: [(&str, &[&str]); 5] = [
            ("releases", &["get", RESOURCE, RELEASES]),
            (
                "objects",
                &["get", "deployments,pods,services,endpointslices", "-o=wide"],
            ),
            ("Ingresses", &["get", "ingresses", WEIGHTS]),
            (
                "events",
                &[
                    "get",
                    "events.events.k8s.io",
                    EVENTS,
                    "--sort-by=.metadata.creationTimestamp",
                ],
            ),
            (
                "logs of the pods",
                &[
                    "logs",
                    "--selector=!no-pod-has-this",
                    "--all-containers",
                    "--prefix",
                    "--tail=10",
                ],
            ),
        ];
        let look = |args: &[&str]| match attempt(&mut self.namespace.kubectl(args), "") {
            Ok(ended) => format!("{}{}", ended.stdout, ended.stderr),
            Err(error) => format!("{error:#}"),
        };
        let mut sections = looks.map(|(title, args)| (title, look(args))).to_vec();
        // Other scenarios share the operator; its lines about them would drown those about this one.
        let about_us = |line: &&str| !line.contains("namespace=") || line.contains(self.namespace.name());
        let log = self.operator.log(2_000).unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<_> = log.lines().filter(about_us).collect();
        sections.push(("the operator's log", lines[lines.len().saturating_sub(40)..].join("\n")));
        sections
            .iter()
            .map(|(title, text)| format!("--- {title}\n{}\n", text.trim_end()))
            .collect()
    }
}

fn logs_folder() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    target.join("e2e-logs")
}
