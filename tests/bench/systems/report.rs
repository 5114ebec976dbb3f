//! Writes the results as Markdown: medians over the rounds with their spread, and ratios within the same round.

use std::fmt::Write as _;

use super::compare::{Outcome, Results};
use super::jobs::{Flow, Half, Kill};

/// One value for each round.
fn values(outcomes: &[&Outcome], value: impl Fn(&Outcome) -> Option<f64>) -> Vec<f64> {
    let mut values: Vec<f64> =
        outcomes.iter().filter_map(|outcome| value(outcome)).filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Median, least and most.
pub(crate) fn spread(sorted: &[f64]) -> Option<(f64, f64, f64)> {
    let (lower, upper) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    let median = f64::midpoint(*lower, *upper);
    Some((median, *sorted.first()?, *sorted.last()?))
}

fn shown(sorted: &[f64], digits: usize) -> String {
    match spread(sorted) {
        None => "–".to_owned(),
        Some((median, ..)) if sorted.len() == 1 => format!("{median:.digits$}"),
        Some((median, least, most)) => format!("{median:.digits$} ({least:.digits$}–{most:.digits$})"),
    }
}

/// The results of a system in a round, as one line for the terminal.
pub(crate) fn line(outcome: &Outcome) -> String {
    let rate = |flow: Option<Flow>| flow.map_or_else(|| "–".to_owned(), |flow| format!("{:.0}", flow.rate));
    let mut line = format!(
        "round {} {:>10} {:>3} ms (others {:.1}): through {}/s, accepted {}/s, drained {}/s",
        outcome.round,
        outcome.system,
        outcome.delay_ms,
        outcome.through.map_or(0.0, |flow| flow.others),
        rate(outcome.through),
        rate(outcome.fill),
        rate(outcome.drain)
    );
    if let Some(Half { whole, ingress, flow, .. }) = outcome.half {
        let _ = write!(
            line,
            "; at {:.0}/s post→deliver p50 {:.1} p99 {:.1} ms, ingress p99 {:.1} ms, {:.3} s CPU/1000",
            flow.rate, whole.p50, whole.p99, ingress.p99, flow.cpu
        );
    }
    if let Some(Kill { lost, repeated, overtaken, back, .. }) = outcome.kill {
        let _ = write!(
            line,
            "; kill: {lost} lost, {repeated} repeated, {overtaken} overtaken, back in {back:.1} s"
        );
    }
    for trouble in &outcome.trouble {
        let _ = write!(line, "\n    {trouble}");
    }
    line
}

/// The whole report.
pub(crate) fn markdown(results: &Results) -> String {
    let mut page = String::from("# Causeway beside what one would use instead\n\n");
    for fact in results.machine.iter().chain([&results.shape]) {
        let _ = writeln!(page, "- {fact}");
    }
    page.push_str("\nMedian (least–most) over the rounds. What the columns mean: `tests/bench/README.md`.\n");
    let mut delays: Vec<u64> = results.outcomes.iter().map(|outcome| outcome.delay_ms).collect();
    delays.sort_unstable();
    delays.dedup();
    for delay in delays {
        let _ = writeln!(page, "\n## The destination answers after {delay} ms\n");
        throughput(&mut page, results, delay);
        latency(&mut page, results, delay);
        kills(&mut page, results, delay);
        ratios(&mut page, results, delay);
    }
    troubles(&mut page, results);
    page.push_str("\n## Versions\n\n");
    for (name, versions, absent) in &results.systems {
        let _ = match absent {
            Some(reason) => writeln!(page, "- {name}: not available: {reason}"),
            None => writeln!(page, "- {name}: {versions}"),
        };
    }
    page
}

pub(crate) fn of<'a>(results: &'a Results, system: &str, delay: u64) -> Vec<&'a Outcome> {
    let outcomes = results.outcomes.iter();
    outcomes.filter(|outcome| outcome.system == system && outcome.delay_ms == delay).collect()
}

fn rows(page: &mut String, results: &Results, delay: u64, row: impl Fn(&[&Outcome]) -> Vec<String>) {
    for (name, _, absent) in &results.systems {
        let outcomes = of(results, name, delay);
        if let Some(reason) = absent {
            let _ = writeln!(page, "| {name} | not available: {reason} |");
        } else if !outcomes.is_empty() {
            let _ = writeln!(page, "| {name} | {} |", row(&outcomes).join(" | "));
        }
    }
    page.push('\n');
}

