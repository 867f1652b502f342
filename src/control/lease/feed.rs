//! The feed's socket: who may speak, lines in, replies out.
//!
//! Collects the lines that have come into batches, which take effect together. Knows what a line
//! is, not what it does: batches go to the registry, and come back with the replies.

use std::{
    collections::VecDeque,
    fs, io, mem,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    thread,
};

use memchr::memchr_iter;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    task::{JoinHandle, yield_now},
    time::timeout,
};

use super::{
    folders,
    protocol::{self, Op, Reply, Request},
    seats::{Seat, Seats},
    turns::Listing,
    watch::Events,
};
use crate::limits;

/// Bytes that one receive takes at most.
const RECEIVE_BYTES: usize = 65_536;

/// What one connection asks for, in order.
#[derive(Debug)]
pub struct Batch {
    /// At least one.
    pub jobs: Vec<Job>,
    /// Who asks.
    pub peer: Peer,
    /// Where the replies go.
    pub reply: oneshot::Sender<Outcome>,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer(Arc<OwnedFd>);

impl Peer {
    /// Whether it has closed the connection, and waits for no reply. One that has only said that no
    /// more will come is still there.
    pub fn is_gone(&self) -> bool {
        let mut asked = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let is_told = poll(&mut asked, PollTimeout::ZERO).is_ok();
        let told = asked[0].revents().unwrap_or(PollFlags::empty());
        is_told && told.contains(PollFlags::POLLHUP)
    }
}

/// One request, whole.
#[derive(Debug)]
pub enum Job {
    /// A request of one line.
    Single(Request),
    /// A set that takes effect at once, and the request that ends it.
    Sync {
        /// How it began.
        head: Request,
        /// What the source has.
        lines: Lines,
        /// The id of the line that ended it.
        id: Option<u64>,
    },
    /// A line that is no request; its reply is there already.
    Refused(Reply),
    /// A list of which a part has been sent.
    Listing(Listing),
    /// What has been done already, and is answered behind such a list.
    Answered(Reply),
}

impl Job {
    /// The id of a request of one line.
    pub fn id(&self) -> Option<u64> {
        match self {
            Self::Single(request) => request.id,
            _ => None,
        }
    }
}

/// The lines of a set, in parts of a turn each: a long list is never moved as a whole.
#[derive(Debug, Default)]
pub struct Lines {
    parts: VecDeque<Vec<Request>>,
    len: usize,
    /// How many have been taken out; `None`: nobody has begun.
    taken: Option<usize>,
}

impl Lines {
    /// How many there were.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nobody has begun to take them out.
    pub fn is_untouched(&self) -> bool {
        self.taken.is_none()
    }

    /// Whether all of them have been taken out.
    pub fn is_taken(&self) -> bool {
        self.taken == Some(self.len)
    }

    /// Each that is there.
    pub fn iter(&self) -> impl Iterator<Item = &Request> {
        self.parts.iter().flatten()
    }

    /// Takes the next turn's worth of them out; answers the position of the first as well.
    pub fn take_part(&mut self) -> (usize, Vec<Request>) {
        let part = self.parts.pop_front().unwrap_or_default();
        let first = self.taken.unwrap_or_default();
        self.taken = Some(first + part.len());
        (first, part)
    }

    fn push(&mut self, line: Request) {
        let part = self.parts.back_mut();
        match part.filter(|part| part.len() < limits::LEASE_TURN) {
            Some(part) => part.push(line),
            None => self.parts.push_back(vec![line]),
        }
        self.len += 1;
    }
}

impl Job {
    /// Whether it could give an address to a device.
    pub fn leases(&self) -> bool {
        match self {
            Self::Single(request) => request.op == Some(Op::Add),
            Self::Sync { .. } => true,
            Self::Refused(_) | Self::Listing(_) | Self::Answered(_) => false,
        }
    }
}

/// What comes back.
#[derive(Debug)]
pub struct Outcome {
    /// Lines to send.
    pub text: Vec<u8>,
    /// What to send from now on, if the connection watches.
    pub events: Option<Events>,
    /// What is to be asked for next, once there is room for more to send.
    pub rest: Vec<Job>,
}

/// A listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Feed {
    path: PathBuf,
    accepting: JoinHandle<()>,
    batches: mpsc::Receiver<Batch>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.accepting.abort();
        // Whoever removed it before has done what this is for.
        let _ = fs::remove_file(&self.path);
    }
}

