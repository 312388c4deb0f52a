//! The table of a comparison of rules, and the figure of score against bytes.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What a client's held-out rows say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Score {
    pub(super) rows: u64,
    pub(super) accuracy: f64,
    pub(super) macro_f1: f64,
}

/// A run.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) method: String,
    pub(super) lr: f64,
    pub(super) seed: u64,
    pub(super) epsilon: Option<f64>,
    /// Client by client.
    pub(super) scores: Vec<Score>,
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) seconds: f64,
    pub(super) machine: String,
    pub(super) date: String,
}

impl Row {
    /// The mean over the clients.
    pub(super) fn accuracy(&self) -> f64 {
        mean(self.scores.iter().map(|s| s.accuracy))
    }
}

/// All seeds of a method at a rate.
struct Line {
    name: String,
    lr: f64,
    /// Of each client.
    accuracy: Vec<f64>,
    /// Means over clients, seed by seed.
    means: Vec<f64>,
    macro_f1: f64,
    up: f64,
    down: f64,
    seconds: f64,
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    sum / f64::from(n.max(1))
}

fn lines(rows: &[Row]) -> Vec<Line> {
    let key = |row: &Row| {
        let name = row.epsilon.map_or_else(|| row.method.clone(), |e| format!("{}, epsilon {e}", row.method));
        (name, row.lr)
    };
    let mut keys: Vec<(String, f64)> = Vec::new();
    for row in rows {
        if !keys.contains(&key(row)) {
            keys.push(key(row));
        }
    }
    let line = |wanted: (String, f64)| {
        let mine: Vec<&Row> = rows.iter().filter(|row| key(row) == wanted).collect();
        let clients = mine.first().map_or(0, |row| row.scores.len());
        let of =
            |pick: fn(&Score) -> f64, client: usize| mean(mine.iter().map(|row| pick(&row.scores[client])));
        Line {
            accuracy: (0..clients).map(|client| of(|s| s.accuracy, client)).collect(),
            means: mine.iter().map(|row| row.accuracy()).collect(),
            macro_f1: mean((0..clients).map(|client| of(|s| s.macro_f1, client))),
            up: mean(mine.iter().map(|row| row.up as f64)),
            down: mean(mine.iter().map(|row| row.down as f64)),
            seconds: mean(mine.iter().map(|row| row.seconds)),
            name: wanted.0,
            lr: wanted.1,
        }
    };
    keys.into_iter().map(line).collect()
}

/// Writes report.md, results.csv and figure.svg.
pub(super) fn write(rows: &[Row], clients: &[&str], build: &str, home: &Path) -> Result<()> {
    let lines = lines(rows);
    let put = |name: &str, text: String| {
        fs::write(home.join(name), text).with_context(|| home.join(name).display().to_string())
    };
    put("report.md", markdown(&lines, clients) + &source(rows, build))?;
    put("results.csv", csv(rows, clients, build))?;
    put("figure.svg", figure(&lines))
}

fn markdown(lines: &[Line], clients: &[&str]) -> String {
    let mut text = format!(
        "| method | rate | {} | mean accuracy (%) | of central (%) | macro-F1 | up (MB) | down (MB) | seconds |\n|---|{}\n",
        clients.join(" | "),
        "---:|".repeat(clients.len() + 7)
    );
    let central =
        lines.iter().find(|line| line.name == "central").map(|line| mean(line.means.iter().copied()));
    for line in lines {
        let each: Vec<String> = line.accuracy.iter().map(|a| format!("{:.1}", 100.0 * a)).collect();
        let all = mean(line.means.iter().copied());
        let deviation = mean(line.means.iter().map(|m| (m - all).powi(2)));
        let n = line.means.len() as f64;
        let spread = if n > 1.0 {
            format!(" ± {:.1}", 100.0 * (deviation * n / (n - 1.0)).sqrt())
        } else {
            String::new()
        };
        let of = central.map_or_else(String::new, |central| format!("{:.1}", 100.0 * all / central));
        let _ = writeln!(
            text,
            "| {} | {:e} | {} | {:.1}{spread} | {of} | {:.3} | {:.1} | {:.1} | {:.0} |",
            line.name,
            line.lr,
            each.join(" | "),
            100.0 * all,
            line.macro_f1,
            line.up / 1e6,
            line.down / 1e6,
            line.seconds
        );
    }
    text
}

/// Where the figures come from, and of when they are.
fn source(rows: &[Row], build: &str) -> String {
    let each = |pick: fn(&Row) -> &str| rows.iter().map(pick).collect::<BTreeSet<_>>();
    let (machines, dates) = (each(|row| row.machine.as_str()), each(|row| row.date.as_str()));
    let machines = machines.into_iter().collect::<Vec<_>>().join("; ");
    let days: BTreeSet<&str> = dates.first().into_iter().chain(dates.last()).copied().collect();
    let days = days.into_iter().collect::<Vec<_>>().join(" to ");
    format!("\n{machines}; build {build} of `lora`; {days}.\n")
}

fn csv(rows: &[Row], clients: &[&str], build: &str) -> String {
    let mut text =
        "method,rate,epsilon,seed,client,rows,accuracy,macro_f1,bytes_up,bytes_down,seconds,build,date,machine\n"
            .to_owned();
    for row in rows {
        for (client, score) in clients.iter().zip(&row.scores) {
            let epsilon = row.epsilon.map_or_else(String::new, |e| e.to_string());
            let Row { method, lr, seed, up, down, seconds, date, .. } = row;
            let machine = row.machine.replace('"', "\"\"");
            let Score { rows, accuracy, macro_f1 } = score;
            let _ = writeln!(
                text,
                "{method},{lr},{epsilon},{seed},{client},{rows},{accuracy},{macro_f1},{up},{down},{seconds},{build},\
                 {date},\"{machine}\""
            );
        }
    }
    text
}

