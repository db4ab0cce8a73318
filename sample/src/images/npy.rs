//! The header of numpy's array format, versions 1 to 3.

use std::io::{Error, ErrorKind, Read, Write};

/// Longest header that is read.
const HEADER_BYTES_MAX: usize = 1 << 16;

/// Most elements an array may claim to have.
const ELEMENTS_MAX: usize = 1 << 48;

/// Element types that are read, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// `|u1`
    U8,
    /// `<i8`
    I64,
    /// `<f4`
    F32,
    /// `<f8`
    F64,
}

/// An array's type and shape, in C order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The element type.
    pub element: Element,
    /// The shape, outermost axis first.
    pub shape: Vec<usize>,
}

impl Element {
    fn code(self) -> &'static str {
        match self {
            Element::U8 => "|u1",
            Element::I64 => "<i8",
            Element::F32 => "<f4",
            Element::F64 => "<f8",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Element::U8 => 1,
            Element::F32 => 4,
            Element::I64 | Element::F64 => 8,
        }
    }

    fn parse(code: &str) -> Option<Self> {
        [Element::U8, Element::I64, Element::F32, Element::F64]
            .into_iter()
            .find(|element| element.code() == code)
    }
}

impl Header {
    /// How many elements follow the header.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Writes magic, version 1.0 and the padded dictionary.
    pub fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let shape: Vec<String> = self.shape.iter().map(|n| format!("{n},")).collect();
        let mut text = format!(
            "{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}",
            self.element.code(),
            shape.join(" ")
        );
        let padding = 63 - (10 + text.len()) % 64;
        text.extend(std::iter::repeat_n(' ', padding));
        text.push('\n');
        to.write_all(b"\x93NUMPY\x01\x00")?;
        to.write_all(&(text.len() as u16).to_le_bytes())?;
        to.write_all(text.as_bytes())
    }

    /// Reads a header and leaves `from` at the first element.
    ///
    /// # Errors
    /// For other bytes than an array's, Fortran order, or a type that is not in [`Element`]; the
    /// message says which.
    pub fn read(from: &mut impl Read) -> std::io::Result<Self> {
        let mut fixed = [0; 8];
        from.read_exact(&mut fixed)?;
        if fixed[..6] != *b"\x93NUMPY" {
            return Err(invalid("is not a numpy array"));
        }
        let length = match fixed[6] {
            1 => {
                let mut bytes = [0; 2];
                from.read_exact(&mut bytes)?;
                usize::from(u16::from_le_bytes(bytes))
            }
            2 | 3 => {
                let mut bytes = [0; 4];
                from.read_exact(&mut bytes)?;
                u32::from_le_bytes(bytes) as usize
            }
            version => return Err(invalid(format!("has numpy format version {version}"))),
        };
        if length > HEADER_BYTES_MAX {
            return Err(invalid(format!("has a header of {length} bytes")));
        }
        let mut text = vec![0; length];
        from.read_exact(&mut text)?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> std::io::Result<Self> {
        let after = |key: &str| {
            let found = text.find(key).map(|at| text[at + key.len()..].trim_start());
            found.ok_or_else(|| invalid(format!("has no {key} in its header")))
        };
        let quoted = after("'descr':")?.trim_start_matches('\'').split('\'').next();
        let code = quoted.unwrap_or_default();
        let element =
            Element::parse(code).ok_or_else(|| invalid(format!("holds {code} elements")))?;
        if !after("'fortran_order':")?.starts_with("False") {
            return Err(invalid("is in Fortran order"));
        }
        let list = after("'shape':")?.trim_start_matches('(').split(')').next();
        let shape: Result<Vec<usize>, _> = list
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|n| !n.is_empty())
            .map(str::parse)
            .collect();
        let shape = shape.map_err(|_| invalid("has a shape that is not numbers"))?;
        let elements = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
        match elements {
            Some(n) if n <= ELEMENTS_MAX => Ok(Self { element, shape }),
            _ => Err(invalid(format!("has an impossible shape {shape:?}"))),
        }
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_a_round_trip_and_align_the_data() {
        for shape in [vec![], vec![7], vec![50_000, 256, 256, 3]] {
            let header = Header { element: Element::U8, shape };
            let mut bytes = Vec::new();
            header.write(&mut bytes).unwrap();
            assert_eq!(bytes.len() % 64, 0);
            assert_eq!(Header::read(&mut bytes.as_slice()).unwrap(), header);
        }
    }

    #[test]
    fn odd_headers_are_refused_with_a_reason() {
        for (text, word) in [
            ("{'descr': '<f2', 'fortran_order': False, 'shape': (3,), }", "<f2"),
            ("{'descr': '<f8', 'fortran_order': True, 'shape': (3,), }", "Fortran"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }", "shape"),
            ("{'descr': '<f8', 'shape': (3,), }", "fortran_order"),
            (
                "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 9999999999), }",
                "impossible",
            ),
        ] {
            let error = Header::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(Header::read(&mut &b"PK\x03\x04 not an array"[..]).is_err());
        assert!(Header::read(&mut &b"\x93NUMPY\x02\x00\xff\xff\xff\xff"[..]).is_err());
    }
}
