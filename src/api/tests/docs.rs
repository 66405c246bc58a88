//! What the documentation says: its fragments are accepted, it names every field and every reason and no other, and its
//! links lead somewhere.

use super::{files, mistakes};
use crate::{
    analysis::{Batch, Plan, Tally},
    api::{CanaryRelease, Evidence},
    release::{check_windows, schedule},
};
use kube::CustomResourceExt;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Words in the code that look like reasons and are none.
const NO_REASONS: [&str; 6] = [
    "True", "False", "Unknown", // A strategy and a type of path.
    "Recreate", "Exact", // Stands in for the first finding where there is always one.
    "Stalled",
];

/// Where reasons are given: files, or folders without their tests.
const REASONED: [&str; 3] = ["src/release", "src/controller", "src/observe/pods.rs"];

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// README.md and everything in docs/.
fn pages() -> Vec<(PathBuf, String)> {
    let docs = files::below(&files::root().join("docs"), "md");
    let files = [files::root().join("README.md")].into_iter().chain(docs);
    files.map(|file| (file.clone(), read(&file))).collect()
}

/// The code blocks of a language, each with its line.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() == fence {
            let inside = lines.by_ref().map(|(_, line)| line);
            let inside: Vec<_> = inside.take_while(|line| line.trim() != "```").collect();
            blocks.push((number + 1, inside.join("\n")));
        }
    }
    blocks
}

/// The `code spans` in the first cells of the tables whose first column has this heading.
fn listed(text: &str, heading: &str) -> BTreeSet<String> {
    let mut listed = BTreeSet::new();
    let mut inside = None;
    for line in text.lines() {
        let Some(row) = line.trim().strip_prefix('|') else {
            inside = None;
            continue;
        };
        let cell = row.split('|').next().unwrap_or_default().trim();
        if *inside.get_or_insert(cell == heading) {
            listed.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    listed
}

fn listed_in(pages: &[&str], heading: &str) -> BTreeSet<String> {
    let pages = pages.iter().map(|page| read(&files::root().join("docs").join(page)));
    pages.flat_map(|page| listed(&page, heading)).collect()
}

#[track_caller]
fn assert_same(documented: &BTreeSet<String>, code: &BTreeSet<String>, where_: &str) {
    let missing: Vec<_> = code.difference(documented).collect();
    let unknown: Vec<_> = documented.difference(code).collect();
    assert!(!code.is_empty(), "nothing found in the code");
    assert!(missing.is_empty(), "without a row in {where_}: {missing:?}");
    assert!(unknown.is_empty(), "in {where_} and not in the code: {unknown:?}");
}

/// A fragment of a spec in a release that is good otherwise.
fn completed(fragment: &Value) -> Value {
    let mut spec = json!({"target": {"deployment": "web"}, "canary": {"image": "web:2"}});
    if fragment.pointer("/spec/ramp").is_none() {
        spec["steps"] = json!([{"weight": 30, "hold": "1m"}]);
    }
    json_patch::merge(&mut spec, &fragment["spec"]);
    json!({"apiVersion": "canary-operator.dev/v1alpha1", "kind": "CanaryRelease", "metadata": {"name": "web"}, "spec": spec})
}

#[test]
fn every_fragment_is_accepted() {
    let mut releases = 0;
    for (page, text) in pages() {
        for (line, block) in blocks(&text, "yaml") {
            let at = format!("{}:{line}", page.display());
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(&block).unwrap_or_else(|error| panic!("{at}: {error}"));
            for document in documents {
                let release = match document.get("kind").and_then(Value::as_str) {
                    Some("CanaryRelease") => document,
                    Some(_) => continue,
                    None => completed(&document),
                };
                let refused = mistakes::refusals(&release);
                assert!(refused.is_empty(), "{at}: {refused:?}");
                let decoded: CanaryRelease =
                    serde_json::from_value(release.clone()).unwrap_or_else(|error| panic!("{at}: {error}"));
                check_windows(&decoded.spec).unwrap_or_else(|error| panic!("{at}: {error}"));
                schedule(&decoded.spec).unwrap_or_else(|error| panic!("{at}: {error}"));
                mistakes::assert_within(&release, &serde_json::to_value(decoded).unwrap(), &at);
                releases += 1;
            }
        }
    }
    assert!(releases > 5, "only {releases} fragments");
}

/// The fields that people write, such as `steps[].weight`.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let items = &schema["items"];
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let dot = if path.is_empty() { "" } else { "." };
            fields(property, &format!("{path}{dot}{name}"), found);
        }
    } else if items.get("properties").is_some() {
        fields(items, &format!("{path}[]"), found);
    } else {
        found.insert(path.to_owned());
    }
}

fn schema() -> Value {
    let definition = serde_json::to_value(CanaryRelease::crd()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].clone()
}

#[test]
fn every_field_is_described() {
    let mut found = BTreeSet::new();
    fields(&schema()["spec"], "", &mut found);
    let documented = listed_in(&["analysis.md", "releases.md", "traffic.md"], "field");
    assert_same(
        &documented,
        &found,
        "docs/analysis.md, docs/releases.md or docs/traffic.md",
    );
}

#[test]
fn every_phase_and_every_condition_is_described() {
    let phases = schema()["status"]["properties"]["phase"]["enum"].clone();
    let phases: BTreeSet<String> = phases
        .as_array()
        .unwrap()
        .iter()
        .flat_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    assert_same(&listed_in(&["releases.md"], "phase"), &phases, "docs/releases.md");
    let source = read(&files::root().join("src/api/status.rs"));
    let (_, conditions) = source.split_once("pub mod conditions").unwrap();
    assert_same(
        &listed_in(&["releases.md"], "condition"),
        &words(conditions),
        "docs/releases.md",
    );
}

