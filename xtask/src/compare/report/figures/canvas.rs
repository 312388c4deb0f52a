//! What plotters draws on: SVG in the page's own colours, which follow light and dark; so no colour is written here but
//! `currentColor`, and a group's class says which that is.
//!
//! Plotters counts in whole numbers: tenths of a pixel here, so that curves are smooth.

use crate::compare::report::text::escape;
use plotters::prelude::DrawingBackend;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

pub(super) const TENTHS: i32 = 10;

/// The SVG's text, shared by plotters and by those who write beside it.
#[derive(Clone, Default)]
pub(super) struct Canvas(Rc<RefCell<String>>);

/// Plotters' hand on a canvas.
pub(super) struct Pen {
    pub(super) canvas: Canvas,
    /// In pixels.
    pub(super) size: (u32, u32),
}

impl Canvas {
    pub(super) fn raw(&self, svg: &str) {
        self.0.borrow_mut().push_str(svg);
    }

    /// Opens a group.
    pub(super) fn open(&self, class: &str) {
        self.raw(&format!("<g class=\"{class}\">"));
    }

    pub(super) fn close(&self) {
        self.raw("</g>\n");
    }

    pub(super) fn text(&self) -> String {
        self.0.borrow().clone()
    }
}

/// Tenths as pixels: `12.5`, `12`.
pub(super) fn pixels(tenths: i32) -> String {
    let (sign, size) = (if tenths < 0 { "-" } else { "" }, tenths.abs());
    match size % TENTHS {
        0 => format!("{sign}{}", size / TENTHS),
        rest => format!("{sign}{}.{rest}", size / TENTHS),
    }
}

fn points(path: impl IntoIterator<Item = BackendCoord>) -> String {
    let each: Vec<_> = path.into_iter().map(|(x, y)| format!("{},{}", pixels(x), pixels(y))).collect();
    each.join(" ")
}

fn opacity(color: BackendColor) -> String {
    if color.alpha < 1.0 { format!(" opacity=\"{}\"", color.alpha) } else { String::new() }
}

fn width(style: &impl BackendStyle) -> String {
    pixels(i32::try_from(style.stroke_width()).unwrap_or(TENTHS))
}

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

impl DrawingBackend for Pen {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.size.0 * TENTHS as u32, self.size.1 * TENTHS as u32)
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    /// Nothing here is made of dots.
    fn draw_pixel(&mut self, _: BackendCoord, _: BackendColor) -> Drawn {
        Ok(())
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        self.draw_path([from, to], style)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        if style.color().alpha > 0.0 {
            let (points, width, opacity) = (points(path), width(style), opacity(style.color()));
            self.canvas.raw(&format!("<polyline points=\"{points}\" stroke-width=\"{width}\"{opacity}/>\n"));
        }
        Ok(())
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        (left, top): BackendCoord,
        (right, bottom): BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn {
        let corners = [(left, top), (right, top), (right, bottom), (left, bottom)];
        if fill {
            return self.fill_polygon(corners, style);
        }
        self.draw_path(corners.into_iter().chain([(left, top)]), style)
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn {
        if style.color().alpha > 0.0 {
            let (points, opacity) = (points(path), opacity(style.color()));
            self.canvas.raw(&format!("<polygon points=\"{points}\"{opacity}/>\n"));
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, (x, y): BackendCoord) -> Drawn {
        let anchor = match style.anchor().h_pos {
            HPos::Left => "start",
            HPos::Center => "middle",
            HPos::Right => "end",
        };
        let down = match style.anchor().v_pos {
            VPos::Top => "0.8em",
            VPos::Center => "0.35em",
            VPos::Bottom => "-0.3em",
        };
        self.canvas.raw(&format!(
            "<text x=\"{}\" y=\"{}\" dy=\"{down}\" text-anchor=\"{anchor}\">{}</text>\n",
            pixels(x),
            pixels(y),
            escape(text)
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_are_written_as_pixels() {
        assert_eq!([0, 5, 10, 123, -5, -120].map(pixels), ["0", "0.5", "1", "12.3", "-0.5", "-12"]);
    }
}
