//! One hub's status: read from its file, or asked for on its management interface.
//!
//! Every wait and every size is bounded. Does not know what the text means.

use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};

use crate::{config::settings::HubStatus, limits};

/// What a hub says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// Whatever had happened by then, the text knows: a later event may be missing.
    pub(super) bound: SystemTime,
}

/// Why a hub says nothing.
#[derive(Debug)]
pub(super) enum AskFault {
    /// The file cannot be read, or the interface cannot be reached.
    Io(io::Error),
    /// It is no file but a folder, a pipe, a device.
    NoFile,
    /// It is larger than any status.
    TooLarge,
    /// It is written all the time.
    Restless,
    /// The hub has not written it for long.
    Stale,
    /// By its date it will be written: a clock is wrong.
    Ahead,
    /// The interface did not answer in time.
    Silent,
    /// The interface wants a password.
    Locked,
    /// The interface does not know what it is asked.
    Refused,
}

impl fmt::Display for AskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => f.write_str("does not exist; is the hub running?"),
                io::ErrorKind::PermissionDenied => {
                    f.write_str("may not be read by the user that m2u runs as")
                }
                io::ErrorKind::ConnectionRefused => f.write_str("is closed; is the hub running?"),
                _ => write!(f, "cannot be read: {error}"),
            },
            Self::NoFile => f.write_str("is no file; write what the hub's \"status\" says"),
            Self::TooLarge => {
                write!(f, "is larger than {} bytes", limits::HUB_STATUS_BYTES_MAX)
            }
            Self::Restless => f.write_str("is being written all the time; is it one hub's own?"),
            Self::Stale => write!(
                f,
                "has not been written for {} seconds; is the hub running, and does its \"status\" \
                 say 60 seconds or less?",
                limits::HUB_STATUS_AGE_MAX.as_secs()
            ),
            // How far, changes all the time: it would be told again and again.
            Self::Ahead => f.write_str(
                "has a date that lies ahead of this machine's clock, so that it cannot be told how old \
                 it is; set the clock right, or have the hub write it again",
            ),
            Self::Silent => write!(
                f,
                "did not answer within {} seconds; it serves one at a time: is something else \
                 connected to it?",
                limits::HUB_ANSWER.as_secs()
            ),
            Self::Locked => f.write_str(
                "wants a password; let it be a Unix socket that m2u's user alone may use \
                 (\"management-client-user\"), without one",
            ),
            Self::Refused => {
                f.write_str("does not answer \"status 3\"; m2u knows OpenVPN 2.4 to 2.6")
            }
        }
    }
}

impl std::error::Error for AskFault {}

impl From<io::Error> for AskFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Asks a hub who is connected; its management interface may take as long as `patience`.
///
/// # Errors
/// Why there is no text. One that is not whole is no fault here.
pub(super) async fn ask(status: &HubStatus, patience: Duration) -> Result<Answer, AskFault> {
    let asked = async {
        match status {
            HubStatus::File(path) => read_at_rest(path).await,
            HubStatus::Socket(path) => converse(UnixStream::connect(path).await?).await,
            HubStatus::Address(host, port) => {
                converse(TcpStream::connect((&**host, *port)).await?).await
            }
        }
    };
    let answered = timeout(patience, asked).await;
    answered.unwrap_or(Err(AskFault::Silent))
}

/// Reads a file that OpenVPN writes in place, line by line, once it has left it alone.
async fn read_at_rest(path: &Path) -> Result<Answer, AskFault> {
    for _ in 0..limits::HUB_STATUS_LOOKS_MAX {
        if let Some(answer) = read(path)? {
            return Ok(answer);
        }
        sleep(limits::HUB_STATUS_REST).await;
    }
    Err(AskFault::Restless)
}

