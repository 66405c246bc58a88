//! Scenarios that bear no others beside them: they count what the operator does for all releases together, measure short
//! times, or break what all share. `--test-threads=1`.

mod budget;
mod judging;
