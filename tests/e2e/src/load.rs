//! Constant traffic through the real ingress controller, every answer kept.

use std::{
    collections::BTreeMap,
    fmt,
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    cluster::Cluster,
    process::{Background, read_aside},
    stats::{FALSE_ALARM, binomial_bounds},
};

/// An answer that took longer is slow. Nothing in the test application takes a millisecond; what takes seconds is a
/// connection attempt to a pod that is gone.
pub const SLOW: Duration = Duration::from_secs(1);

/// The right to send many requests at once. Where two did so at the same time, the scenarios beside them, which measure
/// how long requests take, would measure the machine.
pub fn burst() -> MutexGuard<'static, ()> {
    static BURST: Mutex<()> = Mutex::new(());
    BURST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Query that tells apart the requests that take turns.
const TURN: &str = "?turn=";

/// How long the generator itself waits for an answer before it counts an error.
const PATIENCE: Duration = Duration::from_secs(15);

/// A GET of the ingress controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    host: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Of the root of `host`.
    #[must_use]
    pub fn to(host: &str) -> Self {
        Self {
            host: host.to_owned(),
            path: "/".to_owned(),
            headers: Vec::new(),
        }
    }

    /// Of this path, which begins with a slash.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// With this header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With these cookies, each `name=value`.
    #[must_use]
    pub fn cookie(self, cookies: &str) -> Self {
        self.header("Cookie", cookies)
    }

    /// Its URL, for a tool that sends [`Self::header_lines`] with it.
    #[must_use]
    pub fn url(&self, cluster: &Cluster) -> String {
        format!("http://{}{}", cluster.ingress_address(), self.path)
    }

    /// Its headers, each `Name: value`, the host first.
    pub fn header_lines(&self) -> impl Iterator<Item = String> {
        let host = format!("Host: {}", self.host);
        let others = self.headers.iter().map(|(name, value)| format!("{name}: {value}"));
        std::iter::once(host).chain(others)
    }
}

impl From<&str> for Request {
    fn from(host: &str) -> Self {
        Self::to(host)
    }
}

impl From<&String> for Request {
    fn from(host: &String) -> Self {
        Self::to(host)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.host, self.path)?;
        self.headers
            .iter()
            .try_for_each(|(name, value)| write!(f, " with {name}: {value}"))
    }
}

/// One answer to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Number of the request, from 0.
    pub number: u64,
    /// Which of the requests it was, where several take turns, from 0.
    pub turn: usize,
    /// When the request was sent.
    pub sent: Timestamp,
    /// How long the answer took.
    pub took: Duration,
    /// Status code; 0 where there was no answer at all.
    pub code: u16,
    /// What went wrong, where something did.
    pub error: String,
    /// Which version answered, by its own header; none where it was not the application that answered.
    pub version: Option<String>,
    /// Which pod answered, likewise.
    pub pod: Option<String>,
}

impl Answer {
    /// Whether a user would have noticed an error.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.code != 200
    }

    fn parse(line: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Line {
            seq: u64,
            code: u16,
            timestamp: Timestamp,
            latency: u64,
            #[serde(default)]
            error: String,
            #[serde(default)]
            url: String,
            headers: Option<BTreeMap<String, Vec<String>>>,
        }

        let line: Line = serde_json::from_str(line).with_context(|| format!("the load generator wrote {line}"))?;
        let mut headers = line.headers.unwrap_or_default();
        let mut header = |name| headers.remove(name).and_then(|values| values.into_iter().next());
        let turn = line.url.rsplit_once(TURN).and_then(|(_, turn)| turn.parse().ok());
        Ok(Self {
            number: line.seq,
            turn: turn.unwrap_or_default(),
            sent: line.timestamp,
            took: Duration::from_nanos(line.latency),
            code: line.code,
            error: line.error,
            version: header("X-Version"),
            pod: header("X-Pod"),
        })
    }
}

/// Answers, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub total: u32,
    /// Those of each version.
    pub versions: BTreeMap<String, u32>,
    /// Those with each status code; 0 where there was no answer at all.
    pub codes: BTreeMap<u16, u32>,
    /// Those that were not 200.
    pub failed: u32,
    /// Those slower than [`SLOW`].
    pub slow: u32,
    /// The first few that failed or were slow, for people.
    pub examples: Vec<String>,
}

