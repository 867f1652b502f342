//! The command line: what load, from whom, for how long.
//!
//! Checks every value; never touches the network.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    str::FromStr,
    time::Duration,
};

use lexopt::{Arg, Parser, ValueExt};

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Load of a fleet of devices on an HTTP gateway; prints one line of JSON.

usage: m2u-load --target ADDRESS:PORT [OPTION]...

  --target ADDRESS:PORT      where the gateway listens
  --host NAME                Host field [m2u.talk2m.com]
  --path PATH                request target [/in]

Devices: device i speaks from FIRST + i and is called PREFIX and i in seven digits.
  --devices N                how many [connections]
  --stride N                 a new connection speaks for device (count * stride mod devices) [1]
  --first-address ADDRESS    address of device 0, in 127.0.0.0/8 [127.16.0.1]
  --device-prefix TEXT       [device-]

Requests:
  --kind post|chunked|get    POST with Content-Length, chunked POST, or GET [post]
  --size BYTES               of the body sent; of the body expected, for get [512]
  --chunk BYTES              of one chunk [1024]
  --echo body|field|none     where the answer names the device: its body, its X-Device field [body;
                             field for get]
  --forge                    every request also carries forged identities

Load:
  --connections N            [64]
  --active N                 requests under way at most, closed loop [connections]
  --close                    one request per connection, with 'Connection: close'
  --rate N                   open loop: N requests a second, each timed from when it was due
  --requests N               of the measured window, at most [10000]
  --seconds N                of the measured window, at most [30]
  --warmup-requests N        before the window [0]
  --patience SECONDS         for one answer [20]

Measured around the window:
  --pid P                    CPU time of this process, all its threads; may repeat
  --origin-status ADDRESS:PORT  of the origin's nginx stub_status at /status: connections accepted
  --gate                     wait for a line on standard input before the window, and again after
                             the result, with the connections open

Exit codes: 0 all answers right, 1 some were not, 2 wrong usage.
";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// POST with `Content-Length`.
    Post,
    /// POST in chunks, as BASIC uploads.
    Chunked,
    /// GET of a body of known size.
    Get,
}

/// Where an answer names the device that the origin saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// Its whole body is the name.
    Body,
    /// Its field `X-Device` is the name.
    Field,
    /// Nowhere: only status and length are checked.
    None,
}

/// The whole command line.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where the gateway listens.
    pub(crate) target: SocketAddrV4,
    /// Value of the Host field.
    pub(crate) host: String,
    /// Request target.
    pub(crate) path: String,
    /// How many devices speak.
    pub(crate) devices: u32,
    /// Distance from one connection's device to the next one's.
    pub(crate) stride: u32,
    /// Address of device 0.
    pub(crate) first_address: Ipv4Addr,
    /// What stands before a device's number in its name.
    pub(crate) device_prefix: String,
    /// Kind of request.
    pub(crate) kind: Kind,
    /// Bytes of the body.
    pub(crate) size: usize,
    /// Bytes of one chunk.
    pub(crate) chunk: usize,
    /// Where the answer names the device.
    pub(crate) echo: Echo,
    /// Whether requests carry forged identities.
    pub(crate) forge: bool,
    /// Connections.
    pub(crate) connections: usize,
    /// Requests under way at most.
    pub(crate) active: usize,
    /// One request per connection.
    pub(crate) close: bool,
    /// Requests a second; closed loop if absent.
    pub(crate) rate: Option<f64>,
    /// Requests of the window at most.
    pub(crate) requests: u64,
    /// Time of the window at most.
    pub(crate) seconds: Duration,
    /// Requests before the window.
    pub(crate) warmup_requests: u64,
    /// How long one answer may take.
    pub(crate) patience: Duration,
    /// Processes whose CPU time is read.
    pub(crate) pids: Vec<u32>,
    /// Where the origin tells how many connections it accepted.
    pub(crate) origin_status: Option<SocketAddrV4>,
    /// Whether to wait for standard input around the window.
    pub(crate) gate: bool,
}

