//! The tables: what is in them, and what is marked.

use super::numbers::{NOTHING, at_most, difference_unit, interval, number, of, short, spread};
use super::table::{Field, Head, Row, Table};
use super::view::{Entrant, Section};
use crate::compare::results::{Comparison, Interval, Measure, Shown};

/// What it would score to say one and the same of every row.
pub(super) const COMMONEST: &str = "commonest label";

/// Beside an interval of one seed.
const ROWS_ALONE: &str = "one seed: rows alone";

const SUMMARY: [Measure; 10] = [
    Measure::Accuracy,
    Measure::MacroF1,
    Measure::ExactMatch,
    Measure::GeneratedF1,
    Measure::Loss,
    Measure::TokensPerSecond,
    Measure::TrainSeconds,
    Measure::PeakBytes,
    Measure::Parameters,
    Measure::ParameterShare,
];

/// The data sets themselves.
pub(super) fn sets(comparison: &Comparison) -> Table {
    let head = vec![
        Head::words("data set"),
        Head::number("training rows", ""),
        Head::number("held-out rows", ""),
        Head::words("answers"),
        Head::number("target loss", "nats"),
    ];
    let row = |set: &crate::compare::results::Set| Row {
        fields: vec![
            set.name.as_str().into(),
            number(set.train as f64, 0, false).into(),
            number(set.held_out as f64, 0, false).into(),
            if set.labels.is_empty() { "free text".into() } else { labels(&set.labels) },
            set.target_loss.map_or(NOTHING.into(), |loss| number(loss, 3, false)).into(),
        ],
        ..Row::default()
    };
    Table { title: "Data".into(), note: String::new(), head, rows: comparison.sets.iter().map(row).collect() }
}

fn labels(labels: &[String]) -> Field {
    let shown = labels.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    let rest = labels.len().saturating_sub(8);
    if rest == 0 { shown.into() } else { format!("{shown} and {rest} more").into() }
}

/// Who is best, by how much, and at what cost.
pub(super) fn summary(section: &Section<'_>) -> Table {
    let measures = present(section, &SUMMARY);
    let mut head = vec![Head::words("method")];
    let score = section.score.filter(|score| measures.contains(score));
    for measure in &measures {
        let shown = measure.shown();
        head.push(self::head(section, *measure));
        if Some(*measure) == score {
            head.push(Head::number(less(section), difference_unit(&shown)));
        }
    }
    head.extend(["α", "learning rate", "seeds"].map(|name| Head::number(name, "")));
    let leads = Leads::new(section, &measures);
    let mut rows = rows(section, |entrant| {
        let cell = entrant.cell;
        let mut fields = Vec::new();
        for measure in &measures {
            fields.push(value(entrant, *measure, &leads));
            if Some(*measure) == score {
                fields.push(difference(entrant, &measure.shown()));
            }
        }
        let setting = |value: Option<f64>| Field::from(value.map_or(NOTHING.into(), short));
        // What was not trained has no seed; where all failed, none is left.
        let seeds = match cell.seeds.len() {
            0 if cell.failures.is_empty() => NOTHING.into(),
            seeds => seeds.to_string(),
        };
        fields.extend([setting(cell.alpha), setting(cell.lr), seeds.into()]);
        fields
    });
    if let Some(commonest) = section.commonest() {
        // Of the other measures a constant answer has none.
        let mut fields = vec![Field::from(NOTHING); head.len()];
        fields[0] = Field { text: COMMONEST.into(), aside: commonest.label.clone(), ..Field::default() };
        let score = measures.iter().position(|measure| *measure == Measure::Accuracy);
        if let Some(field) = score.and_then(|at| fields.get_mut(1 + at)) {
            *field = of(commonest.share, &Measure::Accuracy.shown()).into();
        }
        rows.insert(0, Row { fields, ..Row::default() });
    }
    let how = match section.rows_alone() {
        true => {
            "in brackets the interval of the difference, over rows alone: what another seed would change one does not tell, \
                 and so no tie is called"
        }
        false => {
            "≈ ties with it: the interval of the difference (in brackets, over seeds and rows) includes 0. Of one seed it is \
                  over rows alone, and no tie is called"
        }
    };
    let note = format!(
        "★ has the best score of the adapters that have the most seeds; {how}. All intervals of a set hold at once with 95 %. \
         ± is the standard deviation over the seeds. Bold: the best mean of its column."
    );
    Table { title: "Scores and costs".into(), note, head, rows }
}

