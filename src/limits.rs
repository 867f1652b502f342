//! Every maximum of the gateway, with its unit; relations between them are checked at compile time.
//!
//! Settings may lower these bounds or move inside them, never exceed them.

use std::time::Duration;

/// Bytes of one request or answer head that an operator may allow at most (`limits.head_bytes`).
pub const HEAD_BYTES_CEILING: usize = 65_536;
/// Bytes of one head if the file does not say.
pub const HEAD_BYTES_DEFAULT: usize = 16_384;
/// Bytes of the smallest head limit: below it, ordinary clients could not speak.
pub const HEAD_BYTES_FLOOR: usize = 1_024;

/// Fields of one head that an operator may allow at most (`limits.fields`).
pub const FIELDS_CEILING: usize = 256;
/// Fields of one head if the file does not say.
pub const FIELDS_DEFAULT: usize = 100;

/// Bytes of a request body if the file does not say: 100 MiB, twice the largest log export seen.
pub const BODY_BYTES_DEFAULT: u64 = 104_857_600;

/// Open downstream connections if the file does not say, all cores together.
pub const CONNECTIONS_DEFAULT: usize = 100_000;
/// Open downstream connections of one source address if the file does not say.
pub const CONNECTIONS_PER_ADDRESS_DEFAULT: usize = 64;
/// Idle upstream connections to one server on one core if the file does not say.
pub const POOL_PER_SERVER_DEFAULT: usize = 32;
/// Idle upstream connections of one core, all servers together.
pub const POOL_PER_CORE_MAX: usize = 4_096;

/// How long after it was made an upstream connection takes requests: a server that has moved behind its
/// address (a load balancer's) gets them in the end, and one whose answers have fallen out of step with the
/// requests does no harm for longer. As nginx has it (`keepalive_time`).
pub const UPSTREAM_CONNECTION_AGE_MAX: Duration = Duration::from_secs(3_600);

/// Bytes of a line that a feed may send.
pub const FEED_LINE_BYTES_MAX: usize = 4_096;
/// Addresses of a line.
pub const FEED_ADDRESSES_MAX: usize = 16;
/// Requests of one feed that take effect together at most.
pub const FEED_BATCH_MAX: usize = 16;
/// Bytes of replies that a feed may leave unread before no more of its requests are read.
pub const FEED_REPLIES_BYTES_MAX: usize = 4_194_304;
/// Requests of a feed after which a worker that waits for the same core has its turn: the control
/// thread would otherwise hold requests up for as long as the scheduler lets it.
pub const FEED_TURN: usize = 4;
/// Leases that the control thread sees to in one piece: a change that comes meanwhile waits for a few
/// milliseconds. Sets that are larger, lists and the journal's rewrite take many turns.
pub const LEASE_TURN: usize = 1_000;
/// Links on the way to the feed's socket: as many as the system follows.
pub const LINKS_MAX: usize = 40;
/// Connections to the feed's socket at a time.
pub const FEED_CONNECTIONS_MAX: usize = 64;
/// Those of one user.
pub const FEED_CONNECTIONS_PER_USER_MAX: usize = 32;
/// Those that only root and the user that the gateway runs as may have.
pub const FEED_CONNECTIONS_KEPT_FOR_OWNERS: usize = 8;
/// Connections that watch leases.
pub const FEED_WATCHES_MAX: usize = 32;
/// Those of one user: others of the same user always have room.
pub const FEED_WATCHES_PER_USER_MAX: usize = 16;
/// Bytes of changes that wait for whoever watches leases; who is slower than that is cut off.
pub const WATCH_BYTES_MAX: u32 = 4_194_304;
/// How long whoever is cut off may take to read why.
pub const FEED_LAST_WORDS: Duration = Duration::from_secs(10);
/// Bytes of a source's name or a session's.
pub const LEASE_WORD_BYTES_MAX: usize = 256;
/// Bytes below which a journal is not written anew.
pub const JOURNAL_BYTES_FLOOR: u64 = 16_777_216;
/// How long what is in the journal may be in the system's memory alone, where a crash of the host, not
/// of this process, loses it.
pub const JOURNAL_SYNC: Duration = Duration::from_secs(1);
/// How often the journal says that the gateway is at work: so much less is known of how old the
/// leases of a crash are.
pub const JOURNAL_ALIVE: Duration = Duration::from_secs(5);
/// Scopes of listeners.
pub const SCOPES_MAX: usize = 255;
/// Leases of all sources.
pub const LEASES_MAX: usize = 4_194_304;
/// The highest number of a change that a journal may have: what lies beyond is damage. A hundred
/// thousand changes a second take three thousand years to get there.
pub const REVISION_MAX: u64 = 1 << 53;
/// Sources of leases that a process remembers.
pub const LEASE_SOURCES_MAX: usize = 4_096;
/// Networks whose device changed that wait for a core to close their idle connections; beyond that
/// it closes all of its idle ones.
pub const MOVED_NETWORKS_MAX: usize = 65_536;

