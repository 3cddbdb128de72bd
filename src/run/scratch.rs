//! A directory for what a run needs in the file system: the shared object that is loaded beside the command.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory of our own. It and what was put into it go when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one where files may be run from: in `$XDG_RUNTIME_DIR`, else in the directory for temporary files, else in another
    /// that usually is there.
    ///
    /// Others may pass through it but not look into it or change it: a program that changes its user and starts another still
    /// finds the object.
    ///
    /// # Errors
    /// Why the last of them wouldn't do.
    pub fn create() -> io::Result<Self> {
        let preferred = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let others = [std::env::temp_dir(), "/dev/shm".into(), "/var/tmp".into()];
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for base in preferred.into_iter().chain(others) {
            match Self::within(&base) {
                Ok(made) => return Ok(made),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn within(base: &Path) -> io::Result<Self> {
        // The loader splits its list there.
        if !base.is_absolute() || base.as_os_str().as_bytes().iter().any(|byte| b": \t\n".contains(byte)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a directory whose name the loader would split",
            ));
        }
        let flags = rustix::fs::statvfs(base)?.f_flag;
        if flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "nothing may be run from there"));
        }
        for attempt in 0..100u32 {
            let path = base.join(format!("userswap-{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o711).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Writes a file that anybody may read and run.
    ///
    /// # Errors
    /// Why not.
    pub fn put(&self, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o555).open(&path)?.write_all(bytes)?;
        Ok(path)
    }

    /// A place in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a directory is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_holds_what_was_put_and_goes_with_it() {
        let scratch = Scratch::create().unwrap();
        let file = scratch.put("object.so", b"bytes").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"bytes");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(file.parent().unwrap()) & 0o066, 0);
        assert!(scratch.put("object.so", b"again").is_err());
        drop(scratch);
        assert!(!file.parent().unwrap().exists());
    }

    #[test]
    fn a_directory_the_loader_would_split_wont_do() {
        assert!(Scratch::within(Path::new("/tmp/a b")).is_err());
        assert!(Scratch::within(Path::new("/tmp/a:b")).is_err());
        assert!(Scratch::within(Path::new("tmp")).is_err());
    }
}