impl Feed {
    /// Listens at `path`, for root, for the user that this process runs as, and for `users`.
    ///
    /// The socket can be reached by everybody, so that whoever may not use it is told so.
    ///
    /// # Errors
    /// The socket cannot be made; one that another process listens on is left alone. Nor is it made
    /// where others could put a socket of theirs in its place, or in that of a folder on the way to it.
    pub fn listen(path: &Path, users: Vec<u32>) -> io::Result<Self> {
        let owners = vec![0, nix::unistd::geteuid().as_raw()];
        folders::check(path, &owners)?;
        remove_abandoned(path)?;
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        let (sender, batches) = mpsc::channel(limits::FEED_CONNECTIONS_MAX);
        let accepting = tokio::spawn(accept(listener, owners, users, sender));
        Ok(Self {
            path: path.to_owned(),
            accepting,
            batches,
        })
    }

    /// Waits for a batch. May be dropped; none is lost.
    pub async fn next(&mut self) -> Batch {
        match self.batches.recv().await {
            Some(batch) => batch,
            // Accepting ends with this alone.
            None => std::future::pending().await,
        }
    }

    /// A batch that has come, if there is one.
    pub fn try_next(&mut self) -> Option<Batch> {
        self.batches.try_recv().ok()
    }
}

/// Removes a socket that nobody listens on, as a crash leaves it.
fn remove_abandoned(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file of this name that is no socket; choose another",
            ));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there; end it, or choose another name",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Whether somebody listens can't be told.
        Err(error) => Err(error),
    }
}

async fn accept(
    listener: UnixListener,
    owners: Vec<u32>,
    users: Vec<u32>,
    batches: mpsc::Sender<Batch>,
) {
    let seats = Seats::new(owners.clone());
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Descriptors have run out: others need time to give some back.
            tokio::time::sleep(limits::ACCEPT_PAUSE_CEILING).await;
            continue;
        };
        let user = stream.peer_cred().ok().map(|peer| peer.uid());
        let user = user.filter(|user| owners.contains(user) || users.contains(user));
        let refused = match user.map(|user| seats.take(user)) {
            Some(Some(seat)) => {
                tokio::spawn(serve(stream, batches.clone(), seat));
                continue;
            }
            Some(None) => Reply::refused(
                None,
                "busy",
                "too many feeds are connected, and none is idle; close some",
            ),
            None => Reply::refused(
                None,
                "denied",
                "this user may not change leases; add it to leases.users",
            ),
        };
        // A few bytes fit into the socket, whether they are read or not.
        let _ = stream.try_write(&line(&refused));
        let _ = stream.shutdown().await;
    }
}

async fn serve(stream: UnixStream, batches: mpsc::Sender<Batch>, seat: Seat) {
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else {
        // Descriptors have run out.
        return;
    };
    let (reader, writer) = stream.into_split();
    let mut connection = Connection {
        reader,
        writer,
        seat,
        peer: Peer(Arc::new(socket)),
        batches,
        received: Vec::new(),
        replies: Vec::new(),
        rest: Vec::new(),
        set: None,
    };
    // Whoever is gone needs no answer.
    let _ = connection.run().await;
}

/// A set that is being received.
#[derive(Debug)]
struct Set {
    head: Request,
    lines: Lines,
    /// What was wrong with the first line that was refused.
    fault: Option<Reply>,
}

/// One connection to the feed.
struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    seat: Seat,
    peer: Peer,
    batches: mpsc::Sender<Batch>,
    received: Vec<u8>,
    /// Replies that have not been taken yet.
    replies: Vec<u8>,
    /// What has been asked for, and waits for room for its replies.
    rest: Vec<Job>,
    set: Option<Set>,
}