/// How old the news of a lease may be that nobody has confirmed since the start, if the file does not
/// say.
pub const UNCONFIRMED_DEFAULT: Duration = Duration::from_secs(600);

/// Bytes of an identity value: account, device or serial number (specification, section 2).
pub const IDENTITY_VALUE_BYTES_MAX: usize = 128;
/// The highest server slot: `m2u999`.
pub const SLOT_MAX: u16 = 999;
/// Bytes of a server URL's base path.
pub const BASE_PATH_BYTES_MAX: usize = 2_048;
/// Bytes of a rendered `Authorization` line: user name and password in base64.
pub const LOGIN_BYTES_MAX: usize = 2_048;

/// Connections of one core that are being told that they are one too many, or that their PROXY
/// header is wrong; those beyond are closed without an answer.
pub const REFUSALS_PER_CORE_MAX: usize = 256;
/// Connections of one core that are one too many at their address and wait a moment for a place; an
/// address that floods can hold them all, and others are refused at once then.
pub const SECOND_TRIES_PER_CORE_MAX: usize = 64;
/// Connections of one core that wait for a request on a relay buffer, since their last one came with more
/// than a small one holds; for a second at most, as they are dormant then.
pub const LARGE_WAITS_PER_CORE_MAX: usize = 128;
/// Tables that the counts by address are spread over.
pub const ADMISSION_TABLES: usize = 64;
/// Connections that may wait to be accepted, each core and listener; the kernel caps it at
/// `somaxconn`.
pub const ACCEPT_QUEUE_MAX: i32 = 4_096;
/// The shortest pause after an accept failed for want of descriptors or memory.
pub const ACCEPT_PAUSE_FLOOR: Duration = Duration::from_millis(10);
/// The longest pause after an accept failed for want of descriptors or memory.
pub const ACCEPT_PAUSE_CEILING: Duration = Duration::from_millis(500);
/// Files that the process has open whatever it is configured for: standard streams, the control
/// thread's and the responder's runtimes, log and journal while both are opened anew, files that are
/// being read.
pub const FILES_OF_PROCESS: usize = 64;
/// Sockets of one name that is looked up: two families, two servers each, by UDP and then by TCP.
pub const FILES_PER_LOOKUP_MAX: usize = 8;

