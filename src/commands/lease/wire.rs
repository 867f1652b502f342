//! The feed's socket from the other side: lines out, lines in, within one deadline.
//!
//! Blocks. A gateway that hangs costs the caller this time and no more, which VPN servers that wait
//! for a hook depend on.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::control::lease::protocol::Reply;

/// Bytes that one send takes at most: the deadline holds for each.
const SEND_BYTES: usize = 65_536;
/// Bytes of a line that a gateway sends at most.
const LINE_BYTES_MAX: u64 = 65_536;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum WireError {
    /// Nobody could be reached at this path.
    Unreachable(PathBuf, io::Error),
    /// The time is over.
    Late(Duration),
    /// The gateway has closed the connection without an answer.
    Ended,
    /// What came is no answer of a gateway.
    Strange,
    /// The connection broke.
    Broken(io::Error),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(path, error) => {
                let path = path.display();
                match error.kind() {
                    io::ErrorKind::NotFound => write!(
                        f,
                        "there is no socket {path}; is m2u running, with leases.socket set to it?"
                    ),
                    io::ErrorKind::ConnectionRefused => {
                        write!(f, "nobody listens at {path}; is m2u running?")
                    }
                    io::ErrorKind::PermissionDenied => write!(
                        f,
                        "this user may not reach {path}; let it into the folder of the socket"
                    ),
                    _ => write!(f, "{path} can't be reached: {error}"),
                }
            }
            Self::Late(timeout) => write!(
                f,
                "m2u did not answer within {timeout:?}; whether it was done, \"m2u lease list\" \
                 shows"
            ),
            Self::Ended => f.write_str("m2u has closed the connection; is it ending?"),
            Self::Strange => f.write_str("what answers there is no feed of m2u"),
            Self::Broken(error) => write!(f, "the connection to m2u broke: {error}"),
        }
    }
}

/// A connection to the feed of a running gateway.
#[derive(Debug)]
pub(super) struct Wire {
    timed: BufReader<Timed>,
    timeout: Duration,
}

/// A socket whose every operation ends in time.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    /// `None`: it may take for ever.
    by: Option<Instant>,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(by) = self.by else {
            return Ok(None);
        };
        match by.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(room)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(&bytes[..bytes.len().min(SEND_BYTES)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    /// Connects to the gateway that listens at `path`; everything has to be done within `timeout`.
    pub(super) fn connect(path: &Path, timeout: Duration) -> Result<Self, WireError> {
        let by = Instant::now() + timeout;
        let connected = SockAddr::unix(path).and_then(|address| {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // A queue that is full makes a connection wait, for so long at most.
            socket.set_write_timeout(Some(timeout))?;
            socket.connect(&address)?;
            Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
        });
        let stream = connected.map_err(|error| match is_late(&error) {
            true => WireError::Late(timeout),
            false => WireError::Unreachable(path.to_owned(), error),
        })?;
        let by = Some(by);
        Ok(Self {
            timed: BufReader::new(Timed { stream, by }),
            timeout,
        })
    }

    /// Lets what comes from now on take as long as it takes.
    pub(super) fn wait_for_ever(&mut self) {
        self.timed.get_mut().by = None;
    }

    /// Sends whole lines.
    pub(super) fn send(&mut self, lines: &[u8]) -> Result<(), WireError> {
        match self.timed.get_mut().write_all(lines) {
            Ok(()) => Ok(()),
            // Whoever refuses to read on has said why.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(self.fault(error)),
        }
    }

    /// The next line, its end included.
    pub(super) fn line(&mut self) -> Result<Vec<u8>, WireError> {
        let mut line = Vec::new();
        let mut bounded = self.timed.by_ref().take(LINE_BYTES_MAX);
        if let Err(error) = bounded.read_until(b'\n', &mut line) {
            return Err(self.fault(error));
        }
        match line.ends_with(b"\n") {
            true => Ok(line),
            false if line.len() as u64 == LINE_BYTES_MAX => Err(WireError::Strange),
            false => Err(WireError::Ended),
        }
    }

    /// What a line of the gateway says.
    pub(super) fn read<T: DeserializeOwned>(line: &[u8]) -> Result<T, WireError> {
        serde_json::from_slice(line).map_err(|_| WireError::Strange)
    }

    /// The answer to one request that has been sent.
    pub(super) fn reply(&mut self) -> Result<Reply, WireError> {
        Self::read(&self.line()?)
    }

    fn fault(&self, error: io::Error) -> WireError {
        match error.kind() {
            _ if is_late(&error) => WireError::Late(self.timeout),
            io::ErrorKind::ConnectionReset => WireError::Ended,
            _ => WireError::Broken(error),
        }
    }
}

/// Whether the time was over; the system has two words for it.
fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}
