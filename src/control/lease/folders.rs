//! The way to a file: whether others could lead it elsewhere.
//!
//! Whoever may change a folder puts something of theirs in the place of what stands in it, be it a
//! folder again or a link. So each folder from the root on counts, and each link, as with sshd's
//! StrictModes. Changes nothing.

use std::{
    ffi::OsString,
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::limits;

/// Whether nobody but `owners` can put another file in the place of one at `path`, or lead `path`
/// elsewhere. The file itself need not be there.
///
/// # Errors
/// Somebody else can, or may not be asked; what they could do where, and how to prevent it.
pub(super) fn check(path: &Path, owners: &[u32]) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let mut left = backwards(path.parent().unwrap_or(&path));
    let mut here = PathBuf::new();
    let mut links = 0;
    while let Some(next) = left.pop() {
        if next == ".." {
            // What is above has been passed, whichever link led here.
            here.pop();
            continue;
        }
        let there = here.join(next);
        let found = fs::symlink_metadata(&there)?;
        if !owners.contains(&found.uid()) {
            return Err(refused(format_args!(
                "{} belongs to user {}, who could put a socket of theirs in its place; let it be \
                 root's, or this user's (chown)",
                there.display(),
                found.uid(),
            )));
        }
        if found.is_symlink() {
            links += 1;
            if links > limits::LINKS_MAX {
                return Err(refused(format_args!("too many links lead to it")));
            }
            left.extend(backwards(&fs::read_link(&there)?));
            continue;
        }
        if may_be_written_by_others(found.mode()) {
            return Err(refused(format_args!(
                "others may write to {0}, and could put a socket of theirs in its place; take that \
                 right away (chmod go-w {0})",
                there.display(),
            )));
        }
        here = there;
    }
    Ok(())
}

/// Where the sticky bit is set, as in `/tmp`, everybody may add to a folder, but not change what is
/// another's.
fn may_be_written_by_others(mode: u32) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    mode & OTHERS_WRITE != 0 && mode & STICKY == 0
}

/// The parts of a path, the last one first.
fn backwards(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

fn refused(reason: fmt::Arguments<'_>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason.to_string())
}
