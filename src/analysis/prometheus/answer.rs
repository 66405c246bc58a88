//! Prometheus' answers, as it writes them in JSON.

use super::error::Problem;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, SeqAccess, Visitor},
};
use std::{borrow::Cow, fmt};

/// What of a message or of a text that is none is told.
const MOST_SAID: usize = 200;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    status: Cow<'a, str>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(borrow, default)]
    data: Option<Data<'a>>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data<'a> {
    Scalar((f64, String)),
    Vector(Vec<Element>),
    #[serde(borrow)]
    Matrix(Vec<Series<'a>>),
    String(IgnoredAny),
}

#[derive(Deserialize)]
struct Element {
    /// None for a native histogram.
    #[serde(default)]
    value: Option<(f64, String)>,
}

/// A series of a range vector.
#[derive(Debug, Deserialize)]
pub(super) struct Series<'a> {
    #[serde(borrow)]
    metric: Labels<'a>,
    /// None where it has native histograms alone.
    #[serde(default)]
    values: Option<Samples>,
}

impl<'a> Series<'a> {
    /// Its labels by name; those that are empty Prometheus leaves out.
    pub fn labels(&self) -> &[(Cow<'a, str>, Cow<'a, str>)] {
        &self.metric.0
    }

    pub fn samples(&self) -> Option<Samples> {
        self.values
    }
}

#[derive(Debug, Default)]
struct Labels<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// The samples of a series, as far as they are of use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Samples {
    /// When the oldest was scraped, in milliseconds since 1970.
    pub first: i64,
    /// When the newest was.
    pub last: i64,
    /// The value of the newest.
    pub value: f64,
    /// How many there are.
    pub count: u32,
}

impl Samples {
    /// From one scrape to the next, in milliseconds.
    pub fn apart(&self) -> Option<i64> {
        let gaps = i64::from(self.count.saturating_sub(1));
        self.last.checked_sub(self.first)?.checked_div(gaps)
    }
}

/// What a check asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Number {
    /// None where no series has what was asked for.
    pub value: Option<f64>,
    pub warnings: Vec<String>,
}

/// The number in the answer to an instant query.
pub(super) fn number(body: &[u8]) -> Result<Number, Problem> {
    let (data, warnings) = open(body)?;
    let value = match data {
        Data::Scalar((_, value)) => Some(value),
        Data::Vector(mut elements) => match (elements.pop(), elements.len()) {
            (None, _) => None,
            (Some(element), 0) => {
                let value = element.value.map(|(_, value)| value);
                Some(value.ok_or_else(|| Problem::Kind("native histogram".to_owned()))?)
            }
            (Some(_), others) => return Err(Problem::Several(others + 1)),
        },
        Data::Matrix(_) => return Err(Problem::Kind("range vector".to_owned())),
        Data::String(_) => return Err(Problem::Kind("string".to_owned())),
    };
    let value = value.map(|text| match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) => Err(Problem::NotFinite(value.to_string())),
        Err(_) => Err(Problem::Malformed(format!("{:?} is no number", short(&text)))),
    });
    Ok(Number {
        value: value.transpose()?,
        warnings,
    })
}

/// The series in the answer to an instant query of a range vector, and its warnings.
pub(super) fn series(body: &[u8]) -> Result<(Vec<Series<'_>>, Vec<String>), Problem> {
    match open(body)? {
        (Data::Matrix(series), warnings) => Ok((series, warnings)),
        _ => Err(Problem::Malformed("it was asked for a range vector".to_owned())),
    }
}

/// What an answer that is no success says of it: Prometheus' own message, else the first line of a text.
pub(super) fn message(body: &[u8]) -> String {
    let refused = serde_json::from_slice::<Envelope<'_>>(body).map(|envelope| envelope.error);
    if let Some(message) = refused.ok().filter(|message| !message.is_empty()) {
        return short(&message);
    }
    let text = String::from_utf8_lossy(body);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    // A page is not worth a line of it.
    short(line.filter(|line| !line.starts_with('<')).unwrap_or_default())
}

