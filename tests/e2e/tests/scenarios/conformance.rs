//! The script that the simulated API server is tested by, on the real one: both have to answer what is recorded.

// What the simulation differs in is for the other test that has this file.
#[allow(dead_code)]
#[path = "../../../conformance/runner.rs"]
mod runner;

use std::{
    env, fs,
    io::{self, Write as _},
    path::PathBuf,
    process::{self, ChildStdout, Command},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use canary_e2e::{
    cluster::{Cluster, repository},
    namespace::Namespace,
    process::{Background, attempt, until},
};
use runner::{Answers, Recording, Reply, Request, Script, Server, differences};
use serde_json::{Value, json};

/// A group of its own, so that no operator meddles.
const GROUP: &str = "conformance.canary-operator.dev";
const RECORDING: &str = "tests/conformance/recording.json";

/// The API server, through `kubectl proxy`, which knows how to reach it and who we are.
struct Real {
    socket: PathBuf,
    _proxy: Background,
    /// Closed, it would end the proxy, which tells there that it begins.
    _told: ChildStdout,
}

impl Real {
    fn reach(cluster: &Cluster) -> Result<Self> {
        let socket = env::temp_dir().join(format!("canary-conformance-{}.sock", process::id()));
        let option = format!("--unix-socket={}", socket.display());
        let (proxy, told) = Background::start(&mut cluster.kubectl(&["proxy", &option]))?;
        let real = Self {
            socket,
            _proxy: proxy,
            _told: told,
        };
        until("kubectl proxy answers", Duration::from_secs(20), || {
            let ended = attempt(real.curl().args(["--fail", "http://localhost/readyz"]), "")?;
            Ok(if ended.success { Ok(()) } else { Err(ended.stderr) })
        })?;
        Ok(real)
    }

    fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--globoff",
            "--max-time",
            "60",
            "--unix-socket",
        ]);
        curl.arg(&self.socket);
        curl
    }

    fn exchange(&self, request: &Request) -> Result<Reply> {
        let mut curl = self.curl();
        curl.args(["--request", &request.verb, "--write-out", "\n%{http_code}"]);
        for (name, value) in [("Content-Type", request.content_type), ("Accept", &request.accept)] {
            curl.arg("--header").arg(format!("{name}: {value}"));
        }
        if request.body.is_some() {
            curl.args(["--data-binary", "@-"]);
        }
        curl.arg(format!("http://localhost{}", request.path));
        let ended = attempt(&mut curl, request.body.as_deref().unwrap_or_default())?;
        ensure!(ended.success, "curl failed: {}", ended.stderr);
        let (body, code) = ended.stdout.rsplit_once('\n').context("curl told no status code")?;
        Ok(Reply {
            code: code.parse()?,
            body: body.to_owned(),
        })
    }

    fn version(&self) -> Result<String> {
        let reply = self.exchange(&Request {
            verb: "GET".to_owned(),
            path: "/version".to_owned(),
            content_type: "application/json",
            accept: "application/json".to_owned(),
            body: None,
        })?;
        let version: Value = serde_json::from_str(&reply.body)?;
        Ok(version["gitVersion"]
            .as_str()
            .unwrap_or("an unknown version")
            .to_owned())
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // Killed, the proxy leaves its socket behind.
        let _ = fs::remove_file(&self.socket);
    }
}

impl Server for Real {
    fn send(&mut self, request: &Request) -> Result<Reply, String> {
        self.exchange(request).map_err(|error| format!("{error:#}"))
    }

    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(200));
    }
}

/// The definition of CanaryRelease under [`GROUP`]; dropping it removes it with all its objects.
struct Definition(&'static Cluster);

impl Definition {
    fn install(cluster: &'static Cluster) -> Result<Self> {
        let text = fs::read_to_string(repository().join("crds/canaryreleases.yaml"))?;
        let mut definition: Value = serde_saphyr::from_str(&text.replace("canary-operator.dev", GROUP))?;
        if let Some(names) = definition["spec"]["names"].as_object_mut() {
            // `kubectl get all` and `kubectl get canary` stay with the real one.
            names.retain(|name, _| name != "categories" && name != "shortNames");
        }
        let this = Self(cluster);
        // Put back in order what an earlier run that was killed has left.
        this.remove()?;
        cluster.tell(&["create", "-f", "-"], &definition.to_string())?;
        let name = format!("crd/canaryreleases.{GROUP}");
        cluster.ask(&["wait", "--for=condition=Established", "--timeout=20s", &name])?;
        Ok(this)
    }

    fn remove(&self) -> Result<()> {
        let name = format!("canaryreleases.{GROUP}");
        self.0
            .ask(&["delete", "crd", &name, "--ignore-not-found", "--wait=true"])?;
        Ok(())
    }
}

impl Drop for Definition {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            let _ = writeln!(io::stderr(), "the definition of {GROUP} stays: {error:#}");
        }
    }
}

#[test]
fn the_api_server_answers_as_it_is_recorded_for_the_simulation() -> Result<()> {
    let Some(cluster) = Cluster::for_test("conformance")? else {
        return Ok(());
    };
    let script = Script::read().map_err(|why| anyhow!(why))?;
    let namespace = Namespace::create(cluster, "conformance")?;
    // A namespace gets these from controllers in its own time; the script counts objects.
    for made in ["configmap/kube-root-ca.crt", "serviceaccount/default"] {
        until(&format!("{made} is there"), Duration::from_secs(20), || {
            Ok(namespace.ask(&["get", made]).map_err(|error| error.to_string()))
        })?;
    }
    let _definition = Definition::install(cluster)?;
    let mut real = Real::reach(cluster)?;
    let answers = script
        .play(&mut real, namespace.name(), GROUP)
        .map_err(|why| anyhow!(why))?;
    let version = real.version()?;
    let file = repository().join(RECORDING);
    if env::var("CONFORMANCE").as_deref() == Ok("record") {
        fs::write(&file, written(&version, &answers))?;
    }
    let recording = Recording::parse(&fs::read_to_string(&file)?).map_err(|why| anyhow!(why))?;
    let faults = differences(&recording.answers, &answers);
    ensure!(
        faults.is_empty(),
        "{} answers of {version} are not those that {} gave when it was recorded. Look at what they mean for the \
         simulation, and record them anew: CONFORMANCE=record cargo test -p canary-e2e --test scenarios conformance\n\n{}",
        faults.len(),
        recording.server,
        faults.join("\n\n")
    );
    writeln!(
        io::stderr(),
        "conformance: {} requests, {} known differences of the simulation",
        answers.len(),
        script.known()
    )?;
    // The operator's own definition may not be there, so that nothing of it is asked for.
    cluster.ask(&["delete", "namespace", namespace.name(), "--wait=false"])?;
    Ok(())
}

/// The recording as a file: an answer a line, so that a change shows as what it is.
fn written(version: &str, answers: &Answers) -> String {
    let lines = answers.iter().map(|(step, answer)| {
        let mut line = json!({"step": step});
        if let (Some(line), Some(answer)) = (line.as_object_mut(), answer.as_object()) {
            line.extend(answer.clone());
        }
        line.to_string()
    });
    let lines: Vec<_> = lines.collect();
    format!(
        "{{\"server\": {}, \"answers\": [\n{}\n]}}\n",
        json!(version),
        lines.join(",\n")
    )
}
