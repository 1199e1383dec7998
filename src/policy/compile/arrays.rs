//! Arrays: what makes them, what is taken from them, and their elements as rows.

use super::inline::called;
use super::operators::{self, Demand};
use super::select::Rows;
use super::{Compiler, Refusal, Typed};
use crate::datum::Datum;
use crate::pg::Oid;
use crate::policy::expr::select::{Several, Step};
use crate::policy::expr::{ArrayFunction, Constant, Expr, Function, JsonbFunction};
use crate::policy::node_tree::{Node, Tree};

const INT4: Oid = Oid(23);
const TEXT: Oid = Oid(25);
const JSONB: Oid = Oid(3802);

/// What stands for an element while a cast of elements is compiled.
const ELEMENT: Expr = Expr::Part(usize::MAX);

/// Tables and arrays whose rows are gone through, inside each other.
const MAX_DEPTH: u32 = 24;

impl Compiler<'_> {
    fn element_of(&self, array: Oid) -> Result<Oid, Refusal> {
        let element = self.scope.types.element(array);
        element.ok_or_else(|| Refusal::new(format!("type {array} is no array that is native")))
    }

    /// `array[…]`
    pub(super) fn constructor(
        &mut self,
        node: &Node,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        if node.flag("multidims")? {
            return Err(Refusal::new("ARRAYEXPR of several dimensions"));
        }
        let (array, element) = (node.oid("array_typeid")?, node.oid("element_typeid")?);
        if self.element_of(array)? != element {
            return Err(Refusal::new("ARRAYEXPR of other types"));
        }
        let items = self.exprs(node.field("elements")?, depth)?;
        if items.iter().any(|item| item.oid != element) {
            return Err(Refusal::new("ARRAYEXPR of other types"));
        }
        let items = items.into_iter().map(|item| item.expr).collect();
        Ok((made(ArrayFunction::Make, items), array))
    }

    /// A cast of every element.
    pub(super) fn coerced(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let array = self.expr(node.field("arg")?, depth)?;
        let (from, to) = (self.element_of(array.oid)?, node.oid("resulttype")?);
        self.refer(super::Reference::Type(to));
        self.tests.push(Typed {
            expr: ELEMENT,
            oid: from,
            nodes: 1,
        });
        let element = self.expr(node.field("elemexpr")?, depth + 1);
        self.tests.pop();
        let element = element?;
        if element.oid != self.element_of(to)? {
            return Err(Refusal::new("ARRAYCOERCEEXPR of other types"));
        }
        let refuse = || Refusal::new("ARRAYCOERCEEXPR of another kind");
        let (mut casts, mut rest) = (Vec::new(), element.expr);
        while rest != ELEMENT {
            let Expr::Call(function, mut args) = rest else {
                return Err(refuse());
            };
            rest = args.pop().filter(|_| args.is_empty()).ok_or_else(refuse)?;
            casts.push(function);
        }
        let casts = casts.into_iter().rev();
        let cast = casts.fold(array.expr, |array, function| {
            made(ArrayFunction::Each(Box::new(function)), vec![array])
        });
        Ok((cast, to))
    }

    /// `array[index]` and `array[lower:upper]`
    pub(super) fn subscript(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let array = self.expr(node.field("refexpr")?, depth)?;
        let result = node.oid("refrestype")?;
        let refuse = || Refusal::new("SUBSCRIPTINGREF of another kind");
        if array.oid == JSONB {
            return self.member(array, node, depth);
        }
        if *node.field("refassgnexpr")? != Tree::Null
            || array.oid != node.oid("refcontainertype")?
        {
            return Err(refuse());
        }
        let element = self.element_of(array.oid)?;
        self.in_order(&array.expr)?;
        let upper = node.field("refupperindexpr")?.items()?;
        let lower = node.field("reflowerindexpr")?.items()?;
        let mut bound = |tree: &Tree| -> Result<Option<Expr>, Refusal> {
            if *tree == Tree::Null {
                return Ok(None);
            }
            self.typed(tree, depth, INT4).map(Some)
        };
        match (lower, upper) {
            ([], [index]) if result == element => {
                let index = bound(index)?.ok_or_else(refuse)?;
                // A NULL there is no reason for the planner not to look at the array.
                let element = Function::Array(ArrayFunction::Element);
                Ok((Expr::Call(element, vec![array.expr, index]), result))
            }
            ([lower], [upper]) if result == array.oid => {
                let (lower, upper) = (bound(lower)?, bound(upper)?);
                let slice = ArrayFunction::Slice(lower.is_some(), upper.is_some());
                let args = std::iter::once(array.expr).chain(lower).chain(upper);
                Ok((Expr::Call(Function::Array(slice), args.collect()), result))
            }
            _ => Err(refuse()),
        }
    }

    /// `jsonb['key']`: what is at the end of a path of constants.
    fn member(&mut self, value: Typed, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let refuse = || Refusal::new("a subscript of jsonb that is not a constant");
        if *node.field("refassgnexpr")? != Tree::Null
            || !node.field("reflowerindexpr")?.items()?.is_empty()
            || node.oid("refcontainertype")? != JSONB
            || node.oid("refrestype")? != JSONB
        {
            return Err(refuse());
        }
        let mut path: Vec<Box<str>> = Vec::new();
        for step in node.field("refupperindexpr")?.items()? {
            if *step == Tree::Null {
                return Err(refuse());
            }
            path.push(match self.expr(step, depth)?.expr {
                Expr::Const(Constant(Some(Datum::Text(key)))) => Box::from(&*key),
                Expr::Const(Constant(Some(Datum::Int(index)))) => index.to_string().into(),
                _ => return Err(refuse()),
            });
        }
        Ok((called(Function::Path(path), vec![value.expr]), JSONB))
    }

    /// A function or operator of arrays of any type; `None` where it is another.
    pub(super) fn polymorphic(
        &mut self,
        function: Option<ArrayFunction>,
        (args, result, collation): (&Tree, Oid, Oid),
        depth: usize,
    ) -> Result<Option<(Expr, Oid)>, Refusal> {
        let Some(function) = function else {
            return Ok(None);
        };
        let args = self.exprs(args, depth)?;
        let refuse = || Refusal::new("a function of arrays has other operands");
        let oids: Vec<Oid> = args.iter().map(|arg| arg.oid).collect();
        let array = match (&function, oids.as_slice()) {
            (ArrayFunction::Prepend, [_, array]) | (_, [array, ..]) => *array,
            (_, []) => return Err(refuse()),
        };
        let element = self.element_of(array)?;
        let (others, gives) = match &function {
            ArrayFunction::Contains | ArrayFunction::Contained | ArrayFunction::Overlaps => {
                (vec![array, array], Oid(16))
            }
            ArrayFunction::Length | ArrayFunction::Lower | ArrayFunction::Upper => {
                (vec![array, INT4], INT4)
            }
            ArrayFunction::Cardinality | ArrayFunction::Dimensions => (vec![array], INT4),
            ArrayFunction::Append | ArrayFunction::Remove => (vec![array, element], array),
            ArrayFunction::Prepend => (vec![element, array], array),
            ArrayFunction::Concat => (vec![array, array], array),
            ArrayFunction::Position => (vec![array, element], INT4),
            ArrayFunction::Join => (vec![array, TEXT], TEXT),
            _ => return Err(refuse()),
        };
        if oids != others || gives != result {
            return Err(refuse());
        }
        if function.takes_order() {
            args.iter().try_for_each(|arg| self.in_order(&arg.expr))?;
        }
        // Text is compared under the collation, where it is compared.
        if collation.0 != 0 {
            self.demand(Demand::Deterministic, collation)?;
        }
        let args = args.into_iter().map(|arg| arg.expr).collect();
        Ok(Some((made(function, args), result)))
    }

    /// Refuses an array whose elements come in an order that nobody knows.
    pub(super) fn in_order(&self, array: &Expr) -> Result<(), Refusal> {
        if array.is_unordered() {
            return Err(Refusal::new(
                "the order of rows that a table or a recursion gives",
            ));
        }
        Ok(())
    }

    /// `left op ANY (array)`, or ALL, of an array that is not written out.
    pub(super) fn any_of(
        &mut self,
        (compared, all): (&operators::Compared, bool),
        left: Typed,
        array: &Tree,
        depth: usize,
    ) -> Result<Expr, Refusal> {
        let array = self.expr(array, depth)?;
        self.operands(compared, left.oid, self.element_of(array.oid)?)?;
        if compared.folded {
            return Err(Refusal::new("an array of citext"));
        }
        if array.expr == Expr::NULL {
            return Ok(Expr::NULL);
        }
        let two = Box::new((left.expr, array.expr));
        Ok(Expr::AnyOf(compared.comparison, all, two))
    }

    /// The rows of `unnest` and its kin; `None` for another function.
    pub(super) fn elements(&mut self, call: &Node, depth: usize) -> Result<Option<Rows>, Refusal> {
        let function = match call.oid("funcid")?.0 {
            2331 => None,
            3219 => Some((JsonbFunction::Elements, JSONB)),
            3465 => Some((JsonbFunction::Texts, TEXT)),
            3931 => Some((JsonbFunction::Keys, TEXT)),
            _ => return Ok(None),
        };
        let refuse = || Refusal::new("a function of an array's elements has other operands");
        let [arg] = call.field("args")?.items()? else {
            return Err(refuse());
        };
        let arg = self.expr(arg, depth)?;
        let (of, element) = match function {
            None => (arg.expr, self.element_of(arg.oid)?),
            Some((function, element)) if arg.oid == JSONB => {
                (called(Function::Jsonb(function), vec![arg.expr]), element)
            }
            Some(_) => return Err(refuse()),
        };
        if call.oid("funcresulttype")? != element {
            return Err(refuse());
        }
        if self.looked >= MAX_DEPTH {
            return Err(Refusal::new("sub-selects inside each other too deeply"));
        }
        let own = self.looked;
        self.looked += 1;
        Ok(Some(Rows {
            from: vec![Step::elements(of, own)],
            values: vec![Typed {
                expr: Expr::Field(own, 0),
                oid: element,
                nodes: 1,
            }],
            several: Several::Raise,
            order: Vec::new(),
        }))
    }

    /// The rows of `select <expression>` where that has a set of elements in it; `None` where it
    /// has none.
    pub(super) fn expanded(&mut self, query: &Tree, depth: usize) -> Result<Option<Rows>, Refusal> {
        let node = query.node(self.scope.major)?;
        let Some(expr) = self.set_alone(node)?.filter(|expr| sets_in(expr) == 1) else {
            return Ok(None);
        };
        let around = self.expanding.replace(None);
        let value = self.expr(expr, depth);
        let expanded = std::mem::replace(&mut self.expanding, around);
        let (value, Some(step)) = (value?, expanded.flatten()) else {
            return Ok(None);
        };
        Ok(Some(Rows {
            from: vec![step],
            values: vec![value],
            several: Several::Raise,
            order: Vec::new(),
        }))
    }

    /// The only set of elements in a target list, as its row in hand.
    pub(super) fn expanded_call(
        &mut self,
        call: &Node,
        depth: usize,
    ) -> Result<Option<(Expr, Oid)>, Refusal> {
        if !matches!(self.expanding, Some(None)) {
            return Ok(None);
        }
        self.expanding = None;
        let Some(mut rows) = self.elements(call, depth)? else {
            return Ok(None);
        };
        self.expanding = Some(rows.from.pop());
        let value = rows.value()?;
        Ok(Some((value.expr, value.oid)))
    }
}

fn made(function: ArrayFunction, args: Vec<Expr>) -> Expr {
    called(Function::Array(function), args)
}

/// Calls of the functions of [`Compiler::elements`], and of any other that returns a set twice.
pub(super) fn sets_in(tree: &Tree) -> usize {
    match tree {
        Tree::List(items) => items.iter().map(sets_in).sum(),
        Tree::Node(node) if node.name == "SUBLINK" => 0,
        Tree::Node(node) => {
            let inner: usize = node.fields.iter().map(|(_, field)| sets_in(field)).sum();
            let set = node.name == "FUNCEXPR" && node.flag("funcretset").unwrap_or(true);
            let known = node
                .oid("funcid")
                .is_ok_and(|oid| matches!(oid.0, 2331 | 3219 | 3465 | 3931));
            match (set, known) {
                (false, _) => inner,
                (true, true) => inner + 1,
                (true, false) => inner + 2,
            }
        }
        Tree::Null | Tree::Numbers(_) | Tree::Bytes(_) | Tree::Atom(_) => 0,
    }
}