/// The texts in a source that are one CamelCase word, without its tests.
fn words(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.chars().all(|c| c.is_ascii_alphanumeric())
            && text.chars().any(|c| c.is_ascii_lowercase())
    };
    code.split('"').filter(|text| word(text)).map(str::to_owned).collect()
}

#[test]
fn every_reason_has_a_row_with_its_remedy() {
    let mut code = BTreeSet::new();
    for place in REASONED.map(|place| files::root().join(place)) {
        let sources = if place.is_dir() {
            files::below(&place, "rs")
        } else {
            vec![place]
        };
        let tests = |file: &PathBuf| file.components().any(|part| part.as_os_str() == "tests");
        for file in sources.into_iter().filter(|file| !tests(file)) {
            // A module of tests begins no text: what follows its declaration is code again.
            code.extend(words(&read(&file).replace("#[cfg(test)]\nmod tests;", "")));
        }
    }
    for no_reason in NO_REASONS {
        assert!(
            code.remove(no_reason),
            "{no_reason} is not in the code: take it off the list"
        );
    }
    let mut documented = listed_in(&["reasons.md"], "reason");
    documented.extend(listed_in(&["reasons.md"], "event"));
    assert_same(&documented, &code, "docs/reasons.md");
}

/// Failures of version 2 and of both versions until the evidence is enough, in half of the releases: version 2 gets a share of
/// the requests in percent and fails so many times as often.
fn until_enough(share: u64, ratio: f64, evidence: fn(&Evidence) -> f64) -> (u64, u64) {
    #[allow(clippy::cast_precision_loss)] // At most 100.
    let fraction = share as f64 / 100.0;
    let chance = fraction * ratio / (1.0 + fraction * (ratio - 1.0));
    let mut rng = fastrand::Rng::with_seed(share);
    let mut release = || {
        let mut gathered = Evidence::new(1.0);
        while evidence(&gathered) < 100f64.ln() {
            let failed = u64::from(rng.f64() < chance);
            let tally = |requests, failed| Tally { requests, failed };
            let (stable, canary) = (tally(100 - share, 1 - failed), tally(share, failed));
            gathered.add(&Batch {
                stable,
                canary,
                least_share: 0.0,
            });
        }
        (gathered.canary_failed, gathered.canary_failed + gathered.stable_failed)
    };
    let mut releases: Vec<_> = (0..301).map(|_| release()).collect();
    releases.sort_unstable();
    releases[150]
}

#[track_caller]
fn assert_about(told: u64, found: u64, what: &str) {
    assert!(
        told.abs_diff(found) <= found / 8 + 1,
        "{what}: {told} is told, and it takes {found}"
    );
}

#[test]
fn it_takes_as_many_failures_as_is_told() {
    let page = read(&files::root().join("docs/analysis.md"));
    let rows = page.lines().skip_while(|line| !line.starts_with("| version 2 fails |"));
    let mut rows = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim));
    let weights: Vec<u64> = rows
        .next()
        .unwrap()
        .filter_map(|cell| cell.strip_prefix("weight ")?.strip_suffix(" %")?.parse().ok())
        .collect();
    assert_eq!(weights, [10, 50]);
    let mut told = 0;
    for cells in rows.skip(1).map(Iterator::collect::<Vec<_>>) {
        let often = cells[1].split(' ').next().unwrap();
        let ratio = if often == "twice" { 2.0 } else { often.parse().unwrap() };
        for (weight, cell) in weights.iter().zip(&cells[2..]) {
            let (found, _) = until_enough(*weight, ratio, Evidence::log_harm);
            assert_about(cell.parse().unwrap(), found, &format!("{ratio} at {weight} %"));
            told += 1;
        }
    }
    assert_eq!(told, 10);
    for (weight, failures) in [(10, 160), (50, 90)] {
        let (_, found) = until_enough(weight, 1.0, |gathered| gathered.log_no_harm(2.0));
        assert!(page.contains(&failures.to_string()));
        assert_about(failures, found, &format!("a doubling ruled out at {weight} %"));
    }
}

#[test]
fn a_plan_finds_what_is_told() {
    let ramp = Plan {
        steps: [0.1, 0.2, 0.3, 0.4, 0.5].map(|share| (share, 60.0)).into(),
        alpha: 0.01,
        ignore_below: 1.0,
    };
    let words = ramp.outlook(49.0, 0.002).words;
    assert!(
        read(&files::root().join("docs/analysis.md")).contains(&words),
        "it says: {words}"
    );
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    for (page, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, place) = link
                .split_once('#')
                .map_or((link, None), |(path, place)| (path, Some(place)));
            let target = if path.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(path)
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if let Some(place) = place {
                assert!(anchors(&read(&target)).contains(place), "{}: {link}", page.display());
            }
        }
    }
}

#[test]
fn every_example_is_told_of_and_every_example_told_of_exists() {
    let folder = files::root().join("manifests/examples");
    let told: BTreeSet<PathBuf> = pages()
        .iter()
        .flat_map(|(_, text)| {
            text.split("manifests/examples/")
                .skip(1)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter_map(|rest| rest.split_inclusive(".yaml").next().map(str::to_owned))
        .filter(|name| name.ends_with(".yaml") && !name.contains(char::is_whitespace))
        .map(|name| folder.join(name))
        .collect();
    let there: BTreeSet<PathBuf> = files::below(&folder, "yaml").into_iter().collect();
    assert_eq!(told, there);
}
