//! Reads single values out of Prometheus' text format, as `/metrics` of a running process writes it.

use std::collections::{BTreeMap, BTreeSet};

use super::whole;

/// The samples of one process, without histograms.
#[derive(Debug, Default)]
pub(crate) struct MetricSamples(Vec<MetricSample>);

#[derive(Debug)]
struct MetricSample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl MetricSamples {
    /// Unreadable lines are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let is_wanted = |line: &&str| line.starts_with("causeway_") && !line.contains("_bucket{");
        Self(text.lines().filter(is_wanted).filter_map(MetricSample::parse).collect())
    }

    /// The sum of the samples with this name and this destination; `None` if there is none.
    pub(crate) fn of(&self, name: &str, destination: &str) -> Option<f64> {
        let is_meant =
            |sample: &&MetricSample| sample.name == name && sample.label("destination") == Some(destination);
        self.0.iter().filter(is_meant).map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// The sum of all samples with this name; `None` if there is none.
    pub(crate) fn sum(&self, name: &str) -> Option<f64> {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        samples.map(|sample| sample.value).reduce(|sum, value| sum + value)
    }

    /// The whole numbers of a metric, by one of its labels; `None` if there is no sample.
    pub(crate) fn by_label(&self, name: &str, label: &str) -> Option<BTreeMap<String, u64>> {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        let counts: BTreeMap<_, _> = samples
            .filter_map(|sample| Some((sample.label(label)?.to_owned(), whole(sample.value))))
            .collect();
        (!counts.is_empty()).then_some(counts)
    }

    /// The label of the first sample with this name.
    pub(crate) fn label(&self, name: &str, label: &str) -> Option<&str> {
        self.0.iter().find(|sample| sample.name == name)?.label(label)
    }

    /// The samples of a metric with the values of these labels.
    pub(super) fn with_labels<const N: usize>(
        &self,
        name: &str,
        labels: [&str; N],
    ) -> Vec<([String; N], f64)> {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        let values = |sample: &MetricSample| {
            (labels.map(|label| sample.label(label).unwrap_or_default().to_owned()), sample.value)
        };
        samples.map(values).collect()
    }

    /// All values of a label of a metric.
    pub(crate) fn labels(&self, name: &str, label: &str) -> BTreeSet<String> {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        samples.filter_map(|sample| sample.label(label)).map(str::to_owned).collect()
    }
}

impl MetricSample {
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, rest) = series.split_once('{').unwrap_or((series, ""));
        let (mut labels, mut rest) = (Vec::new(), rest);
        while let Some((label, after)) = rest.split_once("=\"") {
            let (text, after) = quoted(after)?;
            labels.push((label.trim_start_matches(',').to_owned(), text));
            rest = after;
        }
        Some(Self { name: name.to_owned(), labels, value: value.parse().ok()? })
    }

    fn label(&self, wanted: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == wanted).map(|(_, value)| value.as_str())
    }
}

/// The value of a label up to its closing quote, and the text behind the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut letters) = (String::new(), text.char_indices());
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            _ => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_name_and_destination() {
        let samples = MetricSamples::parse(
            "# HELP causeway_in_flight x\ncauseway_in_flight{destination=\"bot:a\"} 2\n\
             causeway_in_flight{destination=\"xo\"} 0\ncauseway_build_info{engine=\"embedded\",version=\"1.2\"} 1\n\
             causeway_dead_letters_total{destination=\"xo\",reason=\"a\"} 2\n\
             causeway_dead_letters_total{destination=\"xo\",reason=\"b\"} 3\nbroken line",
        );
        assert_eq!(samples.of("causeway_in_flight", "bot:a"), Some(2.0));
        assert_eq!(samples.of("causeway_in_flight", "events"), None);
        assert_eq!(samples.of("causeway_dead_letters_total", "xo"), Some(5.0));
        assert_eq!(samples.sum("causeway_dead_letters_total"), Some(5.0));
        assert_eq!(samples.sum("causeway_lanes"), None);
        let by_reason = samples.by_label("causeway_dead_letters_total", "reason").unwrap();
        assert_eq!(by_reason, [("a".to_owned(), 2), ("b".to_owned(), 3)].into());
        assert_eq!(samples.label("causeway_build_info", "version"), Some("1.2"));
        assert_eq!(samples.labels("causeway_in_flight", "destination").len(), 2);
    }

    #[test]
    fn a_label_may_hold_any_character() {
        let samples = MetricSamples::parse(
            r#"causeway_x{peer="broker",subject="CN=a, O=\"b\" {c} \\ d=e"} 1700000000"#,
        );
        let found = samples.with_labels("causeway_x", ["peer", "subject"]);
        assert_eq!(found, [(["broker".to_owned(), r#"CN=a, O="b" {c} \ d=e"#.to_owned()], 1_700_000_000.0)]);
    }
}
