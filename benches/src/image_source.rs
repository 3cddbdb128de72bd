//! Where images come from: processes that are filled with made-up data for it, a file, or text made up here.

use crate::args::Plan;
use crate::capture::capture_to;
use crate::error::Error;
use crate::image::Image;
use crate::pattern::Random;
use clap::ValueEnum;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Processes whose image can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A Python program: dicts, lists, strings, objects.
    Python,
    /// A redis server that holds JSON documents.
    Redis,
    /// A Node.js program: objects, arrays, strings.
    Node,
}

impl Kind {
    /// The program that runs the script, and the script.
    fn script(self) -> (&'static str, &'static str) {
        match self {
            Self::Python => ("python3", include_str!("../images/python.py")),
            Self::Redis => ("python3", include_str!("../images/redis.py")),
            Self::Node => ("node", include_str!("../images/node.js")),
        }
    }
}

/// Runs a script until its process has grown to `size` bytes, and writes the image.
pub(crate) fn make(kind: Kind, size: u64, seed: u64, output: &Path) -> Result<(), Error> {
    let (program, script) = kind.script();
    let mut process = Command::new(program)
        .args([if program == "node" { "-e" } else { "-c" }, script, &size.to_string(), &seed.to_string()])
        // Else sets and dicts of strings are laid out differently each time.
        .env("PYTHONHASHSEED", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::io(format!("running {program}")))?;
    let taken = wait_and_capture(&mut process, program, output);
    // The script ends when its input does.
    drop(process.stdin.take());
    let status = process.wait().map_err(Error::io(format!("waiting for {program}")))?;
    taken?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Program { program: program.into(), message: status.to_string() })
    }
}

/// The script says `ready PID` when it is full.
fn wait_and_capture(process: &mut std::process::Child, program: &str, output: &Path) -> Result<(), Error> {
    let mut line = String::new();
    if let Some(lines) = process.stdout.take() {
        BufReader::new(lines).read_line(&mut line).map_err(Error::io(format!("listening to {program}")))?;
    }
    let pid = line.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok());
    let pid = pid.ok_or_else(|| Error::Program {
        program: program.into(),
        message: format!("it said {:?} where \"ready\" and its number were expected", line.trim()),
    })?;
    capture_to(pid, output, None).map(|_| ())
}

/// The image of a run: the one asked for, or one that is made now.
pub(crate) fn for_run(plan: &Plan) -> Result<Image, Error> {
    if let Some(path) = &plan.image {
        return Image::load(path, plan.size);
    }
    let path = std::env::temp_dir().join(format!("userswap-bench-{}.image", std::process::id()));
    // More than is needed: part of what is resident is the interpreter's files, part of the rest same-filled.
    let made = make(Kind::Python, plan.size + plan.size / 16 + (12 << 20), plan.seed, &path).and_then(|()| {
        let bytes = std::fs::read(&path).map_err(Error::io(format!("reading {}", path.display())))?;
        Image::from_bytes(&bytes, plan.size, &format!("a Python process, seed {}", plan.seed))
    });
    let _ = std::fs::remove_file(&path);
    made.or_else(|error| {
        eprintln!("no image of a Python process ({}): using made-up text", error.chain());
        let text = text(usize::try_from(plan.size).unwrap_or(usize::MAX), plan.seed);
        Image::from_bytes(&text, plan.size, &format!("made-up text, seed {}", plan.seed))
    })
}

/// Text of made-up words, common ones more often than rare ones, with numbers between: it compresses about as records do.
fn text(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let syllables =
        ["an", "ber", "co", "da", "el", "fi", "go", "hu", "in", "ka", "lo", "mi", "ne", "or", "pa", "ru"];
    let words: Vec<String> = (0..4096)
        .map(|_| (0..2 + random.below(4)).map(|_| syllables[random.below(syllables.len())]).collect())
        .collect();
    let mut text = Vec::with_capacity(bytes + 64);
    while text.len() < bytes {
        let rank = random.below(words.len()) * random.below(words.len()) / words.len();
        // Writing to a vector doesn't fail.
        let _ = match random.below(6) {
            0 => write!(text, "{}=\"{}\", ", words[rank], random.next() % 1_000_000),
            1 => writeln!(text, "{{\"{}\": {}}}", words[rank], random.next() % 10_000),
            _ => write!(text, "{} ", words[rank]),
        };
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::is_same_filled;

    #[test]
    fn made_up_text_is_text_and_comes_from_the_seed() {
        let made = text(100_000, 7);
        assert_eq!((made.len(), &made), (100_000, &text(100_000, 7)));
        assert_ne!(made, text(100_000, 8));
        assert!(made.is_ascii() && !made.chunks_exact(4096).any(is_same_filled));
    }

    #[test]
    fn a_python_process_gives_an_image() {
        if Command::new("python3").arg("--version").output().is_err() {
            println!("SKIPPED a_python_process_gives_an_image: there is no python3");
            return;
        }
        let path = std::env::temp_dir().join(format!("userswap-bench-test-{}.image", std::process::id()));
        make(Kind::Python, 24 << 20, 3, &path).unwrap();
        let image = Image::load(&path, u64::MAX).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(image.pages() > 2000, "{} pages", image.pages());
    }
}
