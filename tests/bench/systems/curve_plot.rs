//! Draws the curves as one picture: processor time of a message by size, on a logarithmic scale.

use std::fmt::Write as _;

use super::curves::Point;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 240.0;
const FONT: &str = "font-family='system-ui,sans-serif'";
const COLOURS: &[&str] = &["#2f6f9f", "#d9822b"];

/// Small panels, two in a row.
pub(crate) fn svg(points: &[Point]) -> String {
    let mut curves: Vec<&str> = points.iter().map(|point| point.curve).collect();
    curves.dedup();
    let (mut body, mut x, mut y) = (String::new(), 0.0, 0.0);
    for curve in &curves {
        let of: Vec<&Point> = points.iter().filter(|point| point.curve == *curve).collect();
        panel(&mut body, curve, &of, x, y);
        (x, y) = if x == 0.0 { (WIDTH, y) } else { (0.0, y + HEIGHT) };
    }
    let (width, height) = (2.0 * WIDTH, y + if x == 0.0 { 0.0 } else { HEIGHT });
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>\
         <rect width='100%' height='100%' fill='white'/>{body}</svg>\n"
    )
}

/// Milliseconds of processor time for a message. For dead letters: seconds of a replay.
fn cost(point: &Point) -> Option<f64> {
    let flow = point.through.or(point.drain).map(|flow| flow.cpu);
    flow.or_else(|| point.verbs.iter().find(|cost| cost.verb == "replay").map(|cost| cost.seconds))
}

fn panel(body: &mut String, curve: &str, points: &[&Point], left: f64, top: f64) {
    let unit = if curve == "dead" { "s for a replay" } else { "ms CPU for a message" };
    let (title, baseline) = (top + 24.0, top + HEIGHT - 30.0);
    let _ =
        write!(body, "<text x='{}' y='{title}' {FONT} font-size='14'>{curve}: {unit}</text>", left + 10.0);
    let most = points.iter().filter_map(|point| cost(point)).fold(f64::MIN_POSITIVE, f64::max);
    let log = |point: &Point| f64::from(point.size).log10();
    let from = points.iter().map(|point| log(point)).fold(f64::MAX, f64::min);
    let to = points.iter().map(|point| log(point)).fold(f64::MIN, f64::max);
    let at = |point: &Point, cost: f64| {
        let share = if to > from { (log(point) - from) / (to - from) } else { 0.5 };
        (left + 50.0 + share * (WIDTH - 100.0), baseline - cost / most * (HEIGHT - 80.0))
    };
    let mut engines: Vec<&str> = points.iter().map(|point| point.engine.as_str()).collect();
    engines.dedup();
    for (engine, colour) in engines.iter().zip(COLOURS) {
        let line = points.iter().filter(|point| point.engine == *engine);
        let mut path = String::new();
        for (point, cost) in line.filter_map(|point| Some((point, cost(point)?))) {
            let (x, y) = at(point, cost);
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            let _ = write!(body, "<circle cx='{x:.1}' cy='{y:.1}' r='3' fill='{colour}'/>");
            let _ = write!(
                body,
                "<text x='{x:.1}' y='{:.1}' {FONT} font-size='10' text-anchor='middle'>{cost:.2}</text>",
                y - 6.0
            );
            let _ = write!(
                body,
                "<text x='{x:.1}' y='{}' {FONT} font-size='10' text-anchor='middle'>{}</text>",
                baseline + 16.0,
                point.size
            );
        }
        let _ = write!(body, "<path d='{path}' fill='none' stroke='{colour}' stroke-width='2'/>");
    }
    for (index, (engine, colour)) in (0_u32..).zip(engines.iter().zip(COLOURS)) {
        let x = left + WIDTH - 170.0 + 80.0 * f64::from(index);
        let _ =
            write!(body, "<text x='{x}' y='{title}' {FONT} font-size='12' fill='{colour}'>{engine}</text>");
    }
}
