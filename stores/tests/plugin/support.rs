//! Libraries to load.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use userswap_store::Store;
use userswap_stores::SpecError;

/// Somewhere that goes away.
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("userswap-plugin-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A library that can be loaded, and goes when nobody needs it by name any more.
pub(crate) struct Library {
    pub(crate) path: PathBuf,
    pub(crate) _place: Option<Place>,
}

impl Library {
    /// The store of this library, with options as in `wrong=short`.
    pub(crate) fn open(&self, options: &str) -> Result<Arc<dyn Store>, SpecError> {
        let question = if options.is_empty() { "" } else { "?" };
        userswap_stores::open(&format!("plugin:{}{question}{options}", self.path.display()), 4096)
    }
}

/// Compiles a source of this package's directory. Says that the test is skipped where there is no C compiler.
pub(crate) fn compile(test: &str, source: &str, options: &[&str]) -> Option<Library> {
    let place = Place::new();
    let path = place.path("store.so");
    let compiled = cc(source, &path, &[options, &["-shared", "-fPIC", "-pthread"]].concat());
    if !compiled {
        println!("SKIPPED {test}: there is no C compiler");
        return None;
    }
    Some(Library { path, _place: Some(place) })
}

/// Runs the C compiler; whether there is one.
pub(crate) fn cc(source: &str, to: &Path, options: &[&str]) -> bool {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("cc")
        .args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-O1", "-I"])
        .arg(here.join("api/include"))
        .args(options)
        .arg("-o")
        .arg(to)
        .arg(here.join(source))
        .output();
    let Ok(output) = output else { return false };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

/// The library of the template, which is built beside this test.
pub(crate) fn template() -> Library {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().map(|directory| directory.join("libstore_template.so"));
    let path = built.into_iter().find(|library| library.exists()).unwrap();
    Library { path, _place: None }
}