/// Bytes of what a connection needs while it is awake, buffers aside: from its first request on, or
/// since it woke up.
pub const CONNECTION_AWAKE_BYTES_MAX: usize = 4_096;
/// Bytes of the task that a connection is at all times: all that is left of one that is dormant. The
/// runtime puts 48 around it, and the allocator's next size is 320.
pub const CONNECTION_TASK_BYTES_MAX: usize = 256 - 48;
/// How long a connection is idle before it is made dormant: it waits without a buffer then, and
/// costs a poll when it wakes up.
pub const DORMANT_AFTER: Duration = Duration::from_secs(1);
/// Connections of one core that are made dormant in one tick at most, as the others wait meanwhile.
pub const RECALLS_PER_TICK_MAX: usize = 256;
/// Sweeps that can be waited for at once: a second.
pub const SWEEPS_AHEAD_MAX: usize = 20;
/// Connections of one core that one sweep wakes, unless all sweeps of the next second have as many. Each
/// looks whether its device has its answer: two system calls, and a fleet that takes its time must not
/// cost a core.
pub const WOKEN_PER_SWEEP: usize = 2_048;
/// Looks, one after the other, that find that a device has taken nothing, before the next is later than
/// at the next sweep: a second of the way there and back.
pub const EAGER_LOOKS: usize = 20;
/// Bytes of a request, as it came, that a server is taken to have as soon as it answers: to ask the kernel
/// whether it acknowledged them would cost every ordinary request a call, and tell next to nothing, for
/// what is acknowledged need not have been read.
pub const SHORT_REQUEST_BYTES: usize = 2_048;
/// Bytes of a small buffer, which every wait begins on: enough for the head of an ordinary request,
/// or for what trickles of a body.
pub const PARKED_BYTES: usize = 2_048;
/// Bytes that one receive brings into a small buffer to count as having filled it: the rest is room
/// for the size lines of chunks.
pub const PARKED_FULL_BYTES: usize = PARKED_BYTES - 64;
/// Bytes of a relay buffer if no flag says: body bytes that one receive takes at most. A direction
/// of an exchange holds one at most, and only after a receive filled a small buffer. What it sends is one
/// packet of the largest that the kernel builds (64 KiB with its headers); 65,536 would leave a short one.
pub const RELAY_BYTES_DEFAULT: usize = 61_440;
/// Bytes of a relay buffer if no flag says, where the server's side is TLS and a body's first megabyte is over:
/// as many whole records as one receive of a fast body brings, so that they go on by one send.
pub const TLS_RELAY_BYTES_DEFAULT: usize =
    BATCH_BYTES / TLS_WIRE_RECORD_BYTES_MAX * TLS_RECORD_BYTES;
/// Bytes of the smallest relay buffer.
pub const RELAY_BYTES_FLOOR: usize = 4_096;
/// Bytes of the largest relay buffer.
pub const RELAY_BYTES_CEILING: usize = 1_048_576;
/// Bytes of a body that come within a tick of one that is fast: its receives wait for batches.
pub const FAST_BYTES: usize = 65_536;
/// Bytes that a receive of a fast body waits for: of 16 KiB at a time a core would be woken eight times.
pub const BATCH_BYTES: usize = 131_072;
/// Spare buffers of each size that one core keeps.
pub const SPARE_BUFFERS_MAX: usize = 256;
/// Spare buffers of each size that one core keeps even if nothing needs them.
pub const SPARE_BUFFERS_FLOOR: usize = 16;

/// Bytes that a rewritten head may be longer than the received one: identity twice, login, host,
/// base path, `Forwarded`, `Via`, request id, framing; of an answer `Date`.
pub const HEAD_GROWTH_BYTES_MAX: usize =
    2 * (3 * (IDENTITY_VALUE_BYTES_MAX + 32)) + LOGIN_BYTES_MAX + 512 + BASE_PATH_BYTES_MAX + 256;

/// Digits of a chunk size: 16 hexadecimal digits are 64 bits.
pub const CHUNK_SIZE_DIGITS_MAX: usize = 16;
/// Bytes of one chunk line, extensions included.
pub const CHUNK_LINE_BYTES_MAX: usize = 512;
/// Bytes of a trailer section, which is read and dropped.
pub const TRAILER_BYTES_MAX: usize = 8_192;
/// Interim (1xx) answers before a final one.
pub const INTERIM_RESPONSES_MAX: usize = 16;
/// Bytes of the authority a device named, kept to map `Location` back.
pub const AUTHORITY_BYTES_MAX: usize = 261;
/// Bytes of an authority that a request keeps without an allocation.
pub const AUTHORITY_BYTES_SHORT: usize = 46;

