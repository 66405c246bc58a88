//! What the traffic says: counted at the controllers, judged by tests that may be looked at any time.

mod split;

pub use split::{Verdict as SplitVerdict, judge as judge_split};
