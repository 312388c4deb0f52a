//! Where sums are written: nowhere that the same call reads or writes another time. Found by addresses alone, in some
//! nanoseconds a matrix.

use std::cmp::Reverse;

use super::flat::{Flat, Flats};

/// A matrix's memory, from its first byte to its last, whatever lies between them.
struct Place<'a> {
    start: usize,
    end: usize,
    flat: &'a Flat,
    written: bool,
}

/// Panics where a sum would be written over what is read, or twice; `onto` may be `out` itself. None is empty.
pub(super) fn check(sums: &[Flats<'_>]) {
    let mut places = Vec::with_capacity(6 * sums.len());
    for sum in sums {
        let (rows, columns) = (sum.out.rows, sum.out.columns);
        assert!(Runs::of(&sum.out).once, "a sum into [{rows}, {columns}], whose rows lie over one another");
        places.push(Place::new(&sum.out, true));
        for (a, b) in &sum.products {
            places.extend([Place::new(a, false), Place::new(b, false)]);
        }
        let onto = sum.onto.as_ref().filter(|onto| !onto.same(&sum.out));
        for flat in [onto, sum.vectors[0].as_ref(), sum.vectors[1].as_ref()].into_iter().flatten() {
            places.push(Place::new(flat, false));
        }
    }
    places.sort_unstable_by_key(|place| place.start);
    for (i, first) in places.iter().enumerate() {
        for second in places[i + 1..].iter().take_while(|second| second.start < first.end) {
            if (first.written || second.written) && !beside(first, second) {
                let (out, other) = if first.written { (first, second) } else { (second, first) };
                let [out, other] = [out, other].map(|place| [place.flat.rows, place.flat.columns]);
                panic!("a sum into {out:?} lies over {other:?}, which the same call reads or writes");
            }
        }
    }
}

impl<'a> Place<'a> {
    fn new(flat: &'a Flat, written: bool) -> Self {
        let start = flat.data.addr();
        let last = (flat.rows - 1) * flat.stride + (flat.columns - 1) * flat.inner;
        let empty = flat.rows == 0 || flat.columns == 0;
        let end = if empty { start } else { start + ((last + 1) * flat.bytes) as usize };
        Self { start, end, flat, written }
    }
}

/// A matrix's bytes: runs of `width`, one every `pitch`, which is 0 of a single run.
struct Runs {
    width: usize,
    pitch: usize,
    /// Whether no number lies over another.
    once: bool,
}

impl Runs {
    fn of(flat: &Flat) -> Self {
        // Of one there is no step, whatever is said.
        let step = |n: i64, step: i64| (if n == 1 { 1 } else { step }, Reverse(n));
        let (rows, columns) = (step(flat.rows, flat.stride), step(flat.columns, flat.inner));
        let ((step, Reverse(n)), (pitch, Reverse(runs))) = (rows.min(columns), rows.max(columns));
        let width = (n - 1) * step + 1;
        let once = (n == 1 || step > 0) && (runs == 1 || pitch >= width);
        let pitch = if runs == 1 { 0 } else { pitch };
        let [width, pitch] = [width, pitch].map(|n| (n * flat.bytes) as usize);
        Self { width, pitch, once }
    }
}

/// Whether both are columns of one matrix, and do not meet. `second` begins no earlier.
fn beside(first: &Place<'_>, second: &Place<'_>) -> bool {
    let (a, b) = (Runs::of(first.flat), Runs::of(second.flat));
    let pitch = a.pitch.max(b.pitch);
    let one = a.pitch == b.pitch || a.pitch.min(b.pitch) == 0;
    let ahead = (second.start - first.start).checked_rem(pitch);
    one && ahead.is_some_and(|ahead| a.width <= ahead && ahead + b.width <= pitch)
}
