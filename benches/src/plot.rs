//! Charts as SVG: what every report here draws with. No scripts, no fonts of its own, readable on paper.

use std::fmt::Write as _;

/// Lines over a common axis.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: Axis<'a>,
    pub(crate) y: Axis<'a>,
    pub(crate) lines: Vec<Line>,
    /// A value of the second axis to be held to, with its name.
    pub(crate) mark: Option<(f64, &'a str)>,
}

/// One axis.
#[derive(Clone, Copy)]
pub(crate) struct Axis<'a> {
    pub(crate) label: &'a str,
    pub(crate) scale: Scale,
}

/// How values are laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Evenly, from 0.
    Linear,
    /// By their logarithm.
    Log,
}

/// One line. Points are in order of the first axis.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// What it is compared with.
    pub(crate) dashed: bool,
}

/// Rows of stacked bars.
pub(crate) struct Bars<'a> {
    pub(crate) title: &'a str,
    pub(crate) label: &'a str,
    /// What the parts of every row are called.
    pub(crate) parts: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<f64>)>,
}

const COLOURS: [&str; 8] =
    ["#1b6ca8", "#c8553d", "#3a7d44", "#8e5ea2", "#b8860b", "#2a9d8f", "#6b705c", "#d1495b"];
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 78.0;
const TOP: f64 = 34.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 46.0;
const LEGEND: f64 = 18.0;

/// Where values lie on one side of the drawing.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Range {
    fn of(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values: Vec<f64> =
            values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0)).collect();
        let high = values.iter().copied().fold(f64::MIN, f64::max);
        let low = values.iter().copied().fold(f64::MAX, f64::min);
        let (low, high) = match scale {
            Scale::Linear if values.is_empty() => (0.0, 1.0),
            Scale::Log if values.is_empty() => (1.0, 10.0),
            Scale::Linear => (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Log => (low, if high > low { high } else { low * 10.0 }),
        };
        Self { scale, low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round values to put a number at.
    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = round_step((self.high - self.low) / 5.0);
                let count = ((self.high - self.low) / step).floor();
                (0..=30).map(f64::from).take_while(|at| *at <= count).map(|at| self.low + at * step).collect()
            }
            Scale::Log => {
                let wide = self.high / self.low > 50.0;
                let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let first = 10f64.powf(self.low.log10().floor());
                std::iter::successors(Some(first), |decade| Some(decade * 10.0))
                    .take_while(|decade| *decade <= self.high)
                    .flat_map(|decade| steps.iter().map(move |step| step * decade))
                    .filter(|value| (self.low..=self.high).contains(value))
                    .collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= raw).unwrap_or(raw)
}

impl Chart<'_> {
    /// The drawing.
    pub(crate) fn svg(&self) -> String {
        let height = HEIGHT + LEGEND * self.lines.len() as f64;
        let mut svg = open(self.title, height);
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let x = Range::of(self.x.scale, points().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let marked = self.mark.map(|(value, _)| value);
        let y = Range::of(self.y.scale, points().map(|point| point.1).chain(marked), HEIGHT - BOTTOM, TOP);
        for tick in x.ticks() {
            let at = x.at(tick);
            let _ = write!(
                svg,
                r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{:.1}" stroke="#e4e4e4"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 16.0,
                number(tick)
            );
        }
        for tick in y.ticks() {
            let at = y.at(tick);
            let _ = write!(
                svg,
                r##"<line x1="{LEFT}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}" stroke="#e4e4e4"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                number(tick)
            );
        }
        if let Some((value, name)) = self.mark {
            let at = y.at(value);
            let _ = write!(
                svg,
                r##"<line x1="{LEFT}" y1="{at:.1}" x2="{0:.1}" y2="{at:.1}" stroke="#222" stroke-dasharray="2 3"/><text x="{0:.1}" y="{1:.1}" text-anchor="end">{2}</text>"##,
                WIDTH - RIGHT,
                at - 4.0,
                escaped(name)
            );
        }
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let dash = if line.dashed { r#" stroke-dasharray="6 4""# } else { "" };
            let drawable = |point: &&(f64, f64)| {
                (self.x.scale == Scale::Linear || point.0 > 0.0)
                    && (self.y.scale == Scale::Linear || point.1 > 0.0)
            };
            let path: Vec<String> = line
                .points
                .iter()
                .filter(drawable)
                .map(|point| format!("{:.1},{:.1}", x.at(point.0), y.at(point.1)))
                .collect();
            let _ = write!(
                svg,
                r#"<polyline fill="none" stroke="{colour}" stroke-width="1.8"{dash} points="{}"/>"#,
                path.join(" ")
            );
            let down = HEIGHT + LEGEND * number as f64;
            let _ = write!(
                svg,
                r#"<line x1="{LEFT}" y1="{0:.1}" x2="{1:.1}" y2="{0:.1}" stroke="{colour}" stroke-width="2.4"{dash}/><text x="{2:.1}" y="{3:.1}">{4}</text>"#,
                down,
                LEFT + 26.0,
                LEFT + 34.0,
                down + 4.0,
                escaped(&line.name)
            );
        }
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text><text transform="translate(14 {:.1}) rotate(-90)" text-anchor="middle">{}</text></svg>"#,
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - BOTTOM + 34.0,
            escaped(self.x.label),
            (TOP + HEIGHT - BOTTOM) / 2.0,
            escaped(self.y.label)
        );
        svg
    }
}