fn open(body: &[u8]) -> Result<(Data<'_>, Vec<String>), Problem> {
    let envelope: Envelope<'_> =
        serde_json::from_slice(body).map_err(|error| Problem::Malformed(short(&error.to_string())))?;
    match (envelope.status.as_ref(), envelope.data) {
        ("success", Some(data)) => Ok((data, envelope.warnings)),
        ("error", _) => Err(Problem::Refused(short(&envelope.error))),
        ("success", None) => Err(Problem::Malformed("it has no data".to_owned())),
        (other, _) => Err(Problem::Malformed(format!("its status is {:?}", short(other)))),
    }
}

/// In one line, and not for ever.
fn short(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = printable.take(MOST_SAID + 1).collect();
    if short.chars().count() > MOST_SAID {
        short.pop();
        short.push('…');
    }
    short.trim().to_owned()
}

impl<'de: 'a, 'a> Deserialize<'de> for Labels<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut labels = Vec::with_capacity(map.size_hint().unwrap_or(16));
                while let Some((Text(name), Text(value))) = map.next_entry()? {
                    labels.push((name, value));
                }
                // Names a series, and not everybody who answers sorts them.
                labels.sort_unstable();
                Ok(Labels(labels))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

impl<'de> Deserialize<'de> for Samples {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Sample<'a>(f64, #[serde(borrow)] Cow<'a, str>);

        struct FirstAndLast;

        impl<'de> Visitor<'de> for FirstAndLast {
            type Value = Samples;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("samples, each a time and a value, and at least one")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Samples, A::Error> {
                let mut samples = None::<Samples>;
                while let Some(Sample(at, value)) = seq.next_element()? {
                    let at = milliseconds(at);
                    let value = value.parse().map_err(|_| A::Error::custom("a value is no number"))?;
                    let samples = samples.get_or_insert(Samples {
                        first: at,
                        last: at,
                        value,
                        count: 0,
                    });
                    samples.count = samples.count.saturating_add(1);
                    samples.first = samples.first.min(at);
                    if samples.last <= at {
                        (samples.last, samples.value) = (at, value);
                    }
                }
                samples.ok_or_else(|| A::Error::invalid_length(0, &self))
            }
        }

        deserializer.deserialize_seq(FirstAndLast)
    }
}

