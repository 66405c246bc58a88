//! Reads a large exposition as the operator does, beside prometheus-parse: how fast, in how much memory, and how rightly.
//! Fails where the operator's own parser misses a bar.

// clippy.toml's leave for tests does not reach benchmarks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use canary_operator::analysis::exposition::Parser;
use peak_alloc::PeakAlloc;
use prometheus_parse::{Scrape, Value};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, Cursor},
    process::ExitCode,
    time::{Duration, Instant},
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const MB: usize = 1_000_000;
/// Of an exposition that a large cluster's controller has.
const LARGE: usize = 50 * MB;
/// How long that may take.
const LONGEST: Duration = Duration::from_secs(1);
/// A tenth of it, which may not take less memory.
const SMALL: usize = LARGE / 10;
/// How much more memory than before it may take, at any size.
const MOST_HEAP: usize = 64 * 1024;
/// What hyper hands over at once.
const PIECE: usize = 16 * 1024;
/// The fastest of so many runs counts: the machine has other work, too.
const RUNS: usize = 5;

const PREFIX: &str = "nginx_ingress_controller_";
const TIMES: [&str; 4] = [
    "request_duration_seconds",
    "response_duration_seconds",
    "header_duration_seconds",
    "connect_duration_seconds",
];
const SIZES: [&str; 3] = ["request_size", "response_size", "bytes_sent"];
const TIME_EDGES: [&str; 12] = [
    "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf",
];
const SIZE_EDGES: [&str; 11] = ["10", "20", "30", "40", "50", "60", "70", "80", "90", "100", "+Inf"];
/// What the operator asks for at most.
const WANTED: [&str; 3] = [
    "requests",
    "response_duration_seconds_count",
    "response_duration_seconds_bucket",
];
/// Paths as people write them: regular expressions have commas, braces and equal signs.
const PATHS: [&str; 8] = [
    "/",
    "/api",
    "/api/v[0-9]{1,3}",
    "/static",
    "/login(/|$)(.*)",
    r"/files/.*\\.(png|jpg)",
    "/search,quick",
    "/q=[a-z]+}",
];

/// Labels of a series, in the order of the text.
type Labels = BTreeMap<String, String>;

/// An exposition of at least this size, and what its counters of requests say.
fn exposition(size: usize) -> (String, BTreeMap<Labels, u64>) {
    let mut text = String::with_capacity(size + 100_000);
    let mut series = Vec::new();
    let mut requests = BTreeMap::new();
    // Of each series there is one line of requests, and for each histogram one for each bucket and two more.
    let lines = 1 + TIMES.len() * (TIME_EDGES.len() + 2) + SIZES.len() * (SIZE_EDGES.len() + 2);
    let mut length = 0;
    for number in 1.. {
        if length * lines >= size {
            break;
        }
        series.push(labels(number, &mut requests));
        // The name and the value of a line come on top.
        length += series[number - 1].len() + 60;
    }
    let value = |index: usize| 1000 + 7 * index;
    family(&mut text, "requests", "counter");
    for (index, labels) in series.iter().enumerate() {
        writeln!(text, "{PREFIX}requests{{{labels}}} {}", value(index + 1)).unwrap();
    }
    let times = TIMES.map(|name| (name, TIME_EDGES.as_slice()));
    let sizes = SIZES.map(|name| (name, SIZE_EDGES.as_slice()));
    for (name, edges) in times.into_iter().chain(sizes) {
        family(&mut text, name, "histogram");
        for (index, labels) in series.iter().enumerate() {
            for (bucket, edge) in edges.iter().enumerate() {
                let within = value(index) * (bucket + 1) / edges.len();
                writeln!(text, "{PREFIX}{name}_bucket{{{labels},le=\"{edge}\"}} {within}").unwrap();
            }
            writeln!(text, "{PREFIX}{name}_sum{{{labels}}} {}", value(index) as f64 * 0.0371).unwrap();
            writeln!(text, "{PREFIX}{name}_count{{{labels}}} {}", value(index)).unwrap();
        }
    }
    (text, requests)
}

fn family(text: &mut String, name: &str, kind: &str) {
    writeln!(
        text,
        "# HELP {PREFIX}{name} What a controller counts\n# TYPE {PREFIX}{name} {kind}"
    )
    .unwrap();
}

