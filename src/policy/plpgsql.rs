//! The statements of PL/pgSQL functions that run straight on. What stands in them as expression or
//! query is not looked into: PostgreSQL analyses that.

mod row;

mod token;

use std::ops::Range;

pub(super) use row::{Field, Rows, Used, used, with_fields};
pub(super) use token::{Kind, Token, names, tokens};

/// A function body as text, apart into its statements.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) variables: Vec<Variable>,
    pub(super) statements: Vec<Statement>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variable {
    /// As PostgreSQL folds it.
    pub(super) name: String,
    /// Its type as SQL.
    pub(super) of: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    Assign(String, String),
    Into {
        strict: bool,
        variables: Vec<String>,
        query: String,
    },
    If(Vec<(String, Vec<Self>)>, Vec<Self>),
    /// A block with EXCEPTION: its statements, and those for any error; `None` where only some
    /// errors have any.
    Try(Vec<Self>, Option<Vec<Self>>),
    /// An expression that is evaluated, and no more.
    Evaluate(String),
    Return(String),
    /// `RETURN QUERY`
    Rows(String),
    /// `RETURN` without a value.
    End,
    Raise,
}

/// Statements and declarations, the ones in branches included.
const MAX_STATEMENTS: usize = 200;

/// Branches inside each other.
const MAX_DEPTH: usize = 16;

/// Reads a body.
///
/// # Errors
/// With what there is in it beyond the statements that are read, to stand behind the function's
/// name.
pub(super) fn read(text: &str) -> Result<Source, String> {
    let tokens = tokens(text)?;
    let reader = Reader {
        text,
        tokens: &tokens,
        at: 0,
        statements: 0,
        variables: Vec::new(),
    };
    reader.body()
}

struct Reader<'t> {
    text: &'t str,
    tokens: &'t [Token],
    at: usize,
    statements: usize,
    /// Of all blocks.
    variables: Vec<Variable>,
}

