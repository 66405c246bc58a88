//! What a controller counts of the requests that it passes on, and how it says so: only of hosts that an Ingress names
//! literally, a second or two late, for as long as the main Ingress exists.

use super::model::{Location, Model};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Upper edges of the buckets of times, in seconds (`--time-buckets`), and as they are written.
const EDGES: [(f64, &str); 11] = [
    (0.005, "0.005"),
    (0.01, "0.01"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
    (2.5, "2.5"),
    (5.0, "5"),
    (10.0, "10"),
];
/// nginx's workers hand over what they logged once a second, and the controller counts it.
const BATCH: Duration = Duration::from_secs(1);

/// Labels of requests, in the order in which Go's client sorts series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Upstream of the canary, empty for the stable one.
    canary: String,
    host: String,
    ingress: String,
    namespace: String,
    path: String,
    service: String,
    status: u16,
}

impl Series {
    /// Of requests that the location took.
    pub fn new(location: &Location, host: &str, canary: Option<&str>, status: u16) -> Self {
        Self {
            canary: canary.unwrap_or_default().to_owned(),
            host: host.to_owned(),
            ingress: location.ingress.clone(),
            namespace: location.namespace.clone(),
            path: location.path.clone(),
            service: location.service.clone(),
            status,
        }
    }

    /// As written between the braces.
    fn labels(&self, pod: &str) -> String {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!(
            "canary=\"{}\",controller_class=\"k8s.io/ingress-nginx\",controller_namespace=\"ingress-nginx\",\
             controller_pod=\"{pod}\",host=\"{}\",ingress=\"{}\",method=\"GET\",namespace=\"{}\",path=\"{}\",\
             service=\"{}\",status=\"{}\"",
            self.canary,
            self.host,
            self.ingress,
            self.namespace,
            escaped(&self.path),
            self.service,
            self.status
        )
    }
}

/// What is counted of one series.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests.
    requests: u64,
    /// Those that exactly one upstream answered.
    answered: u64,
    /// How long it took for all of them together, in seconds.
    seconds: f64,
    /// How many of them ended in each bucket, and in none of the buckets before.
    within: [u64; EDGES.len()],
}

impl Tally {
    /// One more request, and how long the upstream took: none where nginx answered itself, or had to ask again.
    pub fn count(&mut self, time: Option<Duration>) {
        self.requests += 1;
        let Some(seconds) = time.map(|time| time.as_secs_f64()) else {
            return;
        };
        self.answered += 1;
        self.seconds += seconds;
        let bucket = EDGES
            .iter()
            .zip(&mut self.within)
            .find(|((edge, _), _)| seconds <= *edge);
        if let Some((_, count)) = bucket {
            *count += 1;
        }
    }

    fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.answered += more.answered;
        self.seconds += more.seconds;
        for (count, more) in self.within.iter_mut().zip(&more.within) {
            *count += more;
        }
    }
}

/// What one controller process has counted since its start.
#[derive(Debug)]
pub struct Counters {
    /// Of the pod, for the labels.
    pod: String,
    /// With the labels as written.
    series: BTreeMap<Series, (String, Tally)>,
    /// What is on its way from the workers, and at which age of the world it arrives.
    logged: VecDeque<(Duration, Series, Tally)>,
}

impl Counters {
    /// Nothing yet.
    pub fn new(pod: &str) -> Self {
        Self {
            pod: pod.to_owned(),
            series: BTreeMap::new(),
            logged: VecDeque::new(),
        }
    }

    /// Takes down what nginx logged when the world was `now` old.
    pub fn log(&mut self, series: Series, tally: Tally, now: Duration) {
        self.take_in(now);
        let batches = now.as_secs() + 1;
        self.logged
            .push_back((Duration::from_secs(batches) + BATCH, series, tally));
    }

    /// What the workers have handed over by now.
    fn take_in(&mut self, now: Duration) {
        let due = self.logged.partition_point(|(at, ..)| *at <= now);
        for (_, series, tally) in self.logged.drain(..due) {
            let labels = series.labels(&self.pod);
            let (_, counted) = self.series.entry(series).or_insert_with(|| (labels, Tally::default()));
            counted.add(&tally);
        }
    }

    /// Forgets the series of Ingresses that are not served any more.
    pub fn retain(&mut self, model: &Model) {
        let locations = model.servers.values().flatten();
        let served: BTreeSet<_> = locations.map(|l| (l.namespace.as_str(), l.ingress.as_str())).collect();
        let known = |series: &Series| served.contains(&(series.namespace.as_str(), series.ingress.as_str()));
        self.series.retain(|series, _| known(series));
        self.logged.retain(|(_, series, _)| known(series));
    }

    /// `/metrics` when the world is `now` old, in Prometheus' text format 0.0.4.
    pub fn exposition(&mut self, now: Duration) -> String {
        self.take_in(now);
        let mut text = Text(String::with_capacity(1000 + 6000 * self.series.len()));
        text.family("go_goroutines", "Number of goroutines that currently exist.", "gauge");
        text.0.push_str("go_goroutines 96\n");
        if !self.series.is_empty() {
            text.family(REQUESTS, "The total number of client requests", "counter");
        }
        for (labels, tally) in self.series.values() {
            text.line(&[REQUESTS, "{", labels], tally.requests);
        }
        let mut answered = self.series.values().filter(|(_, tally)| tally.answered > 0).peekable();
        if answered.peek().is_some() {
            let help = "The time spent on receiving the response from the upstream server";
            text.family(RESPONSES, help, "histogram");
        }
        for (labels, tally) in answered {
            text.histogram(labels, tally);
        }
        let help = "Cumulative number of Ingress controller reload operations";
        text.family("nginx_ingress_controller_success", help, "counter");
        text.line(
            &["nginx_ingress_controller_success{controller_class=\"k8s.io/ingress-nginx\""],
            1,
        );
        text.0
    }
}

const REQUESTS: &str = "nginx_ingress_controller_requests";
const RESPONSES: &str = "nginx_ingress_controller_response_duration_seconds";

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, help: &str, kind: &str) {
        self.0
            .extend(["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"]);
    }

    /// The parts of a name and its labels, without the closing brace, and a value.
    fn line(&mut self, parts: &[&str], value: u64) {
        self.0.extend(parts.iter().copied());
        self.0.extend(["} ", &number(value), "\n"]);
    }

    fn histogram(&mut self, labels: &str, tally: &Tally) {
        let mut within = 0;
        for ((_, edge), count) in EDGES.iter().zip(&tally.within) {
            within += count;
            self.line(&[RESPONSES, "_bucket{", labels, ",le=\"", edge, "\""], within);
        }
        self.line(&[RESPONSES, "_bucket{", labels, ",le=\"+Inf\""], tally.answered);
        let sum = tally.seconds.to_string();
        self.0.extend([RESPONSES, "_sum{", labels, "} ", &sum, "\n"]);
        self.line(&[RESPONSES, "_count{", labels], tally.answered);
    }
}

/// As Go writes a float: `1.234567e+06`.
fn number(value: u64) -> String {
    if value < 1_000_000 {
        return value.to_string();
    }
    #[allow(clippy::cast_precision_loss)] // As in Go.
    let text = format!("{:e}", value as f64);
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{mantissa}e+{exponent:0>2}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        let written = [0, 999_999, 1_000_000, 1_234_567, 12_345_678_900].map(number);
        assert_eq!(written, ["0", "999999", "1e+06", "1.234567e+06", "1.23456789e+10"]);
    }
}
