//! What a policy uses, as a letter: each takes more of a compiler than the one before.

use crate::pg::Oid;
use crate::policy::catalog::{Catalog, Function, Policy};
use crate::policy::node_tree::{self, Node, Tree};

/// How much a policy uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The row, claims and built-in functions.
    A,
    /// Sub-selects over one table.
    B,
    /// Several tables in a sub-select, or sub-selects inside each other.
    C,
    /// SQL functions.
    D,
    /// plpgsql functions of one RETURN.
    E,
    /// Straight-line plpgsql functions.
    F,
}

impl Level {
    /// All, in order.
    pub const ALL: [Self; 6] = [Self::A, Self::B, Self::C, Self::D, Self::E, Self::F];

    /// Its letter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::D => "D",
            Self::E => "E",
            Self::F => "F",
        }
    }
}

/// The functions through which a policy asks who is asking; they count as built in.
const WHO_ASKS: [&str; 4] = ["uid", "jwt", "role", "email"];

/// How deep functions are followed.
const DEEPEST: usize = 16;

/// The level of a policy; `None` where it uses what no level has.
pub(super) fn of(catalog: &Catalog, policy: &Policy) -> Option<Level> {
    let Some(tree) = &policy.tree else {
        return Some(Level::A);
    };
    of_tree(catalog, tree, 0)
}

fn of_tree(catalog: &Catalog, text: &str, depth: usize) -> Option<Level> {
    let tree = node_tree::read(text).ok()?;
    let mut walk = Walk {
        catalog,
        depth,
        level: Some(Level::A),
    };
    walk.tree(&tree, 0);
    walk.level
}

struct Walk<'c> {
    catalog: &'c Catalog,
    depth: usize,
    level: Option<Level>,
}

impl Walk<'_> {
    fn uses(&mut self, level: Option<Level>) {
        self.level = self.level.zip(level).map(|(one, other)| one.max(other));
    }

    /// `around` counts the queries around that read tables.
    fn tree(&mut self, tree: &Tree, around: usize) {
        match tree {
            Tree::List(items) => items.iter().for_each(|item| self.tree(item, around)),
            Tree::Node(node) => self.node(node, around),
            Tree::Null | Tree::Numbers(_) | Tree::Bytes(_) | Tree::Atom(_) => {}
        }
    }

    fn node(&mut self, node: &Node, mut around: usize) {
        match node.name.as_str() {
            "QUERY" => {
                let tables = node.field("rtable").map_or(0, relations);
                match (tables, around) {
                    (0, _) => {}
                    (1, 0) => self.uses(Some(Level::B)),
                    _ => self.uses(Some(Level::C)),
                }
                around += usize::from(tables > 0);
            }
            "FUNCEXPR" => {
                let function = node.oid("funcid").unwrap_or_default();
                self.function(function);
            }
            "OPEXPR" | "DISTINCTEXPR" | "NULLIFEXPR" | "SCALARARRAYOPEXPR" => {
                if let Ok(function) = node.oid("opfuncid") {
                    self.function(function);
                }
            }
            _ => {}
        }
        for (_, field) in &node.fields {
            self.tree(field, around);
        }
    }

    fn function(&mut self, oid: Oid) {
        if oid.0 < 16_384 {
            return;
        }
        let Some(function) = self.catalog.functions.get(&oid) else {
            // An operator's, or an extension's: as one of PostgreSQL's own, where it is compiled.
            return;
        };
        let level = match function.language.as_str() {
            "sql" => Some(Level::D),
            "plpgsql" => plpgsql(&function.source),
            _ => None,
        };
        let level = self.inside(function, level);
        self.uses(level);
    }

    /// The level of a function with what its body uses, as far as that was resolved.
    fn inside(&self, function: &Function, own: Option<Level>) -> Option<Level> {
        let Some(body) = function.known().next() else {
            return own;
        };
        let asks = WHO_ASKS.contains(&function.name.as_str());
        if asks && function.language == "sql" && body.relations().is_empty() {
            return Some(Level::A);
        }
        if self.depth >= DEEPEST {
            return None;
        }
        let mut level = own?;
        for tree in body.trees() {
            level = level.max(of_tree(self.catalog, tree, self.depth + 1)?);
        }
        Some(level)
    }
}

/// The tables among the things that a query reads from.
fn relations(rtable: &Tree) -> usize {
    let is_table = |entry: &&Tree| match entry {
        Tree::Node(entry) => entry.oid("relid").is_ok_and(|oid| oid.0 != 0),
        _ => false,
    };
    rtable
        .items()
        .map_or(0, |items| items.iter().filter(is_table).count())
}

/// What a plpgsql body is: one RETURN, a straight line, or more than that.
fn plpgsql(source: &str) -> Option<Level> {
    let words = words(source);
    let has = |word: &str| words.iter().any(|one| one == word);
    let caught = words
        .windows(2)
        .any(|two| matches!(two, [a, b] if a != "raise" && b == "exception"));
    let dynamic = ["loop", "while", "foreach", "execute", "perform"];
    if caught || dynamic.into_iter().any(has) {
        return None;
    }
    let returns = words.iter().filter(|word| *word == "return").count();
    let one =
        returns == 1 && matches!(words.get(..2), Some([a, b]) if a == "begin" && b == "return");
    Some(if one { Level::E } else { Level::F })
}

/// The words of a body in lower case, without comments, texts and quoted names.
fn words(source: &str) -> Vec<String> {
    let mut bare = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skip = |end: &str, from: usize| {
            let behind = rest.get(from..).unwrap_or_default();
            behind
                .find(end)
                .map_or(rest.len(), |at| from + at + end.len())
        };
        let length = if rest.starts_with("--") {
            skip("\n", 2)
        } else if rest.starts_with("/*") {
            skip("*/", 2)
        } else if c == '\'' || c == '"' {
            skip(if c == '"' { "\"" } else { "'" }, 1)
        } else {
            bare.extend(c.to_lowercase());
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
            continue;
        };
        bare.push(' ');
        rest = rest.get(length..).unwrap_or_default();
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    bare.split(|c: char| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plpgsql_body_is_one_return_a_straight_line_or_more() {
        let one = "-- a loop\nBEGIN\n RETURN exists (select 1 from m where note = 'raise');\nEND";
        assert_eq!(plpgsql(one), Some(Level::E));
        let line = "declare r text; begin select role into r from m; if r = 'a' then return true; \
                    end if; return false; end";
        assert_eq!(plpgsql(line), Some(Level::F));
        for more in [
            "begin for r in select 1 loop return true; end loop; end",
            "begin return true; exception when others then return false; end",
            "begin execute 'select 1'; return true; end",
        ] {
            assert_eq!(plpgsql(more), None, "{more}");
        }
    }
}