fn unread(what: &str) -> String {
    format!("has {what}")
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<&'t Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Result<&'t Token, String> {
        let token = self.peek().ok_or_else(|| unread("an end too early"))?;
        self.at += 1;
        Ok(token)
    }

    fn takes(&mut self, word: &str) -> bool {
        let taken = self.peek().is_some_and(|token| token.is(word));
        self.at += usize::from(taken);
        taken
    }

    fn takes_sign(&mut self, sign: char) -> bool {
        let taken = self.peek().is_some_and(|token| token.is_sign(sign));
        self.at += usize::from(taken);
        taken
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.takes(word) {
            Ok(())
        } else {
            Err(unread(&format!(
                "no {} where one belongs",
                word.to_uppercase()
            )))
        }
    }

    fn semicolon(&mut self) -> Result<(), String> {
        if self.takes_sign(';') {
            Ok(())
        } else {
            Err(unread("a statement that is not read"))
        }
    }

    fn name(&mut self) -> Result<String, String> {
        match &self.next()?.kind {
            Kind::Word(name, _) => Ok(name.clone()),
            _ => Err(unread("something else where a name belongs")),
        }
    }

    fn count(&mut self) -> Result<(), String> {
        self.statements += 1;
        if self.statements > MAX_STATEMENTS {
            return Err(unread("too many statements"));
        }
        Ok(())
    }

    /// What stands before a word or sign outside parentheses, which is not taken.
    fn until(&mut self, ends: impl Fn(&Token) -> bool) -> Result<Range<usize>, String> {
        let first = self.at;
        let mut depth = 0_usize;
        loop {
            let token = self
                .peek()
                .ok_or_else(|| unread("a statement that does not end"))?;
            if depth == 0 && ends(token) {
                break;
            }
            // Behind a dot a keyword is a name.
            let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
            let named = before.is_some_and(|token| token.is_sign('.') || token.is("as"));
            match token.kind {
                Kind::Other('(' | '[') => depth += 1,
                _ if token.is("case") && !named => depth += 1,
                Kind::Other(')' | ']') => {
                    depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| unread("unbalanced parentheses"))?;
                }
                _ if token.is("end") && !named => {
                    depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| unread("a statement that ends too early"))?;
                }
                Kind::Other(';') => return Err(unread("a statement that ends too early")),
                _ => {}
            }
            self.at += 1;
        }
        if self.at == first {
            return Err(unread("nothing where an expression belongs"));
        }
        Ok(first..self.at)
    }

    fn text(&self, tokens: Range<usize>) -> String {
        let tokens = self.tokens.get(tokens).unwrap_or_default();
        let (first, last) = (tokens.first(), tokens.last());
        let span = first
            .zip(last)
            .map(|(first, last)| first.at.start..last.at.end);
        span.and_then(|span| self.text.get(span))
            .unwrap_or_default()
            .to_owned()
    }

    fn expression(&mut self) -> Result<String, String> {
        let tokens = self.until(|token| token.is_sign(';'))?;
        self.at += 1;
        self.one_row(&tokens)?;
        Ok(self.text(tokens))
    }

    /// INTO means something else to PL/pgSQL, wherever it stands.
    fn one_row(&self, tokens: &Range<usize>) -> Result<(), String> {
        let tokens = self.tokens.get(tokens.clone()).unwrap_or_default();
        if tokens.iter().any(|token| token.is("into")) {
            return Err(unread("INTO in an expression"));
        }
        Ok(())
    }

    fn body(mut self) -> Result<Source, String> {
        if self.peek().is_some_and(|token| token.is_sign('#')) {
            return Err(unread("an option (#)"));
        }
        let statements = self.block(0)?;
        // The block's name may follow, of which there is none.
        self.takes_sign(';');
        if self.peek().is_some() {
            return Err(unread("something behind its end"));
        }
        Ok(Source {
            variables: self.variables,
            statements,
        })
    }

    /// A block up to its END.
    fn block(&mut self, depth: usize) -> Result<Vec<Statement>, String> {
        let mut statements = Vec::new();
        if self.takes("declare") {
            while !self.takes("begin") {
                // The word may stand again before each.
                if !self.takes("declare") {
                    self.declaration(&mut statements)?;
                }
            }
        } else {
            self.expect("begin")?;
        }
        let inner = self.statements(depth)?;
        if self.takes("exception") {
            // Errors in its declarations are not its own.
            let handler = self.handler(depth)?;
            statements.push(Statement::Try(inner, handler));
        } else {
            statements.extend(inner);
        }
        self.expect("end")?;
        Ok(statements)
    }

    /// What is done about any error, where the first WHEN is about all of them.
    fn handler(&mut self, depth: usize) -> Result<Option<Vec<Statement>>, String> {
        let mut first = None;
        while self.takes("when") {
            let condition = self.until(|token| token.is("then"))?;
            let all = self.text(condition).eq_ignore_ascii_case("others");
            self.expect("then")?;
            let statements = self.statements(depth + 1)?;
            first.get_or_insert(all.then_some(statements));
        }
        first.ok_or_else(|| unread("an EXCEPTION without WHEN"))
    }

    fn declaration(&mut self, statements: &mut Vec<Statement>) -> Result<(), String> {
        self.count()?;
        let name = self.name()?;
        let constant = self.takes("constant");
        for word in ["alias", "cursor", "no", "scroll"] {
            if !constant && self.peek().is_some_and(|token| token.is(word)) {
                return Err(unread(&format!(
                    "the declaration {} of {name}",
                    word.to_uppercase()
                )));
            }
        }
        let begins = |token: &Token| {
            token.is_sign(';')
                || token.is_sign('=')
                || token.kind == Kind::Sign(":=")
                || ["default", "not", "collate"]
                    .into_iter()
                    .any(|word| token.is(word))
        };
        let of = self.until(begins)?;
        let modified = self.tokens.get(of.clone()).unwrap_or_default();
        if modified.iter().any(|token| token.is_sign('(')) {
            return Err(unread(&format!(
                "the variable {name} of a type with a length"
            )));
        }
        let of = self.text(of);
        let behind = self.next()?;
        if behind.is("not") || behind.is("collate") {
            return Err(unread(&format!(
                "the variable {name} with more to it than a type"
            )));
        }
        if !behind.is_sign(';') {
            let default = self.expression()?;
            statements.push(Statement::Assign(name.clone(), default));
        }
        // One of an inner block may be called as one outside: it is another.
        if self.variables.iter().any(|known| known.name == name) {
            return Err(unread(&format!("two variables {name}")));
        }
        self.variables.push(Variable { name, of });
        Ok(())
    }

    fn statements(&mut self, depth: usize) -> Result<Vec<Statement>, String> {
        if depth > MAX_DEPTH {
            return Err(unread("too many branches inside each other"));
        }
        let mut found = Vec::new();
        loop {
            let token = self.peek().ok_or_else(|| unread("an end too early"))?;
            let ends = ["end", "else", "elsif", "elseif", "when", "exception"];
            if ends.into_iter().any(|word| token.is(word)) {
                return Ok(found);
            }
            self.count()?;
            found.extend(self.statement(depth)?);
        }
    }

    fn statement(&mut self, depth: usize) -> Result<Vec<Statement>, String> {
        let token = self.next()?;
        let Kind::Word(word, quoted) = &token.kind else {
            return Err(unread("a statement that is not read"));
        };
        let assigned = self
            .peek()
            .is_some_and(|next| next.kind == Kind::Sign(":=") || next.is_sign('='));
        if assigned {
            self.at += 1;
            let value = self.expression()?;
            return Ok(vec![Statement::Assign(word.clone(), value)]);
        }
        if *quoted {
            return Err(unread("a statement that is not read"));
        }
        match word.as_str() {
            "null" => {
                self.semicolon()?;
                Ok(Vec::new())
            }
            "return" => self.returned().map(|one| vec![one]),
            "if" => self.branches(depth).map(|one| vec![one]),
            "case" => self.cases(depth).map(|one| vec![one]),
            "select" | "with" => {
                self.at -= 1;
                self.into().map(|one| vec![one])
            }
            "perform" => {
                let query = format!("select {}", self.expression()?);
                Ok(vec![Statement::Into {
                    strict: false,
                    variables: Vec::new(),
                    query,
                }])
            }
            "raise" => self.raised(),
            "begin" | "declare" => {
                self.at -= 1;
                let block = self.block(depth + 1)?;
                self.semicolon()?;
                Ok(block)
            }
            "while" | "for" | "foreach" | "loop" => Err(unread("a loop")),
            "execute" | "insert" | "update" | "delete" | "merge" | "call" | "get" | "open"
            | "fetch" | "move" | "close" | "assert" | "commit" | "rollback" | "exit"
            | "continue" => Err(unread(&format!("the statement {}", word.to_uppercase()))),
            _ => Err(unread("a statement that is not read")),
        }
    }

    /// What RAISE does besides telling somebody: it evaluates what it tells.
    fn raised(&mut self) -> Result<Vec<Statement>, String> {
        let levels = ["debug", "log", "info", "notice", "warning"];
        if !levels.into_iter().any(|level| self.takes(level)) {
            if !self.takes_sign(';') {
                self.until(|token| token.is_sign(';'))?;
                self.semicolon()?;
            }
            return Ok(vec![Statement::Raise]);
        }
        if self.next()?.kind != Kind::Value {
            return Err(unread("a RAISE that is not read"));
        }
        let mut told = Vec::new();
        while self.takes_sign(',') {
            let one = self.until(|token| token.is_sign(',') || token.is_sign(';'))?;
            self.one_row(&one)?;
            if self
                .tokens
                .get(one.clone())
                .is_some_and(|tokens| tokens.iter().any(|token| token.is("using")))
            {
                return Err(unread("a RAISE that is not read"));
            }
            let text = self.text(one);
            // Inside a handler these are always there.
            if !["sqlerrm", "sqlstate"].contains(&text.to_ascii_lowercase().as_str()) {
                told.push(Statement::Evaluate(text));
            }
        }
        self.semicolon()?;
        Ok(told)
    }

    fn cases(&mut self, depth: usize) -> Result<Statement, String> {
        let tested = if self.peek().is_some_and(|token| token.is("when")) {
            None
        } else {
            let tested = self.until(|token| token.is("when"))?;
            self.one_row(&tested)?;
            Some(self.text(tested))
        };
        let mut branches = Vec::new();
        while self.takes("when") {
            let condition = self.until(|token| token.is("then"))?;
            self.one_row(&condition)?;
            let condition = self.text(condition);
            self.expect("then")?;
            let condition = match &tested {
                Some(tested) => format!("({tested}) in ({condition})"),
                None => condition,
            };
            branches.push((condition, self.statements(depth + 1)?));
        }
        let otherwise = if self.takes("else") {
            self.statements(depth + 1)?
        } else {
            vec![Statement::Raise]
        };
        self.expect("end")?;
        self.expect("case")?;
        self.semicolon()?;
        Ok(Statement::If(branches, otherwise))
    }

    fn returned(&mut self) -> Result<Statement, String> {
        if self.peek().is_some_and(|token| token.is("next")) {
            return Err(unread("RETURN NEXT"));
        }
        if self.takes("query") {
            if self.peek().is_some_and(|token| token.is("execute")) {
                return Err(unread("the statement EXECUTE"));
            }
            return Ok(Statement::Rows(self.expression()?));
        }
        if self.takes_sign(';') {
            return Ok(Statement::End);
        }
        Ok(Statement::Return(self.expression()?))
    }

    fn branches(&mut self, depth: usize) -> Result<Statement, String> {
        let mut branches = Vec::new();
        loop {
            let condition = self.until(|token| token.is("then"))?;
            self.one_row(&condition)?;
            let condition = self.text(condition);
            self.expect("then")?;
            branches.push((condition, self.statements(depth + 1)?));
            if self.takes("elsif") || self.takes("elseif") {
                continue;
            }
            let otherwise = if self.takes("else") {
                self.statements(depth + 1)?
            } else {
                Vec::new()
            };
            self.expect("end")?;
            self.expect("if")?;
            self.semicolon()?;
            return Ok(Statement::If(branches, otherwise));
        }
    }

    fn into(&mut self) -> Result<Statement, String> {
        let all = self.until(|token| token.is_sign(';'))?;
        self.at += 1;
        let end = self.at;
        let tokens = self.tokens.get(all.clone()).unwrap_or_default();
        let mut found = tokens
            .iter()
            .enumerate()
            .filter(|(_, token)| token.is("into"));
        let (Some((into, _)), None) = (found.next(), found.next()) else {
            return Err(unread("a SELECT without one INTO"));
        };
        let before = all.start..all.start + into;
        let mut depth = 0_i32;
        for token in self.tokens.get(before.clone()).unwrap_or_default() {
            depth += i32::from(token.is_sign('(')) - i32::from(token.is_sign(')'));
        }
        if depth != 0 {
            return Err(unread("INTO inside parentheses"));
        }
        self.at = before.end + 1;
        let strict = self.takes("strict");
        let mut variables = vec![self.name()?];
        while self.takes_sign(',') {
            variables.push(self.name()?);
        }
        if self
            .peek()
            .is_some_and(|token| token.is_sign('.') || token.is_sign('['))
        {
            return Err(unread("INTO a part of a variable"));
        }
        let after = self.at..all.end;
        let query = format!("{} {}", self.text(before), self.text(after));
        self.at = end;
        Ok(Statement::Into {
            strict,
            variables,
            query,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn returned(text: &str) -> Statement {
        Statement::Return(text.to_owned())
    }

    #[test]
    fn statements_are_told_apart_whatever_stands_in_literals_and_comments() {
        let source = read(
            "declare
               who uuid := auth.uid(); -- begin; end
               \"Odd\" constant text default 'a;''b';
             begin
               /* if /* nested */ then */
               select m.role, 'into' into strict r, \"Odd\" from m where id = who limit 1;
               if not found then return false; elsif (case when true then true end) then null;
               else r := $x$;$x$ || E'\\';'; end if;
               raise exception 'no %', who;
               return exists (select 1 from m);
             end;",
        )
        .unwrap();
        let names = source
            .variables
            .iter()
            .map(|one| (one.name.as_str(), one.of.as_str()));
        assert_eq!(
            names.collect::<Vec<_>>(),
            [("who", "uuid"), ("Odd", "text")]
        );
        let assign = |name: &str, text: &str| Statement::Assign(name.to_owned(), text.to_owned());
        assert_eq!(
            source.statements,
            [
                assign("who", "auth.uid()"),
                assign("Odd", "'a;''b'"),
                Statement::Into {
                    strict: true,
                    variables: vec!["r".to_owned(), "Odd".to_owned()],
                    query: "select m.role, 'into' from m where id = who limit 1".to_owned(),
                },
                Statement::If(
                    vec![
                        ("not found".to_owned(), vec![returned("false")]),
                        ("(case when true then true end)".to_owned(), vec![]),
                    ],
                    vec![assign("r", "$x$;$x$ || E'\\';'")],
                ),
                Statement::Raise,
                returned("exists (select 1 from m)"),
            ]
        );
    }

    #[test]
    fn what_is_not_straight_is_refused_by_name() {
        for (body, name) in [
            (
                "begin for r in select 1 loop return 1; end loop; end",
                "a loop",
            ),
            ("begin return 1; exception end", "EXCEPTION"),
            ("begin a := 1; when others then null; end", "no END"),
            ("begin execute 'drop table x'; return 1; end", "EXECUTE"),
            ("begin insert into a select 1; return 1; end", "INSERT"),
            (
                "begin raise notice 'x' using hint = 'y'; return 1; end",
                "not read",
            ),
            ("begin case a when 1 then return 1; end; end", "no CASE"),
            (
                "#variable_conflict use_column\nbegin return 1; end",
                "an option",
            ),
            ("begin return 1; end; drop table x", "behind its end"),
            ("begin return 'a; end", "does not end"),
            ("begin select 1; return 1; end", "without one INTO"),
            ("begin begin return 1; end end", "not read"),
            (
                "declare a int; begin declare a int; begin return a; end; end",
                "two variables",
            ),
            ("declare a numeric(3, 1); begin return 1; end", "a length"),
            ("<<l>> begin return 1; end", "no BEGIN"),
        ] {
            let refused = read(body).unwrap_err();
            assert!(refused.contains(name), "{body}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r"((begin|end|if|then|return|select|into|declare|/\*|\*/|--|\$a\$|[;:='\x22().é$\[\]#x1])[ \n]?){0,40}") {
            let _ = read(&text);
            let _ = names(&text);
        }
    }
}