/// Bytes of a PROXY protocol header: addresses, and what load balancers add to them.
pub const PROXY_HEADER_BYTES_MAX: usize = 536;
/// Bytes of empty lines before one request line, which are skipped.
pub const EMPTY_LINES_BYTES_MAX: usize = 64;
/// How long a device that has its answer may be silent before its connection ends.
pub const LINGER: Duration = Duration::from_secs(2);
/// How long it may go on sending: what it sends is thrown away, so that the answer is not lost to a
/// reset.
pub const LINGER_TOTAL: Duration = Duration::from_secs(30);
/// How often a send that is overdue may have as long again, as its peer has acknowledged something: one
/// that is not over by then waits for a third of a full socket all that time.
pub const SEND_RENEWALS_MAX: u32 = 8;
/// Sends of one core that a table of those which a sweep has found under way has room for ahead.
pub const SENDS_ROOM: usize = 112;
/// Bytes that a device must acknowledge of its last answer, or all that is left, to have as long again for
/// the rest.
pub const DELIVERY_BYTES_FLOOR: usize = 4_096;
/// The shortest patience with a device that acknowledges nothing of its last answer, before its
/// connection is reset; `timeouts.body` may allow more.
pub const DELIVERY_PATIENCE_FLOOR: Duration = Duration::from_secs(30);
/// Addresses of one upstream that are tried for one request.
pub const ADDRESSES_PER_UPSTREAM_MAX: usize = 16;
/// How long an address at which nobody answered is tried after all others.
pub const SILENT_ADDRESS: Duration = Duration::from_secs(60);
/// Such addresses that one core remembers.
pub const SILENT_ADDRESSES_MAX: usize = 256;
/// The shortest time for which an answer of the name server is believed, whatever its TTL.
pub const DNS_TTL_FLOOR: Duration = Duration::from_secs(5);
/// The longest time for which an answer of the name server is believed, whatever its TTL.
pub const DNS_TTL_CEILING: Duration = Duration::from_secs(3_600);
/// How long an entry of the hosts file is believed before the file is read again.
pub const HOSTS_FILE_TTL: Duration = Duration::from_secs(60);
/// Wait before a name that could not be resolved is asked for again; doubles each time.
pub const DNS_RETRY_FLOOR: Duration = Duration::from_secs(1);
/// The longest wait before a name that could not be resolved is asked for again.
pub const DNS_RETRY_CEILING: Duration = Duration::from_secs(60);
/// Wait for the addresses of one family once those of the other are there.
pub const DNS_SECOND_FAMILY: Duration = Duration::from_secs(1);
/// Names that are looked up at the same time.
pub const DNS_LOOKUPS_MAX: usize = 16;
/// How long a start or a reload waits for the first answers for new names.
pub const DNS_FIRST_ANSWERS: Duration = Duration::from_secs(5);
/// Bytes of the longest question that is answered for m2u's own names, by UDP or TCP.
pub const DNS_QUERY_BYTES_MAX: usize = 1_232;
/// Bytes of an answer by UDP to who does not say how long it may be (RFC 1035 §4.2.1).
pub const DNS_PLAIN_ANSWER_BYTES_MAX: usize = 512;
/// Bytes of an answer by UDP, whatever the asker says: what crosses any VPN in one piece.
pub const DNS_ANSWER_BYTES_MAX: usize = 1_232;
/// How long an answer may be believed, in seconds.
pub const DNS_ANSWER_TTL: u32 = 60;
/// Addresses of one of m2u's own names.
pub const DNS_ADDRESSES_PER_NAME_MAX: usize = 32;
/// Questions that one socket has answered before the others get their turn.
pub const DNS_BURST: usize = 64;
/// Bytes of questions that may wait on one socket; the kernel caps it at `rmem_max`.
pub const DNS_QUEUE_BYTES: usize = 1_048_576;
/// TCP connections that ask for m2u's own names at one address, all askers together; others are
/// closed at once.
pub const DNS_CONNECTIONS_MAX: usize = 128;
/// TCP connections of one asker.
pub const DNS_CONNECTIONS_PER_ADDRESS_MAX: usize = 8;
/// How long a TCP connection may take for a whole question, or for taking an answer.
pub const DNS_CONNECTION_IDLE: Duration = Duration::from_secs(5);
/// TLS sessions of one pool kept for resumption: as many as rustls keeps for a server. Each has the server's
/// chain with it; at the worst all eight come to a MB.
pub const TLS_SESSIONS_PER_POOL: usize = 8;
/// Tickets of one connection at most, and what else of them one receive brings: a good server sends a few
/// behind its handshake. A connection that has had half as many carries no further request.
pub const TLS_TICKETS_MAX: u32 = 256;
/// Bytes of plaintext in one TLS record at most, as the protocol has it; rustls' fragments are as long.
pub const TLS_RECORD_BYTES: usize = 16_384;
/// Records that one key may seal without rustls counting them; of the 2^24 that it
/// allows AES-GCM (as RFC 8446 §5.5), the other half is left for those that it counts.
pub const SEALED_RECORDS_MAX: u64 = 1 << 23;
/// Bytes of a record's header.
pub const TLS_HEADER_BYTES: usize = 5;
/// Bytes that a record adds to its plaintext at most: header, nonce, type, tag.
pub const TLS_RECORD_OVERHEAD_BYTES: usize = 64;
/// Bytes of the largest record on the wire (RFC 8446 §5.2), header included: room for one receive.
pub const TLS_WIRE_RECORD_BYTES_MAX: usize = TLS_RECORD_BYTES + 256 + TLS_HEADER_BYTES;
/// Bytes of the buffer that ciphertext is received into while the smaller one was filled: a batch, and
/// the beginning of another record.
pub const TLS_BURST_BYTES: usize = BATCH_BYTES + TLS_WIRE_RECORD_BYTES_MAX;
/// Bytes of ciphertext that a session holds: more than any receive leaves of data, and of a handshake
/// message that comes in pieces, which rustls has stay, more than a good server needs.
pub const TLS_HELD_BYTES_MAX: usize = 262_144;
/// Bytes of a TLS buffer that an idle connection keeps: the next request allocates nothing.
pub const TLS_PARKED_BYTES: usize = TLS_RECORD_BYTES;
/// Bytes of handshake that one flight is given at first; grows if a chain is longer.
pub const TLS_FLIGHT_BYTES: usize = 4_096;

