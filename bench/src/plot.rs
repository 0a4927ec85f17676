//! The tables of scale as a picture: cost of one more against the number of sandboxes.

use std::fmt::Write as _;

use crate::Result;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const MARGIN: f64 = 60.0;

struct Curve {
    name: String,
    color: &'static str,
    dashes: &'static str,
    /// Sandboxes and microseconds.
    points: Vec<(f64, f64)>,
}

/// Reads what `scale` has printed, of one machine or of several, and returns an SVG.
pub fn svg(results: &str) -> Result<String> {
    let mut curves: Vec<Curve> = Vec::new();
    let (mut section, mut from) = (String::new(), 0);
    for line in results.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title
                .strip_prefix("Scale (cgroup ")
                .map(|rest| rest.split(',').next().unwrap_or_default())
                .unwrap_or_default()
                .to_owned();
            from = curves.len();
        }
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let number = |at: usize| {
            cells.get(at).and_then(|cell: &&str| cell.trim_end_matches(" µs").parse::<f64>().ok())
        };
        let Some(sandboxes) = number(0).filter(|_| !section.is_empty()) else { continue };
        if from == curves.len() {
            let color = if from == 0 { "#1b6ca8" } else { "#b3541e" };
            for (name, dashes) in
                [("create", ""), ("bare create", "6 4"), ("destroy", "1 0"), ("bare destroy", "2 4")]
            {
                curves.push(Curve { name: format!("{section}: {name}"), color, dashes, points: Vec::new() });
            }
        }
        for (curve, column) in curves[from..].iter_mut().zip([1, 2, 4, 5]) {
            curve.points.extend(number(column).map(|cost| (sandboxes, cost)));
        }
    }
    if curves.is_empty() {
        return Err("there is no table of scale".into());
    }
    draw(&curves)
}

fn draw(curves: &[Curve]) -> Result<String> {
    let costs = || curves.iter().flat_map(|curve| curve.points.iter().map(|(_, cost)| cost.log10()));
    let (low, high) = (costs().fold(f64::MAX, f64::min).floor(), costs().fold(f64::MIN, f64::max).ceil());
    let x = |sandboxes: f64| MARGIN + (sandboxes.log10() - 1.0) / 3.0 * (WIDTH - 3.5 * MARGIN);
    let y = |cost: f64| HEIGHT - MARGIN - (cost.log10() - low) / (high - low) * (HEIGHT - 1.5 * MARGIN);
    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    )?;
    writeln!(svg, r#"<rect width="100%" height="100%" fill="white"/>"#)?;
    for power in 1..=4 {
        let at = x(10_f64.powi(power));
        writeln!(
            svg,
            r##"<line x1="{at}" x2="{at}" y1="{}" y2="{}" stroke="#ddd"/>"##,
            y(10_f64.powf(low)),
            y(10_f64.powf(high))
        )?;
        writeln!(
            svg,
            r#"<text x="{at}" y="{}" text-anchor="middle">{}</text>"#,
            HEIGHT - MARGIN + 18.0,
            10_u32.pow(power as u32)
        )?;
    }
    for power in low as i32..=high as i32 {
        let at = y(10_f64.powi(power));
        writeln!(svg, r##"<line x1="{MARGIN}" x2="{}" y1="{at}" y2="{at}" stroke="#ddd"/>"##, x(10_000.0))?;
        writeln!(
            svg,
            r#"<text x="{}" y="{}" text-anchor="end">{} µs</text>"#,
            MARGIN - 6.0,
            at + 4.0,
            10_f64.powi(power)
        )?;
    }
    writeln!(svg, r#"<text x="{}" y="{}" text-anchor="middle">sandboxes</text>"#, x(316.0), HEIGHT - 14.0)?;
    writeln!(svg, r#"<text x="{MARGIN}" y="18">cost of one more sandbox</text>"#)?;
    let mut labels: Vec<f64> = Vec::new();
    for curve in curves {
        let points: Vec<_> = curve
            .points
            .iter()
            .map(|(sandboxes, cost)| format!("{:.1},{:.1}", x(*sandboxes), y(*cost)))
            .collect();
        let (color, dashes) = (curve.color, curve.dashes);
        writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>"#,
            points.join(" ")
        )?;
        let Some((sandboxes, cost)) = curve.points.last() else { continue };
        let mut at = y(*cost) + 4.0;
        while labels.iter().any(|other| (other - at).abs() < 13.0) {
            at += 13.0;
        }
        labels.push(at);
        writeln!(
            svg,
            r#"<text x="{:.1}" y="{at:.1}" fill="{color}">{}</text>"#,
            x(*sandboxes) + 8.0,
            curve.name
        )?;
    }
    writeln!(svg, "</svg>")?;
    Ok(svg)
}
