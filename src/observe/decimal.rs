//! Numbers in decimal digits, appended to a line.
//!
//! What is always of one length is copied as such: a copy of unknown length costs as much as the
//! digits that it copies.

/// Each octet's digits and a point: four of them take half of what their digits do one by one.
static OCTETS: [[u8; 4]; 256] = {
    let mut texts = [[0; 4]; 256];
    let mut octet = 0;
    while octet < texts.len() {
        texts[octet] = octet_text(octet);
        octet += 1;
    }
    texts
};

/// Appends `number`.
pub fn put_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends `number`, which is below 1,000, in three digits.
pub fn put_three_digits(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&[number / 100, number / 10, number].map(last_digit));
}

/// Appends `nanos`, which are less than a second, as the digits behind its point; without the zeros
/// at their end.
pub fn put_fraction(out: &mut Vec<u8>, nanos: u32) {
    for three in [nanos / 1_000_000, nanos / 1_000 % 1_000, nanos % 1_000] {
        put_three_digits(out, three);
    }
    while out.pop_if(|digit| *digit == b'0').is_some() {}
}

/// Appends `octets` with points between them.
pub fn put_octets(out: &mut Vec<u8>, octets: [u8; 4]) {
    for octet in octets {
        out.extend_from_slice(&OCTETS[usize::from(octet)]);
        let unwanted = usize::from(octet < 10) + usize::from(octet < 100);
        out.truncate(out.len() - unwanted);
    }
    out.pop();
}

/// An octet's digits; a point stands behind them, and in the place of those that it has not.
const fn octet_text(octet: usize) -> [u8; 4] {
    let [hundreds, tens, ones] = [octet / 100, octet / 10 % 10, octet % 10];
    let [hundreds, tens, ones] = [hundreds as u8, tens as u8, ones as u8];
    match octet {
        0..=9 => [b'0' + ones, b'.', b'.', b'.'],
        10..=99 => [b'0' + tens, b'0' + ones, b'.', b'.'],
        _ => [b'0' + hundreds, b'0' + tens, b'0' + ones, b'.'],
    }
}

fn last_digit(number: u32) -> u8 {
    b'0' + (number % 10) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn three_digits_are_three_whatever_they_are() {
        for number in 0..1_000 {
            let expected = format!("{number:03}");
            assert_eq!(written(|out| put_three_digits(out, number)), expected);
        }
    }

    #[test]
    fn a_fraction_ends_with_its_last_digit_that_counts() {
        let shown = |nanos| written(|out| put_fraction(out, nanos));
        assert_eq!(shown(1), "000000001");
        assert_eq!(shown(250_000_000), "25");
        assert_eq!(shown(12_345_600), "0123456");
        assert_eq!(shown(999_999_999), "999999999");
    }

    #[test]
    fn every_octet_reads_as_its_number() {
        for octet in 0..=u8::MAX {
            let expected = format!("{octet}.9.{octet}.10");
            let octets = [octet, 9, octet, 10];
            assert_eq!(written(|out| put_octets(out, octets)), expected);
        }
    }
}
