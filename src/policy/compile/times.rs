//! What depends on the time: comparisons of a point in time with `now()`.
//!
//! A comparison is decided where the answer is the same some while earlier and later. The while is
//! what the relay's clock may differ from the server's, and what the server's time zone and the
//! lengths of months may make of the operands; nearer than that PostgreSQL is asked.

use std::sync::Arc;

use super::inline::strict;
use super::{Compiler, Constant, Refusal, Typed};
use crate::datum::Datum;
use crate::pg::Oid;
use crate::policy::expr::{Comparison, Expr, Function, TimeFunction};
use crate::policy::node_tree::{Node, Tree};

const DATE: Oid = Oid(1082);
const TIMESTAMP: Oid = Oid(1114);
const TIMESTAMPTZ: Oid = Oid(1184);
const INTERVAL: Oid = Oid(1186);

const SECOND: i64 = 1_000_000;

/// What two clocks may differ by.
const CLOCKS: i64 = 5 * SECOND;

/// What a time zone may make of a time: its offset.
const ZONE: i64 = 27 * 3_600 * SECOND;

/// What a time zone may make of a day: its offset, and a day.
const DATED: i64 = 51 * 3_600 * SECOND;

/// What some months may be longer or shorter than as many months of average length.
const MONTHS: i64 = 8 * 86_400 * SECOND;

/// `<`, `<=`, `>`, `>=`, the types that are compared and what a time zone makes of them.
const COMPARED: [([u32; 4], u32, u32, i64); 9] = [
    ([1322, 1323, 1324, 1325], 1184, 1184, 0),
    ([2534, 2535, 2538, 2537], 1114, 1184, ZONE),
    ([2540, 2541, 2544, 2543], 1184, 1114, ZONE),
    ([1095, 1096, 1097, 1098], 1082, 1082, 0),
    ([2062, 2063, 2064, 2065], 1114, 1114, 0),
    ([2345, 2346, 2349, 2348], 1082, 1114, 0),
    ([2371, 2372, 2375, 2374], 1114, 1082, 0),
    ([2358, 2359, 2362, 2361], 1082, 1184, ZONE),
    ([2384, 2385, 2388, 2387], 1184, 1082, ZONE),
];

/// An operand, and what it may be off by.
struct Term {
    typed: Typed,
    off: i64,
    now: bool,
}

