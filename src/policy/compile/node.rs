//! Every node that is compiled.

use std::sync::Arc;

use super::operators::{self, Compared};
use super::{
    Around, Column, ColumnRef, Compiler, Origin, Reference, Refusal, Typed, Whole, constant,
};
use crate::datum::{Datum, Type};
use crate::mutant::FunctionMutant;
use crate::pg::Oid;
use crate::policy::expr::{Comparison, Constant, Expr, Function};
use crate::policy::node_tree::{Node, Tree};

const BOOL: Oid = Oid(16);
const UNKNOWN: Oid = Oid(705);

/// The fields of a reference to a column of the row.
const PLAIN_VAR: [&str; 9] = [
    "varno",
    "varattno",
    "vartype",
    "vartypmod",
    "varcollid",
    "varlevelsup",
    "varnosyn",
    "varattnosyn",
    "location",
];

/// The number of a parameter that stands by itself.
fn parameter(tree: &Tree) -> Option<usize> {
    match tree {
        Tree::Node(node) if node.name == "RELABELTYPE" => parameter(node.field("arg").ok()?),
        Tree::Node(node) if node.name == "PARAM" => node.number("paramid").ok(),
        _ => None,
    }
}

/// Whether a parameter is anywhere in an expression.
fn names_parameter(tree: &Tree, parameter: usize) -> bool {
    match tree {
        Tree::List(items) => items.iter().any(|item| names_parameter(item, parameter)),
        Tree::Node(node) => {
            node.name == "PARAM" && node.number("paramid") == Ok(parameter)
                || (node.fields.iter()).any(|(_, field)| names_parameter(field, parameter))
        }
        Tree::Null | Tree::Numbers(_) | Tree::Bytes(_) | Tree::Atom(_) => false,
    }
}

fn beyond() -> Refusal {
    Refusal::new("VAR of another relation or a system column")
}

