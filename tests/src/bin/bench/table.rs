//! Tables of figures for people. Pure.

/// Minimum, median and maximum of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Returns the spread of at least one figure. The median of an even number of figures is the mean of the middle
    /// two.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let half = figures.len() / 2;
        let median =
            if figures.len() % 2 == 1 { figures[half] } else { (figures[half - 1] + figures[half]) / 2.0 };
        Self { min: figures[0], median, max: figures[figures.len() - 1] }
    }

    /// Returns the three figures with a slash between them.
    pub(crate) fn show(&self, digits: usize) -> String {
        let Self { min, median, max } = self;
        format!("{min:.digits$} / {median:.digits$} / {max:.digits$}")
    }
}

/// Returns rows in columns, the first column aligned left and the others right; a rule follows the first row.
pub(crate) fn layout(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        if n == 0 {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)));
            text.push('\n');
        }
    }
    text
}

/// A figure of each round: its name, its number of decimals, and the function that reads it from the round.
pub(crate) type Figure<'f, T> = (&'f str, usize, &'f dyn Fn(&T) -> f64);

/// Returns a line for each figure: minimum, median and maximum of all rounds.
pub(crate) fn spreads<T>(rounds: &[T], figures: &[Figure<'_, T>]) -> String {
    let heading = ["", "min / median / max"].map(str::to_owned).to_vec();
    let row = |(name, digits, figure): &Figure<'_, T>| {
        vec![(*name).to_owned(), Spread::of(rounds.iter().map(figure)).show(*digits)]
    };
    layout(&std::iter::once(heading).chain(figures.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).show(1), "1.0 / 2.5 / 4.0");
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).show(0), "1 / 2 / 3");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["what", "n"], ["raw", "1000"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(layout(&rows), "what     n\n----------\nraw   1000\n");
    }
}
