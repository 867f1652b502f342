//! Reads the files that a configuration names, with a bound and with faults in plain words.
//!
//! Paths are relative to the configuration's own folder. Nothing here writes.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The folder that relative paths begin in.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// The folder of the configuration file at `path`.
    pub(super) fn of(path: &Path) -> Self {
        Self(path.parent().unwrap_or(Path::new("")).to_owned())
    }

    /// Where `name`, as the configuration has it, really is.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Why a file could not be read. Shows as `"path" does not exist` and the like.
#[derive(Debug)]
pub(super) struct ReadFault {
    path: PathBuf,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Io(io::Error),
    TooLarge(u64),
}

impl fmt::Display for ReadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the file \"{}\" ", self.path.display())?;
        match &self.cause {
            Cause::TooLarge(bytes_max) => write!(f, "is larger than {bytes_max} bytes"),
            Cause::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => f.write_str("does not exist"),
                io::ErrorKind::PermissionDenied => {
                    f.write_str("may not be read by the user that m2u runs as")
                }
                io::ErrorKind::IsADirectory => f.write_str("is a folder"),
                _ => write!(f, "cannot be read: {error}"),
            },
        }
    }
}

/// The bytes of the file at `path`, `bytes_max` of them at most.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ReadFault> {
    let fault = |cause| ReadFault {
        path: path.to_owned(),
        cause,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| {
            // At once, for a list may be long; a file that says nothing of its size is read as well.
            let length = file.metadata()?.len().min(bytes_max);
            bytes.reserve_exact(length as usize + 1);
            file.take(bytes_max + 1).read_to_end(&mut bytes)
        })
        .map_err(|error| fault(Cause::Io(error)))?;
    if bytes.len() as u64 > bytes_max {
        return Err(fault(Cause::TooLarge(bytes_max)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_in_plain_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "12345").expect("a file");

        assert_eq!(read(&file, 5).expect("five bytes"), b"12345");
        for (path, bytes_max, words) in [
            (file.clone(), 4, "is larger than 4 bytes"),
            (folder.path().join("none"), 4, "does not exist"),
            (folder.path().to_owned(), 4, "is a folder"),
        ] {
            let shown = read(&path, bytes_max).expect_err("a fault").to_string();
            assert!(shown.ends_with(words), "{shown}");
        }
    }

    #[test]
    fn relative_paths_begin_in_the_folder_of_the_file() {
        let join = |config: &str, name: &str| Folder::of(Path::new(config)).join(name);
        assert_eq!(join("m2u.toml", "a.pem"), Path::new("a.pem"));
        assert_eq!(
            join("/etc/m2u/m2u.toml", "a.pem"),
            Path::new("/etc/m2u/a.pem")
        );
        assert_eq!(join("/etc/m2u/m2u.toml", "/a.pem"), Path::new("/a.pem"));
    }
}