impl Compiler<'_> {
    pub(super) fn node(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        match node.name.as_str() {
            "VAR" => self.variable(node),
            "CONST" => self.constant(node),
            "PARAM" => self.parameter(node),
            "FIELDSELECT" => self.field(node, depth),
            "FUNCEXPR" => self.function(node, depth),
            "OPEXPR" => self.operator(node, depth),
            "DISTINCTEXPR" => {
                let (two, _) = self.compared(node, depth)?;
                Ok((Expr::Distinct(two), BOOL))
            }
            "NULLIFEXPR" => {
                let (two, oid) = self.compared(node, depth)?;
                // The result is the first operand, so its type must be the operator's.
                if node.oid("opresulttype")? != oid {
                    return Err(Refusal::new("NULLIFEXPR of another type"));
                }
                // So the planner has it: the other operand may then raise what it likes.
                if two.0 == Expr::NULL || two.1 == Expr::NULL {
                    return Ok((two.0, oid));
                }
                Ok((Expr::NullIf(two), oid))
            }
            "SCALARARRAYOPEXPR" => self.any(node, depth),
            "ARRAYEXPR" | "ARRAY" => self.constructor(node, depth),
            "ARRAYCOERCEEXPR" => self.coerced(node, depth),
            "SUBSCRIPTINGREF" => self.subscript(node, depth),
            "MINMAXEXPR" | "MINMAX" => self.extreme(node, depth),
            "BOOLEXPR" => self.logic(node, depth),
            "NULLTEST" => {
                if node.flag("argisrow")? {
                    return Err(Refusal::new("NULLTEST of a row"));
                }
                let arg = Box::new(self.expr(node.field("arg")?, depth)?.expr);
                Ok((
                    Expr::IsNull(arg, node.number::<u8>("nulltesttype")? != 0),
                    BOOL,
                ))
            }
            "BOOLEANTEST" => {
                let arg = self.boolean(node.field("arg")?, depth)?;
                let (value, negated) = match node.number::<u8>("booltesttype")? {
                    0 => (Some(true), false),
                    1 => (Some(true), true),
                    2 => (Some(false), false),
                    3 => (Some(false), true),
                    4 => (None, false),
                    5 => (None, true),
                    _ => return Err(Refusal::new("BOOLEANTEST of another kind")),
                };
                Ok((Expr::IsBool(Box::new(arg), value, negated), BOOL))
            }
            "COALESCEEXPR" | "COALESCE" => {
                let oid = node.oid("coalescetype")?;
                let args = self.exprs(node.field("args")?, depth)?;
                if args.iter().any(|arg| arg.oid != oid) {
                    return Err(Refusal::new("COALESCEEXPR of other types"));
                }
                Ok((
                    Expr::Coalesce(args.into_iter().map(|arg| arg.expr).collect()),
                    oid,
                ))
            }
            "CASEEXPR" | "CASE" => self.case(node, depth),
            "CASETESTEXPR" => {
                let test = self.tests.last().cloned();
                let test = test.ok_or_else(|| Refusal::new("CASETESTEXPR outside a case"))?;
                if node.oid("typeId")? != test.oid {
                    return Err(Refusal::new("CASETESTEXPR of another type"));
                }
                self.spend(test.nodes)?;
                Ok((test.expr, test.oid))
            }
            "RELABELTYPE" => self.relabel(node, depth),
            "COLLATEEXPR" | "COLLATE" => {
                self.refer(Reference::Collation(node.oid("collOid")?));
                let arg = self.expr(node.field("arg")?, depth)?;
                Ok((arg.expr, arg.oid))
            }
            "COERCEVIAIO" => self.through_text(node, depth),
            "SUBLINK" => {
                let folding = self.folding.take();
                let sublink = self.sublink(node, depth);
                self.folding = folding;
                sublink
            }
            "AGGREF" => self.aggregate(node, depth),
            "SQLVALUEFUNCTION" => self.value_function(node),
            other => Err(Refusal::new(format!("{other} is not compiled"))),
        }
    }

    /// Notes that a column is named.
    pub(super) fn mention(&mut self, node: &Node) -> Result<(), Refusal> {
        match self.origin(node)? {
            Some((Origin::Table(..), _, _)) | None => self.column_of(node).map(|_| ()),
            Some((Origin::Columns(view, _), number, _)) => {
                self.of_view(view, number);
                Ok(())
            }
            Some((Origin::Join(columns), number, level)) => {
                let merged = columns.items()?.get(number).cloned();
                let merged = merged.ok_or_else(beyond)?;
                self.outside(level, |compiler| {
                    let node = merged.node(compiler.scope.major)?;
                    if node.name == "VAR" {
                        return compiler.mention(node);
                    }
                    compiler.expr(&merged, 0).map(|_| ())
                })
            }
        }
    }

    /// What of FROM a column is of, its place there and how many queries are in between; `None`
    /// where it is one of the table itself.
    fn origin(&self, node: &Node) -> Result<Option<(Origin, usize, usize)>, Refusal> {
        let number = node.number::<usize>("varattno").ok();
        if number == Some(0) {
            return Err(Refusal::new("a row as a whole"));
        }
        let number = number.and_then(|number| number.checked_sub(1));
        let number = number.ok_or_else(beyond)?;
        let level = node.number::<usize>("varlevelsup")?;
        let entry = node.number::<usize>("varno")?.checked_sub(1);
        // What an outer join makes NULL is so where the column is read.
        let more = ["varnullingrels"];
        if !node.has_only(&[&PLAIN_VAR[..], &more].concat()) {
            return Err(Refusal::new("VAR with more to it than its column"));
        }
        match (self.frames.iter().rev().nth(level), entry) {
            (Some(Around::From(origins)), Some(entry)) => {
                let origin = origins.get(entry).ok_or_else(beyond)?;
                Ok(Some((origin.clone(), number, level)))
            }
            // No join of a query inside makes these NULL.
            (Some(Around::Own), Some(0)) if node.has_only(&PLAIN_VAR) => Ok(None),
            _ => Err(beyond()),
        }
    }

    /// Notes that a column of a view is named.
    fn of_view(&mut self, view: Option<Oid>, place: usize) {
        if let (Some(view), Ok(number)) = (view, i16::try_from(place + 1)) {
            self.refer(Reference::Of(view, number));
        }
    }

    /// Does something as if in a query around.
    pub(super) fn outside<R>(
        &mut self,
        level: usize,
        compile: impl FnOnce(&mut Self) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let at = self.frames.len().saturating_sub(level);
        let inner = self.frames.split_off(at);
        let compiled = compile(self);
        self.frames.extend(inner);
        compiled
    }

    /// The table whose column this is, where it is looked into, and the column.
    fn column_of(&mut self, node: &Node) -> Result<(Option<u32>, Column), Refusal> {
        let number = node.number::<i16>("varattno")?;
        let level = node.number::<usize>("varlevelsup")?;
        let (place, table, columns) = match self.origin(node)? {
            None => (None, None, Some(&self.scope.columns)),
            Some((Origin::Table(place, table, _), ..)) => {
                let known = self.table(table).map(|table| &table.columns);
                (Some(place), Some(table), known)
            }
            Some(_) => return Err(beyond()),
        };
        let column = columns.and_then(|columns| columns.get(&number)).cloned();
        let column = column
            .ok_or_else(|| Refusal::new(format!("column {number} is generated, or not known")))?;
        let oid = node.oid("vartype")?;
        if column.type_oid != oid || column.type_modifier != node.number::<i32>("vartypmod")? {
            return Err(Refusal::new(format!("column {number} has another type")));
        }
        // Of a policy the columns of its own table are noted as such, also where that is the
        // table of a sub-select.
        self.refer(match table {
            Some(table) if level + 1 != self.frames.len() => Reference::Of(table, number),
            _ => Reference::Column(number),
        });
        Ok((place, column))
    }

    fn variable(&mut self, node: &Node) -> Result<(Expr, Oid), Refusal> {
        match self.origin(node)? {
            Some((Origin::Columns(view, columns), number, _)) => {
                self.of_view(view, number);
                let column = columns.get(number).ok_or_else(beyond)?.clone()?;
                if column.oid != node.oid("vartype")? {
                    return Err(Refusal::new("a column of a sub-select has another type"));
                }
                self.spend(column.nodes)?;
                return Ok((column.expr, column.oid));
            }
            Some((Origin::Join(columns), number, level)) => {
                let merged = columns.items()?.get(number).cloned();
                let merged = merged.ok_or_else(beyond)?;
                let column = self.outside(level, |compiler| compiler.expr(&merged, 0))?;
                if column.oid != node.oid("vartype")? {
                    return Err(Refusal::new("a column of a join has another type"));
                }
                return Ok((column.expr, column.oid));
            }
            Some((Origin::Table(..), ..)) | None => {}
        }
        let (place, column) = self.column_of(node)?;
        let oid = column.type_oid;
        let reference = ColumnRef {
            name: column.name,
            type_oid: oid,
            of: self.type_of(oid, column.collation)?,
        };
        if let Some(place) = place {
            return Ok((Expr::Inner(place, Arc::new(reference)), oid));
        }
        Ok((self.column_here(reference), oid))
    }

    /// A column of the row that is judged.
    fn column_here(&mut self, reference: ColumnRef) -> Expr {
        let mut known = self.columns.iter();
        let known = known.find(|known| ***known == reference).cloned();
        let reference = known.unwrap_or_else(|| {
            let reference = Arc::new(reference);
            self.columns.push(Arc::clone(&reference));
            reference
        });
        Expr::Column(reference)
    }

    /// A row of a table, where it is handed to a function as a whole. That it is there is all that can
    /// be said of it; of what it is made [`Compiler::field`] says.
    pub(super) fn whole_row(&mut self, tree: &Tree) -> Result<Option<Typed>, Refusal> {
        let node = tree.node(self.scope.major)?;
        let at = match node.name.as_str() {
            "VAR" if node.number::<i32>("varattno")? == 0 => {
                let level = node.number::<usize>("varlevelsup")?;
                let entry = node.number::<usize>("varno")?.checked_sub(1);
                let looked = match (self.frames.iter().rev().nth(level), entry) {
                    (Some(Around::Own), Some(0)) if node.has_only(&PLAIN_VAR) => None,
                    (Some(Around::From(origins)), Some(entry)) => match origins.get(entry) {
                        Some(Origin::Table(place, table, false)) => {
                            let known = self.table(*table).ok_or_else(beyond)?;
                            Some((*place, &**known))
                        }
                        _ => return Ok(None),
                    },
                    _ => return Ok(None),
                };
                let of = node.oid("vartype")?;
                self.wholes.push(Whole { of, looked });
                self.wholes.len() - 1
            }
            _ => match self.whole_of(node)? {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        self.spend(1)?;
        let oid = self.wholes.get(at).ok_or_else(beyond)?.of;
        let at = i64::try_from(at).map_err(|_| beyond())?;
        Ok(Some(Typed {
            expr: Expr::constant(Datum::Int(at)),
            oid,
            nodes: 1,
        }))
    }

    /// A field of a row in a function that it was handed to, or of the row that a function returns.
    fn field(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let of = node.field("arg")?.node(self.scope.major)?;
        if of.name == "FUNCEXPR" {
            return self.field_of_call(node, of, depth);
        }
        let whole = self.whole_of(of)?.and_then(|at| self.wholes.get(at));
        let whole = whole.ok_or_else(|| Refusal::new("a field of another row"))?;
        let judged = FunctionMutant::RowIsTheJudgedOne.active();
        let looked = whole.looked.filter(|_| !judged);
        let number = node.number::<i16>("fieldnum")?;
        let oid = node.oid("resulttype")?;
        let columns = looked.map_or(&self.scope.columns, |(_, table)| &table.columns);
        let column = columns.get(&number).cloned();
        let column = column
            .ok_or_else(|| Refusal::new(format!("column {number} is generated, or not known")))?;
        if column.type_oid != oid || column.type_modifier != node.number::<i32>("resulttypmod")? {
            return Err(Refusal::new(format!("column {number} has another type")));
        }
        let reference = ColumnRef {
            name: column.name,
            type_oid: oid,
            of: self.type_of(oid, column.collation)?,
        };
        Ok(match looked {
            Some((place, _)) => (Expr::Inner(place, Arc::new(reference)), oid),
            None => (self.column_here(reference), oid),
        })
    }

    fn constant(&mut self, node: &Node) -> Result<(Expr, Oid), Refusal> {
        let oid = node.oid("consttype")?;
        let collation = node.oid("constcollid")?;
        self.refer(Reference::Type(oid));
        self.refer(Reference::Collation(collation));
        if oid == UNKNOWN {
            return self.literal(node);
        }
        let of = self.type_of(oid, collation)?;
        if node.flag("constisnull")? {
            return Ok((Expr::NULL, oid));
        }
        let Tree::Bytes(bytes) = node.field("constvalue")? else {
            return Err(Refusal::new("CONST without a value"));
        };
        let datum = constant::datum(bytes, &of, self.scope.types.encoding);
        let datum = datum.ok_or_else(|| Refusal::new(format!("a constant of type {oid}")))?;
        Ok((Expr::constant(datum), oid))
    }

    /// A literal whose type nothing asked for: a function of operands of any type takes its text.
    fn literal(&self, node: &Node) -> Result<(Expr, Oid), Refusal> {
        if node.flag("constisnull")? {
            return Ok((Expr::NULL, UNKNOWN));
        }
        let text = match node.field("constvalue")? {
            Tree::Bytes(bytes) => match bytes.split_last() {
                Some((0, text)) => self.scope.types.encoding.text(text),
                _ => None,
            },
            _ => None,
        };
        let text = text.ok_or_else(|| Refusal::new("a constant of no type"))?;
        Ok((Expr::constant(Datum::text(text)), UNKNOWN))
    }

    fn operator(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let oid = node.oid("opno")?;
        self.refer(Reference::Operator(oid));
        if node.flag("opretset")? {
            return Err(Refusal::new(format!("operator {oid} returns a set")));
        }
        if let Some(timed) = self.timed(oid, node, depth)? {
            return Ok((timed, BOOL));
        }
        if operators::comparison(oid).is_some()
            || operators::comparison_of(oid, &self.scope.types).is_some()
        {
            let comparison = self.comparison(oid, node)?.comparison;
            let (two, _) = self.compared(node, depth)?;
            if let Comparison::Eq | Comparison::Ne = comparison {
                // Of an array of rows nobody knows the order.
                self.in_order(&two.0)?;
                self.in_order(&two.1)?;
            }
            if two.0 == Expr::NULL || two.1 == Expr::NULL {
                return Ok((Expr::NULL, BOOL));
            }
            // PostgreSQL 15 cannot plan `x = x` where x reads no column: it raises an error.
            let constant = matches!(two.0, Expr::Const(_));
            if two.0 == two.1
                && !two.0.reads_row()
                && !constant
                && !self.told_apart(node.field("args")?)?
            {
                return Err(Refusal::always("an expression compared with itself"));
            }
            return Ok((Expr::Compare(comparison, two), BOOL));
        }
        if let Some(matched) = self.matched(oid, node, depth)? {
            return Ok((matched, BOOL));
        }
        if let Some(text) = operators::path_operator(oid) {
            return self.by_path(text, node.field("args")?, depth);
        }
        let collation = node.oid("inputcollid")?;
        let types = (node.field("args")?, node.oid("opresulttype")?, collation);
        if let Some(done) = self.polymorphic(operators::array_operator(oid), types, depth)? {
            return Ok(done);
        }
        let Some(built_in) = operators::operator(oid) else {
            return Err(Refusal::new(format!("operator {oid} is not compiled")));
        };
        let args = self.exprs(node.field("args")?, depth)?;
        self.built_in(built_in, args, collation, &format!("operator {oid}"))
    }

    /// Whether PostgreSQL takes two operands for different expressions: one is a parameter that stays
    /// one, and the other has nothing of it.
    fn told_apart(&self, args: &Tree) -> Result<bool, Refusal> {
        let [left, right] = args.items()? else {
            return Ok(false);
        };
        let apart = |one: &Tree, other: &Tree| {
            let parameter = parameter(one);
            parameter.is_some_and(|parameter| !names_parameter(other, parameter))
        };
        Ok(self.called && (apart(left, right) || apart(right, left)))
    }

    /// What a comparison operator does; refused under a collation that it cannot have.
    pub(super) fn comparison(&self, oid: Oid, node: &Node) -> Result<Compared, Refusal> {
        let compared = operators::comparison(oid)
            .or_else(|| operators::comparison_of(oid, &self.scope.types))
            .ok_or_else(|| Refusal::new(format!("operator {oid} is not compiled")))?;
        let collation = if compared.folded {
            // `citext` folds by the default one, whichever is in force.
            Oid(100)
        } else {
            node.oid("inputcollid")?
        };
        self.demand(compared.demand, collation)?;
        Ok(compared)
    }

    /// The operands of a comparison, and the type of the first.
    fn compared(&mut self, node: &Node, depth: usize) -> Result<(Box<(Expr, Expr)>, Oid), Refusal> {
        let oid = node.oid("opno")?;
        self.refer(Reference::Operator(oid));
        let compared = self.comparison(oid, node)?;
        // These two look at equality only, through whichever operator is given.
        if node.name != "OPEXPR" && compared.comparison != Comparison::Eq {
            return Err(Refusal::new(format!("{} by operator {oid}", node.name)));
        }
        let mut args = self.exprs(node.field("args")?, depth)?.into_iter();
        let (Some(left), Some(right), None) = (args.next(), args.next(), args.next()) else {
            return Err(Refusal::new(format!("operator {oid} has other operands")));
        };
        self.operands(&compared, left.oid, right.oid)?;
        if compared.folded && node.name == "NULLIFEXPR" {
            return Err(Refusal::new("NULLIF of citext"));
        }
        let two = (compared.of(left.expr), compared.of(right.expr));
        Ok((Box::new(two), left.oid))
    }

    pub(super) fn operands(
        &self,
        compared: &Compared,
        left: Oid,
        right: Oid,
    ) -> Result<(), Refusal> {
        let fits = if compared.left == Oid(3500) {
            left == right && matches!(self.type_of(left, Oid(0))?, Type::Enum(_))
        } else if compared.left == Oid(2277) {
            left == right && self.scope.types.element(left).is_some()
        } else {
            left == compared.left && right == compared.right
        };
        if fits {
            Ok(())
        } else {
            Err(Refusal::new("an operator has operands of other types"))
        }
    }

    fn any(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let oid = node.oid("opno")?;
        self.refer(Reference::Operator(oid));
        let compared = self.comparison(oid, node)?;
        let [left, array] = node.field("args")?.items()? else {
            return Err(Refusal::new("SCALARARRAYOPEXPR has other operands"));
        };
        let left = self.expr(left, depth)?;
        if let Some(expr) = self.any_of_rows(node, &left, array, depth)? {
            return Ok((expr, BOOL));
        }
        if !self.is_written(array)? {
            let all = !node.flag("useOr")?;
            let expr = self.any_of((&compared, all), left, array, depth)?;
            return Ok((expr, BOOL));
        }
        let Some((element, items)) = self.array(array, depth)? else {
            return Ok((Expr::NULL, BOOL));
        };
        self.operands(&compared, left.oid, element)?;
        let all = !node.flag("useOr")?;
        let items = items.into_iter().map(|item| compared.of(item)).collect();
        let left = Box::new(compared.of(left.expr));
        let expr = Expr::Any(compared.comparison, all, left, items);
        Ok((expr, BOOL))
    }

    /// Whether an array's elements are written one by one.
    fn is_written(&self, tree: &Tree) -> Result<bool, Refusal> {
        let node = tree.node(self.scope.major)?;
        match node.name.as_str() {
            "ARRAYEXPR" | "ARRAY" | "CONST" => Ok(true),
            "ARRAYCOERCEEXPR" | "RELABELTYPE" => self.is_written(node.field("arg")?),
            _ => Ok(false),
        }
    }

    /// `GREATEST` and `LEAST`
    fn extreme(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let oid = node.oid("minmaxtype")?;
        let of = self.type_of(oid, node.oid("inputcollid")?)?;
        if !of.has_order() {
            return Err(Refusal::new(format!("the order of type {oid}")));
        }
        let args = self.exprs(node.field("args")?, depth)?;
        if args.iter().any(|arg| arg.oid != oid) {
            return Err(Refusal::new("MINMAXEXPR of other types"));
        }
        let greatest = node.number::<u8>("op")? == 0;
        let args = args.into_iter().map(|arg| arg.expr);
        Ok((Expr::Call(Function::Extreme(greatest), args.collect()), oid))
    }

    /// The elements of an array and their type; `None` is the NULL array.
    fn array(&mut self, tree: &Tree, depth: usize) -> Result<Option<(Oid, Vec<Expr>)>, Refusal> {
        let node = tree.node(self.scope.major)?;
        match node.name.as_str() {
            "ARRAYEXPR" | "ARRAY" => {
                if node.flag("multidims")? {
                    return Err(Refusal::new("ARRAYEXPR of several dimensions"));
                }
                let element = node.oid("element_typeid")?;
                let items = self.exprs(node.field("elements")?, depth)?;
                if items.iter().any(|item| item.oid != element) {
                    return Err(Refusal::new("ARRAYEXPR of other types"));
                }
                Ok(Some((
                    element,
                    items.into_iter().map(|item| item.expr).collect(),
                )))
            }
            "CONST" => {
                self.refer(Reference::Type(node.oid("consttype")?));
                let elements = self.constant_array(node)?;
                Ok(elements.map(|(element, items)| {
                    (
                        element,
                        items
                            .into_iter()
                            .map(|item| Expr::Const(Constant(item)))
                            .collect(),
                    )
                }))
            }
            "ARRAYCOERCEEXPR" => {
                self.refer(Reference::Type(node.oid("resulttype")?));
                let Some((element, items)) = self.array(node.field("arg")?, depth)? else {
                    return Ok(None);
                };
                let mut coerced = Vec::with_capacity(items.len());
                let mut result = element;
                for expr in items {
                    self.tests.push(Typed {
                        expr,
                        oid: element,
                        nodes: 1,
                    });
                    let item = self.expr(node.field("elemexpr")?, depth + 1);
                    self.tests.pop();
                    let item = item?;
                    result = item.oid;
                    coerced.push(item.expr);
                }
                if coerced.is_empty() {
                    return Err(Refusal::new("ARRAYCOERCEEXPR of an empty array"));
                }
                Ok(Some((result, coerced)))
            }
            "RELABELTYPE" => {
                // Between arrays of text and varchar.
                let Some((element, items)) = self.array(node.field("arg")?, depth)? else {
                    return Ok(None);
                };
                match (element, node.oid("resulttype")?) {
                    (Oid(25 | 1043), Oid(1009)) => Ok(Some((Oid(25), items))),
                    _ => Err(Refusal::new("RELABELTYPE of an array")),
                }
            }
            other => Err(Refusal::new(format!("an array by {other}"))),
        }
    }

    #[allow(clippy::type_complexity, reason = "a name would not say more")]
    fn constant_array(&self, node: &Node) -> Result<Option<(Oid, Vec<Option<Datum>>)>, Refusal> {
        if node.flag("constisnull")? {
            return Ok(None);
        }
        let Tree::Bytes(bytes) = node.field("constvalue")? else {
            return Err(Refusal::new("CONST without a value"));
        };
        let collation = node.oid("constcollid")?;
        let array = constant::array(bytes, self.scope.types.encoding, |element| {
            self.type_of(element, collation).ok()
        });
        array
            .map(Some)
            .ok_or_else(|| Refusal::new("a constant array of its type"))
            .map(|found| found.map(|(element, array)| (element, array.elements().to_vec())))
    }

    /// The path of `#>`: a constant array of texts, none of them NULL.
    pub(super) fn path(&mut self, tree: &Tree) -> Result<Vec<Box<str>>, Refusal> {
        let refuse = || Refusal::new("a path that is not a constant");
        let node = tree.node(self.scope.major)?;
        let items = match node.name.as_str() {
            "CONST" => self.constant_array(node)?.ok_or_else(refuse)?,
            "ARRAYEXPR" | "ARRAY" => {
                let array = self.array(tree, 0)?.ok_or_else(refuse)?;
                let items = array.1.into_iter().map(|item| match item {
                    Expr::Const(Constant(item)) => Ok(item),
                    _ => Err(refuse()),
                });
                (array.0, items.collect::<Result<_, _>>()?)
            }
            _ => return Err(refuse()),
        };
        let step = |item| match item {
            Some(Datum::Text(step)) => Ok(Box::from(&*step)),
            _ => Err(refuse()),
        };
        items.1.into_iter().map(step).collect()
    }

    pub(super) fn boolean(&mut self, tree: &Tree, depth: usize) -> Result<Expr, Refusal> {
        let typed = self.expr(tree, depth)?;
        if typed.oid == BOOL {
            Ok(typed.expr)
        } else {
            Err(Refusal::new("an operand that is not boolean"))
        }
    }

    fn logic(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let items = node.field("args")?.items()?;
        let args = items.iter().map(|item| self.boolean(item, depth));
        let args = args.collect::<Result<Vec<_>, _>>()?;
        let expr = match node.number::<String>("boolop")?.as_str() {
            "and" => Expr::And(args),
            "or" => Expr::Or(args),
            "not" => {
                let mut args = args.into_iter();
                let (Some(arg), None) = (args.next(), args.next()) else {
                    return Err(Refusal::new("BOOLEXPR has other operands"));
                };
                Expr::Not(Box::new(arg))
            }
            _ => return Err(Refusal::new("BOOLEXPR of another kind")),
        };
        Ok((expr, BOOL))
    }

    fn case(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let oid = node.oid("casetype")?;
        let tested = match node.field("arg")? {
            Tree::Null => false,
            arg => {
                let test = self.expr(arg, depth)?;
                self.tests.push(test);
                true
            }
        };
        let whens = self.whens(node, depth, oid);
        if tested {
            self.tests.pop();
        }
        let whens = whens?;
        let otherwise = match node.field("defresult")? {
            Tree::Null => Expr::NULL,
            other => self.typed(other, depth, oid)?,
        };
        Ok((Expr::Case(whens, Box::new(otherwise)), oid))
    }

    fn whens(&mut self, node: &Node, depth: usize, oid: Oid) -> Result<Vec<(Expr, Expr)>, Refusal> {
        let mut whens = Vec::new();
        for when in node.field("args")?.items()? {
            let when = when.node(self.scope.major)?;
            if !matches!(when.name.as_str(), "CASEWHEN" | "WHEN") {
                return Err(Refusal::new("CASEEXPR has other operands"));
            }
            let condition = self.boolean(when.field("expr")?, depth)?;
            whens.push((condition, self.typed(when.field("result")?, depth, oid)?));
        }
        Ok(whens)
    }

    pub(super) fn typed(&mut self, tree: &Tree, depth: usize, oid: Oid) -> Result<Expr, Refusal> {
        let typed = self.expr(tree, depth)?;
        if typed.oid == oid {
            Ok(typed.expr)
        } else {
            Err(Refusal::new("an operand of another type"))
        }
    }

    /// A change of the type's name only: `varchar` as `text`, a domain as its base.
    fn relabel(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let arg = self.expr(node.field("arg")?, depth)?;
        let to = node.oid("resulttype")?;
        self.refer(Reference::Type(to));
        self.refer(Reference::Collation(node.oid("resultcollid")?));
        let from = self.type_of(arg.oid, Oid(100))?;
        let domain = self.scope.types.user.get(&to);
        let same = match (&from, self.type_of(to, Oid(100))?) {
            (Type::Text(_) | Type::Citext, Type::Text(_) | Type::Citext) => true,
            (from, to) => *from == to,
        };
        if !same || matches!(domain, Some(crate::datum::UserType::Domain { .. })) {
            return Err(Refusal::new(format!("type {} as {to}", arg.oid)));
        }
        Ok((arg.expr, to))
    }
}
