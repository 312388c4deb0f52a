//! What the numbers say, in sentences.

use super::numbers::{at_most, number, of, short, spread, with_unit};
use super::text::{count, list};
use super::view::{Entrant, Section};
use crate::compare::results::{Comparison, End, Interval, Measure, Pair};

/// How far the plan has come; none if it is done.
pub(super) fn runs_left(comparison: &Comparison) -> Option<String> {
    let [there, all] = comparison.runs;
    (there < all).then(|| format!("{there} of {all} so far; the same command goes on with the others"))
}

/// Who is best, and who ties with it: for the top of the page.
pub(super) fn headline(section: &Section<'_>) -> String {
    let Some(score) = section.score else { return format!("On {}, no cell has a score.", section.name) };
    let Some(best) = section.best().or_else(|| lead(section, score)) else {
        let beside = not_adapters(section, score);
        let rest = if beside.is_empty() { String::new() } else { format!("; {}", list(&beside, 2)) };
        return format!("On {}, no adapter is judged by its {}{rest}.", section.name, score.shown().name);
    };
    let mut said = highest(section, best, score);
    let (floor, ties): (Vec<_>, Vec<_>) = section.ties().partition(|entrant| entrant.cell.method == "none");
    let ties: Vec<String> = ties.into_iter().map(|entrant| entrant.name.clone()).collect();
    let others: Vec<_> = section.ours().filter(|e| e.is_adapter()).filter_map(|e| e.cell.behind).collect();
    let intervals = if ties.len() == 1 {
        "the interval of the difference includes 0"
    } else {
        "the intervals of the differences include 0"
    };
    if !ties.is_empty() {
        said += &format!(" It ties with {}: {intervals}.", list(&ties, 6));
    } else if !others.is_empty() && others.iter().all(Interval::is_of_rows_alone) {
        said += " Who ties with it one seed does not tell.";
    } else if !others.is_empty() && !others.iter().any(Interval::is_of_rows_alone) {
        said += " No other adapter ties with it.";
    }
    if !floor.is_empty() {
        said += " Even the untrained model ties with it: these rows are too few to tell.";
    }
    // Last: "it" is the best, everywhere before.
    said + &match &*lucky(section, best, score) {
        [] => String::new(),
        [one] => format!(" {one} scores better, but over fewer seeds."),
        more => format!(" {} score better, but over fewer seeds.", list(more, 6)),
    }
}

/// Who scores better, but over fewer seeds.
fn lucky(section: &Section<'_>, best: &Entrant<'_>, score: Measure) -> Vec<String> {
    let better = f64::from(score.shown().better);
    let more = |e: &Entrant<'_>| {
        e.finite(score).zip(best.finite(score)).is_some_and(|(a, b)| a * better > b * better)
    };
    let fewer = |e: &Entrant<'_>| e.is_adapter() && e.cell.seeds.len() < best.cell.seeds.len();
    section.ours().filter(|e| fewer(e) && more(e)).map(|e| e.name.clone()).collect()
}

/// The first of the adapters of most seeds where no one was judged the best.
fn lead<'a, 'b>(section: &'a Section<'b>, score: Measure) -> Option<&'a Entrant<'b>> {
    let better = f64::from(score.shown().better);
    let value = |entrant: &Entrant<'_>| entrant.finite(score).map_or(f64::NEG_INFINITY, |v| v * better);
    let adapters = section.ours().filter(|e| e.is_adapter() && e.finite(score).is_some());
    let adapters: Vec<_> = adapters.collect();
    let most = adapters.iter().map(|e| e.cell.seeds.len()).max();
    adapters
        .into_iter()
        .filter(|e| Some(e.cell.seeds.len()) == most)
        .max_by(|a, b| value(a).total_cmp(&value(b)))
}

/// What is no adapter is no rival: the one is the floor, the other the ceiling.
fn not_adapters(section: &Section<'_>, score: Measure) -> Vec<String> {
    let beside = |method: &str, words: &str| {
        let entrant = section.ours().find(|e| e.cell.method == method)?;
        Some(format!("{words} it is {}", with_unit(entrant.finite(score)?, &score.shown())))
    };
    let both = [beside("none", "without training"), beside("full", "with full training")];
    both.into_iter().flatten().collect()
}

