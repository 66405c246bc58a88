//! PromQL with placeholders: whatever is written, it is refused with a sentence, or rendered as PromQL.

#![no_main]

use canary_operator::analysis::{Interest, prometheus::{LONGEST_QUERY, Template}};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;

fuzz_target!(|text: &str| {
    let interest = Interest {
        namespace: "shop".to_owned(),
        ingresses: ["web", "api.v2"].map(str::to_owned).into(),
        service: "web".to_owned(),
        canaries: [Interest::canary("shop", "web-canary", "80".to_owned())].into(),
        latency: false,
    };
    match Template::parse(text) {
        Ok(template) => {
            let query = template.render(&interest, Duration::from_secs(30));
            assert!(!query.contains("{{"), "{query}");
        }
        Err(error) => assert!(!error.to_string().is_empty() && error.to_string().len() < 2 * LONGEST_QUERY),
    }
});