impl Tally {
    /// Counts these answers.
    pub fn of<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Self {
        const EXAMPLES: usize = 5;
        let mut tally = Self::default();
        for answer in answers {
            tally.total += 1;
            *tally.codes.entry(answer.code).or_default() += 1;
            if let Some(version) = &answer.version {
                *tally.versions.entry(version.clone()).or_default() += 1;
            }
            let slow = answer.took > SLOW;
            tally.failed += u32::from(answer.failed());
            tally.slow += u32::from(slow);
            if (answer.failed() || slow) && tally.examples.len() < EXAMPLES {
                let version = answer.version.as_deref().unwrap_or("nginx");
                let took = answer.took.as_secs_f64();
                tally.examples.push(format!(
                    "{} {} from {version} after {took:.3} s {}",
                    answer.sent, answer.code, answer.error
                ));
            }
        }
        tally
    }

    /// How many answers came from `version`.
    #[must_use]
    pub fn from(&self, version: &str) -> u32 {
        self.versions.get(version).copied().unwrap_or_default()
    }

    /// An error that shows examples where one request failed or was slow, and where there were none at all.
    pub fn all_well(&self, during: &str) -> Result<()> {
        if self.total == 0 {
            bail!("there were no requests {during}, so nothing is known about them");
        }
        if self.failed > 0 || self.slow > 0 {
            bail!(
                "of {self} {during}, some failed or were slow:\n  {}",
                self.examples.join("\n  ")
            );
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers (", self.total)?;
        for (version, count) in &self.versions {
            write!(f, "{version} {count}, ")?;
        }
        write!(
            f,
            "failed {}, slower than {} s {})",
            self.failed,
            SLOW.as_secs(),
            self.slow
        )
    }
}

#[derive(Default)]
struct Received {
    answers: Vec<Answer>,
    /// Why no more will come; empty where the generator simply finished.
    ended: Option<String>,
}

/// Running traffic; dropping it ends it.
pub struct Load {
    received: Arc<Mutex<Received>>,
    attack: Background,
    encode: Background,
    reader: Option<JoinHandle<()>>,
}

impl Load {
    /// Sends `per_second` requests a second through the ingress controller, for at most `most`, and returns when the
    /// first answer has come.
    ///
    /// An open model: a request leaves on time however slow the ones before it are, so that a stall is seen by as
    /// many requests as would have met it.
    pub fn start(cluster: &Cluster, request: impl Into<Request>, per_second: u32, most: Duration) -> Result<Self> {
        Self::in_turns(cluster, &[request.into()], per_second, most)
    }

    /// The same with several requests that take turns; [`Answer::turn`] tells them apart.
    pub fn in_turns(cluster: &Cluster, requests: &[Request], per_second: u32, most: Duration) -> Result<Self> {
        let rate = format!("-rate={per_second}/1s");
        let duration = format!("-duration={}s", most.as_secs());
        let timeout = format!("-timeout={}s", PATIENCE.as_secs());
        let mut command = cluster.beside("vegeta", &["attack", &rate, &duration, &timeout]);
        let (mut attack, stdout) = Background::start_with(&mut command, Stdio::piped())?;
        attack.feed(&targets(cluster, requests))?;
        // A process group of its own, so that stopping the attack leaves this one to write out the last answers.
        let (encode, stdout) =
            Background::start_with(&mut cluster.beside("vegeta", &["encode", "-to=json"]), stdout.into())?;
        let stderr = attack.stderr().map(read_aside);

        let received = Arc::new(Mutex::new(Received::default()));
        let reader = thread::spawn({
            let received = Arc::clone(&received);
            move || {
                let mut ended = String::new();
                for line in BufReader::new(stdout).lines() {
                    match line.map_err(Into::into).and_then(|line| Answer::parse(&line)) {
                        Ok(answer) => lock(&received).answers.push(answer),
                        Err(error) => {
                            ended = format!("{error:#}");
                            break;
                        }
                    }
                }
                let complaint = stderr.and_then(|reader| reader.join().ok()).unwrap_or_default();
                lock(&received).ended = Some(format!("{ended}{complaint}").trim().to_owned());
            }
        });
        let load = Self {
            received,
            attack,
            encode,
            reader: Some(reader),
        };
        load.until_answers(1, PATIENCE)?;
        Ok(load)
    }

    /// Everything answered so far. Requests under way are missing.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer> {
        lock(&self.received).answers.clone()
    }

    /// What `question` makes of everything answered so far.
    pub fn look<T>(&self, question: impl FnOnce(&[Answer]) -> T) -> T {
        question(&lock(&self.received).answers)
    }

    /// An error where the generator has ended, for those who conclude something from its silence.
    pub fn still_runs(&self) -> Result<()> {
        match &lock(&self.received).ended {
            Some(why) => bail!("the load generator ended before it was stopped: {why}"),
            None => Ok(()),
        }
    }

    /// Waits until `count` answers have come.
    pub fn until_answers(&self, count: usize, within: Duration) -> Result<()> {
        self.until(&format!("{count} answers have come"), within, |answers| {
            answers.len() >= count
        })
    }

    /// Waits until `enough` is true of the answers so far.
    pub fn until(&self, what: &str, within: Duration, mut enough: impl FnMut(&[Answer]) -> bool) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let received = lock(&self.received);
            if enough(&received.answers) {
                return Ok(());
            }
            if let Some(why) = &received.ended {
                bail!(
                    "the load generator ended after {} answers, before {what}: {why}",
                    received.answers.len()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "waited {} s in vain until {what}: so far {}",
                    within.as_secs(),
                    Tally::of(&received.answers)
                );
            }
            drop(received);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops sending, waits for the answers under way, and returns all of them in the order they were sent. An
    /// error where the generator had ended before: it would have been silent when it mattered.
    pub fn stop(mut self) -> Result<Vec<Answer>> {
        self.still_runs()?;
        self.attack.interrupt();
        self.encode.wait(PATIENCE + Duration::from_secs(5))?;
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
        let mut answers = std::mem::take(&mut lock(&self.received).answers);
        answers.sort_by_key(|answer| answer.number);
        Ok(answers)
    }

    /// Exactly `count` requests at this rate, and their answers.
    pub fn exactly(
        cluster: &Cluster,
        request: impl Into<Request>,
        per_second: u32,
        count: usize,
    ) -> Result<Vec<Answer>> {
        let each = Self::exactly_each(cluster, &[request.into()], per_second, count)?;
        Ok(each.into_iter().flatten().collect())
    }

    /// Exactly `count` of each of these requests, all at the same time and together at this rate; the answers to
    /// each.
    pub fn exactly_each(
        cluster: &Cluster,
        requests: &[Request],
        per_second: u32,
        count: usize,
    ) -> Result<Vec<Vec<Answer>>> {
        let expected = Duration::from_secs_f64((count * requests.len()) as f64 / f64::from(per_second));
        // The generator knows only durations and may miss the count by one; so it is started for longer, and what
        // it sends beyond the count is cut off.
        let most = expected * 2 + PATIENCE;
        let load = Self::in_turns(cluster, requests, per_second, most)?;
        let come = |answers: &[Answer], turn| answers.iter().filter(|answer| answer.turn == turn).count();
        load.until(&format!("{count} answers to each request have come"), most, |answers| {
            (0..requests.len()).all(|turn| come(answers, turn) >= count)
        })?;
        let mut each = vec![Vec::new(); requests.len()];
        for answer in load.stop()? {
            if let Some(answers) = each.get_mut(answer.turn).filter(|answers| answers.len() < count) {
                answers.push(answer);
            }
        }
        Ok(each)
    }
}

/// The requests as the generator reads them.
fn targets(cluster: &Cluster, requests: &[Request]) -> String {
    let several = requests.len() > 1;
    let target = |(turn, request): (usize, &Request)| {
        let mark = if several {
            format!("{TURN}{turn}")
        } else {
            String::new()
        };
        let headers: Vec<_> = request.header_lines().map(|line| line + "\n").collect();
        format!("GET {}{mark}\n{}\n", request.url(cluster), headers.concat())
    };
    requests.iter().enumerate().map(target).collect()
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answers to requests sent from `from` until before `to`.
pub fn sent_between(answers: &[Answer], from: Timestamp, to: Timestamp) -> impl Iterator<Item = &Answer> {
    answers.iter().filter(move |answer| (from..to).contains(&answer.sent))
}

/// An error where the canary's share of these answers cannot be `percent` by chance.
pub fn splits(tally: &Tally, canary: &str, percent: u32, during: &str) -> Result<()> {
    let (low, high) = binomial_bounds(tally.total, f64::from(percent) / 100.0);
    let hits = tally.from(canary);
    ensure!(
        (low..=high).contains(&hits),
        "{canary} gave {hits} of the {tally} {during}; at {percent} % fewer than {low} or more than {high} come about by \
         chance once in {:.0}",
        1.0 / FALSE_ALARM,
    );
    ensure!(
        tally.versions.values().sum::<u32>() == tally.total && tally.versions.len() <= 2,
        "{during}, answers came from elsewhere than the two versions: {tally}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"attack":"","seq":7,"code":200,"timestamp":"2026-03-01T10:00:00.25+01:00","latency":1500000000,"bytes_out":0,"bytes_in":3,"error":"","body":"djEK","method":"GET","url":"http://10.96.0.80/","headers":{"Content-Length":["3"],"X-Version":["v1"]}}"#;
    const NOTHING: &str = r#"{"attack":"","seq":8,"code":0,"timestamp":"2026-03-01T10:00:01Z","latency":2000,"bytes_out":0,"bytes_in":0,"error":"Get \"http://10.96.0.80/\": dial tcp: connection refused","body":null,"method":"GET","url":"http://10.96.0.80/","headers":null}"#;
    const THROTTLED: &str = r#"{"attack":"","seq":9,"code":503,"timestamp":"2026-03-01T10:00:02Z","latency":2000,"error":"503 Service Temporarily Unavailable","headers":{"Server":["nginx"]}}"#;

    fn answers() -> Vec<Answer> {
        [GOOD, NOTHING, THROTTLED]
            .map(|line| Answer::parse(line).unwrap())
            .to_vec()
    }

    #[test]
    fn answers_are_counted_by_version_code_and_speed() {
        let tally = Tally::of(&answers());
        assert_eq!(
            (
                tally.total,
                tally.from("v1"),
                tally.from("v2"),
                tally.failed,
                tally.slow
            ),
            (3, 1, 0, 2, 1)
        );
        assert_eq!(tally.codes, BTreeMap::from([(0, 1), (200, 1), (503, 1)]));
        assert_eq!(tally.to_string(), "3 answers (v1 1, failed 2, slower than 1 s 1)");
    }

    #[test]
    fn failed_slow_and_missing_requests_are_not_well() {
        let answers = answers();
        for bad in &answers {
            let error = Tally::of([bad]).all_well("during the test").unwrap_err().to_string();
            assert!(
                error.contains("during the test") && error.contains(&bad.sent.to_string()),
                "{error}"
            );
        }
        assert!(
            Tally::default()
                .all_well("at night")
                .unwrap_err()
                .to_string()
                .contains("no requests at night")
        );
        let fast = Answer {
            took: Duration::from_millis(3),
            ..answers[0].clone()
        };
        Tally::of([&fast]).all_well("during the test").unwrap();
    }

    #[test]
    fn a_window_holds_what_was_sent_in_it() {
        let answers = answers();
        let from: Timestamp = "2026-03-01T09:00:00.25Z".parse().unwrap();
        let window: Vec<_> = sent_between(&answers, from, answers[1].sent)
            .map(|answer| answer.number)
            .collect();
        assert_eq!(window, [7]);
    }

    #[test]
    fn an_answer_tells_its_turn_and_its_pod() {
        let line = GOOD
            .replace("10.96.0.80/", "10.96.0.80/shop?turn=3")
            .replace(r#""X-Version""#, r#""X-Pod":["shop-7d-x2"],"X-Version""#);
        let answer = Answer::parse(&line).unwrap();
        assert_eq!((answer.turn, answer.pod.as_deref()), (3, Some("shop-7d-x2")));
        assert_eq!((answers()[0].turn, answers()[0].pod.as_deref()), (0, None));
    }

    #[test]
    fn a_request_reads_like_one() {
        let request = Request::to("a.test").path("/shop").header("X-Canary", "yes");
        assert_eq!(request.to_string(), "a.test/shop with X-Canary: yes");
        assert_eq!(
            request.header_lines().collect::<Vec<_>>(),
            ["Host: a.test", "X-Canary: yes"]
        );
    }

    #[test]
    fn what_is_no_answer_is_shown() {
        assert!(Answer::parse("{}").unwrap_err().to_string().contains("wrote {}"));
    }
}