fn highest(section: &Section<'_>, best: &Entrant<'_>, score: Measure) -> String {
    let shown = score.shown();
    let values = best.cell.measures.get(&score);
    let seeds = match values.and_then(|v| spread(v, score)) {
        Some(sd) => format!(" (± {sd} over {})", count(best.cell.seeds.len(), "seed")),
        None if best.cell.seeds.len() == 1 => " (a single seed)".into(),
        None => String::new(),
    };
    let mean = with_unit(values.map_or(f64::NAN, |values| values.mean), &shown);
    let most = if shown.better < 0 { "lowest" } else { "highest" };
    let beside = not_adapters(section, score);
    let of = match best.cell.seeds.len() {
        seeds if !lucky(section, best, score).is_empty() => {
            format!("of the adapters with {} ", count(seeds, "seed"))
        }
        _ if beside.is_empty() => String::new(),
        _ => "of the adapters ".into(),
    };
    let beside = if beside.is_empty() { String::new() } else { format!("; {}", list(&beside, 2)) };
    let (set, name) = (section.name, &best.name);
    format!("On {set}, {of}{name} has the {most} {}, {mean}{seeds}{beside}.", shown.name)
}

/// The rest: a sentence each.
pub(super) fn further(section: &Section<'_>) -> Vec<String> {
    let said = [
        common(section),
        constant(section),
        cheapest(section),
        gradients(section),
        ends(section),
        peers(section),
        failures(section),
    ];
    said.into_iter().flatten().collect()
}

/// What was trained on judges nobody.
fn common(section: &Section<'_>) -> Option<String> {
    let set = section.set.filter(|set| set.common > 0)?;
    Some(format!("{} of the {} held-out rows ask what was trained on too.", set.common, set.held_out))
}

/// What all are to be held against: the untrained model may be below it.
fn constant(section: &Section<'_>) -> Option<String> {
    let commonest = section.commonest()?;
    let name = |e: &Entrant<'_>| match e.cell.method.as_str() {
        "none" => "the untrained model".to_owned(),
        _ => e.name.clone(),
    };
    let score = |e: &Entrant<'_>| e.finite(Measure::Accuracy);
    let below = section.ours().filter(|e| score(e).is_some_and(|score| score <= commonest.share));
    let below: Vec<String> = below.map(name).collect();
    let verb = if below.len() == 1 { "is" } else { "are" };
    let below = match &*below {
        [] => String::new(),
        some => format!("; {} {verb} not above that", list(some, 6)),
    };
    let share = with_unit(commonest.share, &Measure::Accuracy.shown());
    Some(format!(
        "The commonest label alone, {}, is right in {share} of the held-out rows{below}.",
        commonest.label
    ))
}

/// Among those that score alike, who costs least.
fn cheapest(section: &Section<'_>) -> Option<String> {
    let best = section.best()?;
    let alike: Vec<&Entrant<'_>> = std::iter::once(best).chain(section.ties()).collect();
    let least = |measure: Measure| {
        let better = f64::from(measure.shown().better);
        let value = |e: &Entrant<'_>| e.finite(measure).map(|v| v * better);
        let found = alike.iter().copied().filter(|e| value(e).is_some());
        found.max_by(|a, b| value(a).partial_cmp(&value(b)).unwrap_or(std::cmp::Ordering::Equal))
    };
    let told = |e: &Entrant<'_>, measure: Measure| {
        e.finite(measure).map_or_else(String::new, |value| with_unit(value, &measure.shown()))
    };
    let of = |measure: Measure| {
        let entrant = least(measure).filter(|_| section.not_comparable(measure).is_none())?;
        Some((entrant, told(entrant, measure)))
    };
    let ties = "Of the best and its ties,";
    Some(match (of(Measure::PeakBytes), of(Measure::TokensPerSecond), alike.len() == 1) {
        (Some((_, memory)), Some((_, speed)), true) => {
            format!("It trains at {speed} and takes {memory} of memory at most.")
        }
        (Some((_, memory)), None, true) => format!("It takes {memory} of memory at most."),
        (Some((small, memory)), Some((fast, speed)), false) if small.name == fast.name => {
            format!("{ties} {} needs the least memory, {memory}, and trains fastest, {speed}.", small.name)
        }
        (Some((small, memory)), Some((fast, speed)), false) => format!(
            "{ties} {} needs the least memory, {memory}, and {} trains fastest, {speed}.",
            small.name, fast.name
        ),
        (Some((small, memory)), None, false) => {
            format!("{ties} {} needs the least memory, {memory}.", small.name)
        }
        (None, ..) => return None,
    })
}

