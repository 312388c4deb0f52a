//! The reports of a realistic comparison, and of an awkward one.

use super::sample::{awkward, sample};
use super::{summary, write};
use crate::compare::results::{Cell, Comparison, End, Interval, Measure};
use roxmltree::{Document, Node, ParsingOptions};
use std::collections::BTreeSet;
use std::fs;

/// The four files: HTML, Markdown, CSV, JSON.
fn written(comparison: &Comparison) -> [String; 4] {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/if/need/be");
    write(comparison, &folder).unwrap();
    write(comparison, &folder).unwrap();
    let files = ["report.html", "report.md", "results.csv", "results.json"];
    assert_eq!(fs::read_dir(&folder).unwrap().count(), files.len(), "nothing half written is left");
    files.map(|name| fs::read_to_string(folder.join(name)).unwrap())
}

/// The page is written so that it is XML as well; so any tag left open, any sign not escaped is found.
fn parsed(html: &str) -> Document<'_> {
    Document::parse_with_options(html, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() })
        .unwrap()
}

fn text(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

fn name(cell: &Cell) -> String {
    cell.rank.map_or(cell.method.clone(), |rank| format!("{} r={rank}", cell.method))
}

#[test]
fn pages_are_sound_and_load_nothing() {
    for comparison in [sample(), awkward(), Comparison::default()] {
        let [html, ..] = written(&comparison);
        let page = parsed(&html);
        let ids: Vec<_> = page.descendants().filter_map(|node| node.attribute("id")).collect();
        let known: BTreeSet<_> = ids.iter().copied().collect();
        assert_eq!(ids.len(), known.len(), "every id is the only one");
        for node in page.descendants() {
            let labels =
                node.attribute("aria-labelledby").unwrap_or_default().split(' ').filter(|id| !id.is_empty());
            let link = node.attribute("href").map(|link| link.strip_prefix('#').unwrap());
            for id in labels.chain(link) {
                assert!(known.contains(id), "{id}");
            }
            assert!(!["script", "img", "link", "iframe"].contains(&node.tag_name().name()));
        }
        let outside = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!outside.contains("http") && !outside.contains("url(") && !outside.contains("src="));
        for number in ["NaN", "inf"] {
            let drawn =
                page.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "svg")));
            let drawn = drawn.flat_map(|svg| svg.descendants()).flat_map(|node| node.attributes());
            assert!(!drawn.into_iter().any(|attribute| attribute.value().contains(number)), "{number}");
        }
    }
}

#[test]
fn every_figure_is_told_in_words_and_no_text_is_torn() {
    let [html, ..] = written(&sample());
    let page = parsed(&html);
    let figures: Vec<_> = page.descendants().filter(|node| node.attribute("role") == Some("img")).collect();
    // Each of two sets: 2 by rank, 2 by cost, 1 + 7 losses, 2 gradients; and 2 pairs.
    assert_eq!(figures.len(), 2 * 14 + 2);
    for figure in figures {
        let part = |tag: &str| figure.children().find(|n| n.tag_name().name() == tag).map(text).unwrap();
        assert!(!part("title").is_empty() && part("desc").len() > 20, "{}", part("title"));
    }
    assert!(html.contains("On the Pareto front: "));
}

#[test]
fn every_cell_and_failure_is_there_with_its_own_numbers() {
    let comparison = sample();
    let [html, markdown, ..] = written(&comparison);
    let page = parsed(&html);
    let shown = Measure::Accuracy.shown();
    for (id, cell) in comparison.cells.iter().enumerate() {
        let link = format!("#cell-{id}");
        let row = page.descendants().find(|node| node.attribute("href") == Some(&link)).unwrap();
        let row = row.ancestors().find(|node| node.has_tag_name("tr")).unwrap();
        let fields: Vec<_> = row.children().filter(Node::is_element).map(text).collect();
        let values = &cell.measures[&Measure::Accuracy];
        let sd = values.sd.map_or(String::new(), |sd| format!(" ± {:.1}", sd * shown.times));
        let wanted = format!("{:.1}{sd}", values.mean * shown.times);
        assert!(fields[0].starts_with(&name(cell)) && fields[1] == wanted, "{fields:?} {wanted}");
        let speed = cell.measures.get(&Measure::TokensPerSecond);
        assert!(speed.is_none_or(|speed| {
            fields.iter().any(|field| field.replace(',', "").starts_with(&format!("{:.0} ±", speed.mean)))
        }));
        let details = page.descendants().find(|node| node.attribute("id") == Some(&link[1..])).unwrap();
        assert!(cell.commands.iter().chain(&cell.failures).all(|line| text(details).contains(line.as_str())));
        assert!(markdown.contains(&format!("| {wanted} |")) || cell.best, "{wanted}");
    }
    let best = comparison.cells.iter().filter(|cell| cell.best).count();
    let all = text(page.root_element());
    assert_eq!(all.matches("★ best").count(), 2 * best, "in both tables of its set");
    assert!(
        all.contains("✗ 1 failure") && all.contains("seed 3: killed for want of memory <after step 120>")
    );
    assert!(markdown.contains("killed for want of memory \\<after step 120>"));
}

