//! Functions of text.

use std::sync::Arc;

use crate::datum::{self, Datum, Trouble};
use crate::mutant::PolicyMutant;
use crate::policy::expr::Outcome;

/// A function of text.
#[derive(Debug, Clone, PartialEq)]
pub enum TextFunction {
    /// `length`, in characters
    Length,
    /// `btrim`, `ltrim`, `rtrim`: of blanks, or of the characters of the second operand, at the
    /// start, at the end
    Trim(bool, bool),
    /// `substr`
    Substring,
    /// `left`
    Left,
    /// `right`
    Right,
    /// `strpos`
    Position,
    /// `starts_with`
    Starts,
    /// `replace`
    Replace,
    /// `split_part`
    Part,
    /// `reverse`
    Reverse,
    /// `ILIKE`, or `NOT ILIKE` where the flag is set, of text in ASCII
    Insensitive(bool),
    /// `concat`
    Concat,
}

impl TextFunction {
    /// Whether NULL operands do not make the result NULL.
    pub(super) const fn takes_null(&self) -> bool {
        matches!(self, Self::Concat)
    }

    pub(super) fn of(&self, values: &[Option<&Datum>]) -> Outcome {
        if let Self::Concat = self {
            let mut all = String::new();
            for one in values.iter().flatten() {
                all.push_str(&one.output().ok_or(Trouble::Undecided)?);
            }
            return Ok(Some(Datum::text(&all)));
        }
        let text = |at: usize| match values.get(at) {
            Some(Some(Datum::Text(text))) => Ok(&**text),
            _ => Err(Trouble::Undecided),
        };
        let number = |at: usize| match values.get(at) {
            Some(Some(Datum::Int(number))) => Ok(*number),
            _ => Err(Trouble::Undecided),
        };
        let of = text(0)?;
        let characters = || i64::try_from(of.chars().count()).map_err(|_| Trouble::Undecided);
        Ok(Some(match self {
            Self::Length if PolicyMutant::LengthIsOfBytes.active() => {
                Datum::Int(i64::try_from(of.len()).map_err(|_| Trouble::Undecided)?)
            }
            Self::Length => Datum::Int(characters()?),
            Self::Trim(start, end) => {
                let set = if values.len() > 1 { text(1)? } else { " " };
                let among = |one: char| set.contains(one);
                let of = if *start {
                    of.trim_start_matches(among)
                } else {
                    of
                };
                let end = *end && !PolicyMutant::TrimKeepsEnd.active();
                Datum::text(if end { of.trim_end_matches(among) } else { of })
            }
            Self::Substring => {
                let first = number(1)?;
                let behind = if values.len() > 2 {
                    let length = number(2)?;
                    if length < 0 {
                        return Err(Trouble::Error);
                    }
                    // Beyond the largest integer it is all the rest.
                    first + length
                } else {
                    i64::MAX
                };
                between(of, first.max(1) - 1, behind - 1)
            }
            Self::Left => match number(1)? {
                count @ 0.. => between(of, 0, count),
                count => between(of, 0, characters()? + count),
            },
            Self::Right => match number(1)? {
                count @ 0.. => between(of, (characters()? - count).max(0), i64::MAX),
                count => between(of, -count, i64::MAX),
            },
            Self::Position => {
                let at = of.find(text(1)?).and_then(|at| of.get(..at));
                let at = at.map(|before| i64::try_from(before.chars().count()));
                let at = at.transpose().map_err(|_| Trouble::Undecided)?;
                let one = i64::from(!PolicyMutant::PositionFromZero.active());
                Datum::Int(at.map_or(0, |at| at + one))
            }
            Self::Starts => {
                let start = text(1)?;
                Datum::Bool(if PolicyMutant::StartsIsEnds.active() {
                    of.ends_with(start)
                } else {
                    of.starts_with(start)
                })
            }
            Self::Replace => match text(1)? {
                "" => Datum::text(of),
                from => Datum::text(&of.replace(from, text(2)?)),
            },
            Self::Part => part(of, text(1)?, number(2)?)?,
            Self::Reverse => Datum::Text(Arc::from(of.chars().rev().collect::<String>())),
            Self::Insensitive(not) => {
                let pattern = text(1)?;
                if !of.is_ascii() || !pattern.is_ascii() {
                    return Err(Trouble::Undecided);
                }
                let like = if PolicyMutant::IlikeIsLike.active() {
                    datum::like(of, pattern)?
                } else {
                    datum::like(&of.to_ascii_lowercase(), &pattern.to_ascii_lowercase())?
                };
                Datum::Bool(like != *not)
            }
            Self::Concat => return Err(Trouble::Undecided),
        }))
    }
}

/// The characters from one place to before another, counted from 0.
fn between(text: &str, first: i64, behind: i64) -> Datum {
    let skipped = usize::try_from(first).unwrap_or(usize::MAX);
    let taken = usize::try_from(behind.saturating_sub(first)).unwrap_or(0);
    let part: String = text.chars().skip(skipped).take(taken).collect();
    Datum::Text(Arc::from(part))
}

/// `split_part`: one counted from 1, or from the end below zero.
fn part(text: &str, separator: &str, number: i64) -> Result<Datum, Trouble> {
    if number == 0 {
        return Err(Trouble::Error);
    }
    let at = usize::try_from(number.unsigned_abs() - 1).map_err(|_| Trouble::Undecided)?;
    let parts: Vec<&str> = if text.is_empty() {
        Vec::new()
    } else if separator.is_empty() {
        vec![text]
    } else {
        text.split(separator).collect()
    };
    let found = if number > 0 || PolicyMutant::PartFromStart.active() {
        parts.get(at)
    } else {
        parts.iter().rev().nth(at)
    };
    Ok(Datum::text(found.copied().unwrap_or_default()))
}
