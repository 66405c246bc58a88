//! The operator as a process of its own, and what the kernel says it takes.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// What /proc counts processor time in.
const TICKS_A_SECOND: f64 = 100.0;
/// Something that takes longer will never be.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the process is asked for what it does not tell by itself.
const LOOK: Duration = Duration::from_millis(20);

/// A running operator; dropping it ends it.
pub struct Operator {
    child: Child,
    port: u16,
    pub began: Instant,
}

/// What it has taken so far.
#[derive(Clone, Copy)]
pub struct Usage {
    pub at: Instant,
    /// Seconds of processor time.
    pub cpu: f64,
    /// MiB.
    pub resident: f64,
    /// MiB.
    pub peak: f64,
}

impl Operator {
    /// Starts `canary-operator run`; its log goes to `dir`.
    pub fn start(dir: &Path, name: &str, kubeconfig: &Path, arguments: &[&str]) -> Self {
        // Taken by the operator a moment later.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = File::create(dir.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_canary-operator"));
        command
            .args(["run", "--listen", &format!("127.0.0.1:{port}"), "--instance", name])
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env_remove("POD_NAME")
            .env_remove("POD_NAMESPACE")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let began = Instant::now();
        let child = command.spawn().unwrap();
        Self { child, port, began }
    }

    /// The answer to a GET, without its head; none while it does not listen.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.0 200").then(|| body.to_owned())
    }

    /// Its own metrics: series as written, and values.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        let text = self.get("/metrics").unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
            .collect()
    }

    /// The sum of the series of this name, or of one of them.
    pub fn metric(&self, name: &str) -> f64 {
        let of = |series: &str| series == name || series.split('{').next() == Some(name);
        self.metrics()
            .iter()
            .filter(|(series, _)| of(series))
            .map(|(_, value)| value)
            .sum()
    }

    /// Waits until it leads and has listed all releases; how long that took since it was started.
    pub async fn settled(&mut self) -> Duration {
        self.until("settled", |operator| {
            operator.get("/readyz").is_some_and(|ready| ready == "leader\n")
        })
        .await;
        self.began.elapsed()
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !condition(self) {
            assert!(
                began.elapsed() < PATIENCE,
                "the operator is not {what} after {PATIENCE:?}"
            );
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the operator ended: {status}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// As the kernel counts it.
    pub fn usage(&self) -> Usage {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap();
        let (stat, status) = (read("stat"), read("status"));
        // The name in parentheses may have blanks; user and system time are the 14th and 15th field.
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
        let mebibytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let kibibytes = line.trim_start_matches(':').trim().trim_end_matches(" kB");
            kibibytes.parse::<f64>().unwrap() / 1024.0
        };
        Usage {
            at: Instant::now(),
            cpu: (ticks(11) + ticks(12)) / TICKS_A_SECOND,
            resident: mebibytes("VmRSS"),
            peak: mebibytes("VmHWM"),
        }
    }
}

impl Usage {
    /// Seconds of processor time a minute since then.
    pub fn cpu_a_minute(&self, since: &Self) -> f64 {
        (self.cpu - since.cpu) / (self.at - since.at).as_secs_f64() * 60.0
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