#[test]
fn the_sentences_say_what_the_numbers_say() {
    let [html, markdown, ..] = written(&sample());
    let said = text(parsed(&html).root_element()).replace('\u{a0}', " ");
    for sentence in [
        "On fpb, of the adapters rslora r=256 has the highest accuracy, 83.3 % (± 0.8 over 3 seeds); without training it is \
         34.0 % and with full training it is 78.1 %. It ties with qlora+dora+rslora r=256: the interval of the difference includes 0.",
        "Beside peft, the accuracies tie in 2 of 2 pairs, the training losses differ by 0.42 % at most, ours trains 1.31 \
         times as fast and ours takes 0.84 times the memory.",
        "1 run failed: see dora r=256.",
    ] {
        assert!(said.contains(sentence) && markdown.contains(sentence), "{sentence}\n{markdown}");
    }
}

#[test]
fn a_plan_that_is_not_done_is_called_so() {
    let mut comparison = sample();
    let told = "of 31 so far";
    for (runs, want) in [([7, 31], true), ([31, 31], false)] {
        comparison.runs = runs;
        let [html, markdown, ..] = written(&comparison);
        for text in [html, markdown, super::summary(&comparison)] {
            assert_eq!(text.contains(told), want, "{runs:?}: {text}");
        }
    }
}

#[test]
fn who_has_fewer_seeds_is_told_apart() {
    let mut comparison = sample();
    let short =
        comparison.cells.iter_mut().find(|c| c.set == "fpb" && c.method == "dora" && c.rank == Some(256));
    let measures = &mut short.expect("it is there").measures;
    measures.get_mut(&Measure::Accuracy).unwrap().mean = 0.9;
    measures.get_mut(&Measure::Loss).unwrap().mean = 0.1;
    let told = summary(&comparison);
    assert!(
        told.starts_with("On fpb, of the adapters with 3 seeds rslora r=256 has the highest accuracy"),
        "{told}"
    );
    // "It" is the best: who is not comes last.
    assert!(told.contains(" 78.1 %. It ties with qlora+dora+rslora r=256: "), "{told}");
    let first = told.lines().next().unwrap();
    assert!(first.ends_with("includes 0. dora r=256 scores better, but over fewer seeds."), "{told}");

    loss_alone(&mut comparison);
    let told = summary(&comparison);
    let first = told.lines().next().unwrap();
    assert!(
        first.starts_with(
            "On fpb, of the adapters with 3 seeds rslora r=256 has the lowest held-out loss, 0.3655"
        ) && first.ends_with("dora r=256 scores better, but over fewer seeds."),
        "{told}"
    );
}

/// As rows are judged that have no labels.
fn loss_alone(comparison: &mut Comparison) {
    for cell in &mut comparison.cells {
        cell.measures.retain(|measure, _| *measure == Measure::Loss);
        (cell.best, cell.behind) = (false, None);
    }
}

#[test]
fn without_a_score_the_loss_is_told() {
    let mut comparison = sample();
    loss_alone(&mut comparison);
    let [_, markdown, ..] = written(&comparison);
    assert!(
        markdown
            .contains("On fpb, of the adapters rslora r=256 has the lowest held-out loss, 0.3655 nats (±"),
        "{markdown}"
    );
    assert!(!markdown.contains("It ties"));
}

