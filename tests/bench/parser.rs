//! Reads a large exposition as the operator does, beside prometheus-parse: how fast, in how much memory, and how rightly.
//! Fails where the operator's own parser misses a bar.

// clippy.toml's leave for tests does not reach benchmarks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use canary_operator::analysis::exposition::Parser;
use peak_alloc::PeakAlloc;
use prometheus_parse::{Scrape, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
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
/// How much more memory than before it may take, at any size.
const MOST_HEAP: usize = 128 * 1024;
/// What hyper hands over at once.
const PIECE: usize = 16 * 1024;
/// The fastest of so many runs counts: the machine has other work, too.
const RUNS: usize = 5;

const PREFIX: &str = "nginx_ingress_controller_";
const TIMES: [&str; 4] = ["request_duration_seconds", "response_duration_seconds", "header_duration_seconds", "connect_duration_seconds"];
const SIZES: [&str; 3] = ["request_size", "response_size", "bytes_sent"];
const TIME_EDGES: [&str; 12] = ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"];
const SIZE_EDGES: [&str; 11] = ["10", "20", "30", "40", "50", "60", "70", "80", "90", "100", "+Inf"];
/// What the operator asks for at most.
const WANTED: [&str; 3] = ["requests", "response_duration_seconds_count", "response_duration_seconds_bucket"];
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
    let mut number = 0;
    while series.iter().map(String::len).sum::<usize>() * lines < size {
        number += 1;
        series.push(labels(number, &mut requests));
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
    writeln!(text, "# HELP {PREFIX}{name} What a controller counts\n# TYPE {PREFIX}{name} {kind}").unwrap();
}

/// The labels of a series: Ingresses with a few hosts, paths, methods, statuses and now and then a canary.
fn labels(number: usize, requests: &mut BTreeMap<Labels, u64>) -> String {
    let (status, method) = (["200", "204", "404", "500", "503"][number % 5], ["GET", "POST"][number / 5 % 2]);
    let (path, host) = (PATHS[number / 10 % PATHS.len()], number / 80 % 3);
    let ingress = number / 240;
    let canary = if ingress % 10 == 3 && number % 4 == 0 { format!("team-{ingress}-web-canary-80") } else { String::new() };
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
        ("number", number.to_string()),
    ];
    let text: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let meant = labels.into_iter().map(|(name, value)| (name.to_owned(), value.replace(r"\\", r"\")));
    requests.insert(meant.collect(), 1000 + 7 * number as u64);
    text.join(",")
}
