//! A CSV file whose first line names its columns, read row by row.
//!
//! Columns stand in any order; a mistake is told with the file and the line. Knows nothing of leases.

use std::str;

use csv::{ByteRecord, ReaderBuilder};

use crate::config;

/// The columns that a file may have: of `names`, the first `needed` must be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<const N: usize> {
    /// As the first line writes them.
    pub(super) names: [&'static str; N],
    /// How many of them, from the first, every file has.
    pub(super) needed: usize,
}

impl<const N: usize> Columns<N> {
    /// Calls `take` with the line and the cells of each row, in the order of the names; a cell of a
    /// column that is not there is empty.
    ///
    /// # Errors
    /// A sentence that begins with the place, `file:line: `.
    pub(super) fn read(
        &self,
        file: &str,
        bytes: &[u8],
        mut take: impl FnMut(u64, [&str; N]) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(bytes);
        let mut record = ByteRecord::new();
        let mut places = None;
        // Reading from memory into bytes cannot fail: `flexible` allows any number of columns.
        while let Ok(true) = reader.read_byte_record(&mut record) {
            let line = config::record_line(bytes, &record);
            let taken = match &places {
                None => self.places(&record).map(|found| places = Some(found)),
                Some((width, places)) => {
                    cells(&record, *width, places).and_then(|cells| take(line, cells))
                }
            };
            taken.map_err(|message| format!("{file}:{line}: {message}"))?;
        }
        match places {
            Some(_) => Ok(()),
            None => Err(format!("{file} is empty; {}", self.advice())),
        }
    }

    /// How many columns there are, and in which of them each name stands.
    fn places(&self, header: &ByteRecord) -> Result<(usize, [Option<usize>; N]), String> {
        let mut places = [None; N];
        for (at, name) in header.iter().enumerate() {
            let known = self.names.iter().position(|known| known.as_bytes() == name);
            match known {
                Some(known) if places[known].is_none() => places[known] = Some(at),
                _ => return Err(self.advice()),
            }
        }
        match places[..self.needed].contains(&None) {
            true => Err(self.advice()),
            false => Ok((header.len(), places)),
        }
    }

    fn advice(&self) -> String {
        let (needed, more) = self.names.split_at(self.needed);
        let more = match more {
            [] => String::new(),
            more => format!(", and may go on with {}", more.join(", ")),
        };
        format!("the first line must be {}{more}", needed.join(","))
    }
}

fn cells<'r, const N: usize>(
    record: &'r ByteRecord,
    width: usize,
    places: &[Option<usize>; N],
) -> Result<[&'r str; N], String> {
    if record.len() != width {
        return Err(format!(
            "has {} columns; write {width}, as in the first line",
            record.len()
        ));
    }
    let mut cells = [""; N];
    for (cell, place) in cells.iter_mut().zip(places) {
        if let Some(place) = place {
            *cell = str::from_utf8(&record[*place])
                .map_err(|_| "is not UTF-8 text; save the file as UTF-8".to_owned())?;
        }
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: Columns<3> = Columns {
        names: ["address", "device", "scope"],
        needed: 2,
    };

    fn read(text: &[u8]) -> Result<Vec<String>, String> {
        let mut rows = Vec::new();
        let taken = COLUMNS.read("a.csv", text, |line, cells| {
            rows.push(format!("{line}:{}", cells.join("|")));
            match cells[0] {
                "bad" => Err("is bad".to_owned()),
                _ => Ok(()),
            }
        });
        taken.map(|()| rows)
    }

    #[test]
    fn columns_are_found_by_name_and_rows_have_their_line() {
        let rows = read(b"\xef\xbb\xbfdevice,address\r\n\r\n\"press, 7\",a\nmill,b").expect("rows");
        assert_eq!(rows, ["3:a|press, 7|", "4:b|mill|"]);
        let rows = read(b"address,scope,device\na,north,saw\n").expect("rows");
        assert_eq!(rows, ["2:a|saw|north"]);
        assert_eq!(read(b"address,device\n"), Ok(Vec::new()));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let header = "the first line must be address,device, and may go on with scope";
        for (text, expected) in [
            (&b""[..], format!("a.csv is empty; {header}")),
            (b"address;device\n", format!("a.csv:1: {header}")),
            (b"\naddress\n", format!("a.csv:2: {header}")),
            (b"address,device,address\n", format!("a.csv:1: {header}")),
            (b"address,device,serial\n", format!("a.csv:1: {header}")),
            (
                b"address,device\na\n",
                "a.csv:2: has 1 columns; write 2, as in the first line".to_owned(),
            ),
            (
                b"address,device\na,\xff\n",
                "a.csv:2: is not UTF-8 text; save the file as UTF-8".to_owned(),
            ),
            (
                b"address,device\na,b\n\nbad,b\n",
                "a.csv:4: is bad".to_owned(),
            ),
        ] {
            assert_eq!(read(text), Err(expected));
        }
    }
}
