use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the requests judged so far say of version 2's risk to fail against version 1's. Fixed-point numbers in billionths,
/// because floats come back changed from a round trip.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// Risk ratio that is tolerated. The ratios tried are 1/50 to 50 times as much.
    #[serde(default)]
    pub ignore_below: f64,
    /// Requests to version 2 that were judged.
    #[serde(default)]
    pub canary: u64,
    /// Those of them that failed.
    #[serde(default)]
    pub canary_failed: u64,
    /// Requests to version 1 that were judged.
    #[serde(default)]
    pub stable: u64,
    /// Those of them that failed.
    #[serde(default)]
    pub stable_failed: u64,
    /// For each ratio r that is tried, in billionths: the sum over all batches of n·ln(1 + ρ·(r − 1)), with n failures of
    /// both versions, and ρ the largest share of the requests that version 2 may have had.
    #[serde(default)]
    #[schemars(length(max = 17))]
    pub sums: Vec<i64>,
    /// The same with the smallest share.
    #[serde(default)]
    #[schemars(length(max = 17))]
    pub least_sums: Vec<i64>,
    /// Version 2's failures in billionths, each by version 1's share of its batch: numerator of the Mantel-Haenszel ratio.
    #[serde(default)]
    pub canary_weighed: i64,
    /// Version 1's failures in billionths, each by version 2's share of its batch: denominator of the same.
    #[serde(default)]
    pub stable_weighed: i64,
}