/// Prometheus has milliseconds and writes seconds; a float holds these to the microsecond.
fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(data: &str) -> String {
        format!(r#"{{"status":"success","data":{data}}}"#)
    }

    #[test]
    fn a_scalar_or_a_single_element_is_the_number() {
        for (data, expected) in [
            (r#"{"resultType":"scalar","result":[1435781451.781,"1"]}"#, Some(1.0)),
            (
                r#"{"resultType":"vector","result":[{"metric":{"a":"b"},"value":[1435781451.781,"-0.25"]}]}"#,
                Some(-0.25),
            ),
            (
                r#"{"result":[{"metric":{},"value":[1,"3e-05"]}],"resultType":"vector"}"#,
                Some(3e-5),
            ),
            (r#"{"resultType":"vector","result":[]}"#, None),
        ] {
            let number = number(answer(data).as_bytes()).unwrap();
            assert_eq!((number.value, number.warnings), (expected, vec![]), "{data}");
        }
        let warned =
            r#"{"status":"success","warnings":["partial"],"infos":["x"],"data":{"resultType":"vector","result":[]}}"#;
        assert_eq!(number(warned.as_bytes()).unwrap().warnings, ["partial"]);
    }

    #[test]
    fn what_is_not_one_number_is_told() {
        let element = |value: &str| format!(r#"{{"metric":{{}},"value":[1,"{value}"]}}"#);
        let vector = |elements: &str| answer(&format!(r#"{{"resultType":"vector","result":[{elements}]}}"#));
        for (body, expected) in [
            (
                vector(&element("NaN")),
                "the query returned NaN, which can be compared with nothing: does it divide by 0?",
            ),
            (vector(&element("+Inf")), "the query returned inf, which"),
            (vector(&element("-Inf")), "the query returned -inf, which"),
            (
                vector(&element("x\ny")),
                "an answer that is not of Prometheus: control character",
            ),
            (
                vector(&element("x")),
                "an answer that is not of Prometheus: \"x\" is no number",
            ),
            (
                vector(&[element("1"), element("2")].join(",")),
                "the query returned 2 series: aggregate them, e.g. sum(…)",
            ),
            (
                vector(r#"{"metric":{},"histogram":[1,{"count":"1"}]}"#),
                "the query returned a native histogram; a check takes",
            ),
            (
                answer(r#"{"resultType":"string","result":[1,"x"]}"#),
                "the query returned a string; a check takes",
            ),
            (
                answer(r#"{"resultType":"matrix","result":[{"metric":{},"values":[[1,"2"]]}]}"#),
                "the query returned a range vector; a check takes",
            ),
            (
                answer(r#"{"resultType":"table","result":[]}"#),
                "an answer that is not of Prometheus: unknown variant",
            ),
            (answer("null"), "an answer that is not of Prometheus: it has no data"),
            (
                "{}".to_owned(),
                "an answer that is not of Prometheus: its status is \"\"",
            ),
            ("[]".to_owned(), "an answer that is not of Prometheus: "),
            (String::new(), "an answer that is not of Prometheus: EOF"),
            (
                r#"{"status":"error","errorType":"execution","error":"query timed\nout"}"#.to_owned(),
                "the query failed: query timed out",
            ),
        ] {
            let told = number(body.as_bytes()).unwrap_err().to_string();
            assert!(told.starts_with(expected), "{body}: {told}");
        }
    }

    #[test]
    fn an_error_is_told_in_prometheus_words_and_a_page_is_not() {
        for (body, expected) in [
            (
                r#"{"status":"error","error":"parse error: unexpected end"}"#,
                "parse error: unexpected end",
            ),
            ("\n  upstream connect error\nmore", "upstream connect error"),
            ("<html>\n<title>502</title>", ""),
            ("", ""),
        ] {
            assert_eq!(message(body.as_bytes()), expected);
        }
        assert_eq!(message("é".repeat(500).as_bytes()), "é".repeat(200) + "…");
        assert_eq!(message(b"\xff\x00x"), "\u{fffd} x");
    }

    #[test]
    fn of_a_series_its_labels_and_its_ends_are_kept() {
        let body = answer(
            r#"{"resultType":"matrix","result":[
                {"metric":{"path":"/a\"b","__name__":"x"},"values":[[1435781430.781,"1"],[1435781445.781,"5"],[1435781460.781,"7"]]},
                {"metric":{},"histograms":[[1,{}]]}]}"#,
        );
        let (series, warnings) = series(body.as_bytes()).unwrap();
        assert_eq!((series.len(), warnings.len()), (2, 0));
        let labels: Vec<_> = series[0]
            .labels()
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
            .collect();
        assert_eq!(labels, [("__name__", "x"), ("path", "/a\"b")]);
        let samples = Samples {
            first: 1_435_781_430_781,
            last: 1_435_781_460_781,
            value: 7.0,
            count: 3,
        };
        assert_eq!(samples.apart(), Some(15_000));
        assert_eq!(series[0].samples(), Some(samples));
        assert_eq!(series[1].samples(), None);
        for wrong in [
            r#"{"metric":{},"values":[]}"#,
            r#"{"metric":{},"values":[[1,"x"]]}"#,
            r#"{"metric":[]}"#,
            "5",
        ] {
            let body = answer(&format!(r#"{{"resultType":"matrix","result":[{wrong}]}}"#));
            assert!(super::series(body.as_bytes()).is_err(), "{wrong}");
        }
    }

    /// Something like an answer.
    fn almost() -> impl Strategy<Value = Vec<u8>> {
        let whole = answer(
            r#"{"resultType":"matrix","result":[{"metric":{"a":"b\u00e9"},"values":[[1e300,"NaN"],[-5,"1"]]}],"x":[[{}]]}"#,
        )
        .into_bytes();
        let length = whole.len();
        prop::collection::vec((0..length, any::<u8>()), 0..4).prop_map(move |changes| {
            let mut bytes = whole.clone();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reading_panic(bytes in prop_oneof![almost(), any::<Vec<u8>>()]) {
            let _ = (number(&bytes), series(&bytes), message(&bytes));
        }
    }
}