/// What compares nothing is marked so.
fn head(section: &Section<'_>, measure: Measure) -> Head {
    let (name, unit) = (measure.shown().name, measure.shown().unit);
    match section.not_comparable(measure) {
        Some(why) => Head::number(&format!("{name}, {why}"), unit),
        None => Head::number(name, unit),
    }
}

/// Likewise of a ratio.
fn ratio_head(section: &Section<'_>, name: &str, measure: Measure) -> Head {
    let why = section.not_comparable(measure).map_or_else(String::new, |why| format!(", {why}"));
    Head::number(&format!("{name}, ours over theirs{why}"), "")
}

/// What the column of the differences is called.
fn less(section: &Section<'_>) -> &'static str {
    if section.rows_alone() { "less the best’s, one seed" } else { "less the best’s" }
}

/// All other measures; none if there are none.
pub(super) fn further(section: &Section<'_>) -> Option<Table> {
    let rest: Vec<_> = Measure::ALL.into_iter().filter(|measure| !SUMMARY.contains(measure)).collect();
    let measures = present(section, &rest);
    let mut head = vec![Head::words("method")];
    head.extend(measures.iter().map(|m| self::head(section, *m)));
    let leads = Leads::new(section, &measures);
    let rows = rows(section, |entrant| measures.iter().map(|m| value(entrant, *m, &leads)).collect());
    let note = "Merge: adapter against merged model. Forgetting: loss on general text less the untrained model’s. \
                Effective rank: exp of the entropy of the update’s singular values.";
    let table = Table { title: "Further measures".into(), note: note.into(), head, rows };
    (!measures.is_empty()).then_some(table)
}

/// What went wrong; none if nothing did.
pub(super) fn failures(section: &Section<'_>) -> Option<Table> {
    let failed = section.entrants.iter().filter(|entrant| !entrant.cell.failures.is_empty());
    let rows: Vec<_> = failed
        .flat_map(|entrant| {
            entrant.cell.failures.iter().map(|line| Row {
                fields: vec![entrant.name.as_str().into(), line.as_str().into()],
                link: Some(link(entrant)),
                ..Row::default()
            })
        })
        .collect();
    let head = vec![Head::words("method"), Head::words("what went wrong")];
    (!rows.is_empty()).then(|| Table { title: "Failures".into(), note: String::new(), head, rows })
}

/// Ours less the peers'; none without peers.
pub(super) fn pairs(section: &Section<'_>) -> Option<Table> {
    let accuracy = Measure::Accuracy.shown();
    let head = vec![
        Head::words("method"),
        Head::words("peer"),
        Head::words("type"),
        Head::number("seeds", ""),
        Head::number("accuracy, ours less theirs", difference_unit(&accuracy)),
        Head::number("losses differ at most", "%"),
        ratio_head(section, "speed", Measure::TokensPerSecond),
        ratio_head(section, "memory", Measure::PeakBytes),
    ];
    let row = |pair: &&crate::compare::results::Pair| {
        let ratio = |value: Option<f64>| Field::from(value.map_or(NOTHING.into(), |v| number(v, 2, false)));
        let accuracy = pair.accuracy.map_or(Field::from(NOTHING), |of| between(&of, of.is_tie(), &accuracy));
        Row {
            fields: vec![
                format!("{} r={}", pair.method, pair.rank).into(),
                pair.peer.as_str().into(),
                pair.dtype.as_str().into(),
                pair.seeds.len().to_string().into(),
                accuracy,
                pair.worst_loss_difference.map_or(NOTHING.into(), at_most).into(),
                ratio(pair.speed_ratio),
                ratio(pair.memory_ratio),
            ],
            ..Row::default()
        }
    };
    let rows: Vec<_> = section.pairs.iter().map(row).collect();
    let note = "Trained from the same start on the same batches. ≈: a tie, the 95 % interval over seeds and rows includes 0. \
                Of one seed it is over rows alone, and no tie is called.";
    (!rows.is_empty()).then(|| Table {
        title: "Ours against the peers".into(),
        note: note.into(),
        head,
        rows,
    })
}

/// The learning rates that were tried; none if none were.
pub(super) fn tuning(section: &Section<'_>) -> Option<Table> {
    let (loss, accuracy) = (Measure::Loss.shown(), Measure::Accuracy.shown());
    let head = vec![
        Head::words("method"),
        Head::number("learning rate", ""),
        Head::number("loss", "nats"),
        Head::number("accuracy", "%"),
    ];
    let mut before = "";
    let mut rows = Vec::new();
    for tried in &section.tuning {
        let name = tried.rank.map_or(tried.method.clone(), |rank| format!("{} r={rank}", tried.method));
        let rate = Field {
            text: short(tried.lr),
            aside: match (tried.chosen, tried.at_end) {
                (true, Some(_)) => "✓ chosen, at the grid’s end".into(),
                (true, None) => "✓ chosen".into(),
                (false, _) => String::new(),
            },
            bold: tried.chosen,
        };
        let accuracy = tried.accuracy.map_or(NOTHING.into(), |value| of(value, &accuracy));
        let loss = tried.loss.map_or("failed".into(), |value| of(value, &loss));
        rows.push(Row {
            fields: vec![name.into(), rate, loss.into(), accuracy.into()],
            group: tried.method != before,
            ..Row::default()
        });
        before = &tried.method;
    }
    let note = "On the validation part, which no score above has seen. A rate at the grid’s end is the lowest or the highest that was \
                tried: a better one may lie beyond.";
    (!rows.is_empty()).then(|| Table { title: "Learning rates tried".into(), note: note.into(), head, rows })
}

/// Where the settings of an entrant are told.
pub(super) fn link(entrant: &Entrant<'_>) -> String {
    format!("cell-{}", entrant.id)
}

fn present(section: &Section<'_>, of: &[Measure]) -> Vec<Measure> {
    let has = |m: &Measure| section.entrants.iter().any(|entrant| entrant.cell.measures.contains_key(m));
    of.iter().copied().filter(has).collect()
}

fn rows(section: &Section<'_>, fields: impl Fn(&Entrant<'_>) -> Vec<Field>) -> Vec<Row> {
    let mut before = "";
    let mut rows = Vec::new();
    for entrant in &section.entrants {
        let cell = entrant.cell;
        let name = Field { text: entrant.name.clone(), aside: entrant.marks(), bold: cell.best };
        rows.push(Row {
            fields: std::iter::once(name).chain(fields(entrant)).collect(),
            link: Some(link(entrant)),
            group: cell.method != before,
            best: cell.best,
        });
        before = &cell.method;
    }
    rows
}