impl Connection {
    async fn run(&mut self) -> io::Result<()> {
        let mut is_over = false;
        loop {
            let jobs = match self.rest.is_empty() {
                true => {
                    let (jobs, is_broken) = self.take_jobs();
                    is_over |= is_broken;
                    jobs
                }
                false => mem::take(&mut self.rest),
            };
            let mut events = None;
            let has_jobs = !jobs.is_empty();
            if has_jobs {
                let Some(outcome) = self.ask(jobs).await else {
                    return Ok(());
                };
                self.replies.extend(outcome.text);
                self.rest = outcome.rest;
                events = outcome.events;
            }
            if self.set.is_some() {
                // Whoever sends a large set as fast as it is read leaves the others their turn.
                yield_now().await;
            }
            if events.is_none() && !(is_over && self.rest.is_empty()) {
                is_over |= self.exchange(has_jobs).await?;
            }
            if events.is_some() || (is_over && self.rest.is_empty()) {
                self.finish_replies().await?;
                return match events {
                    Some(events) => self.watch(events).await,
                    None => Ok(()),
                };
            }
        }
    }

    /// Sends the replies that are left.
    async fn finish_replies(&mut self) -> io::Result<()> {
        let replies = mem::take(&mut self.replies);
        self.seat.rest();
        tokio::select! {
            sent = self.writer.write_all(&replies) => sent,
            () = self.seat.lost() => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends replies and receives requests, whichever goes on: a source may send many requests
    /// before it reads. Waits unless there is `more` to do. Says whether no more will come.
    async fn exchange(&mut self, more: bool) -> io::Result<bool> {
        if !self.replies.is_empty() {
            match self.writer.try_write(&self.replies) {
                Ok(sent) => drop(self.replies.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let has_room = self.replies.len() < limits::FEED_REPLIES_BYTES_MAX;
        if more && has_room {
            return Ok(false);
        }
        self.received.reserve(RECEIVE_BYTES);
        self.seat.rest();
        let is_over = tokio::select! {
            received = self.reader.read_buf(&mut self.received), if has_room => received? == 0,
            writable = self.writer.writable(), if !self.replies.is_empty() => {
                writable?;
                false
            }
            () = self.seat.lost() => return Err(self.give_way()),
        };
        self.seat.work();
        Ok(is_over)
    }

    /// Says that another connection needs the seat, unless earlier words wait to be read.
    fn give_way(&self) -> io::Error {
        let reason = "another connection needed its place while it was idle; connect again";
        let idle = Reply::refused(None, "idle", reason);
        if self.replies.is_empty() {
            let _ = self.writer.try_write(&line(&idle));
        }
        io::ErrorKind::TimedOut.into()
    }

    /// Has `jobs` done; `None` once the gateway is ending.
    async fn ask(&self, jobs: Vec<Job>) -> Option<Outcome> {
        let (reply, outcome) = oneshot::channel();
        let peer = self.peer.clone();
        let batch = Batch { jobs, peer, reply };
        self.batches.send(batch).await.ok()?;
        outcome.await.ok()
    }

    /// The requests that have come whole, up to a bound; and whether no more can be read behind
    /// them.
    fn take_jobs(&mut self) -> (Vec<Job>, bool) {
        let received = std::mem::take(&mut self.received);
        let mut jobs = Vec::new();
        let mut begin = 0;
        for end in memchr_iter(b'\n', &received) {
            if jobs.len() == limits::FEED_BATCH_MAX {
                break;
            }
            let line = received[begin..end].trim_ascii();
            begin = end + 1;
            if line.len() > limits::FEED_LINE_BYTES_MAX {
                jobs.push(too_long());
                return (jobs, true);
            }
            if !line.is_empty() {
                jobs.extend(self.take_line(line));
                give_way(jobs.len());
            }
        }
        let rest = &received[begin..];
        let is_full = jobs.len() == limits::FEED_BATCH_MAX;
        if !is_full && rest.len() > limits::FEED_LINE_BYTES_MAX {
            jobs.push(too_long());
            return (jobs, true);
        }
        self.received = received;
        self.received.drain(..begin);
        (jobs, false)
    }

    /// Takes one line in; answers a job if it makes one whole.
    fn take_line(&mut self, line: &[u8]) -> Option<Job> {
        let request = match protocol::parse(line) {
            Ok(request) => request,
            Err(reason) => return self.refuse(Reply::refused(None, "malformed", reason)),
        };
        let id = request.id;
        let out_of_order = |reason: &str| Reply::refused(id, "out_of_order", reason);
        match (request.op, &mut self.set) {
            (Some(Op::Sync), None) => {
                self.set = Some(Set {
                    head: request,
                    lines: Lines::default(),
                    fault: None,
                });
                None
            }
            (Some(Op::Commit), Some(_)) => {
                let Set { head, lines, fault } = self.set.take()?;
                Some(match fault {
                    Some(mut reply) => {
                        reply.id = id;
                        Job::Refused(reply)
                    }
                    None => Job::Sync { head, lines, id },
                })
            }
            (Some(Op::Commit), None) => self.refuse(out_of_order("there is no sync to commit")),
            (None, None) => self.refuse(out_of_order("has no op, and no sync has begun")),
            (None, Some(set)) if set.lines.len() >= limits::LEASES_MAX => {
                self.refuse(Reply::refused(id, "full", "the set is too large"))
            }
            (None, Some(set)) => {
                if set.fault.is_none() {
                    set.lines.push(request);
                }
                None
            }
            (Some(_), Some(_)) => {
                self.refuse(out_of_order("stands within a sync; commit that first"))
            }
            (Some(Op::Watch), None) if !self.seat.watch() => {
                self.refuse(Reply::refused(id, "busy", "too many watch; end some"))
            }
            (Some(_), None) => Some(Job::Single(request)),
        }
    }

    /// Refuses a line; within a set, all of it: its one reply comes when it ends.
    fn refuse(&mut self, mut reply: Reply) -> Option<Job> {
        let Some(set) = &mut self.set else {
            return Some(Job::Refused(reply));
        };
        if set.fault.is_none() {
            let line = set.lines.len() + 1;
            reply.line = Some(line);
            if let Some(reason) = &mut reply.reason {
                *reason = format!("line {line} of the set {reason}");
            }
            set.fault = Some(reply);
            set.lines = Lines::default();
        }
        None
    }

    /// Sends events until either side goes.
    async fn watch(&mut self, events: Events) -> io::Result<()> {
        tokio::select! {
            told = tell(&mut self.writer, events) => told,
            ended = until_end(&mut self.reader) => ended,
        }
    }
}

/// Sends events until too much waits; says so then, if it is read soon.
async fn tell(writer: &mut OwnedWriteHalf, mut events: Events) -> io::Result<()> {
    while let Some(news) = events.next().await {
        let mut sending = pin!(writer.write_all(&news));
        tokio::select! {
            sent = &mut sending => sent?,
            () = events.lost() => {
                // The last word stands on a line of its own.
                timeout(limits::FEED_LAST_WORDS, sending).await??;
                break;
            }
        }
    }
    let reason = "changes came faster than they were read; list, then watch again";
    let lost = line(&Reply::refused(None, "lost", reason));
    timeout(limits::FEED_LAST_WORDS, writer.write_all(&lost)).await?
}

/// Reads until the peer says that no more will come. Whoever watches has nothing else to say.
async fn until_end(reader: &mut OwnedReadHalf) -> io::Result<()> {
    let mut ignored = [0; 512];
    while reader.read(&mut ignored).await? > 0 {}
    Ok(())
}

/// Lets a worker run that waits for this core, if `count` things have been done that take a moment.
pub fn give_way(count: usize) {
    if count % limits::FEED_TURN == limits::FEED_TURN - 1 {
        thread::yield_now();
    }
}

fn too_long() -> Job {
    let reason = format!("a line has {} bytes at most", limits::FEED_LINE_BYTES_MAX);
    Job::Refused(Reply::refused(None, "too_long", reason))
}

/// A reply as it is sent.
pub fn line(reply: &Reply) -> Vec<u8> {
    // It has no map whose keys could be no text.
    let mut text = serde_json::to_vec(reply).unwrap_or_default();
    text.push(b'\n');
    text
}
