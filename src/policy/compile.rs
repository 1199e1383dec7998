//! From PostgreSQL's own syntax tree to an [`Expr`]: a whitelist by object identifier, and a
//! [`Refusal`] for everything else.

mod arrays;

mod call;

mod caught;

mod constant;

mod inline;

mod node;

mod operators;

mod parts;

mod patterns;

mod program;

mod select;

mod times;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::body::{Body, Context};
use super::catalog::Returned;
use super::clock::ServerClock;
use super::expr::{ColumnRef, Constant, Expr, Inputs};
use super::node_tree::{self, Tree};
use crate::datum::{Datum, Trouble, Type, Types};
use crate::pg::Oid;

pub(super) use parts::in_parts;

/// Why an expression is not compiled. It is asked of PostgreSQL instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The first thing met that is not compiled, for people to read.
    pub reason: String,
    /// Whether PostgreSQL raises an error for every statement with it, whatever else decides.
    pub always_fails: bool,
    /// Whether PostgreSQL raises an error whenever it comes to that, whatever the row.
    pub denied: bool,
}

impl Refusal {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            always_fails: false,
            denied: false,
        }
    }

    fn always(reason: impl Into<String>) -> Self {
        Self {
            always_fails: true,
            ..Self::new(reason)
        }
    }

    pub(super) fn denied(reason: impl Into<String>) -> Self {
        Self {
            denied: true,
            ..Self::new(reason)
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refusal {}

/// What an expression is compiled against: the table that it is a policy of, and what else the
/// catalog says.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// The server's major version.
    pub major: u16,
    /// The table's columns by `attnum`.
    pub columns: HashMap<i16, Column>,
    /// Enums, domains and collations.
    pub types: Types,
    /// The functions whose bodies may take their place.
    pub functions: HashMap<Oid, Function>,
    /// The tables that sub-selects may look into, by the role that looks: inside a SECURITY DEFINER
    /// body that is the function's owner.
    pub tables: HashMap<(Oid, Oid), Arc<Looked>>,
    /// As whom the policies run, and by which search path names are resolved in the bodies of
    /// functions that have none of their own.
    pub context: Context,
    /// What `current_setting` says of names beyond [`Setting::of`], in lower case.
    pub settings: HashMap<String, Setting>,
    /// What `pg_has_role` says of a role (the first), of the roles that it is asked about: whether
    /// it has the other's rights (`usage`), and whether it is one (`member`).
    pub memberships: HashMap<(Oid, Arc<str>), (bool, bool)>,
    /// What time it is on the server.
    pub clock: Arc<ServerClock>,
}

/// A table that sub-selects look into, as the role has it.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// Its name, for people to read.
    pub name: String,
    /// Its columns by `attnum`.
    pub columns: HashMap<i16, Column>,
    /// Why it cannot be looked into natively.
    pub refused: Option<String>,
    /// The columns that the role may read, by `attnum`; `None` for all there are.
    pub readable: Option<BTreeSet<i16>>,
    /// The policies of the table that apply to the role; `None` where no row-level security does.
    pub policies: Option<Vec<OwnPolicy>>,
    /// What it shows, where it is a view: its query as node tree, and the role with whose rights
    /// that reads where it is not whoever asks.
    pub view: Option<(Arc<str>, Option<Oid>)>,
}

/// A policy of a table that sub-selects look into.
#[derive(Debug, Clone)]
pub struct OwnPolicy {
    /// Its name.
    pub name: String,
    /// Permissive or restrictive.
    pub permissive: bool,
    /// Its `polqual::text`.
    pub tree: String,
    /// The objects that PostgreSQL noted it depends on.
    pub depends: BTreeSet<Reference>,
}

/// A column of the table (`pg_attribute`).
#[derive(Debug, Clone)]
pub struct Column {
    /// `attname`
    pub name: Arc<str>,
    /// `atttypid`
    pub type_oid: Oid,
    /// `atttypmod`
    pub type_modifier: i32,
    /// `attcollation`
    pub collation: Oid,
}