fn throughput(page: &mut String, results: &Results, delay: u64) {
    page.push_str(
        "| system | through/s | accepted/s | drained/s | CPU s/1,000: through | broker | drain | MB: through | drain | at once | others: through | drain |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    rows(page, results, delay, |outcomes| {
        let flow = |pick: fn(&Outcome) -> Option<Flow>, value: fn(Flow) -> f64, digits| {
            shown(&values(outcomes, |outcome| pick(outcome).map(value)), digits)
        };
        vec![
            flow(|o| o.through, |f| f.rate, 0),
            flow(|o| o.fill, |f| f.rate, 0),
            flow(|o| o.drain, |f| f.rate, 0),
            flow(|o| o.through, |f| f.cpu, 3),
            flow(|o| o.through, |f| f.broker_cpu, 3),
            flow(|o| o.drain, |f| f.cpu, 3),
            flow(|o| o.through, |f| f.megabytes, 0),
            flow(|o| o.drain, |f| f.megabytes, 0),
            flow(|o| o.through, |f| f64::from(f.peak), 0),
            flow(|o| o.through, |f| f.others, 1),
            flow(|o| o.drain, |f| f.others, 1),
        ]
    });
}

fn latency(page: &mut String, results: &Results, delay: u64) {
    if !results.outcomes.iter().any(|outcome| outcome.delay_ms == delay && outcome.half.is_some()) {
        return;
    }
    page.push_str(
        "| system | at half of it: messages/s | post→deliver p50 ms | p95 | p99 | accept→deliver p50 | p95 | p99 | ingress p50 | p99 | CPU s/1,000 | broker | MB |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    rows(page, results, delay, |outcomes| {
        let half = |value: fn(Half) -> f64, digits| {
            shown(&values(outcomes, |outcome| outcome.half.map(value)), digits)
        };
        vec![
            half(|h| h.flow.rate, 0),
            half(|h| h.whole.p50, 1),
            half(|h| h.whole.p95, 1),
            half(|h| h.whole.p99, 1),
            half(|h| h.delivery.p50, 1),
            half(|h| h.delivery.p95, 1),
            half(|h| h.delivery.p99, 1),
            half(|h| h.ingress.p50, 1),
            half(|h| h.ingress.p99, 1),
            half(|h| h.flow.cpu, 3),
            half(|h| h.flow.broker_cpu, 3),
            half(|h| h.flow.megabytes, 0),
        ]
    });
}

fn kills(page: &mut String, results: &Results, delay: u64) {
    if !results.outcomes.iter().any(|outcome| outcome.delay_ms == delay && outcome.kill.is_some()) {
        return;
    }
    page.push_str("| system | worker killed: accepted | refused and posted again | lost | repeated | overtaken | back after s |\n|---|---|---|---|---|---|---|\n");
    rows(page, results, delay, |outcomes| {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let kill = |value: fn(Kill) -> u64| {
            shown(&values(outcomes, |outcome| outcome.kill.map(|kill| value(kill) as f64)), 0)
        };
        let back = shown(&values(outcomes, |outcome| outcome.kill.map(|kill| kill.back)), 1);
        vec![
            kill(|k| k.accepted),
            kill(|k| k.refused),
            kill(|k| k.lost),
            kill(|k| k.repeated),
            kill(|k| k.overtaken),
            back,
        ]
    });
}

/// The ratio of Causeway on RabbitMQ to each system in the same round. Above 1 is better for rates, below 1 for the
/// other values.
fn ratios(page: &mut String, results: &Results, delay: u64) {
    let ours = of(results, "causeway", delay);
    if ours.is_empty() {
        return;
    }
    page.push_str(
        "| Causeway on RabbitMQ ÷ … | through/s | accepted/s | drained/s | post→deliver p99 at half | accept→deliver p99 | ingress p99 | CPU/1,000 through | drain |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    rows(page, results, delay, |outcomes| {
        let ratio = |value: fn(&Outcome) -> Option<f64>| {
            let same = |outcome: &Outcome| {
                let our = ours.iter().find(|our| our.round == outcome.round)?;
                Some(value(our)? / value(outcome)?)
            };
            shown(&values(outcomes, same), 2)
        };
        vec![
            ratio(|o| o.through.map(|f| f.rate)),
            ratio(|o| o.fill.map(|f| f.rate)),
            ratio(|o| o.drain.map(|f| f.rate)),
            ratio(|o| o.half.map(|h| h.whole.p99)),
            ratio(|o| o.half.map(|h| h.delivery.p99)),
            ratio(|o| o.half.map(|h| h.ingress.p99)),
            ratio(|o| o.through.map(|f| f.cpu)),
            ratio(|o| o.drain.map(|f| f.cpu)),
        ]
    });
}

fn troubles(page: &mut String, results: &Results) {
    let troubled: Vec<&Outcome> =
        results.outcomes.iter().filter(|outcome| !outcome.trouble.is_empty()).collect();
    if troubled.is_empty() {
        return;
    }
    page.push_str("\n## What went wrong\n\n");
    for outcome in troubled {
        for trouble in &outcome.trouble {
            let _ = writeln!(
                page,
                "- {} in round {}, {} ms: {trouble}",
                outcome.system, outcome.round, outcome.delay_ms
            );
        }
    }
}
