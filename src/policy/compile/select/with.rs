//! What WITH names: a sub-select that stands where it is named, or rows found from rows found before.

use std::rc::Rc;

use super::super::{Around, Compiler, Reference, Refusal, Typed, operators};
use super::from::ENTRY;
use super::{Rows, plain, set};
use crate::pg::Oid;
use crate::policy::expr::select::{MAX_WIDTH, Recursion, Several, Step};
use crate::policy::expr::{ArrayFunction, Comparison, Expr, Function};
use crate::policy::node_tree::{Node, Tree};

/// The fields of an entry of FROM besides.
const NAMED: [&str; 6] = [
    "ctename",
    "ctelevelsup",
    "self_reference",
    "coltypes",
    "coltypmods",
    "colcollations",
];

/// The fields of what WITH names.
const PLAIN: [&str; 11] = [
    "ctename",
    "aliascolnames",
    "ctematerialized",
    "ctequery",
    "location",
    "cterecursive",
    "cterefcount",
    "ctecolnames",
    "ctecoltypes",
    "ctecoltypmods",
    "ctecolcollations",
];

/// The WITH of a query around.
pub(in crate::policy::compile) struct With {
    /// How many queries there are to the one that it stands in.
    at: usize,
    list: Rc<Tree>,
}

/// The columns of what stands in FROM.
type Columns = Rc<[Result<Typed, Refusal>]>;

/// What is being found from rows found before, where it names itself.
pub(in crate::policy::compile) struct Working {
    at: usize,
    name: Tree,
    columns: Columns,
}

/// What WITH has named for the queries in hand.
#[derive(Default)]
pub(in crate::policy::compile) struct Names {
    withs: Vec<With>,
    working: Vec<Working>,
}

