//! `numeric`: exact decimal numbers with a scale that only their text shows.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use super::Trouble;

/// Longer texts and larger exponents are left to PostgreSQL: its limits are finer than these.
const MAX_TEXT: usize = 10_000;
const MAX_EXPONENT: i32 = 1_000;

/// A `numeric`.
#[derive(Debug, Clone)]
pub struct Numeric {
    class: Class,
    scale: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Class {
    NegativeInfinity,
    /// `0.d1d2d3… × 10^exponent`, without zeros at either end; no digits is zero, which is never
    /// negative and has exponent 0. So equal numbers are equal field by field.
    Finite {
        negative: bool,
        exponent: i32,
        digits: Box<[u8]>,
    },
    Infinity,
    Nan,
}

impl Numeric {
    /// The digits shown after the point.
    #[must_use]
    pub const fn scale(&self) -> u16 {
        self.scale
    }

    /// Neither infinite nor NaN.
    #[must_use]
    pub const fn is_finite(&self) -> bool {
        matches!(self.class, Class::Finite { .. })
    }

    /// A whole number as `numeric`.
    #[must_use]
    pub fn from_i64(value: i64) -> Self {
        let digits = value.unsigned_abs().to_string().into_bytes();
        let exponent = i32::try_from(digits.len()).unwrap_or(0);
        Self::finite(value < 0, exponent, digits, 0)
    }

    /// From PostgreSQL's own digits, base 10,000, the first standing for `10000^weight`.
    #[must_use]
    pub fn from_groups(negative: bool, weight: i16, groups: &[i16], scale: u16) -> Option<Self> {
        let mut digits = Vec::with_capacity(groups.len() * 4);
        for group in groups {
            let group = u16::try_from(*group).ok().filter(|group| *group < 10_000)?;
            digits.extend(format!("{group:04}").bytes());
        }
        Some(Self::finite(
            negative,
            (i32::from(weight) + 1) * 4,
            digits,
            scale,
        ))
    }

    /// Not a number.
    pub(crate) const NAN: Self = Self::special(Class::Nan);
    /// Positive infinity.
    pub(crate) const INFINITY: Self = Self::special(Class::Infinity);
    /// Negative infinity.
    pub(crate) const NEGATIVE_INFINITY: Self = Self::special(Class::NegativeInfinity);

    const fn special(class: Class) -> Self {
        Self { class, scale: 0 }
    }

    /// `digits` are ASCII and may have zeros at both ends.
    fn finite(negative: bool, exponent: i32, digits: Vec<u8>, scale: u16) -> Self {
        let leading = digits.iter().take_while(|digit| **digit == b'0').count();
        let mut digits: Vec<u8> = digits.into_iter().skip(leading).collect();
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        let zero = digits.is_empty();
        let leading = i32::try_from(leading).unwrap_or(i32::MAX);
        let class = Class::Finite {
            negative: negative && !zero,
            exponent: if zero {
                0
            } else {
                exponent.saturating_sub(leading)
            },
            digits: digits.into_boxed_slice(),
        };
        Self { class, scale }
    }

    /// The value as a whole number where it is one that fits.
    #[must_use]
    pub fn to_i64(&self) -> Option<i64> {
        let Class::Finite {
            negative,
            exponent,
            digits,
        } = &self.class
        else {
            return None;
        };
        let places = usize::try_from(*exponent).ok()?;
        if digits.len() > places || places > 19 {
            return None;
        }
        let value = (0..places).try_fold(0_i64, |value, place| {
            let digit = digits.get(place).map_or(0, |digit| i64::from(digit - b'0'));
            let digit = if *negative { -digit } else { digit };
            value.checked_mul(10)?.checked_add(digit)
        })?;
        Some(value)
    }
}

impl FromStr for Numeric {
    type Err = Trouble;

