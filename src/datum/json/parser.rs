//! JSON text, read as PostgreSQL's own parser reads it.

use std::ops::Range;

use super::{Jsonb, MAX_DEPTH};
use crate::datum::{Numeric, Trouble};

pub(super) struct Parser<'t> {
    pub(super) text: &'t str,
    pub(super) at: usize,
}

impl Parser<'_> {
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, Trouble> {
        let byte = self.peek().ok_or(Trouble::Error)?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    pub(super) fn end(&mut self) -> Result<(), Trouble> {
        self.space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(Trouble::Error)
        }
    }

    pub(super) fn value(&mut self, depth: usize) -> Result<Jsonb, Trouble> {
        self.space();
        match self.peek().ok_or(Trouble::Error)? {
            b'{' => {
                let mut members = Vec::new();
                self.object(depth, |key, _, value| {
                    members.push((key.into_boxed_str(), value));
                })?;
                Ok(Jsonb::object(members))
            }
            b'[' => {
                let mut elements = Vec::new();
                self.array(depth, |_, value| elements.push(value))?;
                Ok(Jsonb::Array(elements))
            }
            b'"' => Ok(Jsonb::String(self.string()?.into_boxed_str())),
            b'-' | b'0'..=b'9' => Ok(Jsonb::Number(self.number()?)),
            _ => self.word(),
        }
    }

    pub(super) fn object(
        &mut self,
        depth: usize,
        mut member: impl FnMut(String, Range<usize>, Jsonb),
    ) -> Result<(), Trouble> {
        if depth > MAX_DEPTH {
            return Err(Trouble::Undecided);
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(Trouble::Error);
            }
            let key = self.string()?;
            self.space();
            if self.next()? != b':' {
                return Err(Trouble::Error);
            }
            let (span, value) = self.spanned(depth)?;
            member(key, span, value);
            self.space();
            match self.next()? {
                b',' => {}
                b'}' => return Ok(()),
                _ => return Err(Trouble::Error),
            }
        }
    }

    pub(super) fn array(
        &mut self,
        depth: usize,
        mut element: impl FnMut(Range<usize>, Jsonb),
    ) -> Result<(), Trouble> {
        if depth > MAX_DEPTH {
            return Err(Trouble::Undecided);
        }
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let (span, value) = self.spanned(depth)?;
            element(span, value);
            self.space();
            match self.next()? {
                b',' => {}
                b']' => return Ok(()),
                _ => return Err(Trouble::Error),
            }
        }
    }

    fn spanned(&mut self, depth: usize) -> Result<(Range<usize>, Jsonb), Trouble> {
        self.space();
        let start = self.at;
        let value = self.value(depth + 1)?;
        Ok((start..self.at, value))
    }

    fn word(&mut self) -> Result<Jsonb, Trouble> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        for (word, value) in [
            ("null", Jsonb::Null),
            ("true", Jsonb::Bool(true)),
            ("false", Jsonb::Bool(false)),
        ] {
            if rest.starts_with(word) {
                self.at += word.len();
                return self.boundary().map(|()| value);
            }
        }
        Err(Trouble::Error)
    }

    fn number(&mut self) -> Result<Numeric, Trouble> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        self.boundary()?;
        text.parse()
    }

    fn digits(&mut self) -> Result<(), Trouble> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at > start {
            Ok(())
        } else {
            Err(Trouble::Error)
        }
    }

    /// A word or number may not run into another.
    fn boundary(&self) -> Result<(), Trouble> {
        match self.peek() {
            Some(b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80..) => Err(Trouble::Error),
            _ => Ok(()),
        }
    }

    fn string(&mut self) -> Result<String, Trouble> {
        self.at += 1;
        let mut value = String::new();
        loop {
            let start = self.at;
            while !matches!(self.peek(), None | Some(b'"' | b'\\' | 0..=0x1F)) {
                self.at += 1;
            }
            value.push_str(self.text.get(start..self.at).unwrap_or_default());
            match self.next()? {
                b'"' => return Ok(value),
                b'\\' => value.push(self.escape()?),
                _ => return Err(Trouble::Error),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Trouble> {
        Ok(match self.next()? {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut code = self.unit()?;
                if (0xD800..0xDC00).contains(&code) {
                    if self.next()? != b'\\' || self.next()? != b'u' {
                        return Err(Trouble::Error);
                    }
                    let low = self.unit()?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return Err(Trouble::Error);
                    }
                    code = 0x1_0000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                }
                let character = char::from_u32(code).ok_or(Trouble::Error)?;
                if character == '\0' {
                    return Err(Trouble::Error);
                }
                character
            }
            _ => return Err(Trouble::Error),
        })
    }

    fn unit(&mut self) -> Result<u32, Trouble> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = crate::datum::input::hex_digit(self.next()?).ok_or(Trouble::Error)?;
            unit = unit << 4 | u32::from(digit);
        }
        Ok(unit)
    }
}