/// The file's text; `None` if it is just being written.
fn read(path: &Path) -> Result<Option<Answer>, AskFault> {
    // A pipe must not stop the control thread.
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(AskFault::NoFile);
    }
    let written = before.modified()?;
    match age(written, SystemTime::now()) {
        Age::Young => return Ok(None),
        Age::Stale => return Err(AskFault::Stale),
        Age::Ahead => return Err(AskFault::Ahead),
        Age::Fit => {}
    }
    let mut bytes = Vec::new();
    let bytes_max = limits::HUB_STATUS_BYTES_MAX;
    (&file).take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(AskFault::TooLarge);
    }
    let after = file.metadata()?;
    let is_same = after.modified()? == written && after.len() == bytes.len() as u64;
    Ok(is_same.then(|| Answer {
        // A name in another encoding is known to nobody.
        text: String::from_utf8_lossy(&bytes).into_owned(),
        bound: written,
    }))
}

/// What the time of its last write says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// It may still be being written.
    Young,
    Fit,
    Stale,
    Ahead,
}

fn age(written: SystemTime, now: SystemTime) -> Age {
    match now.duration_since(written) {
        Ok(age) if age < limits::HUB_STATUS_REST => Age::Young,
        Ok(age) if age > limits::HUB_STATUS_AGE_MAX => Age::Stale,
        Ok(_) => Age::Fit,
        // A clock was set back: by this time the file would be newer than all that hooks say.
        Err(ahead) if ahead.duration() > limits::HUB_STATUS_REST => Age::Ahead,
        Err(_) => Age::Young,
    }
}

/// Asks on an open management interface for `status 3`.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Answer, AskFault> {
    let bound = SystemTime::now();
    stream.write_all(b"status 3\n").await?;
    let mut bytes = Vec::new();
    let mut lines = 0;
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            // What there is of it is not whole; the reader will say so.
            return Ok(answer(&bytes, bound));
        }
        while let Some(length) = memchr::memchr(b'\n', &bytes[lines..]) {
            let line = bytes[lines..lines + length].trim_ascii_end();
            lines += length + 1;
            match line {
                b"END" => return Ok(answer(&bytes[..lines], bound)),
                _ if line.starts_with(b"ERROR:") => return Err(AskFault::Refused),
                _ => {}
            }
        }
        // It ends without a line break.
        if bytes[lines..].starts_with(b"ENTER PASSWORD:") {
            return Err(AskFault::Locked);
        }
        if bytes.len() > limits::HUB_STATUS_BYTES_MAX {
            return Err(AskFault::TooLarge);
        }
    }
}

