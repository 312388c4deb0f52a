//! One set of axes and what is drawn in it.

use super::axis::Axis;
use super::canvas::{Canvas, Pen, TENTHS, pixels};
use super::look::Look;
use super::tags;
use crate::compare::report::text::escape;
use anyhow::Result;
use plotters::chart::ChartContext;
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, Cartesian2d, ChartBuilder, Color, DrawingArea, IntoDrawingArea, LineSeries, PathElement, Polygon,
    ShapeStyle, TRANSPARENT,
};

/// In pixels of a narrow phone: text drawn at 11 is then read at 11.
pub(super) const SIZE: (u32, u32) = (360, 246);
const TEXT: u32 = 11;
/// In one panel.
const MOST_LINES: usize = 8;

pub(super) struct Panel {
    pub(super) title: String,
    /// Beneath it; may be empty.
    pub(super) note: String,
    /// Whether each line's full name is told beneath as well.
    pub(super) named: bool,
    /// What it shows, for those who do not see it.
    pub(super) words: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// Corners of a line of no series, in values.
    pub(super) front: Vec<(f64, f64)>,
}

#[derive(Clone)]
pub(super) struct Series {
    /// In the legend.
    pub(super) name: String,
    /// With the rank, if it has but one.
    pub(super) full_name: String,
    pub(super) look: Look,
    pub(super) kind: Kind,
    pub(super) points: Vec<Point>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// A line in its band; few marks.
    Curve,
    /// A line, each point with its mark and bar.
    Line,
    /// Marks and bars alone.
    Dots,
    /// A line from side to side, at the first point.
    Level,
}

#[derive(Clone, Default)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The band's or bar's ends.
    pub(super) low: f64,
    pub(super) high: f64,
    /// Told when a pointer rests on it.
    pub(super) title: String,
    /// Written beside it, if there is room.
    pub(super) tag: String,
}

/// A point in places.
struct Place {
    at: (f64, f64),
    low: f64,
    high: f64,
}

type Chart<'a> = ChartContext<'a, Pen, Cartesian2d<Axis, Axis>>;