/// A function (`pg_proc`).
#[derive(Debug, Clone)]
pub struct Function {
    /// Its name, for people to read.
    pub name: String,
    /// `proargtypes`
    pub arguments: Vec<Oid>,
    /// `prorettype`
    pub result: Oid,
    /// What that is a row of, where it is one.
    pub row: Option<Returned>,
    /// `proretset`
    pub set: bool,
    /// `proisstrict`
    pub strict: bool,
    /// `proargdefaults::text`
    pub defaults: Option<Arc<str>>,
    /// The owner, by number and name, where that is whom it runs as (`prosecdef`).
    pub definer: Option<(Oid, Arc<str>)>,
    /// Whether there is a `proconfig`.
    pub configured: bool,
    /// Its own `search_path`.
    pub path: Option<Arc<str>>,
    /// Its own `row_security`.
    pub row_security: Option<bool>,
    /// The roles that may not execute it.
    pub barred: BTreeSet<Oid>,
    /// What it does, by how it runs, or why that is not known.
    pub bodies: HashMap<Context, Result<Body, String>>,
}

/// What `current_setting` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The claims as JSON text.
    Claims,
    /// The role.
    Role,
    /// Never set.
    Unset,
}

impl Setting {
    /// What a name means where nothing else is said: of the settings under `request.` only the
    /// claims are ever set.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "request.jwt.claims" => Some(Self::Claims),
            "role" => Some(Self::Role),
            _ => name.starts_with("request.").then_some(Self::Unset),
        }
    }
}

/// A compiled expression and what it was compiled from.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The expression.
    pub expr: Expr,
    /// The columns that it reads.
    pub columns: Vec<Arc<ColumnRef>>,
    /// The objects that the tree itself names, inlined bodies aside.
    pub references: BTreeSet<Reference>,
    /// Why PostgreSQL raises an error where it comes to that, as far as that is known beforehand.
    pub raising: BTreeSet<Raising>,
}

/// Why PostgreSQL raises an error where a part of an expression is evaluated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Raising {
    /// A function calls itself by way of the policies of a table that it reads.
    Recursion(Oid, String),
    /// A function's body needs a right that is not there.
    Denied(String),
    /// A setting is not there, and it is not said that it may be missing.
    Unset(String),
}

impl fmt::Display for Raising {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recursion(_, name) => write!(
                f,
                "function {name} calls itself by way of the policies of a table that it reads (stack \
                 depth limit exceeded)"
            ),
            Self::Denied(reason) => f.write_str(reason),
            Self::Unset(name) => write!(
                f,
                "setting {name} is not set, and current_setting is not told that it may be missing"
            ),
        }
    }
}

/// An object that an expression names. Of objects below 16384 only columns are listed: PostgreSQL
/// records dependencies on the others only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A column of the table, by `attnum`.
    Column(i16),
    /// Another table.
    Table(Oid),
    /// A column of another table, by `attnum`.
    Of(Oid, i16),
    /// A function.
    Function(Oid),
    /// An operator.
    Operator(Oid),
    /// A type.
    Type(Oid),
    /// A collation.
    Collation(Oid),
}

impl Reference {
    /// What a policy's tree names, as PostgreSQL notes it of that policy: its table is not noted,
    /// and that table's columns are without it.
    #[must_use]
    pub fn noted(of: &BTreeSet<Self>, policys_table: Oid) -> BTreeSet<Self> {
        let noted = |reference| match reference {
            Self::Table(oid) if oid == policys_table => None,
            Self::Of(oid, column) if oid == policys_table => Some(Self::Column(column)),
            other => Some(other),
        };
        of.iter().copied().filter_map(noted).collect()
    }
}

/// Compiles a policy's `polqual::text`.
///
/// # Errors
/// With the first thing met that is not compiled.
pub fn compile(tree: &str, scope: &Scope) -> Result<Compiled, Refusal> {
    if !node_tree::MAJORS.contains(&scope.major) {
        return Err(Refusal::new(format!(
            "server version {} is not known",
            scope.major
        )));
    }
    let tree = node_tree::read(tree)?;
    let mut compiler = Compiler::new(scope);
    let typed = compiler.expr(&tree, 0)?;
    if typed.oid != Oid(16) {
        return Err(Refusal::new("the expression is not boolean"));
    }
    Ok(Compiled {
        expr: typed.expr,
        columns: compiler.columns,
        references: compiler.references,
        raising: compiler.raising,
    })
}

/// Nodes in all, inlined bodies and copied arguments included.
const MAX_NODES: usize = 20_000;

/// How deep functions call functions.
const MAX_CALLS: usize = 16;

