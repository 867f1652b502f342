//! The text in which an OpenVPN server says who is connected: its status, version 3.
//!
//! Columns are found by the names in the text's own header lines. A text that is not whole, or that
//! holds a line which has no place there, is refused as a whole: OpenVPN writes its file in place,
//! so that half of it may be an older one. Does no I/O.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

/// How OpenVPN calls a client that has no name yet.
const NAMELESS: &str = "UNDEF";

/// Who is connected to a hub, and which addresses it lets whom use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status<'t> {
    /// When it was written, in seconds since 1970, by the hub's clock; cut, not rounded.
    pub time: u64,
    /// Clients that have a name and an address.
    pub clients: Vec<Client<'t>>,
    /// What packets are checked against: a source address that no route gives to a client is dropped.
    pub routes: Vec<Route<'t>>,
    /// Hosts in clients' networks that have been heard. Each stays with its client until the hub
    /// forgets it, even if the network around it is another's by then.
    pub cached: Vec<Route<'t>>,
}

/// A client that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client<'t> {
    /// From its certificate.
    pub common_name: &'t str,
    /// Where it connects from, with a port: tells apart two clients of one name.
    pub real_address: &'t str,
    /// The VPN addresses that it was given; another client may have taken them over since.
    pub addresses: Vec<IpAddr>,
    /// When it connected, in seconds since 1970, by the hub's clock.
    pub since: u64,
}

/// A network that belongs to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route<'t> {
    /// The client's own address, or a network behind it (`iroute`).
    pub network: IpNet,
    /// The client's name.
    pub common_name: &'t str,
    /// The client's real address.
    pub real_address: &'t str,
}

/// Why a text says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFault {
    /// It has another version's form, or is something else.
    OtherVersion,
    /// It ends without `END`.
    CutShort,
    /// A line of this number is not what belongs there.
    Damaged(usize),
    /// A header line lacks this column.
    NoColumn(&'static str),
    /// The hub bridges Ethernet, where nothing checks a client's source address.
    TapMode,
}

impl fmt::Display for StatusFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherVersion => f.write_str(
                "is no status of version 3; write \"status-version 3\" into the hub's configuration",
            ),
            Self::CutShort => f.write_str("is cut short: its last line is not END"),
            Self::Damaged(line) => write!(f, "is damaged: line {line} has no place there"),
            Self::NoColumn(column) => {
                write!(f, "has no column {column:?}; m2u knows OpenVPN 2.4 to 2.6")
            }
            Self::TapMode => f.write_str(
                "is that of a hub in TAP mode, which lets every client use any address; set \"dev \
                 tun\"",
            ),
        }
    }
}

impl std::error::Error for StatusFault {}

/// How far a text has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Begin,
    Title,
    Time,
    Clients,
    Routes,
    Statistics,
    End,
}

/// The columns of one kind of line.
struct Columns<'t> {
    names: Vec<&'t str>,
}

impl<'t> Columns<'t> {
    /// The position of a column.
    fn find(&self, name: &'static str) -> Result<usize, StatusFault> {
        let found = self.names.iter().position(|column| *column == name);
        found.ok_or(StatusFault::NoColumn(name))
    }

    /// The values of a line, as many as there are columns.
    fn values(&self, rest: &'t str) -> Option<Vec<&'t str>> {
        let values: Vec<_> = rest.split('\t').collect();
        (values.len() == self.names.len()).then_some(values)
    }
}

/// Reads the text of a status file, or of the answer to `status 3`.
///
/// # Errors
/// Why it says nothing; whatever could be read is given up as well.
pub fn parse(text: &str) -> Result<Status<'_>, StatusFault> {
    const BEGIN: &str = "TITLE\t";
    if !text.starts_with(BEGIN) && !BEGIN.starts_with(text) {
        return Err(StatusFault::OtherVersion);
    }
    if text.lines().next_back() != Some("END") {
        return Err(StatusFault::CutShort);
    }
    let mut reader = Reader {
        section: Section::Begin,
        status: Status::default(),
        clients: None,
        routes: None,
    };
    for (index, line) in text.lines().enumerate() {
        reader.read(line, StatusFault::Damaged(index + 1))?;
    }
    Ok(reader.status)
}

struct Reader<'t> {
    section: Section,
    status: Status<'t>,
    clients: Option<ClientColumns<'t>>,
    routes: Option<RouteColumns<'t>>,
}

struct ClientColumns<'t> {
    columns: Columns<'t>,
    common_name: usize,
    real_address: usize,
    address: usize,
    /// OpenVPN has had it since 2.4.
    address_v6: Option<usize>,
    since: usize,
}

struct RouteColumns<'t> {
    columns: Columns<'t>,
    address: usize,
    common_name: usize,
    real_address: usize,
}