/// Bytes of a plain body still to come from which on it is moved inside the kernel, if no flag
/// says.
pub const SPLICE_BYTES_DEFAULT: u64 = 65_536;
/// Bytes that one pipe holds: what is moved in one piece at most.
pub const PIPE_BYTES: usize = 262_144;
/// Bytes of a piece that leaves as one packet, where a segment is not longer (on the loopback it is). Inside of
/// splice(2) a send takes 16 pages: the 17 that 64 KiB touch take two, and a short packet follows the first.
pub const SPLICE_PACKET_BYTES: usize = 49_152;
/// Bytes of one body that are moved by pieces of a packet, before they get as long as a pipe or as the larger
/// buffers; uploads of 64 MiB that go that way to their end cost more (`perf/README.md`).
pub const BY_PACKETS_BYTES: usize = 1 << 20;
/// Bytes of one body that are moved before others have their turn on the same core, if neither
/// socket ever stands in its way: 0.7 ms at 12 GB/s. Turns of one megabyte cost four such bodies 30
/// to 45% more CPU a byte, those of eight nothing.
pub const SPLICE_TURN_BYTES: usize = 32 * PIPE_BYTES;
/// Bytes that a piece counts as at least: moving one takes two system calls, however short it is.
pub const SPLICE_PIECE_BYTES_FLOOR: usize = PIPE_BYTES / 4;
/// Bodies that one core moves inside the kernel at a time, each with two descriptors; others are
/// copied.
pub const SPLICES_PER_CORE_MAX: usize = 128;
/// Spare pipes that one core keeps; each is two descriptors.
pub const SPARE_PIPES_MAX: usize = 64;