/// An expression with its declared type.
#[derive(Debug, Clone)]
struct Typed {
    expr: Expr,
    oid: Oid,
    /// What the copy of this costs.
    nodes: usize,
}

/// A query around.
#[derive(Debug, Clone)]
enum Around {
    /// That of the table itself.
    Own,
    /// One without a table.
    Nothing,
    /// A sub-select, with what its FROM has.
    From(Rc<[Origin]>),
}

/// Where the columns of an entry of FROM come from.
#[derive(Debug, Clone)]
enum Origin {
    /// A table, by its depth, and whether an outer join may give NULLs for it.
    Table(u32, Oid, bool),
    /// A join, by the expressions of its columns, which are read where the join stands.
    Join(Rc<Tree>),
    /// A sub-select, or a view.
    Columns(Option<Oid>, Rc<[Result<Typed, Refusal>]>),
}

/// A row that is handed to a function as a whole.
#[derive(Debug, Clone, Copy)]
struct Whole<'s> {
    /// Its type.
    of: Oid,
    /// The depth of the table that it is of, where it is not the row that is judged.
    looked: Option<(u32, &'s Looked)>,
}

struct Compiler<'s> {
    scope: &'s Scope,
    /// How the function or policy in hand runs.
    context: Context,
    /// The owner of the innermost SECURITY DEFINER function around.
    user: Option<Arc<str>>,
    /// With whose rights tables are looked into, where that is not who runs it: inside a view.
    reader: Option<Oid>,
    /// The views around, within the innermost function.
    views: Vec<Oid>,
    /// Whether row-level security may not leave out anything (`row_security = off`).
    unfiltered: bool,
    /// The arguments of the functions in FROM of the query in hand: they are evaluated before it.
    before: Vec<Expr>,
    /// The functions around, those around the policies in hand included.
    within: Vec<Oid>,
    /// The tables whose policies are being applied to the query in hand, as far as they look into
    /// tables themselves.
    applied: Vec<Option<Oid>>,
    columns: Vec<Arc<ColumnRef>>,
    references: BTreeSet<Reference>,
    /// The arguments of the functions being inlined, innermost last.
    calls: Vec<Vec<Typed>>,
    /// Whether PostgreSQL calls the innermost of them, so that its parameters stay that.
    called: bool,
    /// The operands of the simple CASEs and array coercions around, innermost last.
    tests: Vec<Typed>,
    /// The queries around, within the innermost function or policy; the innermost last.
    frames: Vec<Around>,
    /// What WITH names for the queries around, likewise.
    names: select::Names,
    /// The tables of sub-selects around, in all.
    looked: u32,
    /// What the sub-select gives whose comparison is in hand.
    output: Vec<Typed>,
    /// Whether the target list in hand may have a set of elements in it, and that set.
    expanding: Option<Option<super::expr::select::Step>>,
    /// The rows that are handed to functions as a whole. Such an argument is the place here.
    wholes: Vec<Whole<'s>>,
    /// The aggregates of the sub-select in hand, where it may have some.
    folding: Option<select::Folding>,
    /// Why what was compiled of them to an error is one.
    raising: BTreeSet<Raising>,
    nodes: usize,
}

impl<'s> Compiler<'s> {
    fn new(scope: &'s Scope) -> Self {
        Self {
            scope,
            context: scope.context.clone(),
            user: None,
            reader: None,
            views: Vec::new(),
            unfiltered: false,
            before: Vec::new(),
            within: Vec::new(),
            applied: Vec::new(),
            columns: Vec::new(),
            references: BTreeSet::new(),
            calls: Vec::new(),
            called: false,
            tests: Vec::new(),
            frames: vec![Around::Own],
            names: select::Names::default(),
            looked: 0,
            output: Vec::new(),
            expanding: None,
            folding: None,
            wholes: Vec::new(),
            raising: BTreeSet::new(),
            nodes: 0,
        }
    }

