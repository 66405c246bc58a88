//! How version 2 is judged while it gets requests: what came of it.

use super::Evidence;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a window says about a check. Never more than one of these, and none stands for another.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
pub enum Verdict {
    /// Enough requests, within the bound.
    Pass,
    /// Enough requests, outside of the bound.
    Breach,
    /// Too few requests, or a query without a result.
    NoData,
    /// The source gave no answer, or none that can be read.
    Error,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where a check stands.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckStatus {
    /// Of the check.
    pub name: String,
    /// Hash of what is checked: another bound starts anew.
    #[serde(default)]
    pub asked: String,
    /// What the last window said; nothing before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Number of the step that the window was of.
    #[serde(default)]
    pub step: u32,
    /// The verdict in words: value, limit, sample size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Requests to version 2 that the window had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// When the window ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Windows in a row that count towards `failureLimit`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub breaches: u32,
    /// Since when the source gives no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_since: Option<MicroTime>,
    /// What the requests of all windows together say, for a comparison with version 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub evidence: Vec<Evidence>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it.
fn is_zero(number: &u32) -> bool {
    *number == 0
}
