//! What a page takes in memory and what it costs to have it back: stores as they are, objects of several pages of which one is wanted, and
//! zram, all on the same images in one run. A curve of each image: the nearer to the corner, the better.

mod objects;
mod stored;

use crate::args::DensityRun;
use crate::child::Child;
use crate::error::Error;
use crate::html;
use crate::image::{Image, read_pages};
use crate::plot::{Axis, Chart, Line, Scale};
use crate::subject::Role;
use crate::zram::Zram;
use objects::{Codec, Objects};
use std::fmt::Write as _;
use std::time::Instant;
use stored::Stored;

const PAGE: usize = 4096;
/// Pages had back in one go; of all rounds' times the least counts, which a busy machine disturbs least.
const BATCH: usize = 1000;
/// What the others' times are compared with.
const FIRST: &str = "ram:lz4";

/// Pages of an image, kept in some way.
trait Kept {
    /// Has a page back, by its number, from wherever that is now.
    fn read(&mut self, page: usize, out: &mut [u8]) -> Result<(), Error>;
}

struct Entrant {
    /// Which line of the drawing it is a point of.
    line: &'static str,
    name: String,
    bytes_a_page: f64,
    ns: f64,
    kept: Box<dyn Kept>,
}

/// Runs it.
pub(crate) fn run(args: &DensityRun) -> Result<(), Error> {
    let mut body = String::new();
    for path in &args.images {
        let image = Image::load(path, args.size)?;
        let bytes = read_pages(&image.path())?;
        let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE).collect();
        let zram = zram_bytes(&image)
            .inspect_err(|error| eprintln!("zram is left out: {}", error.chain()))
            .ok()
            .map(|held| held / count(pages.len()));
        let mut entrants = enter(&pages, &args.stores)?;
        for round in 0..args.rounds.get() {
            for entrant in &mut entrants {
                entrant.read_some(&pages, round)?;
            }
        }
        let (name, text) = (path.display().to_string(), table(&entrants, zram));
        println!("{name}: {} pages that aren't one word repeated\n{text}", pages.len());
        let caption = "The time to have one page back, the store's whole call, by the bytes held for a page. Of objects of several pages one \
            is wanted and the others are decoded with it, or those before it.";
        let _ = write!(
            body,
            "{}<pre>{}</pre>",
            html::figure(&chart(&name, &entrants), caption),
            crate::plot::escaped(&text)
        );
    }
    match &args.html {
        Some(path) => std::fs::write(path, html::page("Bytes a page, and the time to have one back", &body))
            .map_err(Error::io(format!("writing {}", path.display()))),
        None => Ok(()),
    }
}

fn enter(pages: &[&[u8]], stores: &[String]) -> Result<Vec<Entrant>, Error> {
    let mut entrants = Vec::new();
    for spec in stores {
        let (stored, bytes) = Stored::new(spec, pages)?;
        entrants.push(Entrant::new("stores, 4 KiB", spec.clone(), bytes, pages.len(), Box::new(stored)));
    }
    for codec in Codec::ALL {
        for block in [1, 2, 4, 8] {
            if let Some((objects, bytes)) = Objects::new(codec, block, pages)? {
                let name = format!("{}, {} KiB", codec.name(), block * PAGE / 1024);
                entrants.push(Entrant::new(codec.name(), name, bytes, pages.len(), Box::new(objects)));
            }
        }
    }
    Ok(entrants)
}

impl Entrant {
    fn new(line: &'static str, name: String, bytes: u64, pages: usize, kept: Box<dyn Kept>) -> Self {
        Self { line, name, bytes_a_page: float(bytes) / count(pages), ns: f64::MAX, kept }
    }

    /// Has pages back in random order and takes the time; then looks whether some are right.
    fn read_some(&mut self, pages: &[&[u8]], round: usize) -> Result<(), Error> {
        let mut out = [0; PAGE];
        let order: Vec<usize> = random(round, pages.len()).take(BATCH).collect();
        let start = Instant::now();
        for page in &order {
            self.kept.read(*page, &mut out)?;
        }
        self.ns = self.ns.min(start.elapsed().as_secs_f64() * 1e9 / count(order.len()));
        let mut wrong = 0;
        for page in random(round + 1, pages.len()).take(BATCH / 10) {
            self.kept.read(page, &mut out)?;
            wrong += usize::from(out[..] != *pages[page]);
        }
        if wrong > 0 {
            return Err(Error::Wrong { who: self.name.clone(), pages: wrong });
        }
        Ok(())
    }
}

/// Random numbers below `end`, without end.
fn random(seed: usize, end: usize) -> impl Iterator<Item = usize> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % end.max(1) as u64).unwrap_or(0)
    })
}

/// What a new zram device holds once the image is swapped to it.
fn zram_bytes(image: &Image) -> Result<f64, Error> {
    let zram = Zram::start(2 * (image.pages() * PAGE) as u64 + (64 << 20))?;
    let (mut child, _) = Child::start("zram", &Role::Kernel { image: image.path() })?;
    let before = zram.memory_bytes()?;
    let moved = child.move_out()?;
    let held = zram.memory_bytes()?.saturating_sub(before);
    // The few pages that stayed would take as much as the others.
    Ok(float(held) * count(image.pages()) / float(moved.pages.max(1)))
}

fn table(entrants: &[Entrant], zram: Option<f64>) -> String {
    let first = entrants.iter().find(|entrant| entrant.name == FIRST).map(|first| first.ns);
    let by =
        |value: f64, of: Option<f64>| of.map_or_else(|| "–".to_owned(), |of| format!("{:.2}", value / of));
    let mut text =
        format!("  {:<36} {:>8} {:>7} {:>9} {:>9}\n", "", "bytes", "× zram", "get, ns", "× ram:lz4");
    if let Some(zram) = zram {
        let _ = writeln!(text, "  {:<36} {zram:>8.0} {:>7}", "zram, lz4", "1.00");
    }
    for Entrant { name, bytes_a_page, ns, .. } in entrants {
        let (bytes, time) = (by(*bytes_a_page, zram), by(*ns, first));
        let _ = writeln!(text, "  {name:<36} {bytes_a_page:>8.0} {bytes:>7} {ns:>9.0} {time:>9}");
    }
    text
}

fn chart(title: &str, entrants: &[Entrant]) -> String {
    let mut lines: Vec<Line> = Vec::new();
    for entrant in entrants {
        let point = (entrant.bytes_a_page, entrant.ns);
        match lines.iter_mut().find(|line| line.name == entrant.line) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: entrant.line.to_owned(), points: vec![point], dashed: false }),
        }
    }
    lines.iter_mut().for_each(|line| line.points.sort_by(|one, other| one.0.total_cmp(&other.0)));
    let axis = |label| Axis { label, scale: Scale::Log };
    let (x, y) = (axis("bytes held for a page"), axis("ns to have one page"));
    Chart { title, x, y, lines, mark: None }.svg()
}

#[allow(clippy::cast_precision_loss, reason = "figures to be read")]
fn float(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    float(value as u64)
}
