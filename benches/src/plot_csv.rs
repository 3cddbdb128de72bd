//! Charts of what a script has measured over time.

use crate::error::Error;
use crate::html;
use crate::plot::{Axis, Chart, Line, Scale};
use std::path::Path;

/// Columns of numbers, by their names.
struct Table {
    names: Vec<String>,
    rows: Vec<Vec<Option<f64>>>,
}

/// Draws one file as a page.
pub(crate) fn draw(csv: &Path, output: &Path) -> Result<(), Error> {
    let text = std::fs::read_to_string(csv).map_err(Error::io(format!("reading {}", csv.display())))?;
    let table = Table::read(&text)
        .ok_or_else(|| Error::Input(format!("{} has no columns over time to draw", csv.display())))?;
    let title = csv.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    std::fs::write(output, html::page(&title, &table.charts()))
        .map_err(Error::io(format!("writing {}", output.display())))
}

impl Table {
    /// `None` without at least two columns and a row.
    fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(|line| line.split(',').map(str::trim));
        let names: Vec<String> = lines.next()?.map(str::to_owned).collect();
        let rows: Vec<Vec<Option<f64>>> =
            lines.map(|line| line.map(|value| value.parse().ok()).collect()).collect();
        (names.len() > 1 && !rows.is_empty()).then_some(Self { names, rows })
    }

    /// One a unit, in the order of the first columns that have it.
    fn charts(&self) -> String {
        let unit = |name: &str| name.rsplit('_').next().unwrap_or_default().to_owned();
        let mut units: Vec<String> = Vec::new();
        for name in &self.names[1..] {
            if !units.contains(&unit(name)) {
                units.push(unit(name));
            }
        }
        let mut page = String::new();
        for of in units {
            let columns = (1..self.names.len()).filter(|at| unit(&self.names[*at]) == of);
            let lines: Vec<Line> = columns.filter_map(|at| self.line(at)).collect();
            if lines.is_empty() {
                continue;
            }
            let chart = Chart {
                title: &of,
                x: Axis { label: &self.names[0], scale: Scale::Linear },
                y: Axis { label: &of, scale: Scale::Linear },
                lines,
                mark: None,
            };
            page.push_str(&html::figure(&chart.svg(), ""));
        }
        page
    }

    /// What is aimed at is dashed. `None` of a column without numbers.
    fn line(&self, column: usize) -> Option<Line> {
        let point = |row: &Vec<Option<f64>>| Some(((*row.first()?)?, (*row.get(column)?)?));
        let points: Vec<(f64, f64)> = self.rows.iter().filter_map(point).collect();
        let name = &self.names[column];
        let dashed = name.starts_with("limit") || name.starts_with("target");
        (!points.is_empty()).then(|| Line { name: name.clone(), points, dashed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_one_unit_share_a_chart_and_words_are_left_out() {
        let text = "second,phase,a_mib,limit_mib,stall_percent\n0,idle,1,2,0.5\n1,busy,1.5,2,\n";
        let page = Table::read(text).unwrap().charts();
        assert_eq!(page.matches("<svg").count(), 2, "{page}");
        assert!(page.contains("limit_mib") && page.contains("stall_percent") && !page.contains("phase"));
        assert!(Table::read("second,a_mib\n").is_none() && Table::read("").is_none());
    }
}