impl Compiler<'_> {
    /// A comparison with `now()`, or of something some time before or after; `None` for another.
    pub(super) fn timed(
        &mut self,
        operator: Oid,
        node: &Node,
        depth: usize,
    ) -> Result<Option<Expr>, Refusal> {
        let known = COMPARED.iter().find_map(|(operators, left, right, zone)| {
            let at = operators.iter().position(|known| *known == operator.0)?;
            let of = [
                Comparison::Lt,
                Comparison::Le,
                Comparison::Gt,
                Comparison::Ge,
            ];
            Some((*of.get(at)?, Oid(*left), Oid(*right), *zone))
        });
        let Some((comparison, of_left, of_right, zone)) = known else {
            return Ok(None);
        };
        let [left, right] = node.field("args")?.items()? else {
            return Ok(None);
        };
        if !self.is_term(left)? && !self.is_term(right)? {
            return Ok(None);
        }
        let (left, right) = (self.term(left, depth)?, self.term(right, depth)?);
        if left.typed.oid != of_left || right.typed.oid != of_right {
            return Err(Refusal::new("an operator has operands of other types"));
        }
        let off = zone + left.off + right.off;
        if left.typed.expr == Expr::NULL || right.typed.expr == Expr::NULL {
            return Ok(Some(Expr::NULL));
        }
        // A day beside a time is its first moment.
        let (left, right) = match (of_left, of_right) {
            (DATE, DATE) => (left, right),
            (DATE, _) => (left.begun(), right),
            (_, DATE) => (left, right.begun()),
            _ => (left, right),
        };
        let compare = Expr::Compare(comparison, Box::new((left.typed.expr, right.typed.expr)));
        match (left.now, right.now) {
            (false, false) if off == 0 => Ok(Some(compare)),
            (true, false) | (false, true) => Ok(Some(Expr::Timed(CLOCKS + off, Box::new(compare)))),
            _ => Err(Refusal::new("times that the time zone decides")),
        }
    }

    /// Whether an operand is `now()`, or something some time before or after.
    fn is_term(&self, tree: &Tree) -> Result<bool, Refusal> {
        let node = tree.node(self.scope.major)?;
        Ok(match node.name.as_str() {
            "FUNCEXPR" => matches!(
                node.oid("funcid")?.0,
                1299 | 2647 | 2648 | 1178 | 1159 | 2024
            ),
            "SQLVALUEFUNCTION" => matches!(node.number::<u8>("op")?, 0 | 3),
            "OPEXPR" => {
                matches!(
                    node.oid("opno")?.0,
                    1327 | 1329 | 2032 | 2033 | 1100 | 1101 | 1076 | 1077
                )
            }
            "COALESCEEXPR" | "COALESCE" => {
                for one in node.field("args")?.items()? {
                    if self.is_term(one)? {
                        return Ok(true);
                    }
                }
                false
            }
            _ => false,
        })
    }

    fn term(&mut self, tree: &Tree, depth: usize) -> Result<Term, Refusal> {
        if depth > 400 {
            return Err(Refusal::new("the expression is nested too deeply"));
        }
        self.spend(1)?;
        let plain = |typed: Typed| Term {
            typed,
            off: 0,
            now: false,
        };
        if !self.is_term(tree)? {
            return self.expr(tree, depth).map(plain);
        }
        let node = tree.node(self.scope.major)?;
        let now = |expr: Expr, oid: Oid, off: i64| Term {
            typed: Typed {
                expr,
                oid,
                nodes: 2,
            },
            off,
            now: true,
        };
        let clock = || Expr::Now(Arc::clone(&self.scope.clock));
        let date = || Expr::Call(Function::Time(TimeFunction::ToDate), vec![clock()]);
        let (args, operator) = match node.name.as_str() {
            "SQLVALUEFUNCTION" if node.number::<u8>("op")? == 0 => {
                return Ok(now(date(), DATE, DATED));
            }
            "SQLVALUEFUNCTION" => return Ok(now(clock(), TIMESTAMPTZ, 0)),
            "COALESCEEXPR" | "COALESCE" => return self.first_term(node, depth),
            "FUNCEXPR" => (node.field("args")?.items()?, node.oid("funcid")?),
            _ => (node.field("args")?.items()?, node.oid("opno")?),
        };
        let refuse = || Refusal::new("a time by another operator");
        match (operator.0, args) {
            (1299 | 2647 | 2648, []) => Ok(now(clock(), TIMESTAMPTZ, 0)),
            (1178, [of]) => {
                let of = self.term(of, depth + 1)?;
                if of.typed.oid != TIMESTAMPTZ {
                    return Err(refuse());
                }
                Ok(of.made(TimeFunction::ToDate, DATE, DATED))
            }
            (2024, [of]) => {
                let of = self.term(of, depth + 1)?;
                if of.typed.oid != DATE {
                    return Err(refuse());
                }
                Ok(of.begun())
            }
            // What it is in UTC, which is how a time without a zone is kept.
            (1159, [zone, of]) => {
                let of = self.term(of, depth + 1)?;
                let utc = match self.expr(zone, depth + 1)?.expr {
                    Expr::Const(Constant(Some(Datum::Text(zone)))) => {
                        let zone = zone.to_ascii_lowercase();
                        matches!(&*zone, "utc" | "etc/utc" | "gmt" | "etc/gmt")
                    }
                    _ => false,
                };
                if !utc || of.typed.oid != TIMESTAMPTZ {
                    return Err(Refusal::new("times that the time zone decides"));
                }
                let typed = Typed {
                    oid: TIMESTAMP,
                    ..of.typed
                };
                Ok(Term { typed, ..of })
            }
            (1327 | 1329 | 2032 | 2033 | 1076 | 1077, [of, by]) => {
                let mut of = self.term(of, depth + 1)?;
                if matches!(operator.0, 1076 | 1077) {
                    if of.typed.oid != DATE {
                        return Err(refuse());
                    }
                    of = of.begun();
                }
                let by = by.node(self.scope.major)?;
                let zoned = matches!(operator.0, 1327 | 1329);
                let oid = if zoned { TIMESTAMPTZ } else { TIMESTAMP };
                if of.typed.oid != oid || by.name != "CONST" {
                    return Err(Refusal::new("an interval that is not a constant"));
                }
                let (months, days, micros) = interval(by)?.ok_or_else(refuse)?;
                let sign = if matches!(operator.0, 1329 | 2033 | 1077) {
                    -1
                } else {
                    1
                };
                let off = if months != 0 { MONTHS } else { 0 }
                    + if days != 0 && zoned { ZONE } else { 0 };
                let shift =
                    TimeFunction::Shift(months * sign, days * sign, micros * i64::from(sign));
                Ok(of.made(shift, oid, off))
            }
            (1100 | 1101, [of, by]) => {
                let of = self.term(of, depth + 1)?;
                let by = self.expr(by, depth + 1)?;
                let Expr::Const(Constant(Some(Datum::Int(days)))) = by.expr else {
                    return Err(refuse());
                };
                let days = i32::try_from(days)
                    .ok()
                    .filter(|days| days.abs() <= MOST_DAYS);
                let days = days.ok_or_else(refuse)?;
                if of.typed.oid != DATE || by.oid != Oid(23) {
                    return Err(refuse());
                }
                let sign = if operator.0 == 1101 { -1 } else { 1 };
                Ok(of.made(TimeFunction::AddDays(days * sign), DATE, 0))
            }
            _ => Err(refuse()),
        }
    }
}