impl Compiler<'_> {
    /// Does something with what the WITH of the query in hand names.
    pub(super) fn naming<R>(
        &mut self,
        query: &Node,
        compile: impl FnOnce(&mut Self) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let list = query.field("cteList")?;
        if *list == Tree::Null {
            return compile(self);
        }
        self.names.withs.push(With {
            at: self.frames.len(),
            list: Rc::new(list.clone()),
        });
        let compiled = compile(self);
        self.names.withs.pop();
        compiled
    }

    /// An entry of FROM that WITH names: its columns, and the tables in it.
    pub(super) fn named_in(
        &mut self,
        entry: &Node,
        depth: usize,
    ) -> Result<(Vec<Step>, Columns), Refusal> {
        let refuse = || Refusal::new("WITH of another kind");
        if !entry.has_only(&[&ENTRY[..], &NAMED].concat()) {
            return Err(refuse());
        }
        let name = entry.field("ctename")?;
        let level = entry.number::<usize>("ctelevelsup")?;
        let at = self.frames.len().checked_sub(level).ok_or_else(refuse)?;
        if entry.flag("self_reference")? {
            let mut working = self.names.working.iter().rev();
            let one = working.find(|one| one.at == at && one.name == *name);
            let columns = Rc::clone(&one.ok_or_else(refuse)?.columns);
            return Ok((vec![Step::in_hand()], columns));
        }
        let mut withs = self.names.withs.iter().rev();
        let with = withs.find(|with| with.at == at).ok_or_else(refuse)?;
        let list = Rc::clone(&with.list);
        for one in list.items()? {
            let one = one.node(self.scope.major)?;
            if one.field("ctename")? != name || !one.has_only(&PLAIN) {
                continue;
            }
            let query = one.field("ctequery")?;
            return self.outside(level, |compiler| {
                if one.flag("cterecursive")? {
                    return compiler.recursive(name, query, depth);
                }
                let (steps, columns) = compiler.pulled(query, depth)?;
                Ok((steps, columns.into()))
            });
        }
        Err(refuse())
    }

    fn recursive(
        &mut self,
        name: &Tree,
        query: &Tree,
        depth: usize,
    ) -> Result<(Vec<Step>, Columns), Refusal> {
        let refuse = || Refusal::new("WITH RECURSIVE of another kind");
        let query = query.node(self.scope.major)?;
        plain(query, &set::FIELDS)?;
        let union = query.field("setOperations")?.node(self.scope.major)?;
        if union.name != "SETOPERATIONSTMT" || union.number::<u8>("op")? != 1 {
            return Err(refuse());
        }
        let all = union.flag("all")?;
        self.equalities(union, all)?;
        let types = union.field("colTypes")?;
        let own = self.looked;
        let at = self.frames.len();
        self.looked += 1;
        self.frames.push(Around::Nothing);
        let found = self.found(query, (union, all), (name, own, at), depth);
        self.frames.pop();
        self.looked = own + 1;
        let (first, next, columns) = found?;
        let given: Vec<i64> = columns
            .iter()
            .flatten()
            .map(|one| i64::from(one.oid.0))
            .collect();
        if !matches!(types, Tree::Numbers(types) if *types == given) {
            return Err(refuse());
        }
        let recursion = Recursion {
            depth: own,
            distinct: !all,
            first,
            next,
        };
        let step = Step::rows(Expr::Recursive(Box::new(recursion)), own);
        Ok((vec![step], columns))
    }

    /// What is found first, what is found from it, and the columns.
    #[allow(clippy::type_complexity, reason = "a name would not say more")]
    fn found(
        &mut self,
        query: &Node,
        (union, all): (&Node, bool),
        (name, own, at): (&Tree, u32, usize),
        depth: usize,
    ) -> Result<(Vec<Expr>, Vec<Expr>, Columns), Refusal> {
        let looked = self.looked;
        let first = self.operation(query, union.field("larg")?, depth + 1)?;
        let oids = |rows: &Rows| rows.values.iter().map(|one| one.oid).collect::<Vec<_>>();
        let types: Vec<Oid> = first.first().map(oids).unwrap_or_default();
        if types.is_empty() || types.len() > MAX_WIDTH {
            return Err(Refusal::new("WITH RECURSIVE of too many columns"));
        }
        for oid in types.iter().filter(|_| !all) {
            self.told_apart_by_equality(*oid)?;
        }
        let columns = types.iter().enumerate().map(|(place, oid)| {
            Ok(Typed {
                expr: Expr::Field(own, place),
                oid: *oid,
                nodes: 1,
            })
        });
        let columns: Columns = columns.collect();
        self.names.working.push(Working {
            at,
            name: name.clone(),
            columns: Rc::clone(&columns),
        });
        self.looked = looked;
        let next = self.operation(query, union.field("rarg")?, depth + 1);
        self.names.working.pop();
        let next = next?;
        let mut both = first.iter().chain(&next);
        if !both.all(|rows| oids(rows) == types) {
            return Err(Refusal::new("WITH RECURSIVE of different types"));
        }
        // Those that a part counts once are so often there as they are.
        let once =
            |rows: &[Rows]| rows.len() == 1 && rows.iter().all(|one| one.several == Several::Raise);
        if all && !(once(&first) && once(&next)) {
            return Err(Refusal::new("WITH RECURSIVE of several parts"));
        }
        // Each row is an array of its values.
        let array = |mut rows: Rows| {
            let values = std::mem::take(&mut rows.values).into_iter();
            let values = values.map(|one| one.expr).collect();
            let row = Expr::Call(Function::Array(ArrayFunction::Make), values);
            rows.array(row, own + 1)
        };
        let arrays = |all: Vec<Rows>| all.into_iter().map(array).collect();
        Ok((arrays(first), arrays(next), columns))
    }

    /// Notes by what a set operation tells its rows apart.
    pub(super) fn equalities(&mut self, operation: &Node, all: bool) -> Result<(), Refusal> {
        for group in operation.field("groupClauses")?.items()? {
            let group = group.node(self.scope.major)?;
            let equal = group.oid("eqop")?;
            self.refer(Reference::Operator(equal));
            let known = operators::comparison(equal);
            if known.is_none_or(|known| known.comparison != Comparison::Eq) {
                return Err(Refusal::new(format!("operator {equal} is not compiled")));
            }
        }
        // Text is equal where its bytes are.
        if let Tree::Numbers(collations) = operation.field("colCollations")? {
            for collation in collations {
                let collation = u32::try_from(*collation).map_err(|_| Refusal::new("malformed"))?;
                if collation != 0 && !all {
                    self.demand(operators::Demand::Deterministic, Oid(collation))?;
                }
            }
        }
        Ok(())
    }
}