/// The labels of a series: Ingresses with a few hosts, paths, methods, statuses and now and then a canary.
fn labels(number: usize, requests: &mut BTreeMap<Labels, u64>) -> String {
    let (status, method) = (
        ["200", "204", "404", "500", "503"][number % 5],
        ["GET", "POST"][number / 5 % 2],
    );
    let (path, host) = (PATHS[number / 10 % PATHS.len()], number / 80 % 3);
    let ingress = number / 240;
    let canary = if ingress % 10 == 3 && number.is_multiple_of(4) {
        format!("team-{ingress}-web-canary-80")
    } else {
        String::new()
    };
    let labels = [
        ("canary", canary),
        ("controller_class", "k8s.io/ingress-nginx".to_owned()),
        ("controller_namespace", "ingress-nginx".to_owned()),
        ("controller_pod", "ingress-nginx-controller-6f9457df85-6mj7r".to_owned()),
        ("host", format!("{host}.shop-{ingress}.example.com")),
        ("ingress", format!("web-{ingress}")),
        ("method", method.to_owned()),
        ("namespace", format!("team-{ingress}")),
        ("path", path.to_owned()),
        ("service", "web".to_owned()),
        ("status", status.to_owned()),
    ];
    let text: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect();
    let meant = labels
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.replace(r"\\", r"\")));
    requests.insert(meant.collect(), 1000 + 7 * number as u64);
    text.join(",")
}

/// What reading came to.
struct Reading {
    who: &'static str,
    took: Duration,
    heap: usize,
    samples: usize,
}

impl Reading {
    /// Reads a few times; `read` returns how many samples it read.
    fn of(who: &'static str, mut read: impl FnMut() -> usize) -> Self {
        let mut reading = Self {
            who,
            took: Duration::MAX,
            heap: 0,
            samples: 0,
        };
        for _ in 0..RUNS {
            HEAP.reset_peak_usage();
            let (before, begin) = (HEAP.current_usage(), Instant::now());
            reading.samples = read();
            reading.took = reading.took.min(begin.elapsed());
            reading.heap = HEAP.peak_usage() - before;
        }
        reading
    }

    fn tell(&self, bytes: usize) {
        let megabytes = bytes as f64 / MB as f64;
        println!(
            "{:<45} {:>6.0} MB/s {:>9.3} s {:>12} KiB of heap {:>8} samples",
            self.who,
            megabytes / self.took.as_secs_f64(),
            self.took.as_secs_f64(),
            self.heap / 1024,
            self.samples
        );
    }
}

/// Reads with the operator's parser: the samples of these families, every label of each resolved.
fn ours(text: &str, names: &[&str]) -> usize {
    let mut parser = Parser::new(PREFIX, names);
    let mut length = 0;
    let mut each = |sample: canary_operator::analysis::exposition::Sample<'_>| {
        length += sample
            .labels
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
    };
    for piece in text.as_bytes().chunks(PIECE) {
        parser.feed(piece, &mut each);
    }
    let tally = parser.finish(&mut each);
    assert!(tally.malformed == 0 && length > 0);
    tally.samples as usize
}

fn theirs(text: &str) -> usize {
    Scrape::parse(Cursor::new(text).lines()).unwrap().samples.len()
}

/// How many series of requests are read as they were meant, by the operator's parser and by the other.
fn rightly(text: &str, meant: &BTreeMap<Labels, u64>) -> [usize; 2] {
    let right = |labels: &Labels, value: f64| meant.get(labels).is_some_and(|count| *count as f64 == value);
    let mut ours = 0;
    let mut each = |sample: canary_operator::analysis::exposition::Sample<'_>| {
        let labels = sample
            .labels
            .iter()
            .map(|(name, value)| (name.to_owned(), value.into_owned()));
        ours += usize::from(right(&labels.collect(), sample.value));
    };
    let mut parser = Parser::new(PREFIX, &["requests"]);
    parser.feed(text.as_bytes(), &mut each);
    parser.finish(&mut each);
    let scrape = Scrape::parse(Cursor::new(text).lines()).unwrap();
    let theirs = scrape.samples.iter().filter(|sample| match &sample.value {
        Value::Counter(value) => right(
            &sample.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            *value,
        ),
        _ => false,
    });
    [ours, theirs.count()]
}

/// How many histograms are whole in one sample.
fn whole(text: &str) -> [usize; 2] {
    let scrape = Scrape::parse(Cursor::new(text).lines()).unwrap();
    let buckets = |value: &Value| match value {
        Value::Histogram(buckets) => buckets.len(),
        _ => 0,
    };
    let all = scrape.samples.iter().filter(|sample| buckets(&sample.value) > 0);
    let whole = all.clone().filter(|sample| buckets(&sample.value) >= SIZE_EDGES.len());
    [whole.count(), all.count()]
}

fn main() -> ExitCode {
    let (large, meant) = exposition(LARGE);
    let (small, _) = exposition(SMALL);
    let all: Vec<String> = std::iter::once("requests".to_owned())
        .chain(
            TIMES
                .iter()
                .chain(&SIZES)
                .flat_map(|name| ["bucket", "sum", "count"].map(|kind| format!("{name}_{kind}"))),
        )
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    println!(
        "{:.1} MB in {} lines, read on one core; the fastest of {RUNS} runs\n",
        large.len() as f64 / MB as f64,
        large.lines().count()
    );

    let wanted = Reading::of("this parser, what the operator asks for", || ours(&large, &WANTED));
    let everything = Reading::of("this parser, every sample", || ours(&large, &all));
    let other = Reading::of("prometheus-parse 0.2", || theirs(&large));
    for reading in [&wanted, &everything, &other] {
        reading.tell(large.len());
    }
    let less = Reading::of("this parser, every sample of a tenth of it", || ours(&small, &all));
    less.tell(small.len());

    let [right, theirs] = rightly(&large, &meant);
    let [whole, histograms] = whole(&small);
    println!(
        "\n{right} of {} series of requests read as they were written; by prometheus-parse {theirs}:",
        meant.len()
    );
    println!(
        "it splits at commas and equal signs within label values, ends labels at the first brace, and resolves no escapes."
    );
    println!(
        "Of {histograms} histograms that it made of the smaller one {whole} are whole: buckets meet only where a hash map lists labels alike.\n"
    );

    let bars = [
        ("all that the operator asks for in a second", wanted.took <= LONGEST),
        ("every sample in a second", everything.took <= LONGEST),
        (
            "in 64 KiB of memory",
            everything.heap <= MOST_HEAP && wanted.heap <= MOST_HEAP,
        ),
        (
            "in no more memory than a tenth of it takes",
            everything.heap <= less.heap,
        ),
        ("as fast as prometheus-parse at least", everything.took <= other.took),
        ("every series as it was written", right == meant.len()),
    ];
    for (bar, held) in bars {
        println!("{} {bar}", if held { "held  " } else { "MISSED" });
    }
    ExitCode::from(u8::from(bars.iter().any(|(_, held)| !held)))
}