impl Compiler<'_> {
    /// COALESCE of times that all depend on `now()`, or all do not.
    fn first_term(&mut self, node: &Node, depth: usize) -> Result<Term, Refusal> {
        let oid = node.oid("coalescetype")?;
        let mut terms = Vec::new();
        for one in node.field("args")?.items()? {
            terms.push(self.term(one, depth + 1)?);
        }
        let now = terms.iter().any(|one| one.now);
        if terms
            .iter()
            .any(|one| one.typed.oid != oid || one.now != now)
        {
            return Err(Refusal::new("COALESCE of now() and another time"));
        }
        let off = terms.iter().map(|one| one.off).max().unwrap_or_default();
        let nodes = terms.iter().map(|one| one.typed.nodes).sum::<usize>() + 1;
        let all: Vec<Expr> = terms.into_iter().map(|one| one.typed.expr).collect();
        Ok(Term {
            typed: Typed {
                expr: Expr::Coalesce(all),
                oid,
                nodes,
            },
            off,
            now,
        })
    }
}

impl Term {
    /// The first moment of a day, as a timestamp without a time zone.
    fn begun(self) -> Self {
        self.made(TimeFunction::Midnight, TIMESTAMP, 0)
    }

    fn made(self, function: TimeFunction, oid: Oid, off: i64) -> Self {
        let expr = strict(Function::Time(function), vec![self.typed.expr]);
        Self {
            typed: Typed {
                expr,
                oid,
                nodes: self.typed.nodes + 1,
            },
            off: self.off + off,
            now: self.now,
        }
    }
}

/// A thousand years, beyond which nobody counts.
const MOST_DAYS: i32 = 365_000;

/// Months, days and microseconds of a constant interval; `None` beyond a thousand years.
fn interval(node: &Node) -> Result<Option<(i32, i32, i64)>, Refusal> {
    let odd = || Refusal::new("an interval that is not a constant");
    if node.oid("consttype")? != INTERVAL || node.flag("constisnull")? {
        return Err(odd());
    }
    let Tree::Bytes(bytes) = node.field("constvalue")? else {
        return Err(odd());
    };
    let (micros, rest) = bytes.split_first_chunk::<8>().ok_or_else(odd)?;
    let (days, rest) = rest.split_first_chunk::<4>().ok_or_else(odd)?;
    let months: &[u8; 4] = rest.try_into().map_err(|_| odd())?;
    let micros = i64::from_le_bytes(*micros);
    let (days, months) = (i32::from_le_bytes(*days), i32::from_le_bytes(*months));
    let most = i64::from(MOST_DAYS) * 86_400 * SECOND;
    let fits = (-MOST_DAYS..=MOST_DAYS).contains(&days)
        && (-12_000..=12_000).contains(&months)
        && (-most..=most).contains(&micros);
    Ok(fits.then_some((months, days, micros)))
}
