//! FROM: tables, joins, sub-selects and what WITH names.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::super::{Around, Compiler, Origin, Reference, Refusal, Typed};
use super::{FIELDS, MAX_DEPTH, plain};
use crate::pg::Oid;
use crate::policy::compile::arrays::sets_in;
use crate::policy::expr::Expr;
use crate::policy::expr::select::{Several, Source, Step};
use crate::policy::node_tree::{self, Node, Tree};

/// The fields of an entry of FROM, whatever it is. That the columns which are read may be read is
/// not looked at here.
pub(super) const ENTRY: [&str; 11] = [
    "alias",
    "eref",
    "rtekind",
    "relid",
    "relkind",
    "rellockmode",
    "perminfoindex",
    "inh",
    "inFromCl",
    "requiredPerms",
    "selectedCols",
];

/// The fields of a sub-select in FROM besides.
const SUBQUERY: [&str; 3] = ["subquery", "security_barrier", "lateral"];

/// The fields of a join besides.
const JOIN: [&str; 6] = [
    "jointype",
    "joinmergedcols",
    "joinaliasvars",
    "joinleftcols",
    "joinrightcols",
    "join_using_alias",
];

/// The fields of a function besides.
const CALLED: [&str; 2] = ["functions", "lateral"];

/// The fields of one of its calls.
const CALL: [&str; 7] = [
    "funcexpr",
    "funccolcount",
    "funccolnames",
    "funccoltypes",
    "funccoltypmods",
    "funccolcollations",
    "funcparams",
];

/// The entries of FROM: what their columns are, and the tables in each.
#[derive(Default)]
struct Entries {
    origins: Vec<Origin>,
    steps: BTreeMap<usize, Vec<Step>>,
}

fn refuse() -> Refusal {
    Refusal::new("a sub-select over something else than tables and joins of them")
}

/// Refuses columns that are computed, where an outer join may make them NULL.
fn only_plain(columns: &mut [Result<Typed, Refusal>]) {
    for column in columns {
        let plain = |one: &Typed| matches!(one.expr, Expr::Inner(..));
        if !column.as_ref().is_ok_and(plain) {
            *column = Err(Refusal::new("an outer join with what is computed"));
        }
    }
}

