//! The bodies of functions as PostgreSQL analysed them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::pg::Oid;

/// Objects below are PostgreSQL's own.
pub(super) const FIRST_NORMAL_OBJECT: u32 = 16384;

/// What is said of a function in SQL whose body names what is not there.
pub const ALWAYS_RAISES: &str = "it raises an error whenever it is called";

/// As whom something runs, and by which search path what it says is understood.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Context {
    /// The role in force: inside a SECURITY DEFINER function its owner.
    pub role: Oid,
    /// The setting `search_path`; `None` where it is not known.
    pub path: Option<Arc<str>>,
}

/// What a function does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// One query, as node tree (`prosqlbody::text`, or one like it).
    Query(Arc<str>),
    /// Statements one after the other.
    Program(Arc<Program>),
}

/// A function of statements. Variables are parameters of its queries: first the function's own,
/// then those that it declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The types of the variables that it declares. All are NULL at first.
    pub variables: Vec<Oid>,
    /// Those among them that are fields of rows of any kind: nobody may read one before it is set.
    pub unset: BTreeSet<usize>,
    /// How many of them, the first, are the columns that RETURNS TABLE names.
    pub columns: usize,
    /// Which variable says whether the last query INTO, PERFORM or RETURN QUERY found a row, where
    /// that is asked.
    pub found: Option<usize>,
    /// What it does.
    pub statements: Vec<Statement>,
}

/// A statement. Queries and expressions are node trees of queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// `variable := expression`
    Assign(usize, Arc<str>),
    /// `SELECT … INTO [STRICT] variable, …`
    Into {
        /// Whether another number of rows than one is an error.
        strict: bool,
        /// The variables for its columns, by their number; `None` where nothing reads one. None at
        /// all for PERFORM.
        variables: Vec<Option<usize>>,
        /// The query.
        query: Arc<str>,
    },
    /// `IF … THEN … ELSIF … ELSE … END IF`
    If(Vec<(Arc<str>, Vec<Self>)>, Vec<Self>),
    /// `BEGIN … EXCEPTION WHEN … END`: its statements, and those for any error; `None` where only
    /// some errors have any.
    Try(Vec<Self>, Option<Vec<Self>>),
    /// An expression of which only counts whether it raises an error.
    Evaluate(Arc<str>),
    /// `RETURN expression`
    Return(Arc<str>),
    /// `RETURN QUERY query`
    Rows(Arc<str>),
    /// `RETURN` without a value.
    End,
    /// `RAISE EXCEPTION`
    Raise,
}

impl Body {
    /// The node trees in it.
    #[must_use]
    pub fn trees(&self) -> Vec<&str> {
        let mut found = Vec::new();
        match self {
            Self::Query(tree) => found.push(&**tree),
            Self::Program(program) => program
                .statements
                .iter()
                .for_each(|one| one.trees(&mut found)),
        }
        found
    }

    /// The tables that it names, PostgreSQL's own aside.
    #[must_use]
    pub fn relations(&self) -> BTreeSet<Oid> {
        self.numbers(":relid ")
    }

    /// The functions that it calls, PostgreSQL's own aside.
    #[must_use]
    pub fn functions(&self) -> BTreeSet<Oid> {
        self.numbers(":funcid ")
    }

    fn numbers(&self, label: &str) -> BTreeSet<Oid> {
        let trees = self.trees().into_iter();
        let found = trees.flat_map(|tree| numbers(tree, label).collect::<Vec<_>>());
        let own = found.filter(|oid| *oid >= FIRST_NORMAL_OBJECT);
        own.map(Oid).collect()
    }
}

impl Statement {
    fn trees<'s>(&'s self, found: &mut Vec<&'s str>) {
        match self {
            Self::Assign(_, tree)
            | Self::Evaluate(tree)
            | Self::Return(tree)
            | Self::Rows(tree)
            | Self::Into { query: tree, .. } => {
                found.push(&**tree);
            }
            Self::If(branches, otherwise) => {
                for (condition, inner) in branches {
                    found.push(&**condition);
                    inner.iter().for_each(|one| one.trees(found));
                }
                otherwise.iter().for_each(|one| one.trees(found));
            }
            Self::Try(inner, handler) => {
                let all = inner.iter().chain(handler.iter().flatten());
                all.for_each(|one| one.trees(found));
            }
            Self::Raise | Self::End => {}
        }
    }

    /// Whether control never comes behind it.
    #[must_use]
    pub fn leaves(&self) -> bool {
        let all = |statements: &[Self]| statements.iter().any(Self::leaves);
        match self {
            Self::Return(_) | Self::End | Self::Raise => true,
            Self::If(branches, otherwise) => {
                branches.iter().all(|(_, inner)| all(inner)) && all(otherwise)
            }
            Self::Try(inner, handler) => all(inner) && handler.as_deref().is_none_or(all),
            Self::Assign(..) | Self::Into { .. } | Self::Evaluate(_) | Self::Rows(_) => false,
        }
    }

    /// Whether control may leave the function in it, by a value.
    #[must_use]
    pub fn may_return(&self) -> bool {
        let any = |statements: &[Self]| statements.iter().any(Self::may_return);
        match self {
            Self::Return(_) | Self::End => true,
            Self::If(branches, otherwise) => {
                branches.iter().any(|(_, inner)| any(inner)) || any(otherwise)
            }
            Self::Try(inner, handler) => any(inner) || handler.as_deref().is_some_and(any),
            _ => false,
        }
    }

    /// The variables that it sets; whether it says whether rows were found.
    pub(super) fn sets(&self, found: &mut BTreeSet<usize>) -> bool {
        match self {
            Self::Assign(variable, _) => {
                found.insert(*variable);
                false
            }
            Self::Into { variables, .. } => {
                found.extend(variables.iter().flatten());
                true
            }
            Self::Rows(_) => true,
            Self::If(branches, otherwise) => {
                let inner = branches.iter().flat_map(|(_, inner)| inner);
                let all = inner.chain(otherwise);
                all.filter(|one| one.sets(found)).count() > 0
            }
            Self::Try(inner, handler) => {
                let all = inner.iter().chain(handler.iter().flatten());
                all.filter(|one| one.sets(found)).count() > 0
            }
            Self::Evaluate(_) | Self::Return(_) | Self::End | Self::Raise => false,
        }
    }
}

/// The numbers behind a label of a tree.
pub(super) fn numbers<'tree>(
    tree: &'tree str,
    label: &'tree str,
) -> impl Iterator<Item = u32> + 'tree {
    let labelled = tree.split(label).skip(1);
    // What cannot be read is an object of which nothing is known.
    labelled.map(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(u32::MAX)
    })
}
