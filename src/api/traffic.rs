//! Who reaches version 2 whatever the weight is.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Requests that reach version 2 by what they carry, beside those that the weight sends there.
///
/// In force from the first moment that a canary Ingress exists, steps of weight 0 included, until it is gone.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// A request header that decides before cookie and weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// Name of a cookie that decides before the weight: `always` leads to version 2, `never` to version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[-._~a-zA-Z0-9]+$"))]
    pub cookie: Option<String>,
    /// Lets a release start although an Ingress outside `spec.target.ingresses` leads to the same Service: ingress-nginx
    /// sends a share of its requests to version 2 too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_shared_service: bool,
}

/// A request header that leads to version 2. With neither `value` nor `pattern`: `always` leads to version 2, `never` to version 1.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.value) && has(self.pattern))").message("set traffic.header.value or traffic.header.pattern, not both: ingress-nginx would ignore the pattern"),
)]
pub struct Header {
    /// Name of the header, in any case.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$')").message("the name of a header has letters, digits and dashes: nginx drops requests' headers with underscores"))]
    pub name: String,
    /// Requests whose header is exactly this reach version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[-/._~a-zA-Z0-9:]+$')").message("ingress-nginx takes only letters, digits and - . _ ~ / : in a header's value, and ignores any other"))]
    pub value: Option<String>,
    /// Requests whose header matches this regular expression, anywhere and in this case, reach version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^[-/._~a-zA-Z0-9:^$\\[\\](){}*+?|&=\\\\]+$')").message("ingress-nginx takes only letters, digits and - . _ ~ / : ^ $ [ ] ( ) { } * + ? | & = and backslashes in a pattern, and ignores any other"),
        // A pattern that does not compile makes nginx send every request with that header to version 1, silently. RE2 is stricter than PCRE.
        validation = Rule::new("''.matches(self) in [true, false]").message("the pattern is no regular expression (RE2 syntax)"),
    )]
    pub pattern: Option<String>,
}

impl Traffic {
    /// Whether any request can reach version 2 at weight 0.
    #[must_use]
    pub fn has_testers(&self) -> bool {
        self.header.is_some() || self.cookie.is_some()
    }
}

/// Who reaches version 2, in words: `requests with header X-Canary: yes`.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("requests with ")?;
        if let Some(Header { name, value, pattern }) = &self.header {
            match (value, pattern) {
                (Some(value), _) => write!(f, "header {name}: {value}")?,
                (None, Some(pattern)) => write!(f, "a header {name} that matches {pattern}")?,
                (None, None) => write!(f, "header {name}: always")?,
            }
        }
        match (&self.header, &self.cookie) {
            (Some(_), Some(cookie)) => write!(f, " or cookie {cookie}=always"),
            (None, Some(cookie)) => write!(f, "cookie {cookie}=always"),
            _ => Ok(()),
        }
    }
}