/// Ring entries if no flag says.
pub const RING_ENTRIES_DEFAULT: u32 = 4_096;
/// Entries of the smallest ring: below it a core would submit every few operations.
pub const RING_ENTRIES_FLOOR: u32 = 64;
/// Entries of the largest ring: the kernel's own bound.
pub const RING_ENTRIES_CEILING: u32 = 32_768;

/// Characters of a hub's name.
pub const HUB_NAME_BYTES_MAX: usize = 64;
/// Bytes of a common name, and of a pattern for them: OpenVPN itself cuts a name far earlier.
pub const COMMON_NAME_BYTES_MAX: usize = 255;
/// How often a hub is asked who is connected, if the file does not say.
pub const HUB_POLL_DEFAULT: Duration = Duration::from_secs(30);
/// How often a hub may be asked at most.
pub const HUB_POLL_FLOOR: Duration = Duration::from_secs(1);
/// How seldom a hub may be asked.
pub const HUB_POLL_CEILING: Duration = Duration::from_secs(3_600);
/// Bytes of a hub's status: about twenty thousand clients.
pub const HUB_STATUS_BYTES_MAX: usize = 8_388_608;
/// How old a status file may be before its hub counts as gone. OpenVPN writes it every minute, if
/// its configuration does not say otherwise.
pub const HUB_STATUS_AGE_MAX: Duration = Duration::from_secs(180);
/// How long a status file must have been left alone before it is read: OpenVPN writes it in place,
/// line by line.
pub const HUB_STATUS_REST: Duration = Duration::from_millis(100);
/// How often a status file that is being written is looked at again.
pub const HUB_STATUS_LOOKS_MAX: u32 = 20;
/// How long a hub's management interface may take to answer.
pub const HUB_ANSWER: Duration = Duration::from_secs(5);
/// Hubs' reports that may wait for the control thread.
pub const HUB_REPORTS_MAX: usize = 16;

/// The shortest timeout, in milliseconds.
pub const TIMEOUT_MS_FLOOR: u64 = 1;
/// The longest timeout, in milliseconds: a day.
pub const TIMEOUT_MS_CEILING: u64 = 86_400_000;
/// Open downstream connections that an operator may allow at most.
pub const CONNECTIONS_CEILING: usize = 10_000_000;

/// Bytes of a method or a path that the access log shows.
pub const LOG_VALUE_BYTES_MAX: usize = 1_024;
/// Bytes of one line of the access log; a byte takes six at most.
pub const LOG_LINE_BYTES_MAX: usize =
    6 * (2 * LOG_VALUE_BYTES_MAX + 2 * IDENTITY_VALUE_BYTES_MAX) + 512;
/// Bytes that a core collects before it hands them to the log's thread.
pub const LOG_BUFFER_BYTES: usize = 262_144;
/// Buffers that may wait for the log's thread, all cores together.
pub const LOG_BUFFERS_MAX: usize = 128;

/// Problems of a configuration that are shown one by one; the rest is counted.
pub const PROBLEMS_MAX: usize = 100;
/// Bytes of a configuration file.
pub const CONFIG_BYTES_MAX: u64 = 268_435_456;
/// Bytes of a device list: about twenty million lines.
pub const DEVICES_BYTES_MAX: u64 = 1_073_741_824;
/// Bytes of a list of common names: about ten million lines.
pub const HUB_LIST_BYTES_MAX: u64 = 536_870_912;
/// Bytes of a file with certificates or a key.
pub const PEM_BYTES_MAX: u64 = 16_777_216;
/// Bytes of a file with certificate revocation lists: about eighty thousand revoked certificates. A core
/// checks the signature of a list in every handshake, which takes it some 2 ms then.
pub const CRL_BYTES_MAX: u64 = 4_194_304;
/// Bytes of a password file; what counts in the end is the rendered login.
pub const PASSWORD_FILE_BYTES_MAX: u64 = 4_096;