/// Reads the command line; `None` if help was asked for.
///
/// # Errors
/// What is wrong, as a sentence for standard error.
pub(crate) fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut parser = Parser::from_env();
    let mut target = None;
    let (mut devices, mut active, mut echo) = (None, None, None);
    let mut options = Options {
        target: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
        host: "m2u.talk2m.com".to_owned(),
        path: "/in".to_owned(),
        devices: 0,
        stride: 1,
        first_address: Ipv4Addr::new(127, 16, 0, 1),
        device_prefix: "device-".to_owned(),
        kind: Kind::Post,
        size: 512,
        chunk: 1024,
        echo: Echo::Body,
        forge: false,
        connections: 64,
        active: 0,
        close: false,
        rate: None,
        requests: 10_000,
        seconds: Duration::from_secs(30),
        warmup_requests: 0,
        patience: Duration::from_secs(20),
        pids: Vec::new(),
        origin_status: None,
        gate: false,
    };
    while let Some(argument) = parser.next()? {
        let Arg::Long(name) = argument else {
            return Err(argument.unexpected());
        };
        let name = name.to_owned();
        match name.as_str() {
            "help" => return Ok(None),
            "close" => options.close = true,
            "forge" => options.forge = true,
            "gate" => options.gate = true,
            "target" => target = Some(value(&mut parser)?),
            "host" => options.host = value(&mut parser)?,
            "path" => options.path = value(&mut parser)?,
            "devices" => devices = Some(value(&mut parser)?),
            "stride" => options.stride = value(&mut parser)?,
            "first-address" => options.first_address = value(&mut parser)?,
            "device-prefix" => options.device_prefix = value(&mut parser)?,
            "kind" => options.kind = value(&mut parser)?,
            "size" => options.size = value(&mut parser)?,
            "chunk" => options.chunk = value(&mut parser)?,
            "echo" => echo = Some(value(&mut parser)?),
            "connections" => options.connections = value(&mut parser)?,
            "active" => active = Some(value(&mut parser)?),
            "rate" => options.rate = Some(value(&mut parser)?),
            "requests" => options.requests = value(&mut parser)?,
            "seconds" => options.seconds = seconds(&mut parser)?,
            "warmup-requests" => options.warmup_requests = value(&mut parser)?,
            "patience" => options.patience = seconds(&mut parser)?,
            "pid" => options.pids.push(value(&mut parser)?),
            "origin-status" => options.origin_status = Some(value(&mut parser)?),
            _ => return Err(Arg::Long(&name).unexpected()),
        }
    }
    options.target = target.ok_or("--target is missing")?;
    let default_echo = match options.kind {
        Kind::Get => Echo::Field,
        Kind::Post | Kind::Chunked => Echo::Body,
    };
    options.echo = echo.unwrap_or(default_echo);
    options.active = active.unwrap_or(options.connections);
    options.devices = match devices {
        Some(devices) => devices,
        None => u32::try_from(options.connections).map_err(|_| "--connections is too large")?,
    };
    check(&options)?;
    Ok(Some(options))
}

fn check(options: &Options) -> Result<(), &'static str> {
    let loopback = |address: &Ipv4Addr| address.octets()[0] == 127;
    let last = u32::from(options.first_address).checked_add(options.devices.saturating_sub(1));
    let rules = [
        (options.connections > 0, "--connections must not be 0"),
        (options.active > 0, "--active must not be 0"),
        (options.devices > 0, "--devices must not be 0"),
        (options.requests > 0, "--requests must not be 0"),
        (options.chunk > 0, "--chunk must not be 0"),
        (
            options.rate.is_none_or(|rate| rate > 0.0),
            "--rate must be above 0",
        ),
        (
            loopback(options.target.ip())
                && loopback(&options.first_address)
                && last.is_some_and(|last| loopback(&Ipv4Addr::from(last))),
            "only addresses in 127.0.0.0/8 are used",
        ),
        (
            options.kind != Kind::Get || options.echo != Echo::Body,
            "--kind get takes no --echo body",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, message)) => Err(message),
        None => Ok(()),
    }
}

fn value<T>(parser: &mut Parser) -> Result<T, lexopt::Error>
where
    T: FromStr,
    T::Err: Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
{
    parser.value()?.parse()
}

fn seconds(parser: &mut Parser) -> Result<Duration, lexopt::Error> {
    let seconds: f64 = value(parser)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "is no number of seconds".into())
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "post" => Ok(Self::Post),
            "chunked" => Ok(Self::Chunked),
            "get" => Ok(Self::Get),
            _ => Err("must be post, chunked or get"),
        }
    }
}

impl FromStr for Echo {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "body" => Ok(Self::Body),
            "field" => Ok(Self::Field),
            "none" => Ok(Self::None),
            _ => Err("must be body, field or none"),
        }
    }
}