    /// Counts what is made, so that copied arguments cannot grow without bound.
    fn spend(&mut self, nodes: usize) -> Result<(), Refusal> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(Refusal::new("the expression is too large"));
        }
        Ok(())
    }

    /// What PostgreSQL raises an error for where it is evaluated.
    fn raise(&mut self, why: Raising) -> Expr {
        self.raising.insert(why);
        Expr::Fail(Trouble::Error)
    }

    fn refer(&mut self, reference: Reference) {
        let kept = match reference {
            Reference::Column(_) | Reference::Table(_) | Reference::Of(..) => true,
            Reference::Function(oid)
            | Reference::Operator(oid)
            | Reference::Type(oid)
            | Reference::Collation(oid) => oid.0 >= 16_384,
        };
        if kept && self.calls.is_empty() {
            self.references.insert(reference);
        }
    }

    /// A table as the role in force has it.
    fn table(&self, oid: Oid) -> Option<&'s Arc<Looked>> {
        let reader = self
            .reader
            .filter(|_| !crate::mutant::SelectMutant::ViewIsCaller.active());
        let role = reader.unwrap_or(self.context.role);
        let mine = self.scope.tables.get(&(role, oid));
        if crate::mutant::FunctionMutant::DefinerIsCaller.active() {
            let mut all = self.scope.tables.iter();
            let other = all.find(|((other, of), _)| *of == oid && *other != role);
            return other.map(|(_, table)| table).or(mine);
        }
        mine
    }

    fn type_of(&self, oid: Oid, collation: Oid) -> Result<Type, Refusal> {
        Type::of(oid, collation, &self.scope.types)
            .ok_or_else(|| Refusal::new(format!("type {oid} is not native")))
    }

    fn expr(&mut self, tree: &Tree, depth: usize) -> Result<Typed, Refusal> {
        // Inlined bodies nest inside each other's trees, so this is bounded anew.
        if depth > 400 {
            return Err(Refusal::new("the expression is nested too deeply"));
        }
        let before = self.nodes;
        self.spend(1)?;
        let node = tree.node(self.scope.major)?;
        let (expr, oid) = self.node(node, depth + 1)?;
        let expr = folded(expr, self.called)?;
        let nodes = self.nodes - before;
        Ok(Typed { expr, oid, nodes })
    }

    fn exprs(&mut self, list: &Tree, depth: usize) -> Result<Vec<Typed>, Refusal> {
        list.items()?
            .iter()
            .map(|item| self.expr(item, depth))
            .collect()
    }
}

/// What the planner makes of constants before it looks at the operation around: `NULL = error` is
/// NULL there. Where it would raise an error the policy is refused: the planner raises it even for
/// a branch that no row takes. In a function that is called a constant may be an argument, which the
/// planner does not know: what stands beside it may raise its error.
fn folded(expr: Expr, called: bool) -> Result<Expr, Refusal> {
    let beside = |all: &[Expr]| called && all.iter().any(Expr::may_raise);
    let truth = |expr: &Expr| match expr {
        Expr::Const(Constant(datum)) => Some(*datum == Some(Datum::Bool(true))),
        _ => None,
    };
    let expr = match expr {
        Expr::Coalesce(mut all) => {
            all.retain(|one| *one != Expr::NULL);
            match all.first() {
                None => Expr::NULL,
                Some(first @ Expr::Const(_)) => first.clone(),
                Some(_) => Expr::Coalesce(all),
            }
        }
        Expr::Case(mut whens, mut otherwise) => {
            whens.retain(|(when, _)| truth(when) != Some(false));
            if let Some(at) = whens.iter().position(|(when, _)| truth(when) == Some(true)) {
                let (_, then) = whens.swap_remove(at);
                whens.truncate(at);
                otherwise = Box::new(then);
            }
            if whens.is_empty() {
                *otherwise
            } else {
                Expr::Case(whens, otherwise)
            }
        }
        Expr::And(all) if all.contains(&Expr::constant(Datum::Bool(false))) && !beside(&all) => {
            Expr::constant(Datum::Bool(false))
        }
        Expr::Or(all) if all.contains(&Expr::constant(Datum::Bool(true))) && !beside(&all) => {
            Expr::constant(Datum::Bool(true))
        }
        other => other,
    };
    let children = expr.children();
    let constant = children.iter().all(|child| matches!(child, Expr::Const(_)));
    let later = matches!(expr, Expr::Body(..) | Expr::Select(_) | Expr::Recursive(_));
    if children.is_empty() || !constant || later {
        return Ok(expr);
    }
    match expr.outcome(Inputs::default()) {
        Ok(datum) => Ok(Expr::Const(Constant(datum))),
        Err(_) => Err(Refusal::always("a constant that raises an error")),
    }
}

#[cfg(test)]
mod tests;