impl<'t> Reader<'t> {
    /// Reads one line; one that stands out of order is `damaged`.
    fn read(&mut self, line: &'t str, damaged: StatusFault) -> Result<(), StatusFault> {
        let (word, rest) = line.split_once('\t').unwrap_or((line, ""));
        let (least, most, next) = match word {
            "TITLE" => (Section::Begin, Section::Begin, Section::Title),
            "TIME" => (Section::Title, Section::Title, Section::Time),
            "HEADER" if rest.starts_with("CLIENT_LIST\t") => {
                (Section::Time, Section::Time, Section::Clients)
            }
            "CLIENT_LIST" => (Section::Clients, Section::Clients, Section::Clients),
            "HEADER" if rest.starts_with("ROUTING_TABLE\t") => {
                (Section::Clients, Section::Clients, Section::Routes)
            }
            "ROUTING_TABLE" => (Section::Routes, Section::Routes, Section::Routes),
            "GLOBAL_STATS" => (Section::Routes, Section::Statistics, Section::Statistics),
            "END" if rest.is_empty() => (Section::Routes, Section::Statistics, Section::End),
            _ => return Err(damaged),
        };
        if !(least..=most).contains(&self.section) {
            return Err(damaged);
        }
        self.section = next;
        match word {
            "TIME" => self.status.time = time(rest).ok_or(damaged)?,
            "HEADER" => self.read_header(rest)?,
            "CLIENT_LIST" => {
                let client = self.client(rest).ok_or(damaged)?;
                self.status.clients.extend(client);
            }
            "ROUTING_TABLE" => {
                let (route, is_cached) = self.route(rest).ok_or(damaged)??;
                match is_cached {
                    true => self.status.cached.push(route),
                    false => self.status.routes.push(route),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn read_header(&mut self, rest: &'t str) -> Result<(), StatusFault> {
        let mut names = rest.split('\t');
        let kind = names.next();
        let columns = Columns {
            names: names.collect(),
        };
        match kind {
            Some("CLIENT_LIST") => {
                self.clients = Some(ClientColumns {
                    common_name: columns.find("Common Name")?,
                    real_address: columns.find("Real Address")?,
                    address: columns.find("Virtual Address")?,
                    address_v6: columns.find("Virtual IPv6 Address").ok(),
                    since: columns.find("Connected Since (time_t)")?,
                    columns,
                });
            }
            _ => {
                self.routes = Some(RouteColumns {
                    address: columns.find("Virtual Address")?,
                    common_name: columns.find("Common Name")?,
                    real_address: columns.find("Real Address")?,
                    columns,
                });
            }
        }
        Ok(())
    }

    /// The client of a line, unless it is still on its way in; `None` if the line is damaged.
    fn client(&self, rest: &'t str) -> Option<Option<Client<'t>>> {
        let known = self.clients.as_ref()?;
        let values = known.columns.values(rest)?;
        let texts = [Some(known.address), known.address_v6];
        let texts = texts.into_iter().flatten().map(|column| values[column]);
        let addresses = texts.filter(|text| !text.is_empty()).map(str::parse);
        let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>().ok()?;
        let client = Client {
            common_name: values[known.common_name],
            real_address: values[known.real_address],
            addresses,
            since: values[known.since].parse().ok()?,
        };
        let has_arrived = client.common_name != NAMELESS && !client.addresses.is_empty();
        Some(has_arrived.then_some(client))
    }

    /// The route of a line, and whether it is a cached one; `None` if the line is damaged.
    fn route(&self, rest: &'t str) -> Option<Result<(Route<'t>, bool), StatusFault>> {
        let known = self.routes.as_ref()?;
        let values = known.columns.values(rest)?;
        let text = values[known.address];
        if is_ethernet(text) {
            return Some(Err(StatusFault::TapMode));
        }
        let (text, is_cached) = match text.strip_suffix('C') {
            Some(text) => (text, true),
            None => (text, false),
        };
        let network = match text.parse::<IpAddr>() {
            Ok(address) => address.into(),
            Err(_) => text.parse::<IpNet>().ok()?.trunc(),
        };
        let route = Route {
            network,
            common_name: values[known.common_name],
            real_address: values[known.real_address],
        };
        Some(Ok((route, is_cached)))
    }
}

/// The second of the two values behind `TIME`.
fn time(rest: &str) -> Option<u64> {
    let (_, seconds) = rest.split_once('\t')?;
    seconds.parse().ok()
}

/// Whether `text` is an Ethernet address, with or without a VLAN behind it.
fn is_ethernet(text: &str) -> bool {
    let address = text.split('@').next().unwrap_or_default();
    let mut groups = 0;
    let is_hex = |group: &str| group.len() == 2 && group.bytes().all(|b| b.is_ascii_hexdigit());
    address.split(':').all(|group| {
        groups += 1;
        is_hex(group)
    }) && groups == 6
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenVPN 2.6.14 wrote of two clients, one of them with two networks behind it.
    const STATUS: &str = include_str!("status.txt");

    #[test]
    fn clients_and_routes_are_read_and_cached_hosts_stand_apart() {
        let status = parse(STATUS).expect("whole");
        assert_eq!(status.time, 1_795_705_838);
        let [b, a] = &status.clients[..] else {
            panic!("{:?}", status.clients);
        };
        assert_eq!((b.common_name, b.since), ("weird ü x", 1_795_705_817));
        assert_eq!((a.common_name, a.real_address), ("a", "172.31.1.2:34391"));
        let address = |text: &str| -> IpAddr { text.parse().expect(text) };
        assert_eq!(a.addresses, [address("10.8.0.2"), address("fd00:8::1000")]);
        let routes = status.routes.iter();
        let routes: Vec<_> = routes
            .map(|r| (r.network.to_string(), r.common_name))
            .collect();
        let expected = [
            ("10.8.0.2/32", "a"),
            ("192.168.7.0/24", "a"),
            ("fd00:8::1000/128", "a"),
            ("fd00:8::1001/128", "weird ü x"),
            ("192.168.99.9/32", "a"),
            ("10.8.0.3/32", "weird ü x"),
        ];
        assert_eq!(
            routes,
            expected.map(|(network, name)| (network.to_owned(), name))
        );
        let [cached] = &status.cached[..] else {
            panic!("{:?}", status.cached);
        };
        assert_eq!(
            (cached.network, cached.common_name, cached.real_address),
            (address("192.168.7.5").into(), "a", "172.31.1.2:34391")
        );
    }

    #[test]
    fn every_cut_but_the_last_is_noticed() {
        for length in (0..STATUS.len() - 1).filter(|length| STATUS.is_char_boundary(*length)) {
            assert_eq!(
                parse_fault(&STATUS[..length]),
                StatusFault::CutShort,
                "{length} bytes"
            );
        }
        assert_eq!(parse(STATUS.trim_end()), parse(STATUS));
        let windows = STATUS.replace('\n', "\r\n");
        assert_eq!(parse(&windows), parse(STATUS));
    }

    #[test]
    fn a_new_text_over_an_old_one_is_refused() {
        let new = STATUS.replace("10.8.0.2\t", "10.8.0.200\t");
        let lines: Vec<&str> = new.split_inclusive('\n').collect();
        // From the first line on that is another.
        for written in 5..lines.len() {
            let begin = lines[..written].concat();
            let mixed = format!("{begin}{}", STATUS.get(begin.len()..).unwrap_or_default());
            assert!(parse(&mixed).is_err(), "{written} lines");
        }
        let longer = format!("{STATUS}ROUTING_TABLE\t10.8.0.9\tc\t1.2.3.4:5\tx\t1\nEND\n");
        assert_eq!(parse_fault(&longer), StatusFault::Damaged(16));
    }

    #[test]
    fn what_has_no_place_there_is_refused() {
        let replaced = |from: &str, to: &str| {
            assert!(STATUS.contains(from), "{from}");
            parse_fault(&STATUS.replacen(from, to, 1))
        };
        assert_eq!(replaced("\t1795705838\n", "\n"), StatusFault::Damaged(2));
        assert_eq!(
            replaced("10.8.0.3\tfd00", "10.8.0.300\tfd00"),
            StatusFault::Damaged(4)
        );
        assert_eq!(
            replaced("\t10.8.0.2\ta", "\t10.8.0.2\tb\ta"),
            StatusFault::Damaged(7)
        );
        assert_eq!(
            replaced("CLIENT_LIST\ta", "CLIENT\ta"),
            StatusFault::Damaged(5)
        );
        assert_eq!(replaced("END", "END\nEND"), StatusFault::Damaged(16));
        assert_eq!(
            replaced("Connected Since (time_t)", "Since"),
            StatusFault::NoColumn("Connected Since (time_t)")
        );
        assert_eq!(
            replaced("\t10.8.0.2\ta", "\t9a:31:02:00:aa:01\ta"),
            StatusFault::TapMode
        );
        assert_eq!(
            replaced("\t10.8.0.2\ta", "\t9a:31:02:00:aa:01@0\ta"),
            StatusFault::TapMode
        );
        for text in [
            "OpenVPN CLIENT LIST\n",
            "TITLE,OpenVPN 2.6.14\nEND\n",
            "END\n",
        ] {
            assert_eq!(parse_fault(text), StatusFault::OtherVersion, "{text:?}");
        }
    }

    #[test]
    fn clients_on_their_way_in_are_left_out_and_columns_may_move() {
        let text = "TITLE\tx\nTIME\tx\t7\n\
            HEADER\tCLIENT_LIST\tConnected Since (time_t)\tVirtual Address\tReal Address\tCommon Name\n\
            CLIENT_LIST\t5\t\t1.2.3.4:5\ta\n\
            CLIENT_LIST\t5\t10.8.0.2\t1.2.3.4:6\tUNDEF\n\
            CLIENT_LIST\t6\t10.8.0.3\t1.2.3.4:7\tb\n\
            HEADER\tROUTING_TABLE\tReal Address\tCommon Name\tVirtual Address\n\
            ROUTING_TABLE\t1.2.3.4:7\tb\t10.8.0.3\n\
            END\n";
        let status = parse(text).expect("whole");
        assert_eq!(status.clients.len(), 1);
        assert_eq!(
            (status.clients[0].common_name, status.clients[0].since),
            ("b", 6)
        );
        assert_eq!(status.routes[0].real_address, "1.2.3.4:7");
    }

    fn parse_fault(text: &str) -> StatusFault {
        parse(text).expect_err("a fault")
    }
}