    /// `numeric`'s input function.
    fn from_str(text: &str) -> Result<Self, Trouble> {
        if text.len() > MAX_TEXT {
            return Err(Trouble::Undecided);
        }
        let text = super::input::trim(text);
        match text.to_ascii_lowercase().as_str() {
            "nan" => return Ok(Self::NAN),
            "infinity" | "+infinity" | "inf" | "+inf" => return Ok(Self::INFINITY),
            "-infinity" | "-inf" => return Ok(Self::NEGATIVE_INFINITY),
            _ => {}
        }
        // What PostgreSQL 16 reads and 15 does not.
        if super::input::newer_integer_form(text) {
            return Err(Trouble::Undecided);
        }
        let (negative, rest) = match text.as_bytes() {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let is_digit = |byte: &&u8| byte.is_ascii_digit();
        let whole: Vec<u8> = rest.iter().take_while(is_digit).copied().collect();
        let rest = rest.get(whole.len()..).unwrap_or_default();
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => {
                let fraction: Vec<u8> = rest.iter().take_while(is_digit).copied().collect();
                let rest = rest.get(fraction.len()..).unwrap_or_default();
                (fraction, rest)
            }
            rest => (Vec::new(), rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(Trouble::Error);
        }
        let power = match rest {
            [] => 0,
            [b'e' | b'E', power @ ..] => power_of_ten(power)?,
            _ => return Err(Trouble::Error),
        };
        let shown = i32::try_from(fraction.len()).map_err(|_| Trouble::Undecided)? - power;
        let scale = u16::try_from(shown.max(0)).map_err(|_| Trouble::Undecided)?;
        let point = i32::try_from(whole.len()).map_err(|_| Trouble::Undecided)?;
        let digits = [whole, fraction].concat();
        Ok(Self::finite(negative, point + power, digits, scale))
    }
}

fn power_of_ten(text: &[u8]) -> Result<i32, Trouble> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Trouble::Error);
    }
    let power = digits.iter().try_fold(0_i32, |power, digit| {
        let power = power * 10 + i32::from(digit - b'0');
        (power <= MAX_EXPONENT).then_some(power)
    });
    let power = power.ok_or(Trouble::Undecided)?;
    Ok(if negative { -power } else { power })
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (negative, exponent, digits) = match &self.class {
            Class::Nan => return f.write_str("NaN"),
            Class::Infinity => return f.write_str("Infinity"),
            Class::NegativeInfinity => return f.write_str("-Infinity"),
            Class::Finite {
                negative,
                exponent,
                digits,
            } => (*negative, *exponent, digits),
        };
        let digit = |place: i32| {
            let index = usize::try_from(place).ok();
            let digit = index.and_then(|index| digits.get(index)).copied();
            char::from(digit.unwrap_or(b'0'))
        };
        let mut text = String::new();
        if negative {
            text.push('-');
        }
        if exponent <= 0 {
            text.push('0');
        }
        text.extend((0..exponent).map(digit));
        if self.scale > 0 {
            text.push('.');
            let end = exponent + i32::from(self.scale);
            text.extend((exponent..end).map(digit));
        }
        f.write_str(&text)
    }
}

impl Ord for Numeric {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = match (&self.class, &other.class) {
            (Class::Finite { .. }, Class::Finite { .. }) => (self.key(), other.key()),
            (a, b) => return rank(a).cmp(&rank(b)),
        };
        match (a.0, b.0) {
            (1, 1) => (a.1, a.2).cmp(&(b.1, b.2)),
            (-1, -1) => (b.1, b.2).cmp(&(a.1, a.2)),
            (a, b) => a.cmp(&b),
        }
    }
}

const fn rank(class: &Class) -> u8 {
    match class {
        Class::NegativeInfinity => 0,
        Class::Finite { .. } => 1,
        Class::Infinity => 2,
        Class::Nan => 3,
    }
}

impl Numeric {
    /// Sign, exponent, digits: the magnitude orders by the last two.
    fn key(&self) -> (i8, i32, &[u8]) {
        match &self.class {
            Class::Finite { digits, .. } if digits.is_empty() => (0, 0, &[]),
            Class::Finite {
                negative,
                exponent,
                digits,
            } => (if *negative { -1 } else { 1 }, *exponent, digits),
            _ => (0, 0, &[]),
        }
    }
}

impl PartialOrd for Numeric {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Numeric {
    fn eq(&self, other: &Self) -> bool {
        self.class == other.class
    }
}

impl Eq for Numeric {}

impl Hash for Numeric {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.class.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_keeps_the_scale() {
        for (input, output) in [
            ("1.00", "1.00"),
            ("-0.050", "-0.050"),
            ("-0", "0"),
            ("1e3", "1000"),
            ("1.5e1", "15"),
            ("1.25e-2", "0.0125"),
            (".5", "0.5"),
            ("5.", "5"),
            ("00012.10", "12.10"),
            (" 7 ", "7"),
            ("nan", "NaN"),
            ("-INF", "-Infinity"),
        ] {
            assert_eq!(
                input.parse::<Numeric>().unwrap().to_string(),
                output,
                "{input}"
            );
        }
        for bad in ["", ".", "1e", "x", "1 2", "--1", "1.2.3"] {
            assert_eq!(bad.parse::<Numeric>(), Err(Trouble::Error), "{bad}");
        }
        for newer in ["1_000", "-.5_0", "1._5", "0x10", "1e1_0"] {
            assert_eq!(newer.parse::<Numeric>(), Err(Trouble::Undecided), "{newer}");
        }
    }

    #[test]
    fn order_is_by_value() {
        let ordered = [
            "-Infinity",
            "-10",
            "-9.5",
            "-0.01",
            "0",
            "0.001",
            "0.01",
            "1",
            "9",
            "10",
        ];
        let ordered: Vec<Numeric> = ordered.iter().map(|text| text.parse().unwrap()).collect();
        assert!(ordered.is_sorted());
        assert_eq!("120".parse::<Numeric>().unwrap().to_i64(), Some(120));
        assert_eq!("-1.0".parse::<Numeric>().unwrap().to_i64(), Some(-1));
        assert_eq!("1.5".parse::<Numeric>().unwrap().to_i64(), None);
    }
}