impl Bars<'_> {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 250.0;

    /// The drawing.
    pub(crate) fn svg(&self) -> String {
        let bottom = TOP + Self::ROW * self.rows.len() as f64;
        let mut svg = open(self.title, bottom + BOTTOM + LEGEND);
        let sums = self.rows.iter().map(|(_, parts)| parts.iter().sum::<f64>());
        let x = Range::of(Scale::Linear, sums, Self::NAMES, WIDTH - RIGHT);
        for tick in x.ticks() {
            let at = x.at(tick);
            let _ = write!(
                svg,
                r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{bottom:.1}" stroke="#e4e4e4"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
                bottom + 16.0,
                number(tick)
            );
        }
        for (row, (name, parts)) in self.rows.iter().enumerate() {
            let top = TOP + Self::ROW * row as f64 + 4.0;
            let _ = write!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                Self::NAMES - 8.0,
                top + 13.0,
                escaped(name)
            );
            let mut so_far = 0.0;
            for (part, value) in parts.iter().enumerate() {
                let (from, to) = (x.at(so_far), x.at(so_far + value));
                let _ = write!(
                    svg,
                    r#"<rect x="{from:.1}" y="{top:.1}" width="{:.1}" height="18" fill="{}"><title>{}: {}</title></rect>"#,
                    to - from,
                    COLOURS[part % COLOURS.len()],
                    escaped(self.parts.get(part).map_or("", String::as_str)),
                    number(*value)
                );
                so_far += value;
            }
        }
        let step = (WIDTH - Self::NAMES - RIGHT) / self.parts.len().max(1) as f64;
        for (part, name) in self.parts.iter().enumerate() {
            let left = Self::NAMES + step * part as f64;
            let _ = write!(
                svg,
                r#"<rect x="{left:.1}" y="{:.1}" width="12" height="12" fill="{}"/><text x="{:.1}" y="{:.1}">{}</text>"#,
                bottom + 44.0,
                COLOURS[part % COLOURS.len()],
                left + 16.0,
                bottom + 54.0,
                escaped(name)
            );
        }
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text></svg>"#,
            (Self::NAMES + WIDTH - RIGHT) / 2.0,
            bottom + 34.0,
            escaped(self.label)
        );
        svg
    }
}

fn open(title: &str, height: f64) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12" role="img"><rect width="{WIDTH}" height="{height}" fill="white"/><text x="{LEFT}" y="20" font-size="14" font-weight="bold">{}</text>"#,
        escaped(title)
    )
}

/// As people write it: at most three digits that mean something, thousands and millions by a letter.
pub(crate) fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        large if large >= 1e9 => (value / 1e9, "G"),
        large if large >= 1e6 => (value / 1e6, "M"),
        large if large >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        large if large >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Fit to stand in XML.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let said: Vec<String> =
            [0.0, 0.25, 7.0, 42.5, 999.0, 1500.0, 123_456.0, 2e6].into_iter().map(number).collect();
        assert_eq!(said, ["0", "0.25", "7", "42.5", "999", "1.5k", "123k", "2M"]);
    }

    #[test]
    fn ticks_lie_within() {
        for scale in [Scale::Linear, Scale::Log] {
            for high in [0.3, 7.0, 130.0, 9e6] {
                let range = Range::of(scale, [high / 40.0, high].into_iter(), 0.0, 100.0);
                let ticks = range.ticks();
                assert!((2..=12).contains(&ticks.len()), "{high}: {ticks:?}");
                assert!(ticks.iter().all(|tick| (0.0..=100.0).contains(&range.at(*tick))));
            }
        }
    }

    #[test]
    fn nothing_to_draw_is_drawn_all_the_same() {
        let axis = Axis { label: "a & b", scale: Scale::Log };
        let svg = Chart { title: "<none>", x: axis, y: axis, lines: Vec::new(), mark: None }.svg();
        assert!(svg.contains("&lt;none&gt;") && svg.contains("a &amp; b") && svg.ends_with("</svg>"));
        let bars = Bars { title: "", label: "", parts: Vec::new(), rows: Vec::new() }.svg();
        assert!(bars.ends_with("</svg>") && !bars.contains("NaN"));
    }
}