#[test]
fn the_terminal_is_told_the_same_in_short() {
    let told = summary(&sample());
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].starts_with("On fpb, of the adapters rslora r=256"), "{told}");
    assert!(lines[2].starts_with("method") && lines[2].contains("accuracy %"), "{told}");
    let best = lines.iter().find(|line| line.starts_with("rslora r=256")).unwrap();
    assert!(best.contains("83.3 ± 0.8") && best.ends_with("★ best"), "{told}");
    assert!(lines.iter().all(|line| line == &line.trim_end()));
    assert!(summary(&Comparison::default()).is_empty());
}

#[test]
fn the_numbers_can_be_read_back() {
    let comparison = sample();
    let [_, _, csv, json] = written(&comparison);
    let read: Comparison = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&comparison).unwrap());

    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("set,method,rank,alpha,lr,seed,measure,value"));
    for cell in &comparison.cells {
        for (measure, values) in &cell.measures {
            for (i, value) in values.each.iter().enumerate() {
                let fields: Vec<_> = lines.next().unwrap().split(',').collect();
                assert_eq!(fields[..2], [&cell.set, &cell.method]);
                assert_eq!(fields[2].parse().ok(), cell.rank);
                assert_eq!((fields[3].parse().ok(), fields[4].parse().ok()), (cell.alpha, cell.lr));
                assert_eq!(fields[5].parse().ok(), cell.seeds.get(i).copied());
                assert_eq!(serde_json::to_value(measure).unwrap(), fields[6]);
                assert_eq!(fields[7].parse(), Ok(*value));
            }
        }
    }
    assert_eq!(lines.next(), None);
    let [_, _, csv, _] = written(&awkward());
    assert!(
        csv.contains("\"<b>\"\"odd\"\" & 'named' | *set*</b>\",lora@<start>,12,16,0.0001,7,loss,NaN\n"),
        "{csv}"
    );
}

#[test]
fn what_has_no_numbers_is_said_to_have_none() {
    let [html, markdown, ..] = written(&awkward());
    let said = text(parsed(&html).root_element());
    assert!(
        said.contains("On failures only, no cell has a score.")
            && said.contains("a_long_line_without_blanks/")
    );
    assert!(said.contains("NaN") && said.contains('∞'));
    assert!(markdown.contains("| lora r=4 ✗ 1 failure |"), "{markdown}");
    let [html, ..] = written(&Comparison::default());
    assert!(!html.contains("<section aria"));
}

/// Speeds of a busy machine, or of several, are no finding.
#[test]
fn what_compares_nothing_is_marked_and_not_said() {
    // Whether the column of speeds has a lead.
    let bold = |markdown: &str| {
        let fields = |line: &str| line.split('|').map(str::to_owned).collect::<Vec<_>>();
        let mut lines = markdown.lines().skip_while(|line| !line.starts_with("| method | accuracy"));
        let head = fields(lines.next().unwrap());
        let at = head.iter().position(|name| name.contains("speed")).unwrap();
        lines.take_while(|line| line.starts_with('|')).any(|line| fields(line)[at].contains("**"))
    };
    let [_, markdown, _, _] = written(&sample());
    assert!(
        bold(&markdown) && markdown.contains("trains fastest") && markdown.contains("| speed (tokens/s) |")
    );
    for (shared, other, why) in [(true, "a", "shared machine"), (false, "b", "several machines")] {
        let mut comparison = sample();
        for cell in comparison.cells.iter_mut().filter(|cell| cell.method != "none") {
            cell.machines = vec!["a".into()];
        }
        let last = comparison.cells.iter_mut().rfind(|cell| cell.set == "fpb").unwrap();
        (last.shared, last.machines) = (shared, vec![other.into()]);
        let [_, markdown, _, _] = written(&comparison);
        let (fpb, banking) = markdown.split_once("## banking").unwrap();
        assert!(!bold(fpb) && bold(banking), "{why}");
        for words in ["fastest", "times as fast"] {
            assert!(!fpb.contains(words), "{why}: {words}: {fpb}");
        }
        assert!(banking.contains("trains fastest") || banking.contains("It trains at"), "{banking}");
        assert_eq!(fpb.contains("needs the least memory"), shared, "{fpb}");
        assert_eq!(fpb.contains("times the memory"), shared, "{fpb}");
        for column in
            ["| speed, WHY (tokens/s) |", "| training time, WHY (s) |", "| speed, ours over theirs, WHY |"]
        {
            assert!(fpb.contains(&column.replace("WHY", why)), "{column}: {fpb}");
        }
        assert!(summary(&comparison).contains(&format!("speed tokens/s ({why})")));
    }
}

