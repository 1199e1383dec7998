//! Regular expressions that say no more than LIKE can.

use super::inline::called;
use super::operators::Demand;
use super::{Compiler, Refusal};
use crate::datum::Datum;
use crate::mutant::PolicyMutant;
use crate::pg::Oid;
use crate::policy::expr::{Constant, Expr, Function, TextFunction};
use crate::policy::node_tree::Node;

/// How many patterns may come of one expression.
const MAX_PATTERNS: usize = 32;

impl Compiler<'_> {
    /// `~`, `!~`, `~*` and `!~*`; `None` for another operator.
    pub(super) fn matched(
        &mut self,
        operator: Oid,
        node: &Node,
        depth: usize,
    ) -> Result<Option<Expr>, Refusal> {
        let (not, any_case) = match operator.0 {
            641 => (false, false),
            642 => (true, false),
            1228 => (false, true),
            1229 => (true, true),
            _ => return Ok(None),
        };
        let demand = if any_case {
            Demand::Case
        } else {
            Demand::Deterministic
        };
        let collation = node.oid("inputcollid")?;
        self.demand(Demand::Deterministic, collation)?;
        self.demand(demand, collation)?;
        let refuse = || Refusal::new("a regular expression that is more than LIKE");
        let args = self.exprs(node.field("args")?, depth)?;
        let [text, pattern] = args.as_slice() else {
            return Err(refuse());
        };
        let Expr::Const(Constant(Some(Datum::Text(pattern)))) = &pattern.expr else {
            return Err(refuse());
        };
        let patterns = patterns(pattern).ok_or_else(refuse)?;
        let patterns = patterns.into_iter().map(|pattern| {
            let pattern = Expr::constant(Datum::text(&pattern));
            let like = if any_case {
                Function::Text(TextFunction::Insensitive(false))
            } else {
                Function::Like
            };
            called(like, vec![text.expr.clone(), pattern])
        });
        let any = Expr::Or(patterns.collect());
        self.spend(text.nodes.saturating_mul(any.children().len()))?;
        let forgets = PolicyMutant::PatternForgetsNot.active();
        Ok(Some(if not && !forgets {
            Expr::Not(Box::new(any))
        } else {
            any
        }))
    }
}

/// The LIKE patterns of which one matches where a regular expression does; `None` where it has more
/// to it than literals, `.`, `.*`, `.+`, alternatives and anchors.
fn patterns(regex: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for branch in branches(regex)? {
        let unanchored = branch.strip_prefix('^');
        let (start, rest) = (unanchored.is_some(), unanchored.unwrap_or(branch));
        let unanchored = rest.strip_suffix('$').filter(|rest| !rest.ends_with('\\'));
        let (end, rest) = (unanchored.is_some(), unanchored.unwrap_or(rest));
        let any = |anchored: bool| if anchored { "" } else { "%" };
        for inner in sequence(rest, true)? {
            found.push(format!("{}{inner}{}", any(start), any(end)));
        }
    }
    (found.len() <= MAX_PATTERNS).then_some(found)
}

/// The alternatives of an expression, at its outermost.
fn branches(regex: &str) -> Option<Vec<&str>> {
    let (mut found, mut depth, mut start, mut escaped) = (Vec::new(), 0_u32, 0, false);
    for (at, character) in regex.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            '|' if depth == 0 => {
                found.push(regex.get(start..at)?);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(regex.get(start..)?);
    (depth == 0 && !escaped).then_some(found)
}

/// The LIKE patterns of one branch without its anchors.
fn sequence(branch: &str, groups: bool) -> Option<Vec<String>> {
    let mut found = vec![String::new()];
    let mut rest = branch;
    if rest.is_empty() {
        return None;
    }
    while let Some(first) = rest.chars().next() {
        let (parts, length) = match first {
            '\\' => {
                let escaped = rest.chars().nth(1)?;
                if escaped.is_alphanumeric() || !escaped.is_ascii() {
                    return None;
                }
                (vec![literal(escaped)], 2)
            }
            '[' => {
                let mut inner = rest.chars().skip(1);
                let (only, close) = (inner.next()?, inner.next()?);
                if close != ']' || matches!(only, '^' | '[' | ']') || !only.is_ascii() {
                    return None;
                }
                (vec![literal(only)], 3)
            }
            '.' => match rest.chars().nth(1) {
                Some('*') => (vec!["%".to_owned()], 2),
                Some('+') => (vec!["_%".to_owned()], 2),
                _ => (vec!["_".to_owned()], 1),
            },
            '(' if groups => {
                let end = rest.find(')')?;
                let mut all = Vec::new();
                for one in rest.get(1..end)?.split('|') {
                    all.extend(sequence(one, false)?);
                }
                (all, end + 1)
            }
            plain if plain.is_ascii_alphanumeric() || " @_-/:,#=%!&<>~;\"'".contains(plain) => {
                (vec![literal(plain)], 1)
            }
            _ => return None,
        };
        rest = rest.get(length..)?;
        // More or less of it, or none.
        if rest.starts_with(['*', '+', '?', '{']) {
            return None;
        }
        let longer = found
            .iter()
            .flat_map(|before| parts.iter().map(move |part| format!("{before}{part}")));
        found = longer.collect();
        if found.len() > MAX_PATTERNS {
            return None;
        }
    }
    Some(found)
}

/// A character as LIKE has it.
fn literal(character: char) -> String {
    match character {
        '%' | '_' | '\\' => format!("\\{character}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::patterns;

    #[test]
    fn what_like_can_say_is_said_by_it() {
        let read = |regex| patterns(regex).map(|all| all.join(" or "));
        for (regex, like) in [
            ("admin", "%admin%"),
            ("^admin", "admin%"),
            (r"@example\.com$", r"%@example.com"),
            (r"^.+@(a|b)[.]org$", "_%@a.org or _%@b.org"),
            ("^a.*b$|^c_d", r"a%b or c\_d%"),
            ("^(admin|owner)$", "admin or owner"),
            (r"50\%\\", r"%50\%\\%"),
        ] {
            assert_eq!(read(regex).as_deref(), Some(like), "{regex}");
        }
    }

    #[test]
    fn more_than_that_is_refused() {
        for regex in [
            "", "a*", "a?b", "[ab]", "[^a]", r"\d", r"\yx", "(?i)a", "a{2}", "***=a", "a|",
            "(a|)b", "((a)b)", "a^b", "a$b", "(a", "a)", "é", ".*?a", "(a)+", r"a\",
        ] {
            assert_eq!(patterns(regex), None, "{regex}");
        }
    }
}
