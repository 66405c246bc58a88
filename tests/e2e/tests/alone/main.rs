//! Scenarios that bear no others beside them: they count what the operator does for all releases together, measure short
//! times, kill the operator or break what else all share, or count requests one by one, of which a reload of nginx loses some. `--test-threads=1`.

mod api_server;
mod budget;
mod counted;
mod every_write;
mod judging;
mod leading;
mod operator_killed;