#[test]
fn a_rate_at_the_end_of_the_grid_is_told() {
    let mut comparison = sample();
    let [_, markdown, ..] = written(&comparison);
    assert!(markdown.contains("✓ chosen |") && !markdown.contains("a better one may lie beyond the grid."));
    let chosen = comparison.tuning.iter_mut().find(|tried| tried.chosen).unwrap();
    chosen.at_end = Some(End::Highest);
    let [_, markdown, ..] = written(&comparison);
    let said = "The best learning rate is the highest that was tried for lora (0.001): a better one may lie beyond the grid.";
    assert_eq!(markdown.matches(said).count(), 1, "{markdown}");
    assert_eq!(markdown.matches("✓ chosen, at the grid’s end |").count(), 1, "{markdown}");
}

/// The untrained model may be far below it.
#[test]
fn a_constant_answer_stands_beside_the_methods() {
    let comparison = sample();
    let [_, markdown, ..] = written(&comparison);
    assert_eq!(markdown.matches("| commonest label neutral | 55.9 | – |").count(), 1, "{markdown}");
    let said = "The commonest label alone, neutral, is right in 55.9 % of the held-out rows; the untrained model is not above \
                that.";
    assert_eq!(markdown.matches(said).count(), 1, "{markdown}");
    let told = summary(&comparison);
    let mut lines = told.lines().filter(|line| line.starts_with("commonest label"));
    assert!(lines.next().unwrap().contains(" 55.9 ") && lines.next().is_none(), "{told}");
}

#[test]
fn rows_that_were_trained_on_are_told() {
    let mut comparison = sample();
    let said = "7 of the 970 held-out rows ask what was trained on too.";
    for (common, want) in [(0, false), (7, true)] {
        comparison.sets[0].common = common;
        let [_, markdown, ..] = written(&comparison);
        assert_eq!(markdown.contains(said), want, "{markdown}");
    }
}

/// Over rows alone no interval says what another seed would change.
#[test]
fn one_seed_calls_no_ties() {
    let mut comparison = sample();
    for cell in &mut comparison.cells {
        cell.seeds.truncate(1);
        cell.behind = cell.behind.map(|of| Interval { seeds: 1, ..of });
    }
    for pair in &mut comparison.pairs {
        pair.accuracy = pair.accuracy.map(|of| Interval { seeds: 1, ..of });
    }
    let [html, markdown, ..] = written(&comparison);
    let told = summary(&comparison);
    for text in [&html, &markdown, &told] {
        for verdict in
            ["≈ ", "It ties with", "No other adapter", "the accuracies tie", "over seeds and rows)"]
        {
            assert!(!text.contains(verdict), "{verdict}: {text}");
        }
        assert!(text.contains("one seed"), "{text}");
    }
    assert!(told.contains("Who ties with it one seed does not tell."), "{told}");
    assert!(markdown.contains("one seed: rows alone"), "{markdown}");
    // One of several: of that one it is said.
    let mut comparison = sample();
    let behind = comparison.cells.iter_mut().find_map(|cell| cell.behind.as_mut()).unwrap();
    behind.seeds = 1;
    let [_, markdown, ..] = written(&comparison);
    assert_eq!(markdown.matches(" one seed: rows alone ").count(), 1, "{markdown}");
}

#[test]
fn too_few_rows_are_called_so() {
    let mut comparison = sample();
    let floor = comparison.cells.iter_mut().find(|cell| cell.method == "none").unwrap();
    floor.behind = Some(Interval { mean: -0.2, low: -0.5, high: 0.1, seeds: 3 });
    let told = summary(&comparison);
    assert!(
        told.contains("Even the untrained model ties with it: these rows are too few to tell."),
        "{told}"
    );
    assert!(told.contains("It ties with qlora+dora+rslora r=256: "), "{told}");
}
