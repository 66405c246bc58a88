//! Files that are generated from the code, or must be read by it.

use crate::api::CanaryRelease;
use kube::CustomResourceExt;
use serde_json::Value;
use std::path::{Path, PathBuf};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every file of a kind below a folder.
pub fn below(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(below(&path, kind));
        } else if path.extension().is_some_and(|extension| extension == kind) {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn the_generated_definitions_are_what_the_code_generates() {
    let code = serde_json::to_value(CanaryRelease::crd()).unwrap();
    for file in [
        "crds/canaryreleases.yaml",
        "charts/canary-operator/files/canaryreleases.yaml",
    ] {
        let stored = documents(&root().join(file));
        assert!(stored == [code.clone()], "{file} is out of date: run make generate");
    }
}

#[test]
fn every_release_in_the_examples_and_the_tests_is_decoded_whole_and_accepted() {
    for folder in ["manifests/examples", "tests/e2e/manifests"] {
        let mut releases = 0;
        for file in below(&root().join(folder), "yaml") {
            for document in documents(&file).iter().filter(|d| d["kind"] == "CanaryRelease") {
                let release: CanaryRelease = serde_json::from_value(document.clone())
                    .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                let refused = super::mistakes::refusals(document);
                assert!(refused.is_empty(), "{}: {refused:?}", file.display());
                let decoded = serde_json::to_value(release).unwrap();
                super::mistakes::assert_within(document, &decoded, &file.display().to_string());
                releases += 1;
            }
        }
        assert!(releases > 0, "no CanaryRelease below {folder}");
    }
}