/// Mean accuracy against what was sent, on a logarithmic axis; what sends nothing is a line across.
fn figure(lines: &[Line]) -> String {
    const SIZE: (f64, f64) = (640.0, 400.0);
    let score = |line: &Line| 100.0 * mean(line.means.iter().copied());
    let bytes = |line: &Line| ((line.up + line.down) / 1e6).log10();
    let sent: Vec<&Line> = lines.iter().filter(|line| line.up > 0.0).collect();
    let range = |values: Vec<f64>| {
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        if low < high { (low, high) } else { (low - 1.0, low + 1.0) }
    };
    let (left, right) = range(sent.iter().map(|line| bytes(line)).collect());
    let (low, high) = range(lines.iter().map(score).collect());
    let x = |v: f64| 70.0 + (v - left) / (right - left) * (SIZE.0 - 210.0);
    let y = |v: f64| SIZE.1 - 50.0 - (v - low) / (high - low) * (SIZE.1 - 90.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        SIZE.0, SIZE.1
    );
    for line in lines {
        let (at, name) = (y(score(line)), &line.name);
        let is_one = lines.iter().filter(|other| other.name == *name).count() == 1;
        let text = if is_one { name.clone() } else { format!("{name} at {:e}", line.lr) };
        if line.up > 0.0 {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{at:.1}\" r=\"5\" fill=\"#1f6feb\"/><text x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
                x(bytes(line)),
                x(bytes(line)) + 8.0,
                at + 4.0
            );
        } else {
            let _ = writeln!(
                svg,
                "<line x1=\"70\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#999\" stroke-dasharray=\"4 3\"/>\
                 <text x=\"{:.0}\" y=\"{:.1}\" fill=\"#555\">{text}</text>",
                SIZE.0 - 100.0,
                SIZE.0 - 95.0,
                at + 4.0
            );
        }
    }
    let tick = |v: f64| 10f64.powf(v);
    let _ = writeln!(
        svg,
        "<text x=\"70\" y=\"{:.0}\">{:.0} MB sent</text><text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{:.0} MB</text>\n\
         <text x=\"8\" y=\"{:.0}\">{high:.1} %</text><text x=\"8\" y=\"{:.0}\">{low:.1} %</text>\n\
         <text x=\"8\" y=\"16\">mean accuracy over the clients' held-out rows</text>\n</svg>",
        SIZE.1 - 20.0,
        tick(left),
        SIZE.0 - 140.0,
        SIZE.1 - 20.0,
        tick(right),
        y(high) + 4.0,
        y(low) + 4.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: &str, seed: u64, accuracy: f64, up: u64) -> Row {
        Row {
            method: method.into(),
            lr: 1e-3,
            seed,
            epsilon: None,
            scores: [0.0, 0.2].map(|d| Score { rows: 10, accuracy: accuracy + d, macro_f1: accuracy }).into(),
            up,
            down: 2 * up,
            seconds: 3.0,
            machine: "A, 2 cores".into(),
            date: "2026-11-29".into(),
        }
    }

    #[test]
    fn rates_are_no_seeds() {
        let slow = row("fedit", 1, 0.5, 1_000_000);
        let fast = Row { lr: 3e-3, date: "2026-11-30".into(), ..row("fedit", 1, 0.7, 1_000_000) };
        let rows = [slow.clone(), row("fedit", 2, 0.5, 1_000_000), fast];
        let text = markdown(&lines(&rows), &["one", "two"]);
        assert!(text.contains("| fedit | 1e-3 | 50.0 | 70.0 | 60.0 ± 0.0 |"), "{text}");
        assert!(text.contains("| fedit | 3e-3 | 70.0 | 90.0 | 80.0 |"), "{text}");
        let svg = figure(&lines(&rows));
        assert!(svg.contains(">fedit at 1e-3<") && svg.contains(">fedit at 3e-3<"), "{svg}");
        assert_eq!(source(&rows, "b"), "\nA, 2 cores; build b of `lora`; 2026-11-29 to 2026-11-30.\n");
        assert_eq!(source(&[slow], "b"), "\nA, 2 cores; build b of `lora`; 2026-11-29.\n");
    }

    #[test]
    fn seeds_are_put_together_and_set_beside_central() {
        let rows =
            [row("central", 1, 0.7, 0), row("fedit", 1, 0.5, 1_000_000), row("fedit", 2, 0.6, 3_000_000)];
        let text = markdown(&lines(&rows), &["one", "two"]);
        assert!(
            text.contains("| central | 1e-3 | 70.0 | 90.0 | 80.0 | 100.0 | 0.700 | 0.0 | 0.0 | 3 |"),
            "{text}"
        );
        assert!(
            text.contains("| fedit | 1e-3 | 55.0 | 75.0 | 65.0 ± 7.1 | 81.2 | 0.550 | 2.0 | 4.0 | 3 |"),
            "{text}"
        );
        let table = csv(&rows, &["one", "two"], "b");
        assert_eq!(table.lines().count(), 7);
        assert!(table.lines().skip(1).all(|l| l.ends_with(",b,2026-11-29,\"A, 2 cores\"")), "{table}");
        let svg = figure(&lines(&rows));
        assert_eq!(
            roxmltree::Document::parse(&svg)
                .unwrap()
                .descendants()
                .filter(|n| n.has_tag_name("circle"))
                .count(),
            1
        );
    }
}
