//! What the traffic says: counted at the controllers, judged by tests that may be looked at any time.
//!
//! No Prometheus is needed: [`scraper`] asks every controller pod of [`controllers`] every one to five seconds while a release
//! [subscribes](Scraper::subscribe), [`exposition`] reads the answers as they arrive, and [`counts`] adds them up.
//! [`prometheus`] has the requests counted from what a Prometheus stored, and asks it what a release wants to know besides.

pub mod controllers;
pub mod counts;
pub mod exposition;
mod judge;
mod latency;
mod power;
pub mod prometheus;
pub mod scraper;
mod sequential;
mod split;

pub use controllers::{Controller, Controllers, Listing};
pub use counts::{Counts, Edge, Exposed, Interest, Met, Side, Status};
pub use judge::{Answer, InForce, Judge, Judged, Look, OFTEN, Rule, Rules, Span};
pub use latency::{Millis, Quantile};
pub use power::Plan;
pub use scraper::{Fetch, Http, ScrapeError, Scraper, Subscription};
pub use sequential::{Batch, Tally};
pub use split::{Verdict as SplitVerdict, judge as judge_split};