/// The text without the notices that come in between, which begin with `>`.
fn answer(bytes: &[u8], bound: SystemTime) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter(|line| !line.starts_with('>'));
    let text = lines.flat_map(|line| [line, "\n"]).collect();
    Answer { text, bound }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::{io::duplex, net::UnixListener, runtime, task::JoinHandle};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut builder = runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build();
        runtime.expect("a runtime").block_on(future)
    }

    fn folder() -> TempDir {
        tempfile::tempdir().expect("a folder")
    }

    /// A file that was written so long ago.
    fn write(path: &Path, text: &str, age: Duration) -> SystemTime {
        fs::write(path, text).expect("a file");
        let written = SystemTime::now() - age;
        let file = fs::File::options().write(true).open(path).expect("a file");
        file.set_modified(written).expect("a time");
        written
    }

    fn fault(status: &HubStatus) -> String {
        block_on(ask(status, PATIENCE))
            .expect_err("a fault")
            .to_string()
    }

    #[test]
    fn a_file_at_rest_is_read_and_dated_by_its_last_write() {
        let folder = folder();
        let path = folder.path().join("north.status");
        let written = write(&path, "TITLE\tü\n", Duration::from_secs(5));
        let answer = block_on(ask(&HubStatus::File(path), PATIENCE)).expect("an answer");
        assert_eq!(
            (answer.text.as_str(), answer.bound),
            ("TITLE\tü\n", written)
        );
    }

    #[test]
    fn files_that_say_nothing_are_faults_and_never_hang() {
        let folder = folder();
        let path = folder.path().join("north.status");
        let file = HubStatus::File(path.clone());
        assert!(fault(&file).contains("does not exist"));
        write(&path, "TITLE\n", Duration::from_secs(3_600));
        assert!(fault(&file).contains("has not been written for 180 seconds"));
        let opened = fs::File::options().write(true).open(&path).expect("a file");
        let ahead = SystemTime::now() + Duration::from_secs(3_600);
        opened.set_modified(ahead).expect("a time");
        assert!(fault(&file).contains("lies ahead of this machine's clock"));
        fs::write(&path, vec![b'x'; limits::HUB_STATUS_BYTES_MAX + 1]).expect("a file");
        let old = SystemTime::now() - Duration::from_secs(5);
        let opened = fs::File::options().write(true).open(&path).expect("a file");
        opened.set_modified(old).expect("a time");
        assert!(fault(&file).contains("is larger than"));
        fs::remove_file(&path).expect("removed");
        symlink("/dev/null", &path).expect("a link");
        assert!(fault(&file).contains("is no file"));
    }

    #[test]
    fn a_file_that_may_be_being_written_is_left_alone() {
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        for (later, expected) in [
            (Duration::ZERO, Age::Young),
            (
                limits::HUB_STATUS_REST - Duration::from_millis(1),
                Age::Young,
            ),
            (limits::HUB_STATUS_REST, Age::Fit),
            (limits::HUB_STATUS_AGE_MAX, Age::Fit),
            (
                limits::HUB_STATUS_AGE_MAX + Duration::from_millis(1),
                Age::Stale,
            ),
        ] {
            assert_eq!(age(written, written + later), expected, "{later:?}");
        }
        for (earlier, expected) in [
            (limits::HUB_STATUS_REST, Age::Young),
            (
                limits::HUB_STATUS_REST + Duration::from_millis(1),
                Age::Ahead,
            ),
            (Duration::from_secs(900), Age::Ahead),
        ] {
            assert_eq!(
                age(written, written - earlier),
                expected,
                "{earlier:?} ahead"
            );
        }
    }

    #[test]
    fn the_interface_is_asked_and_its_notices_are_left_out() {
        let (near, mut far) = duplex(64);
        let answer = block_on(async {
            let hub = async move {
                let mut question = [0; 9];
                far.read_exact(&mut question).await.expect("a question");
                assert_eq!(&question, b"status 3\n");
                let said =
                    ">INFO:OpenVPN\r\nTITLE\tx\r\n>LOG:EN\r\nTIME\tx\t1\r\nEND\r\n>INFO:more";
                far.write_all(said.as_bytes()).await.expect("said");
            };
            let (answer, ()) = tokio::join!(converse(near), hub);
            answer.expect("an answer")
        });
        assert_eq!(answer.text, "TITLE\tx\nTIME\tx\t1\nEND\n");
    }

    #[test]
    fn an_interface_that_does_not_answer_is_given_up() {
        const AT_ONCE: Duration = Duration::from_millis(50);
        for (said, patience, words) in [
            ("ENTER PASSWORD:", PATIENCE, "wants a password"),
            (
                ">INFO\r\nERROR: what?\r\n",
                PATIENCE,
                "does not answer \"status 3\"",
            ),
            (
                ">INFO\r\nTITLE\tx\r\n",
                AT_ONCE,
                "did not answer within 5 s",
            ),
            ("", AT_ONCE, "did not answer within 5 s"),
        ] {
            let folder = folder();
            let path = folder.path().join("north.sock");
            let shown = block_on(async {
                let listener = UnixListener::bind(&path).expect("a socket");
                let hub: JoinHandle<()> = tokio::spawn(async move {
                    let (mut stream, _) = listener.accept().await.expect("a connection");
                    stream.write_all(said.as_bytes()).await.expect("said");
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                });
                let fault = ask(&HubStatus::Socket(path), patience)
                    .await
                    .expect_err(said);
                hub.abort();
                fault.to_string()
            });
            assert!(shown.contains(words), "{said:?}: {shown}");
        }
        let none = HubStatus::Socket(folder().path().join("none.sock"));
        assert!(fault(&none).contains("does not exist"));
        let cut = block_on(async {
            let (near, mut far) = duplex(64);
            far.write_all(b"TITLE\tx\r\n").await.expect("said");
            let hub = async move {
                let mut question = [0; 9];
                far.read_exact(&mut question).await.expect("a question");
            };
            tokio::join!(converse(near), hub).0.expect("an answer")
        });
        assert_eq!(cut.text, "TITLE\tx\n");
    }
}