/// The best mean of each column, peers aside.
struct Leads(Vec<(Measure, f64)>);

impl Leads {
    fn new(section: &Section<'_>, measures: &[Measure]) -> Self {
        let best = |measure: &Measure| {
            let better = f64::from(measure.shown().better);
            let values: Vec<f64> = section.ours().filter_map(|entrant| entrant.finite(*measure)).collect();
            let best = values.iter().copied().reduce(|a, b| if b * better > a * better { b } else { a })?;
            (better != 0.0 && values.iter().any(|v| *v != best)).then_some((*measure, best))
        };
        let comparable = measures.iter().filter(|measure| section.not_comparable(**measure).is_none());
        Self(comparable.filter_map(best).collect())
    }

    fn is(&self, entrant: &Entrant<'_>, measure: Measure, value: f64) -> bool {
        !entrant.is_peer() && self.0.contains(&(measure, value))
    }
}

fn value(entrant: &Entrant<'_>, measure: Measure, leads: &Leads) -> Field {
    let Some(values) = entrant.cell.measures.get(&measure) else { return NOTHING.into() };
    Field {
        text: of(values.mean, &measure.shown()),
        aside: spread(values, measure).map_or_else(String::new, |sd| format!("± {sd}")),
        bold: leads.is(entrant, measure, values.mean),
    }
}

fn difference(entrant: &Entrant<'_>, shown: &Shown) -> Field {
    match entrant.cell.behind {
        None if entrant.cell.best => "★".into(),
        None => NOTHING.into(),
        Some(behind) => between(&behind, entrant.ties(), shown),
    }
}

/// A difference, whether it is a tie, and whether that can be told.
fn between(of: &Interval, is_tie: bool, shown: &Shown) -> Field {
    Field {
        text: format!("{}{}", if is_tie { "≈ " } else { "" }, interval(of, shown)),
        aside: if of.is_of_rows_alone() { ROWS_ALONE.into() } else { String::new() },
        bold: false,
    }
}
