//! The picture of `growth`: throughput, memory and disk, one above the other, over the same time.

use std::path::Path;

use plotters::{
    chart::ChartBuilder,
    coord::Shift,
    drawing::{DrawingArea, IntoDrawingArea},
    prelude::SVGBackend,
    series::LineSeries,
    style::{BLACK, Color, RGBColor, WHITE},
};

use crate::{failure::Failure, growth::Sample, run::MIB};

/// Width and height, in pixels.
const SIZE: (u32, u32) = (900, 900);
/// Colours that are told apart by colour-blind people, too (Okabe and Ito).
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];

type Quantity = (&'static str, fn(&Sample) -> f64);

/// Draws samples into an SVG file.
///
/// # Errors
/// There are too few samples, or the file can't be written.
pub(crate) fn draw(path: &Path, samples: &[Sample]) -> Result<(), Failure> {
    let cant = |cause: String| Failure::new(format!("can't draw {}", path.display())).cause(cause);
    // The first sample is the start, before which nothing was stored.
    let [_, samples @ ..] = samples else { return Err(cant("there is no sample".to_owned())) };
    let quantities: [Quantity; 3] = [
        ("puts/s", |sample| sample.throughput),
        ("RSS of a daemon, MiB", |sample| sample.rss_bytes as f64 / MIB),
        ("disk of a daemon, MiB", |sample| sample.disk_bytes as f64 / MIB),
    ];
    let draw_all = || {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        for ((area, quantity), colour) in root.split_evenly((3, 1)).iter().zip(quantities).zip(COLOURS) {
            chart(area, samples, quantity, colour)?;
        }
        root.present().map_err(|error| error.to_string())
    };
    draw_all().map_err(cant)
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    samples: &[Sample],
    (name, value): Quantity,
    colour: RGBColor,
) -> Result<(), String> {
    let largest = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(1e-9, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(name, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..largest(|sample| sample.seconds), 0.0..1.05 * largest(value))
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .light_line_style(BLACK.mix(0.04))
        .x_desc("seconds")
        .x_label_formatter(&|seconds| format!("{seconds:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(|error| error.to_string())?;
    let points = samples.iter().map(|sample| (sample.seconds, value(sample)));
    chart.draw_series(LineSeries::new(points, colour.stroke_width(2))).map_err(|error| error.to_string())?;
    Ok(())
}
