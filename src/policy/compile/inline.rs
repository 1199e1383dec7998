//! Calls of built-in functions, settings, parameters, and casts by way of text.

use super::operators::{self, Demand};
use super::{Compiler, Raising, Reference, Refusal, Setting, Typed};
use std::sync::Arc;

use crate::datum::{Datum, Type};
use crate::pg::Oid;
use crate::policy::expr::{self, Constant, Expr};
use crate::policy::node_tree::{Node, Tree};

/// The fields of `select <expression>`.
const PLAIN_QUERY: [&str; 8] = [
    "commandType",
    "canSetTag",
    "hasSubLinks",
    "isReturn",
    "jointree",
    "targetList",
    "stmt_location",
    "stmt_len",
];

impl Compiler<'_> {
    pub(super) fn function(&mut self, node: &Node, depth: usize) -> Result<(Expr, Oid), Refusal> {
        let oid = node.oid("funcid")?;
        let variadic = node.flag("funcvariadic")?;
        if node.flag("funcretset")? {
            if let Some(expanded) = self.expanded_call(node, depth)? {
                return Ok(expanded);
            }
            return Err(Refusal::new(format!("function {oid} returns a set")));
        }
        let result = node.oid("funcresulttype")?;
        let collation = node.oid("inputcollid")?;
        if variadic {
            // The arguments after the first are one array.
            if let Some(text) = operators::path_function(oid) {
                return self.by_path(text, node.field("args")?, depth);
            }
            if oid.0 < 16_384 {
                return Err(Refusal::new(format!("function {oid} is variadic")));
            }
        }
        let polymorphic = operators::array_function(oid);
        let types = (node.field("args")?, result, collation);
        if let Some(done) = self.polymorphic(polymorphic, types, depth)? {
            return Ok(done);
        }
        let args = self.arguments(oid, node, depth)?;
        if let Some(function) = operators::any_function(oid) {
            return self.of_any(function, args, result);
        }
        self.refer(Reference::Function(oid));
        if let Oid(2077 | 3294) = oid {
            return Ok((self.setting(&args)?, result));
        }
        if let Oid(2705 | 2709) = oid {
            return Ok((self.has_role(&args)?, result));
        }
        if let Some(built_in) = operators::function(oid, self.scope.major) {
            if built_in.result != result {
                return Err(Refusal::new(format!("function {oid} has another result")));
            }
            return self.built_in(built_in, args, collation, &format!("function {oid}"));
        }
        self.call(oid, args, (result, collation), depth)
    }

    pub(super) fn built_in(
        &mut self,
        built_in: operators::BuiltIn,
        args: Vec<Typed>,
        collation: Oid,
        name: &str,
    ) -> Result<(Expr, Oid), Refusal> {
        if !args
            .iter()
            .map(|arg| arg.oid.0)
            .eq(built_in.args.iter().copied())
        {
            return Err(Refusal::new(format!("{name} has other operands")));
        }
        let function = self.demanded(built_in.function, built_in.demand, collation)?;
        let args = args.into_iter().map(|arg| arg.expr);
        Ok((called(function, args.collect()), built_in.result))
    }

    fn demanded(
        &self,
        function: expr::Function,
        demand: Demand,
        collation: Oid,
    ) -> Result<expr::Function, Refusal> {
        self.demand(demand, collation)?;
        // C leaves text beyond ASCII as it is; elsewhere it is not known natively.
        let plain = matches!(collation, Oid(950 | 951));
        Ok(match function {
            expr::Function::Lower(_) => expr::Function::Lower(plain),
            expr::Function::Upper(_) => expr::Function::Upper(plain),
            other => other,
        })
    }

    /// Refuses a collation that is not what an operator needs.
    pub(super) fn demand(&self, demand: Demand, collation: Oid) -> Result<(), Refusal> {
        let known = self.scope.types.collation(collation);
        let met = match demand {
            Demand::None => true,
            Demand::Elements => collation.0 == 0 || known.is_some_and(|known| known.deterministic),
            Demand::Deterministic => known.is_some_and(|known| known.deterministic),
            Demand::Bytewise => known.is_some_and(|known| known.bytewise),
            Demand::Case => known.is_some_and(|known| known.plain_case),
        };
        if met {
            Ok(())
        } else {
            Err(Refusal::new(format!(
                "collation {collation} is not native here"
            )))
        }
    }

    /// `pg_has_role(role, privilege)` and `pg_has_role(current_user, role, privilege)`.
    fn has_role(&self, args: &[Typed]) -> Result<Expr, Refusal> {
        let own = self.current_user();
        let (role, privilege) = match args {
            [role, privilege] => (role, privilege),
            [user, role, privilege] if user.expr == own => (role, privilege),
            _ => return Err(Refusal::new("pg_has_role of somebody else")),
        };
        let text = |one: &Typed| match &one.expr {
            Expr::Const(Constant(Some(Datum::Text(text)))) => Some(Arc::clone(text)),
            _ => None,
        };
        let (Some(role), Some(privilege)) = (text(role), text(privilege)) else {
            return Err(Refusal::new("pg_has_role of a role not constant"));
        };
        let known = self.scope.memberships.get(&(self.context.role, role));
        let Some((usage, member)) = known else {
            return Err(Refusal::new("pg_has_role of a role that is not known"));
        };
        let has = match privilege.to_ascii_lowercase().as_str() {
            "usage" => *usage,
            "member" => *member,
            _ => return Err(Refusal::new("pg_has_role of such a privilege")),
        };
        // No constant: the planner does not look at roles.
        let has = Expr::constant(Datum::Bool(has));
        Ok(Expr::Body(Vec::new(), false, Box::new(has)))
    }

    /// `current_user`, which is the owner inside a SECURITY DEFINER function.
    fn current_user(&self) -> Expr {
        let Some(user) = &self.user else {
            return Expr::Role;
        };
        // No constant: the planner does not look at who runs it.
        let user = Expr::constant(Datum::Text(Arc::clone(user)));
        Expr::Body(Vec::new(), false, Box::new(user))
    }

    fn setting(&mut self, args: &[Typed]) -> Result<Expr, Refusal> {
        let (name, missing_ok) = match args {
            [name] => (&name.expr, false),
            [name, missing_ok] => match &missing_ok.expr {
                Expr::Const(Constant(Some(Datum::Bool(value)))) => (&name.expr, *value),
                Expr::Const(Constant(None)) => return Ok(Expr::NULL),
                _ => return Err(Refusal::new("current_setting of a setting not constant")),
            },
            _ => return Err(Refusal::new("current_setting has other operands")),
        };
        let name = match name {
            Expr::Const(Constant(Some(Datum::Text(name)))) => name.to_ascii_lowercase(),
            Expr::Const(Constant(None)) => return Ok(Expr::NULL),
            _ => return Err(Refusal::new("current_setting of a name not constant")),
        };
        let setting = self.scope.settings.get(&name).copied();
        match setting.or_else(|| Setting::of(&name)) {
            Some(Setting::Claims) => Ok(Expr::Claims),
            Some(Setting::Role) => Ok(Expr::Role),
            // NULL, but no constant: the planner does not look at settings.
            Some(Setting::Unset) if missing_ok => {
                Ok(Expr::Body(Vec::new(), false, Box::new(Expr::NULL)))
            }
            Some(Setting::Unset) => Ok(self.raise(Raising::Unset(name))),
            None => Err(Refusal::new(format!("setting {name} is not known"))),
        }
    }

    /// `#>` and `#>>`, by operator or function.
    pub(super) fn by_path(
        &mut self,
        text: bool,
        args: &Tree,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let [value, path] = args.items()? else {
            return Err(Refusal::new("a path has other operands"));
        };
        let value = self.expr(value, depth)?;
        let path = self.path(path)?;
        if value.oid != Oid(3802) {
            return Err(Refusal::new("a path into something else than jsonb"));
        }
        let (function, result) = if text {
            (expr::Function::PathText(path), Oid(25))
        } else {
            (expr::Function::Path(path), Oid(3802))
        };
        Ok((strict(function, vec![value.expr]), result))
    }

    /// A function that takes operands of any type, by their text or as JSON.
    fn of_any(
        &self,
        function: expr::Function,
        args: Vec<Typed>,
        result: Oid,
    ) -> Result<(Expr, Oid), Refusal> {
        for arg in &args {
            // A literal's type may not be known.
            if arg.oid.0 == 705 {
                continue;
            }
            let known = self.type_of(arg.oid, Oid(100))?;
            let object = matches!(function, expr::Function::Text(_));
            match known {
                Type::Bool
                | Type::Int2
                | Type::Int4
                | Type::Int8
                | Type::Numeric
                | Type::Text(_)
                | Type::Uuid
                | Type::Enum(_)
                | Type::Jsonb => {}
                Type::Array(_) if !object => self.in_order(&arg.expr)?,
                _ => return Err(Refusal::new(format!("type {} is not native here", arg.oid))),
            }
        }
        let given = match function {
            expr::Function::Text(_) => Oid(25),
            _ => Oid(3802),
        };
        if given != result {
            return Err(Refusal::new("a function has another result"));
        }
        let args = args.into_iter().map(|arg| arg.expr);
        Ok((called(function, args.collect()), result))
    }

    /// Whether two types are one, or both `text` or `varchar`.
    pub(super) fn same_text(&self, a: Oid, b: Oid) -> bool {
        a == b || [a, b].iter().all(|oid| matches!(oid, Oid(25 | 1043)))
    }

    /// The expression of `select <expression>` without anything else.
    pub(super) fn query(&mut self, tree: &Tree, depth: usize) -> Result<Typed, Refusal> {
        let query = tree.node(self.scope.major)?;
        let refuse = || Err(Refusal::new("a sub-select is not one plain expression"));
        if query.name != "QUERY" || query.number::<u8>("commandType")? != 1 {
            return refuse();
        }
        if !query.has_only(&PLAIN_QUERY) {
            return refuse();
        }
        let from = query.field("jointree")?.node(self.scope.major)?;
        if from.name != "FROMEXPR"
            || *from.field("fromlist")? != Tree::Null
            || *from.field("quals")? != Tree::Null
        {
            return refuse();
        }
        let [target] = query.field("targetList")?.items()? else {
            return refuse();
        };
        let target = target.node(self.scope.major)?;
        if target.name != "TARGETENTRY" || target.flag("resjunk")? {
            return refuse();
        }
        self.expr(target.field("expr")?, depth)
    }

    pub(super) fn parameter(&mut self, node: &Node) -> Result<(Expr, Oid), Refusal> {
        self.refer(Reference::Type(node.oid("paramtype")?));
        self.refer(Reference::Collation(node.oid("paramcollid")?));
        if node.number::<u8>("paramkind")? == 2 {
            let number = node.number::<usize>("paramid")?.checked_sub(1);
            let output = number.and_then(|number| self.output.get(number)).cloned();
            let output = output.ok_or_else(|| Refusal::new("PARAM of another sub-select"))?;
            if node.oid("paramtype")? != output.oid {
                return Err(Refusal::new("PARAM of another type"));
            }
            self.spend(output.nodes)?;
            return Ok((output.expr, output.oid));
        }
        if node.number::<u8>("paramkind")? != 0 {
            return Err(Refusal::new("PARAM of another kind"));
        }
        let number = node.number::<usize>("paramid")?.checked_sub(1);
        let call = self.calls.last();
        let arg = call.and_then(|args| args.get(number?)).cloned();
        let arg = arg.ok_or_else(|| Refusal::new("PARAM outside a function"))?;
        if node.oid("paramtype")? != arg.oid {
            return Err(Refusal::new("PARAM of another type"));
        }
        if self.wholes.iter().any(|whole| whole.of == arg.oid) {
            return Err(Refusal::new("a row as a whole"));
        }
        self.spend(arg.nodes)?;
        Ok((arg.expr, arg.oid))
    }

    /// The place of the row that is handed to a function as a whole, where a parameter is that.
    pub(super) fn whole_of(&self, node: &Node) -> Result<Option<usize>, Refusal> {
        if node.name != "PARAM" || node.number::<u8>("paramkind")? != 0 {
            return Ok(None);
        }
        let number = node.number::<usize>("paramid")?.checked_sub(1);
        let call = self.calls.last();
        let typed = node.oid("paramtype")?;
        let arg = call.and_then(|args| args.get(number?));
        // What fails, or is not set, is of the type as well.
        let Some(Typed { oid, expr, .. }) = arg else {
            return Ok(None);
        };
        let Expr::Const(Constant(Some(Datum::Int(at)))) = expr else {
            return Ok(None);
        };
        let at = usize::try_from(*at).ok();
        let row = at.and_then(|at| self.wholes.get(at));
        Ok(at.filter(|_| *oid == typed && row.is_some_and(|row| row.of == typed)))
    }

    pub(super) fn value_function(&self, node: &Node) -> Result<(Expr, Oid), Refusal> {
        // CURRENT_ROLE, CURRENT_USER, USER
        let current = matches!(node.number::<u8>("op")?, 9..=11);
        if !current {
            return Err(Refusal::new("SQLVALUEFUNCTION is not compiled here"));
        }
        Ok((self.current_user(), node.oid("type")?))
    }

    pub(super) fn through_text(
        &mut self,
        node: &Node,
        depth: usize,
    ) -> Result<(Expr, Oid), Refusal> {
        let arg = self.expr(node.field("arg")?, depth)?;
        let to = node.oid("resulttype")?;
        self.refer(Reference::Type(to));
        let collation = node.oid("resultcollid")?;
        self.by_text(arg, to, collation)
    }

    /// A cast by the output function of one type and the input function of the other.
    pub(super) fn by_text(
        &self,
        arg: Typed,
        to: Oid,
        collation: Oid,
    ) -> Result<(Expr, Oid), Refusal> {
        let from = self.type_of(arg.oid, Oid(100))?;
        if let Type::Text(_) = from {
            if matches!(
                self.scope.types.user.get(&to),
                Some(crate::datum::UserType::Domain { .. })
            ) {
                return Err(Refusal::new(format!("type {to} is a domain")));
            }
            let of = self.type_of(to, collation)?;
            return match of {
                Type::Bool
                | Type::Int2
                | Type::Int4
                | Type::Int8
                | Type::Numeric
                | Type::Uuid
                | Type::Enum(_)
                | Type::Json
                | Type::Jsonb
                | Type::Array(_) => Ok((strict(expr::Function::Input(of), vec![arg.expr]), to)),
                _ => Err(Refusal::new(format!("the input function of type {to}"))),
            };
        }
        if matches!(to, Oid(25 | 1043)) {
            return match from {
                Type::Bool
                | Type::Int2
                | Type::Int4
                | Type::Int8
                | Type::Oid
                | Type::Numeric
                | Type::Uuid
                | Type::Enum(_)
                | Type::Json
                | Type::Jsonb
                | Type::Array(_) => Ok((strict(expr::Function::Output, vec![arg.expr]), to)),
                _ => Err(Refusal::new(format!(
                    "the output function of type {}",
                    arg.oid
                ))),
            };
        }
        Err(Refusal::new(format!("a cast of type {} to {to}", arg.oid)))
    }
}

/// A call of any function.
pub(super) fn called(function: expr::Function, args: Vec<Expr>) -> Expr {
    if function.takes_null() {
        Expr::Call(function, args)
    } else {
        strict(function, args)
    }
}

/// A strict call; NULL where an operand is the constant NULL, as the planner has it too.
pub(super) fn strict(function: expr::Function, args: Vec<Expr>) -> Expr {
    if args.contains(&Expr::NULL) {
        Expr::NULL
    } else {
        Expr::Call(function, args)
    }
}
