//! Draws the results as one picture: rates and latencies of all systems, each bar with its spread.

use std::fmt::Write as _;

use super::compare::{Outcome, Results};
use super::report::{of, spread};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 130.0;
const BAR: f64 = 12.0;
const FONT: &str = "font-family='system-ui,sans-serif'";

type Pick = fn(&Outcome) -> Option<f64>;

/// One chart: a name, its unit, and its bars with their colours.
struct Chart {
    title: &'static str,
    unit: &'static str,
    bars: &'static [(&'static str, &'static str, Pick)],
}

const CHARTS: &[Chart] = &[
    Chart {
        title: "Messages a second",
        unit: "/s",
        bars: &[
            ("through", "#2f6f9f", |o| o.through.map(|f| f.rate)),
            ("drained", "#7fb2d6", |o| o.drain.map(|f| f.rate)),
            ("accepted", "#c9d9e6", |o| o.fill.map(|f| f.rate)),
        ],
    },
    Chart {
        title: "From the post to the delivery, at half of its own maximum",
        unit: " ms",
        bars: &[
            ("p50", "#f2c9a1", |o| o.half.map(|h| h.whole.p50)),
            ("p99", "#d9822b", |o| o.half.map(|h| h.whole.p99)),
        ],
    },
    Chart {
        title: "Processor seconds for 1,000 messages",
        unit: " s",
        bars: &[
            ("system", "#4d8b57", |o| o.through.map(|f| f.cpu)),
            ("broker", "#b9d8bd", |o| o.through.map(|f| f.broker_cpu)),
        ],
    },
];

/// The picture, for the first of the delays.
pub(crate) fn svg(results: &Results) -> String {
    let delay = results.outcomes.first().map_or(0, |outcome| outcome.delay_ms);
    let names: Vec<&str> = results.systems.iter().map(|(name, ..)| name.as_str()).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| !of(results, name, delay).is_empty()).collect();
    let (mut body, mut top) = (String::new(), 20.0);
    for chart in CHARTS {
        top = draw(&mut body, chart, results, &names, delay, top);
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {top}' width='{WIDTH}' height='{top}'>\
         <rect width='100%' height='100%' fill='white'/>{body}</svg>\n"
    )
}

fn draw(body: &mut String, chart: &Chart, results: &Results, names: &[&str], delay: u64, top: f64) -> f64 {
    let bar = |name: &str, pick: Pick| {
        let mut values: Vec<f64> = of(results, name, delay).into_iter().filter_map(pick).collect();
        values.sort_by(f64::total_cmp);
        spread(&values)
    };
    let all = names.iter().flat_map(|name| chart.bars.iter().filter_map(|(.., pick)| bar(name, *pick)));
    let most = all.map(|(_, _, most)| most).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LEFT - 140.0) / most;
    let mut y = top + 16.0;
    let _ =
        write!(body, "<text x='10' y='{y}' {FONT} font-size='16' font-weight='600'>{}</text>", chart.title);
    let mut x = WIDTH - 90.0;
    for (label, colour, _) in chart.bars.iter().rev() {
        let _ = write!(body, "<rect x='{x}' y='{}' width='10' height='10' fill='{colour}'/>", y - 10.0);
        let _ = write!(body, "<text x='{}' y='{y}' {FONT} font-size='12'>{label}</text>", x + 14.0);
        x -= 90.0;
    }
    y += 12.0;
    for name in names {
        let _ = write!(body, "<text x='10' y='{}' {FONT} font-size='13'>{name}</text>", y + 14.0);
        for (_, colour, pick) in chart.bars {
            if let Some((median, least, most)) = bar(name, *pick) {
                let (width, middle) = (median * scale, y + BAR / 2.0);
                let _ = write!(
                    body,
                    "<rect x='{LEFT}' y='{y}' width='{width:.1}' height='{BAR}' fill='{colour}'/>"
                );
                let (from, to) = (LEFT + least * scale, LEFT + most * scale);
                let _ =
                    write!(body, "<path d='M{from:.1} {middle}H{to:.1}' stroke='#333' stroke-width='1.5'/>");
                let digits = if median < 1.0 { 3 } else { usize::from(median < 100.0) };
                let (at, unit) = (to.max(LEFT + width) + 6.0, chart.unit);
                let _ = write!(
                    body,
                    "<text x='{at:.1}' y='{}' {FONT} font-size='11'>{median:.digits$}{unit}</text>",
                    y + 10.0
                );
            }
            y += BAR + 1.0;
        }
        y += 8.0;
    }
    y + 20.0
}