const _: () = {
    assert!(HEAD_BYTES_FLOOR <= HEAD_BYTES_DEFAULT && HEAD_BYTES_DEFAULT <= HEAD_BYTES_CEILING);
    assert!(FIELDS_DEFAULT <= FIELDS_CEILING);
    assert!(PROXY_HEADER_BYTES_MAX < PARKED_BYTES);
    assert!(SPARE_BUFFERS_FLOOR < SPARE_BUFFERS_MAX);
    assert!(AUTHORITY_BYTES_SHORT <= u8::MAX as usize);
    assert!(AUTHORITY_BYTES_SHORT < AUTHORITY_BYTES_MAX);
    assert!(PARKED_FULL_BYTES < PARKED_BYTES);
    assert!(PARKED_BYTES < RELAY_BYTES_FLOOR);
    assert!(ACCEPT_PAUSE_FLOOR.as_millis() < ACCEPT_PAUSE_CEILING.as_millis());
    assert!(PIPE_BYTES <= SPLICE_TURN_BYTES);
    assert!(SPLICE_PACKET_BYTES <= PIPE_BYTES);
    assert!(TLS_RECORD_BYTES + TLS_RECORD_OVERHEAD_BYTES <= TLS_WIRE_RECORD_BYTES_MAX);
    assert!(TLS_FLIGHT_BYTES <= TLS_PARKED_BYTES);
    assert!(TLS_BURST_BYTES + TLS_WIRE_RECORD_BYTES_MAX <= TLS_HELD_BYTES_MAX);
    assert!(HEAD_BYTES_CEILING < TLS_RELAY_BYTES_DEFAULT);
    assert!(TLS_RELAY_BYTES_DEFAULT <= RELAY_BYTES_CEILING);
    assert!(RELAY_BYTES_FLOOR <= RELAY_BYTES_DEFAULT && RELAY_BYTES_DEFAULT <= RELAY_BYTES_CEILING);
    assert!(RING_ENTRIES_FLOOR <= RING_ENTRIES_DEFAULT);
    assert!(RING_ENTRIES_DEFAULT <= RING_ENTRIES_CEILING);
    assert!(CONNECTIONS_DEFAULT <= CONNECTIONS_CEILING);
    assert!(POOL_PER_SERVER_DEFAULT <= POOL_PER_CORE_MAX);
    assert!(PASSWORD_FILE_BYTES_MAX > LOGIN_BYTES_MAX as u64);
    assert!(DNS_TTL_FLOOR.as_secs() <= HOSTS_FILE_TTL.as_secs());
    assert!(HOSTS_FILE_TTL.as_secs() <= DNS_TTL_CEILING.as_secs());
    assert!(DNS_SECOND_FAMILY.as_secs() < DNS_FIRST_ANSWERS.as_secs());
    assert!(DNS_PLAIN_ANSWER_BYTES_MAX <= DNS_ANSWER_BYTES_MAX);
    assert!(DNS_CONNECTIONS_PER_ADDRESS_MAX < DNS_CONNECTIONS_MAX);
    assert!(DNS_RETRY_FLOOR.as_secs() <= DNS_RETRY_CEILING.as_secs());
    assert!(CHUNK_SIZE_DIGITS_MAX < CHUNK_LINE_BYTES_MAX);
    assert!(LOG_LINE_BYTES_MAX < LOG_BUFFER_BYTES);
    assert!(COMMON_NAME_BYTES_MAX <= u8::MAX as usize);
    assert!(IDENTITY_VALUE_BYTES_MAX <= u8::MAX as usize);
    assert!(HUB_POLL_FLOOR.as_secs() <= HUB_POLL_DEFAULT.as_secs());
    assert!(HUB_POLL_DEFAULT.as_secs() <= HUB_POLL_CEILING.as_secs());
};
