//! Where names stand beside their points without covering anything.

/// The width of a letter, a little more than most are.
pub(super) const LETTER: f64 = 6.3;
const HEIGHT: f64 = 11.0;
/// Half a mark.
const MARK: f64 = 5.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Box {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

/// A text; x, y: the start of its baseline.
#[derive(Debug, PartialEq)]
pub(super) struct Tag<'a> {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) text: &'a str,
}

impl Box {
    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn holds(&self, other: &Self) -> bool {
        self.left <= other.left
            && other.right <= self.right
            && self.top <= other.top
            && other.bottom <= self.bottom
    }
}

/// A place for each name, the first of eight around its point that is free; a name without any is left out.
/// Points without a name only stand in the way.
pub(super) fn place<'a>(frame: &Box, marks: &[((f64, f64), &'a str)]) -> Vec<Tag<'a>> {
    let mark = |(x, y): (f64, f64)| Box { left: x - MARK, top: y - MARK, right: x + MARK, bottom: y + MARK };
    let mut taken: Vec<Box> = marks.iter().map(|(at, _)| mark(*at)).collect();
    let mut tags = Vec::new();
    for ((x, y), text) in marks.iter().filter(|(_, text)| !text.is_empty()) {
        let width = text.chars().count() as f64 * LETTER;
        let (beside, above) = (MARK + 2.0, MARK + 1.0);
        let (right, left, middle) = (x + beside, x - beside - width, x - width / 2.0);
        let (level, up, down) = (y - HEIGHT / 2.0, y - above - HEIGHT, y + above);
        let tries = [
            (left, up),
            (right, down),
            (right, level),
            (left, level),
            (middle, up),
            (middle, down),
            (right, up),
            (left, down),
        ];
        let free = tries.into_iter().find_map(|(left, top)| {
            let here = Box { left, top, right: left + width, bottom: top + HEIGHT };
            (frame.holds(&here) && !taken.iter().any(|other| other.meets(&here))).then_some(here)
        });
        if let Some(here) = free {
            taken.push(here);
            tags.push(Tag { x: here.left, y: here.bottom - 2.0, text });
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Box = Box { left: 0.0, top: 0.0, right: 200.0, bottom: 100.0 };

    #[test]
    fn names_keep_clear_of_points_and_of_one_another() {
        let marks =
            [((100.0, 50.0), "one"), ((104.0, 52.0), "two"), ((80.0, 30.0), ""), ((100.0, 60.0), "three")];
        let tags = place(&FRAME, &marks);
        assert_eq!(tags.len(), 3);
        let of = |tag: &Tag<'_>| {
            let width = tag.text.len() as f64 * LETTER;
            Box { left: tag.x, top: tag.y + 2.0 - HEIGHT, right: tag.x + width, bottom: tag.y + 2.0 }
        };
        for (i, tag) in tags.iter().enumerate() {
            assert!(FRAME.holds(&of(tag)));
            assert!(tags[..i].iter().all(|other| !of(other).meets(&of(tag))), "{tags:?}");
        }
    }

    #[test]
    fn a_name_without_room_is_left_out() {
        assert!(
            place(&FRAME, &[((100.0, 50.0), "a name that is much longer than the frame is wide")]).is_empty()
        );
    }
}
