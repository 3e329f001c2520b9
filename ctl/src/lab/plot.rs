//! Consensus time and messages against the number of members, one line a protocol. All axes are logarithmic, so that a cost that
//! grows like n is a line of slope 1, and one that grows like n² of slope 2.

use bftd_client::genesis::Protocol;
use bftd_sim::lab::Report;
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    coord::{Shift, combinators::BindKeyPoints},
    drawing::{DrawingArea, IntoDrawingArea},
    element::{Circle, PathElement},
    prelude::{IntoLogRange, SVGBackend},
    series::LineSeries,
    style::{BLACK, Color, RGBColor, WHITE},
};

/// Width and height, in pixels.
const SIZE: (u32, u32) = (820, 980);
/// Colours that are told apart by colour-blind people, too (Okabe and Ito).
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

type Value = fn(&Report) -> Option<f64>;

/// The picture, as SVG.
pub(super) fn svg(reports: &[Report]) -> Result<String, String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        let quantities: [(&str, &str, Value); 2] = [
            ("Consensus time", "median, virtual ms", |report| report.consensus_time_ms.map(|time| time.p50)),
            ("Messages of all members", "messages a commit", |report| report.messages_per_commit),
        ];
        for (area, quantity) in root.split_evenly((2, 1)).iter().zip(quantities) {
            chart(area, reports, quantity)?;
        }
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    reports: &[Report],
    (caption, unit, value): (&str, &str, Value),
) -> Result<(), String> {
    // A logarithm has no zero: a lone member sends nothing.
    let value = |report: &Report| value(report).filter(|value| *value > 0.0);
    let values: Vec<f64> = reports.iter().filter_map(value).collect();
    let sizes: Vec<f64> = reports.iter().map(|report| f64::from(report.nodes)).collect();
    let (x, y) = (around(&sizes, 1.15), around(&values, 1.3));
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{caption}{}", faults(reports)), ("sans-serif", 19))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(84)
        .build_cartesian_2d(
            (x.0..x.1).log_scale().with_key_points(apart(&sizes)),
            (y.0..y.1).log_scale().with_key_points(decades(y)),
        )
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .light_line_style(BLACK.mix(0.0))
        .bold_line_style(BLACK.mix(0.12))
        .x_desc("members")
        .y_desc(unit)
        .x_label_formatter(&|members| format!("{members:.0}"))
        .y_label_formatter(&|value| number(*value))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()
        .map_err(|error| error.to_string())?;
    // Lines that lie upon each other are all seen: the first is the broadest.
    for ((protocol, colour), breadth) in Protocol::ALL.into_iter().zip(COLOURS).zip([8, 6, 4, 2]) {
        let of = reports.iter().filter(|report| report.protocol == protocol);
        let mut points: Vec<_> = of.filter_map(|it| Some((f64::from(it.nodes), value(it)?))).collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(breadth)))
            .map_err(|error| error.to_string())?
            .label(protocol.row().name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(breadth)));
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, breadth / 2 + 3, colour.filled())))
            .map_err(|error| error.to_string())?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(|error| error.to_string())
}

/// What is drawn, where it is not without faults.
fn faults(reports: &[Report]) -> String {
    let mut kinds: Vec<&str> = reports.iter().flat_map(|report| report.faulty.keys().copied()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() { String::new() } else { format!(", with {} members", kinds.join(" and ")) }
}

/// Values that rise by so much that their labels have room.
fn apart(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let mut apart: Vec<f64> = Vec::new();
    for value in values {
        if apart.last().is_none_or(|last| value >= 1.1 * last) {
            apart.push(value);
        }
    }
    apart
}

/// A range around some positive values.
fn around(values: &[f64], margin: f64) -> (f64, f64) {
    if values.is_empty() {
        return (1.0, 10.0);
    }
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    (least / margin, most * margin)
}

/// Where lines are drawn: at 1, 2 and 5 of each power of ten, or at the powers alone where those would be too many.
fn decades((least, most): (f64, f64)) -> Vec<f64> {
    let first = least.log10().floor() as i32;
    let last = most.log10().ceil() as i32;
    let steps: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let points = (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
    points.filter(|point| (least..=most).contains(point)).collect()
}

/// A number with as many digits as it needs, thousands apart.
fn number(value: f64) -> String {
    if value < 10.0 {
        return format!("{}", (value * 1000.0).round() / 1000.0);
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(apart(&[31.0, 4.0, 32.0, 4.0, 5.0]), [4.0, 5.0, 31.0]);
        assert_eq!(around(&[], 1.1), (1.0, 10.0));
        assert_eq!(decades((0.3, 12.0)), [0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!(decades((8.0, 40_000.0)), [10.0, 100.0, 1_000.0, 10_000.0]);
        assert_eq!(
            [0.5, 2.0, 20.0, 10_000.0, 1_234_567.0].map(number),
            ["0.5", "2", "20", "10,000", "1,234,567"]
        );
    }
}