impl Panel {
    /// The names of the ids must be the page's only ones.
    pub(super) fn svg(&self, id: &str) -> Result<String> {
        let canvas = Canvas::default();
        let area = Pen { canvas: canvas.clone(), size: SIZE }.into_drawing_area();
        self.draw(&canvas, &area)?;
        Ok(format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n<title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>\n{}</svg>\n",
            SIZE.0,
            SIZE.1,
            escape(&self.title),
            escape(&self.words),
            canvas.text()
        ))
    }

    /// Itself, or several with the same axes where there are more lines than one can follow.
    pub(super) fn split(self) -> Vec<Self> {
        let (levels, lines): (Vec<_>, Vec<_>) = self.series.into_iter().partition(|s| s.kind == Kind::Level);
        let parts = if lines.iter().any(|s| s.kind == Kind::Dots) {
            1
        } else {
            lines.len().div_ceil(MOST_LINES).max(1)
        };
        let each = lines.len().div_ceil(parts).max(1);
        let part = |(nth, lines): (usize, &[Series])| Self {
            title: if parts > 1 {
                format!("{} ({} of {parts})", self.title, nth + 1)
            } else {
                self.title.clone()
            },
            note: self.note.clone(),
            named: self.named,
            words: self.words.clone(),
            x: self.x.clone(),
            y: self.y.clone(),
            series: lines.iter().chain(&levels).cloned().collect(),
            front: self.front.clone(),
        };
        lines.chunks(each).enumerate().map(part).collect()
    }

    /// What stands beneath.
    pub(super) fn notes(&self) -> String {
        let names: Vec<_> = self.series.iter().map(|series| series.full_name.as_str()).collect();
        let names = if self.named { format!("{}.", names.join(", ")) } else { String::new() };
        format!("{names} {}", self.note).trim().to_owned()
    }

    /// Said beside the title where the numbers at the side are no even steps.
    pub(super) fn scale(&self) -> &'static str {
        if self.y.log { " <small>log scale</small>" } else { "" }
    }

    fn x_name(&self) -> String {
        format!("{}{}", self.x.name, if self.x.log { " (log scale)" } else { "" })
    }

    fn draw(&self, canvas: &Canvas, area: &DrawingArea<Pen, Shift>) -> Result<()> {
        let longest = self.y.ticks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0);
        let mut chart: Chart<'_> = ChartBuilder::on(area)
            .margin_top(8 * TENTHS)
            .margin_right(10 * TENTHS)
            .x_label_area_size(38 * TENTHS)
            .y_label_area_size((longest as f64 * tags::LETTER) as i32 * TENTHS + 10 * TENTHS)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        canvas.open("axes");
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(ShapeStyle { color: BLACK.mix(0.28), ..stroke(0.8) })
            .axis_style(TRANSPARENT)
            .set_all_tick_mark_size(4 * TENTHS)
            .label_style(("sans-serif", TEXT * TENTHS as u32))
            .x_label_formatter(&|place| self.x.text(*place))
            .y_label_formatter(&|place| self.y.text(*place))
            .x_desc(self.x_name())
            .draw()?;
        self.ground(&mut chart)?;
        canvas.close();
        self.bands(canvas, &mut chart)?;
        self.front(canvas, &mut chart)?;
        for (nth, series) in self.series.iter().enumerate() {
            canvas.open(&series.look.class());
            self.series(canvas, &mut chart, series, self.dodge(nth))?;
            canvas.close();
        }
        self.tags(canvas, &chart);
        Ok(())
    }

    /// The line that all stands on, with the ticks: numbers at the side have their grid.
    fn ground(&self, chart: &mut Chart<'_>) -> Result<()> {
        let down = 0.016 * (self.y.high - self.y.low);
        let tick = |place: &f64| vec![(*place, self.y.low), (*place, self.y.low - down)];
        let lines: Vec<_> = self.x.ticks.iter().map(|(place, _)| tick(place)).collect();
        let ground = vec![(self.x.low, self.y.low), (self.x.high, self.y.low)];
        chart
            .draw_series(lines.into_iter().chain([ground]).map(|line| PathElement::new(line, stroke(0.8))))?;
        Ok(())
    }

    fn bands(&self, canvas: &Canvas, chart: &mut Chart<'_>) -> Result<()> {
        for series in self.series.iter().filter(|series| series.kind == Kind::Curve) {
            let places = self.places(series, 0.0);
            let low = places.iter().map(|place| (place.at.0, place.low));
            let high = places.iter().rev().map(|place| (place.at.0, place.high));
            if places.len() > 1 && places.iter().any(|place| place.low < place.high) {
                canvas.open(&format!("band {}", series.look.class()));
                chart.draw_series([Polygon::new(low.chain(high).collect::<Vec<_>>(), BLACK)])?;
                canvas.close();
            }
        }
        Ok(())
    }

    fn front(&self, canvas: &Canvas, chart: &mut Chart<'_>) -> Result<()> {
        let corners: Vec<_> =
            self.front.iter().filter_map(|(x, y)| self.x.at(*x).zip(self.y.at(*y))).collect();
        canvas.open("front");
        chart.draw_series(LineSeries::new(corners, stroke(1.2)))?;
        canvas.close();
        Ok(())
    }

    fn series(&self, canvas: &Canvas, chart: &mut Chart<'_>, series: &Series, aside: f64) -> Result<()> {
        let places = self.places(series, aside);
        let line: Vec<_> = match series.kind {
            Kind::Dots => Vec::new(),
            Kind::Level => places
                .first()
                .map(|place| vec![(self.x.low, place.at.1), (self.x.high, place.at.1)])
                .unwrap_or_default(),
            Kind::Curve | Kind::Line => places.iter().map(|place| place.at).collect(),
        };
        canvas.open(&series.look.line());
        chart.draw_series(LineSeries::new(line, stroke(1.8)))?;
        canvas.close();
        if [Kind::Line, Kind::Dots].contains(&series.kind) {
            canvas.open("bar");
            for place in places.iter().filter(|place| place.low < place.high) {
                chart.draw_series(self.bar(place))?;
            }
            canvas.close();
        }
        for (point, place) in self.marked(series).into_iter().zip(self.marked_places(series, &places)) {
            let (x, y) = chart.backend_coord(&place.at);
            canvas.raw(&series.look.mark((f64::from(x) / 10.0, f64::from(y) / 10.0), &point.title));
        }
        Ok(())
    }

    /// A bar with short ends.
    fn bar(&self, place: &Place) -> Vec<PathElement<(f64, f64)>> {
        let half = 0.008 * (self.x.high - self.x.low);
        let x = place.at.0;
        let end = |y| PathElement::new(vec![(x - half, y), (x + half, y)], stroke(1.1));
        let stem = PathElement::new(vec![(x, place.low), (x, place.high)], stroke(1.1));
        vec![stem, end(place.low), end(place.high)]
    }

    /// Several series share their x here; each goes a little aside, so that their bars do not hide one another.
    fn dodge(&self, nth: usize) -> f64 {
        let lines = self.series.iter().filter(|series| series.kind == Kind::Line).count();
        if lines < 2 || self.series[nth].kind != Kind::Line {
            return 0.0;
        }
        let place = self.series[..nth].iter().filter(|series| series.kind == Kind::Line).count();
        let step = 0.012f64.min(0.06 / lines as f64) * (self.x.high - self.x.low);
        (place as f64 - (lines as f64 - 1.0) / 2.0) * step
    }

    fn drawable(&self, point: &Point) -> Option<(f64, f64)> {
        self.x.at(point.x).zip(self.y.at(point.y))
    }

    fn places(&self, series: &Series, aside: f64) -> Vec<Place> {
        let inside = |y: f64| self.y.at(y).map(|place| place.clamp(self.y.low, self.y.high));
        let place = |point: &Point| {
            let (x, y) = self.drawable(point)?;
            let (low, high) = (inside(point.low).unwrap_or(y), inside(point.high).unwrap_or(y));
            Some(Place { at: (x + aside, y), low, high })
        };
        series.points.iter().filter_map(place).collect()
    }

    /// Which points bear a mark: on a curve few, and not those of its neighbours.
    fn chosen(&self, series: &Series, among: usize) -> Vec<usize> {
        match series.kind {
            Kind::Level => Vec::new(),
            Kind::Line | Kind::Dots => (0..among).collect(),
            Kind::Curve => {
                let nth = self.series.iter().position(|other| std::ptr::eq(other, series)).unwrap_or(0);
                let (parts, others) = (4 * self.series.len(), self.series.len());
                let at = |part: usize| (part * among + among / 2) / parts;
                (0..4).map(|k| at(k * others + nth)).filter(|at| *at < among).collect()
            }
        }
    }

    fn marked<'a>(&self, series: &'a Series) -> Vec<&'a Point> {
        let drawn: Vec<_> = series.points.iter().filter(|point| self.drawable(point).is_some()).collect();
        self.chosen(series, drawn.len()).into_iter().map(|at| drawn[at]).collect()
    }

    fn marked_places<'a>(&self, series: &Series, places: &'a [Place]) -> Vec<&'a Place> {
        self.chosen(series, places.len()).into_iter().map(|at| &places[at]).collect()
    }

    fn tags(&self, canvas: &Canvas, chart: &Chart<'_>) {
        let (xs, ys) = chart.plotting_area().get_pixel_range();
        let tenth = |at: i32| f64::from(at) / 10.0;
        let frame = tags::Box {
            left: tenth(xs.start),
            top: tenth(ys.start),
            right: tenth(xs.end),
            bottom: tenth(ys.end),
        };
        let points = self.series.iter().flat_map(|series| &series.points);
        let marks: Vec<_> = points
            .filter_map(|point| {
                let (x, y) = chart.backend_coord(&self.drawable(point)?);
                Some(((tenth(x), tenth(y)), point.tag.as_str()))
            })
            .collect();
        canvas.open("tags");
        for tag in tags::place(&frame, &marks) {
            let (x, y) = (pixels((tag.x * 10.0) as i32), pixels((tag.y * 10.0) as i32));
            canvas.raw(&format!("<text x=\"{x}\" y=\"{y}\">{}</text>\n", escape(tag.text)));
        }
        canvas.close();
    }
}

/// A line so many pixels wide.
fn stroke(width: f64) -> ShapeStyle {
    ShapeStyle { color: BLACK.to_rgba(), filled: false, stroke_width: (width * f64::from(TENTHS)) as u32 }
}