/// What rsLoRA's scale is for: the gradient should not fall as the rank grows.
fn gradients(section: &Section<'_>) -> Option<String> {
    let over = |series: &str| {
        let mut of: Vec<_> = section
            .ours()
            .filter(|e| e.series == series)
            .filter_map(|e| e.cell.rank.zip(e.finite(Measure::GradientNorm)))
            .collect();
        of.sort_by_key(|(rank, _)| *rank);
        let ((low, first), (high, last)) = (*of.first()?, *of.last()?);
        (low < high && first > 0.0).then(|| (low, high, last / first))
    };
    let ((low, high, lora), (rs_low, rs_high, rslora)) = (over("lora")?, over("rslora")?);
    let times = |ratio: f64| number(ratio, 2, false);
    (low == rs_low && high == rs_high).then(|| {
        format!(
            "From rank {low} to {high} the gradient norm changes by a factor of {} with lora and of {} with rslora.",
            times(lora),
            times(rslora)
        )
    })
}

/// Whose rate is the last that was tried: by a wider grid they might score better, and who ties with whom change.
fn ends(section: &Section<'_>) -> Option<String> {
    let at = |end: End, name: &str| {
        let chosen = section.tuning.iter().filter(|tried| tried.chosen && tried.at_end == Some(end));
        let who: Vec<String> =
            chosen.map(|tried| format!("{} ({})", tried.method, short(tried.lr))).collect();
        (!who.is_empty()).then(|| format!("the {name} that was tried for {}", list(&who, who.len())))
    };
    let said: Vec<String> =
        [at(End::Highest, "highest"), at(End::Lowest, "lowest")].into_iter().flatten().collect();
    (!said.is_empty()).then(|| {
        format!(
            "The best learning rate is {}: a better one may lie beyond the grid.",
            list(&said, said.len())
        )
    })
}

fn peers(section: &Section<'_>) -> Option<String> {
    let peer = &section.pairs.first()?.peer;
    let pairs: Vec<&Pair> = section.pairs.iter().copied().filter(|pair| pair.peer == *peer).collect();
    let mut said = Vec::new();
    let intervals = pairs.iter().filter_map(|pair| pair.accuracy);
    let intervals: Vec<_> = intervals.filter(|interval| !interval.is_of_rows_alone()).collect();
    if !intervals.is_empty() {
        let ties = intervals.iter().filter(|interval| interval.is_tie()).count();
        said.push(format!("the accuracies tie in {ties} of {}", count(intervals.len(), "pair")));
    }
    if let Some((_, worst)) = range(pairs.iter().filter_map(|pair| pair.worst_loss_difference)) {
        said.push(format!("the training losses differ by {} % at most", at_most(worst)));
    }
    let comparable = |measure: Measure| section.not_comparable(measure).is_none();
    let speeds = range(pairs.iter().filter_map(|pair| pair.speed_ratio));
    if let Some(speed) = speeds.filter(|_| comparable(Measure::TokensPerSecond)) {
        said.push(format!("ours trains {} times as fast", told(speed)));
    }
    let memories = range(pairs.iter().filter_map(|pair| pair.memory_ratio));
    if let Some(memory) = memories.filter(|_| comparable(Measure::PeakBytes)) {
        said.push(format!("ours takes {} times the memory", told(memory)));
    }
    (!said.is_empty()).then(|| format!("Beside {peer}, {}.", list(&said, said.len())))
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .filter(|v| v.is_finite())
        .fold(None, |ends, v| Some(ends.map_or((v, v), |(a, b): (f64, f64)| (a.min(v), b.max(v)))))
}

fn told((low, high): (f64, f64)) -> String {
    let [low, high] = [low, high].map(|v| number(v, 2, false));
    if low == high { low } else { format!("{low} to {high}") }
}

fn failures(section: &Section<'_>) -> Option<String> {
    let failed: Vec<String> =
        section.entrants.iter().filter(|e| !e.cell.failures.is_empty()).map(|e| e.name.clone()).collect();
    let runs = section.entrants.iter().map(|entrant| entrant.cell.failures.len()).sum();
    (!failed.is_empty()).then(|| format!("{} failed: see {}.", count(runs, "run"), list(&failed, 6)))
}

/// A measure of a cell with its spread, for the details.
pub(super) fn measured(entrant: &Entrant<'_>, measure: Measure) -> Option<[String; 3]> {
    let shown = measure.shown();
    let values = entrant.cell.measures.get(&measure)?;
    let sd = spread(values, measure).map_or_else(String::new, |sd| format!(" ± {sd}"));
    let each: Vec<_> = values.each.iter().map(|value| of(*value, &shown)).collect();
    Some([shown.name.into(), format!("{}{sd} {}", of(values.mean, &shown), shown.unit), each.join(", ")])
}