impl Compiler<'_> {
    /// The tables of a query with its conditions, and what is made of its columns.
    pub(super) fn within<R>(
        &mut self,
        query: &Node,
        depth: usize,
        made: impl FnOnce(&mut Self) -> Result<R, Refusal>,
    ) -> Result<(Vec<Step>, R), Refusal> {
        // Sub-selects in FROM see what is around the query, and nothing of it.
        self.frames.push(Around::Nothing);
        let made = self.naming(query, |compiler| {
            let mut entries = compiler.entries(query, depth)?;
            compiler.stand(&entries);
            let steps = compiler.joined_all(query, &mut entries, depth)?;
            Ok((steps, made(compiler)?))
        });
        self.frames.pop();
        made
    }

    /// The same, where the target list may have a set of elements in it.
    pub(super) fn within_expanded<R>(
        &mut self,
        query: &Node,
        depth: usize,
        made: impl FnOnce(&mut Self) -> Result<R, Refusal>,
    ) -> Result<(Vec<Step>, R), Refusal> {
        if !query.flag("hasTargetSRFs")? {
            return self.within(query, depth, made);
        }
        let refuse = || Refusal::new("a set in the columns of a sub-select");
        if sets_in(query.field("targetList")?) != 1 {
            return Err(refuse());
        }
        let (mut steps, (expanded, made)) = self.within(query, depth, |compiler| {
            let around = compiler.expanding.replace(None);
            let made = made(compiler);
            let expanded = std::mem::replace(&mut compiler.expanding, around);
            Ok((expanded.flatten(), made?))
        })?;
        steps.push(expanded.ok_or_else(refuse)?);
        Ok((steps, made))
    }

    /// Has what is compiled next see the entries of FROM that are there.
    fn stand(&mut self, entries: &Entries) {
        if let Some(frame) = self.frames.last_mut() {
            *frame = Around::From(Rc::from(entries.origins.as_slice()));
        }
    }

    fn entries(&mut self, query: &Node, depth: usize) -> Result<Entries, Refusal> {
        let mut nullable = BTreeSet::new();
        self.nullable(query.field("jointree")?, false, &mut nullable)?;
        let mut entries = Entries::default();
        for (at, entry) in query.field("rtable")?.items()?.iter().enumerate() {
            let entry = entry.node(self.scope.major)?;
            if !matches!(entry.name.as_str(), "RTE" | "RANGETBLENTRY") {
                return Err(refuse());
            }
            for name in ["alias", "eref"] {
                match entry.field(name)? {
                    Tree::Null => {}
                    alias if alias.node(self.scope.major)?.name == "ALIAS" => {}
                    _ => return Err(refuse()),
                }
            }
            let origin = match entry.number::<u8>("rtekind")? {
                // Until PostgreSQL 15 a view names itself, as what rules call OLD and NEW.
                0 if !entry.flag("inFromCl")?
                    && self.views.last() == Some(&entry.oid("relid")?) =>
                {
                    Origin::Columns(None, Rc::default())
                }
                0 if entry.number::<char>("relkind")? == 'v' => {
                    let (origin, steps) =
                        self.view_in((query, entry), nullable.contains(&(at + 1)), depth)?;
                    entries.steps.insert(at + 1, steps);
                    origin
                }
                0 => {
                    let (origin, step) =
                        self.table_in((query, entry), nullable.contains(&(at + 1)), depth)?;
                    entries.steps.insert(at + 1, vec![step]);
                    origin
                }
                1 => {
                    if !entry.has_only(&[&ENTRY[..], &SUBQUERY].concat())
                        || entry.flag("security_barrier")?
                    {
                        return Err(refuse());
                    }
                    // LATERAL sees those before; of others PostgreSQL has seen to it.
                    self.stand(&entries);
                    let (steps, mut columns) = self.pulled(entry.field("subquery")?, depth)?;
                    entries.steps.insert(at + 1, steps);
                    if nullable.contains(&(at + 1)) {
                        only_plain(&mut columns);
                    }
                    Origin::Columns(None, columns.into())
                }
                6 => {
                    let (steps, columns) = self.named_in(entry, depth)?;
                    entries.steps.insert(at + 1, steps);
                    let mut columns = columns.to_vec();
                    if nullable.contains(&(at + 1)) {
                        only_plain(&mut columns);
                    }
                    Origin::Columns(None, columns.into())
                }
                3 if entry.has_only(&[&ENTRY[..], &CALLED].concat()) => {
                    let [call] = entry.field("functions")?.items()? else {
                        return Err(refuse());
                    };
                    let call = call.node(self.scope.major)?;
                    if call.name != "RANGETBLFUNCTION" || !call.has_only(&CALL) {
                        return Err(refuse());
                    }
                    if nullable.contains(&(at + 1)) {
                        return Err(Refusal::new("an outer join with a function"));
                    }
                    self.stand(&entries);
                    let (steps, columns) = self.called_in(call.field("funcexpr")?, depth)?;
                    entries.steps.insert(at + 1, steps);
                    let columns = columns.into_iter().map(Ok).collect::<Vec<_>>();
                    Origin::Columns(None, columns.into())
                }
                2 if entry.has_only(&[&ENTRY[..], &JOIN].concat()) => {
                    Origin::Join(Rc::new(entry.field("joinaliasvars")?.clone()))
                }
                _ => return Err(refuse()),
            };
            entries.origins.push(origin);
        }
        Ok(entries)
    }

    /// The entries that an outer join may give NULLs for.
    fn nullable(
        &self,
        tree: &Tree,
        within: bool,
        found: &mut BTreeSet<usize>,
    ) -> Result<(), Refusal> {
        let node = tree.node(self.scope.major)?;
        match node.name.as_str() {
            "FROMEXPR" => {
                for one in node.field("fromlist")?.items()? {
                    self.nullable(one, within, found)?;
                }
            }
            "JOINEXPR" => {
                let kind = node.number::<u8>("jointype")?;
                self.nullable(node.field("larg")?, within || kind == 3, found)?;
                self.nullable(node.field("rarg")?, within || kind == 1, found)?;
            }
            "RANGETBLREF" if within => {
                found.insert(node.number("rtindex")?);
            }
            _ => {}
        }
        Ok(())
    }

    fn table_in(
        &mut self,
        (query, entry): (&Node, &Node),
        nullable: bool,
        depth: usize,
    ) -> Result<(Origin, Step), Refusal> {
        let oid = entry.oid("relid")?;
        if !entry.has_only(&ENTRY) {
            return Err(Refusal::new(
                "a table in FROM with more to it than its name",
            ));
        }
        // `only` leaves the partitions' rows out.
        if entry.number::<char>("relkind")? == 'p' && !entry.flag("inh")? {
            return Err(Refusal::new("a partitioned table without its partitions"));
        }
        self.rights_of(query, entry, oid)?;
        let table = self.table(oid);
        let table = table.ok_or_else(|| Refusal::new(format!("table {oid} is not known")))?;
        if let Some(reason) = &table.refused {
            return Err(Refusal::new(reason.clone()));
        }
        if self.looked >= MAX_DEPTH {
            return Err(Refusal::new("sub-selects inside each other too deeply"));
        }
        self.secured(table)?;
        self.refer(Reference::Table(oid));
        let place = self.looked;
        let origin = Origin::Table(place, oid, nullable);
        let mut step = Step::table(oid, place);
        self.looked += 1;
        // Its policies leave rows out before an outer join does.
        let around = Around::From(Rc::from([Origin::Table(place, oid, false)]));
        step.condition = self.own((oid, table), around, depth)?;
        Ok((origin, step))
    }

    /// A view, as if its tables stood there.
    fn view_in(
        &mut self,
        (query, entry): (&Node, &Node),
        nullable: bool,
        depth: usize,
    ) -> Result<(Origin, Vec<Step>), Refusal> {
        let oid = entry.oid("relid")?;
        if !entry.has_only(&ENTRY) {
            return Err(Refusal::new("a view in FROM with more to it than its name"));
        }
        self.rights_of(query, entry, oid)?;
        let known = self.table(oid);
        let known = known.ok_or_else(|| Refusal::new(format!("view {oid} is not known")))?;
        let refuse = |why: &str| Refusal::new(format!("view {}: {why}", known.name));
        if let Some(reason) = &known.refused {
            return Err(Refusal::new(reason.clone()));
        }
        let Some((tree, reader)) = &known.view else {
            return Err(refuse("is not known"));
        };
        if self.views.contains(&oid) {
            return Err(refuse("reads itself"));
        }
        self.refer(Reference::Table(oid));
        let tree = node_tree::read(tree)?;
        let [tree] = tree.items()? else {
            return Err(refuse("is not one query"));
        };
        let references = self.references.clone();
        let around = std::mem::replace(&mut self.reader, *reader);
        self.views.push(oid);
        let permitted = self.permitted(tree);
        let pulled = permitted.and_then(|()| self.pulled(tree, depth + 1));
        self.views.pop();
        self.reader = around;
        // What it names is nothing that the policy depends on.
        self.references = references;
        let (steps, mut columns) = pulled.map_err(|refusal| Refusal {
            reason: format!("view {}: {}", known.name, refusal.reason),
            ..refusal
        })?;
        if nullable {
            only_plain(&mut columns);
        }
        Ok((Origin::Columns(Some(oid), columns.into()), steps))
    }

    /// From PostgreSQL 16 on the rights to a table stand beside it.
    fn rights_of(&self, query: &Node, entry: &Node, oid: Oid) -> Result<(), Refusal> {
        let apart = |node: &Node, name: &str| node.fields.iter().any(|(label, _)| label == name);
        if !apart(entry, "perminfoindex") {
            return Ok(());
        }
        let index = entry.number::<usize>("perminfoindex")?;
        let rights = query.field("rteperminfos")?.items()?;
        let rights = index.checked_sub(1).and_then(|index| rights.get(index));
        let rights = rights.ok_or_else(refuse)?.node(self.scope.major)?;
        let plain = ["relid", "inh", "requiredPerms", "selectedCols"];
        if rights.oid("relid")? != oid || !rights.has_only(&plain) {
            return Err(refuse());
        }
        Ok(())
    }

    /// The call in `select * from f(…)` of a function that returns a set of values.
    pub(super) fn called_alone<'t>(&self, query: &'t Node) -> Result<Option<&'t Node>, Refusal> {
        let plain = [
            "commandType",
            "canSetTag",
            "rtable",
            "jointree",
            "targetList",
            "stmt_location",
            "stmt_len",
        ];
        if query.name != "QUERY" || !query.has_only(&plain) {
            return Ok(None);
        }
        let from = query.field("jointree")?.node(self.scope.major)?;
        let ([entry], [target]) = (
            query.field("rtable")?.items()?,
            query.field("targetList")?.items()?,
        ) else {
            return Ok(None);
        };
        let entry = entry.node(self.scope.major)?;
        let target = target.node(self.scope.major)?;
        let column = target.field("expr")?.node(self.scope.major)?;
        let one = matches!(entry.name.as_str(), "RTE" | "RANGETBLENTRY")
            && entry.number::<u8>("rtekind")? == 3
            && entry.has_only(&[&ENTRY[..], &CALLED].concat())
            && from.has_only(&["fromlist"])
            && from.field("fromlist")?.items()?.len() == 1
            && target.name == "TARGETENTRY"
            && !target.flag("resjunk")?
            && column.name == "VAR"
            && column.number::<u32>("varlevelsup")? == 0
            && column.number::<i16>("varattno")? == 1;
        if !one {
            return Ok(None);
        }
        let [call] = entry.field("functions")?.items()? else {
            return Ok(None);
        };
        let call = call.node(self.scope.major)?;
        if call.name != "RANGETBLFUNCTION" || !call.has_only(&CALL) {
            return Ok(None);
        }
        let call = call.field("funcexpr")?.node(self.scope.major)?;
        Ok((call.name == "FUNCEXPR" && call.flag("funcretset")?).then_some(call))
    }

    /// The tables that a function in FROM looks into, and its columns.
    fn called_in(&mut self, call: &Tree, depth: usize) -> Result<(Vec<Step>, Vec<Typed>), Refusal> {
        let node = call.node(self.scope.major)?;
        if node.name != "FUNCEXPR" || !node.flag("funcretset")? {
            return Err(Refusal::new("a function in FROM that gives one value"));
        }
        let (rows, before) = self.rows_of_call(node, depth)?;
        // What is evaluated before is so only once, whatever rows there are.
        if before.iter().any(Expr::reads_inner) {
            return Err(Refusal::new("a function of the tables beside it in FROM"));
        }
        self.before.extend(before);
        let mut rows = rows.into_iter();
        match (rows.next(), rows.next()) {
            (Some(rows), None) if rows.several == Several::Raise => Ok((rows.from, rows.values)),
            _ => Err(Refusal::new("a function in FROM of several sub-selects")),
        }
    }

    /// The tables and columns of a sub-select in FROM that is as if its tables stood there.
    #[allow(clippy::type_complexity, reason = "a name would not say more")]
    pub(super) fn pulled(
        &mut self,
        query: &Tree,
        depth: usize,
    ) -> Result<(Vec<Step>, Vec<Result<Typed, Refusal>>), Refusal> {
        let query = query.node(self.scope.major)?;
        let beyond =
            |field: &&str| !matches!(*field, "distinctClause" | "sortClause" | "limitCount");
        let fields: Vec<&str> = FIELDS.iter().copied().filter(beyond).collect();
        plain(query, &fields)?;
        self.within_expanded(query, depth, |compiler| {
            let mut columns = Vec::new();
            for target in query.field("targetList")?.items()? {
                let target = target.node(compiler.scope.major)?;
                if target.name != "TARGETENTRY" || target.flag("resjunk")? {
                    return Err(refuse());
                }
                let expr = target.field("expr")?;
                let node = expr.node(compiler.scope.major)?;
                // A column of a type that is not native does no harm where nothing reads it.
                columns.push(if node.name == "VAR" {
                    compiler.mention(node)?;
                    compiler.expr(expr, depth)
                } else {
                    Ok(compiler.expr(expr, depth)?)
                });
            }
            Ok(columns)
        })
    }

    fn joined_all(
        &mut self,
        query: &Node,
        entries: &mut Entries,
        depth: usize,
    ) -> Result<Vec<Step>, Refusal> {
        let from = query.field("jointree")?.node(self.scope.major)?;
        if from.name != "FROMEXPR" {
            return Err(refuse());
        }
        let mut steps = Vec::new();
        if from.field("fromlist")?.items()?.is_empty() {
            steps.push(Step::in_hand());
        }
        for one in from.field("fromlist")?.items()? {
            steps.extend(self.joined(one, entries, depth)?);
        }
        self.demand_of(&mut steps, from.field("quals")?, depth)?;
        Ok(steps)
    }

    fn joined(
        &mut self,
        tree: &Tree,
        entries: &mut Entries,
        depth: usize,
    ) -> Result<Vec<Step>, Refusal> {
        if depth > 400 {
            return Err(Refusal::new("the expression is nested too deeply"));
        }
        let node = tree.node(self.scope.major)?;
        match node.name.as_str() {
            "RANGETBLREF" => {
                let steps = entries.steps.remove(&node.number("rtindex")?);
                steps.ok_or_else(refuse)
            }
            "JOINEXPR" => {
                let mut left = self.joined(node.field("larg")?, entries, depth + 1)?;
                let mut right = self.joined(node.field("rarg")?, entries, depth + 1)?;
                let kind = node.number::<u8>("jointype")?;
                if kind == 3 {
                    std::mem::swap(&mut left, &mut right);
                }
                match kind {
                    0 => {
                        left.extend(right);
                        self.demand_of(&mut left, node.field("quals")?, depth)?;
                    }
                    1 | 3 => {
                        self.demand_of(&mut right, node.field("quals")?, depth)?;
                        left.push(Step {
                            source: Source::Optional(right),
                            condition: Vec::new(),
                        });
                    }
                    _ => return Err(Refusal::new("a full outer join")),
                }
                Ok(left)
            }
            _ => Err(refuse()),
        }
    }

    /// Adds a condition on all of some tables.
    fn demand_of(&mut self, steps: &mut [Step], quals: &Tree, depth: usize) -> Result<(), Refusal> {
        let last = steps.last_mut().ok_or_else(refuse)?;
        if *quals != Tree::Null {
            last.condition.push(self.boolean(quals, depth)?);
        }
        Ok(())
    }
}
