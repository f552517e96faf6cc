//! An explanation as text for people: aligned lines for each join, equal for equal facts.

use std::fmt::Write as _;

use super::{Built, Explained, Explanation, Gathered, IndexState, Measured};
use crate::status::join::ClassName;

/// Returns the text, in the colours of a terminal if `colours`.
pub(super) fn render(explanation: &Explanation, colours: bool) -> String {
    let paint = Paint { colours };
    let mut text = String::new();
    let shards = explanation.shards;
    let windows = explanation.joins.iter().filter(|join| join.window.is_some()).count();
    let mut nodes = counted((explanation.joins.len() - windows) as u64, "join");
    if windows > 0 {
        nodes = format!("{nodes}, {}", counted(windows as u64, "window"));
    }
    let _ = writeln!(
        text,
        "pipeline {}: {nodes}, {}",
        paint.bold(&explanation.pipeline),
        counted(shards as u64, "shard")
    );
    for join in &explanation.joins {
        text.push('\n');
        write_join(&mut text, join, shards, paint);
    }
    let warned = match explanation.warnings {
        0 => "no warnings".to_owned(),
        count => paint.yellow(&counted(count as u64, "warning")),
    };
    let _ = writeln!(
        text,
        "\n{warned}. A probe is a search in one shard; estimates take each to find one row. By key it goes to one shard,\n\
         by anything else to all {shards}."
    );
    text
}

fn write_join(text: &mut String, join: &Explained, shards: usize, paint: Paint) {
    let class = match join.class {
        ClassName::Keyed if join.window.is_some() => {
            paint.green("window: only the frames that a change concerns are evaluated")
        }
        ClassName::Accumulated if join.window.is_some() => {
            paint.green("window, accumulated: frames follow the rows that come and go, whatever their size")
        }
        ClassName::Keyed => paint.green("keyed: only the results that a change concerns are evaluated"),
        ClassName::Accumulated => {
            paint.green("accumulated: groups follow the rows that come and go, whatever their size")
        }
        ClassName::Full => paint.yellow("full: everything is evaluated at each change"),
    };
    let _ = writeln!(text, "{}  {class}", paint.bold(&join.name));
    let mut field = |name: &str, lines: &[String]| {
        for (index, line) in lines.iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            let _ = writeln!(text, "  {name:<9} {line}");
        }
    };
    let through = match join.joins.as_slice() {
        [] => String::new(),
        joins => format!("; reads {}", joins.join(", ")),
    };
    field("topics", &[join.topics.join(", ") + &through]);
    field("sinks", &[if join.sinks.is_empty() { "none".to_owned() } else { join.sinks.join(", ") }]);
    field("gathers", &gathers(&join.occurrences));
    field("indexes", &join.indexes.iter().map(|index| index_line(index, shards)).collect::<Vec<_>>());
    for (name, line) in join.window.iter().flat_map(|window| window.lines()) {
        field(name, &[line.to_owned()]);
    }
    let costs: Vec<String> = join
        .probes
        .iter()
        .map(|(topic, probes)| format!("of {topic}: {}", counted(probes.total(), "probe")))
        .collect();
    field("a change", &costs);
    field("in time", &in_time(join));
    field("measured", &join.measured.as_ref().map(measured_line).into_iter().collect::<Vec<_>>());
    for warning in &join.warnings {
        let _ = writeln!(text, "  {}  {warning}", paint.yellow("warning:"));
    }
}

/// Returns a line for each occurrence, in columns.
fn gathers(occurrences: &[Gathered]) -> Vec<String> {
    let width = |of: fn(&Gathered) -> &String| occurrences.iter().map(|one| of(one).len()).max().unwrap_or(0);
    let (topics, bys) = (width(|one| &one.topic), width(|one| &one.by));
    occurrences
        .iter()
        .map(|one| {
            let from: Vec<String> = one
                .from
                .iter()
                .map(|from| match (from.occurrence, &from.value) {
                    (Some(parent), Some(value)) => format!("{value} of {parent}"),
                    _ => "the result keys".to_owned(),
                })
                .collect();
            let from = from.join(" and ");
            format!("{}  {:topics$}  by {:bys$}  from {from}", one.number, one.topic, one.by)
        })
        .collect()
}

/// Returns a line for each comparison with the clock, or for the interval at which the query is run again.
fn in_time(join: &Explained) -> Vec<String> {
    let followed = join.in_time.iter().map(|time| {
        format!(
            "{}: rows of {} are found by {} when the clock passes them",
            time.comparison, time.topic, time.by
        )
    });
    let again = join.refresh_seconds.map(|seconds| format!("run again every {seconds} s (refresh)"));
    followed.chain(again).collect()
}

fn index_line(index: &IndexState, shards: usize) -> String {
    let state = match index.built {
        None => "built when the worker starts".to_owned(),
        Some(Built { built_in: 0, .. }) => "missing; built when the worker starts".to_owned(),
        Some(Built { built_in, entries, bytes }) => {
            let part =
                if built_in < shards { format!(" in {built_in} of {shards} shards") } else { String::new() };
            format!("built{part}, {}, {}", counted_as(entries, "entry", "entries"), size(bytes))
        }
    };
    format!("{} ({}): {state}", index.topic, index.expression)
}

fn measured_line(measured: &Measured) -> String {
    let Measured { evaluations, evaluations_full, evaluation_seconds, probes, steps, changes, .. } = measured;
    let mut line = format!(
        "{}, {evaluations_full} in full, {evaluation_seconds:.3} s",
        counted(*evaluations, "evaluation")
    );
    if *changes > 0 {
        let each = |count: f64| count / *changes as f64;
        let _ =
            write!(line, "; {}, each {:.2} ms", counted(*changes, "change"), each(evaluation_seconds * 1e3));
        if *probes > 0 {
            let _ = write!(line, ", {:.1} probes, {:.0} steps", each(*probes as f64), each(*steps as f64));
        }
    }
    line
}

fn counted(count: u64, noun: &str) -> String {
    counted_as(count, noun, &format!("{noun}s"))
}

fn counted_as(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

/// Returns a number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn size(bytes: u64) -> String {
    let kib = bytes as f64 / 1024.0;
    if kib < 1024.0 { format!("{kib:.0} KiB") } else { format!("{:.1} MiB", kib / 1024.0) }
}

/// Colours for a terminal, or none.
#[derive(Debug, Clone, Copy)]
struct Paint {
    colours: bool,
}

impl Paint {
    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(1, "probe"), counted(0, "probe")], ["1 probe", "0 probes"]);
        assert_eq!([size(4_096), size(3 << 20)], ["4 KiB", "3.0 MiB"]);
    }
}
