//! The statements of PL/pgSQL functions that run straight on. What stands in them as expression or
//! query is not looked into: PostgreSQL analyses that.

use std::ops::Range;

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
    Return(String),
    /// `RETURN QUERY`
    Rows(String),
    Raise,
}

/// Statements and declarations, the ones in branches included.
const MAX_STATEMENTS: usize = 200;

/// Branches inside each other.
const MAX_DEPTH: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or keyword, folded; whether it was quoted.
    Word(String, bool),
    /// A literal or a number.
    Value,
    /// Anything else, one character each but for `:=`, `<<` and `..`.
    Sign(&'static str),
    Other(char),
}

#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    at: Range<usize>,
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(own, false) if own == word)
    }

    fn is_sign(&self, sign: char) -> bool {
        self.kind == Kind::Other(sign)
    }
}

/// The tokens of SQL text; an error where a literal or comment does not end.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let unended = || "has a literal or comment that does not end".to_owned();
    while let Some(first) = rest.chars().next() {
        let start = text.len() - rest.len();
        let (length, kind) = if first.is_whitespace() {
            (first.len_utf8(), None)
        } else if rest.starts_with("--") {
            (rest.find(['\n', '\r']).unwrap_or(rest.len()), None)
        } else if rest.starts_with("/*") {
            (comment(rest).ok_or_else(unended)?, None)
        } else if first == '\'' {
            let length = quoted(rest, '\'', false).ok_or_else(unended)?;
            // Whether that escapes anything is a setting.
            if rest.get(..length).is_some_and(|text| text.contains('\\')) {
                return Err("has a backslash in a literal".to_owned());
            }
            (length, Some(Kind::Value))
        } else if first == '"' {
            let length = quoted(rest, '"', false).ok_or_else(unended)?;
            let inner = rest.get(1..length - 1).unwrap_or_default();
            let name = inner.replace("\"\"", "\"");
            (length, Some(Kind::Word(name, true)))
        } else if let Some(length) = prefixed(rest) {
            (length.ok_or_else(unended)?, Some(Kind::Value))
        } else if first == '$' {
            match dollar(rest) {
                Some(length) => (length.ok_or_else(unended)?, Some(Kind::Value)),
                None => (1, Some(Kind::Other('$'))),
            }
        } else if is_start(first) {
            let end = rest.find(|c: char| !is_start(c) && !c.is_ascii_digit() && c != '$');
            let length = end.unwrap_or(rest.len());
            // PostgreSQL folds beyond ASCII by the server's locale, which is not known here.
            let word = rest.get(..length).unwrap_or_default();
            if !word.is_ascii() {
                return Err("has an unquoted name beyond ASCII".to_owned());
            }
            (length, Some(Kind::Word(word.to_ascii_lowercase(), false)))
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            (end.unwrap_or(rest.len()), Some(Kind::Value))
        } else {
            let sign = [":=", "<<", "..", "::"]
                .into_iter()
                .find(|sign| rest.starts_with(sign));
            match sign {
                Some(sign) => (sign.len(), Some(Kind::Sign(sign))),
                None => (first.len_utf8(), Some(Kind::Other(first))),
            }
        };
        if let Some(kind) = kind {
            tokens.push(Token {
                kind,
                at: start..start + length,
            });
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(tokens)
}

fn is_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

/// Comments nest.
fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next()?.len_utf8();
        }
    }
}

/// The length of what is quoted at the beginning of a text.
fn quoted(text: &str, quote: char, escapes: bool) -> Option<usize> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if escapes && character == '\\' {
            characters.next()?;
        } else if character == quote {
            if characters.peek().is_some_and(|(_, next)| *next == quote) {
                characters.next();
            } else {
                return Some(at + quote.len_utf8());
            }
        }
    }
    None
}

/// `E'…'`, `B'…'`, `X'…'`, `N'…'`; whether it ends. `U&` is taken for its parts, of which the
/// quoted one ends in the same place.
fn prefixed(text: &str) -> Option<Option<usize>> {
    let mut characters = text.chars();
    let prefix = characters.next()?.to_ascii_lowercase();
    if !"ebxn".contains(prefix) || characters.next()? != '\'' {
        return None;
    }
    Some(quoted(text.get(1..)?, '\'', prefix == 'e').map(|length| length + 1))
}

/// `$tag$…$tag$`; whether it ends. `None` for a parameter.
fn dollar(text: &str) -> Option<Option<usize>> {
    let end = text.get(1..)?.find('$')? + 2;
    let tag = text.get(..end)?;
    let inner = tag.trim_matches('$');
    let named = inner.chars().all(|c| is_start(c) || c.is_ascii_digit());
    if !named || inner.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let close = text.get(end..)?.find(tag);
    Some(close.map(|close| end + close + tag.len()))
}

/// The names that an expression or query uses by themselves: neither behind a dot nor before one.
pub(super) fn names(text: &str) -> Result<Vec<String>, String> {
    let tokens = tokens(text)?;
    let dot = |at: Option<usize>| {
        at.and_then(|at| tokens.get(at))
            .is_some_and(|token| token.is_sign('.'))
    };
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if let Kind::Word(name, _) = &token.kind
            && !dot(at.checked_sub(1))
            && !dot(Some(at + 1))
        {
            found.push(name.clone());
        }
    }
    Ok(found)
}

/// Reads a body.
///
/// # Errors
/// With what there is in it beyond the statements that are read, to stand behind the function's
/// name.
pub(super) fn read(text: &str) -> Result<Source, String> {
    let tokens = tokens(text)?;
    let mut reader = Reader {
        text,
        tokens: &tokens,
        at: 0,
        statements: 0,
    };
    reader.block()
}

struct Reader<'t> {
    text: &'t str,
    tokens: &'t [Token],
    at: usize,
    statements: usize,
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
            match token.kind {
                Kind::Other('(' | '[') => depth += 1,
                Kind::Other(')' | ']') => {
                    depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| unread("unbalanced parentheses"))?;
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

    fn block(&mut self) -> Result<Source, String> {
        if self.peek().is_some_and(|token| token.is_sign('#')) {
            return Err(unread("an option (#)"));
        }
        let mut variables = Vec::new();
        let mut statements = Vec::new();
        if self.takes("declare") {
            while !self.takes("begin") {
                self.declaration(&mut variables, &mut statements)?;
            }
        } else {
            self.expect("begin")?;
        }
        statements.extend(self.statements(0)?);
        self.expect("end")?;
        // The block's name may follow, of which there is none.
        self.takes_sign(';');
        if self.peek().is_some() {
            return Err(unread("something behind its end"));
        }
        Ok(Source {
            variables,
            statements,
        })
    }

    fn declaration(
        &mut self,
        variables: &mut Vec<Variable>,
        statements: &mut Vec<Statement>,
    ) -> Result<(), String> {
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
        // It is not known to the expression yet, nor are those behind it.
        let names = variables.iter().map(|known| known.name.clone());
        let known: Vec<String> = names.collect();
        if !behind.is_sign(';') {
            let default = self.expression()?;
            statements.push(Statement::Assign(name.clone(), default));
        }
        if known.contains(&name) {
            return Err(unread(&format!("two variables {name}")));
        }
        variables.push(Variable { name, of });
        Ok(())
    }

    fn statements(&mut self, depth: usize) -> Result<Vec<Statement>, String> {
        if depth > MAX_DEPTH {
            return Err(unread("too many branches inside each other"));
        }
        let mut found = Vec::new();
        loop {
            let token = self.peek().ok_or_else(|| unread("an end too early"))?;
            if ["end", "else", "elsif", "elseif"]
                .into_iter()
                .any(|word| token.is(word))
            {
                return Ok(found);
            }
            if token.is("exception") {
                return Err(unread("an EXCEPTION block"));
            }
            self.count()?;
            found.extend(self.statement(depth)?);
        }
    }

    fn statement(&mut self, depth: usize) -> Result<Option<Statement>, String> {
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
            return Ok(Some(Statement::Assign(word.clone(), value)));
        }
        if *quoted {
            return Err(unread("a statement that is not read"));
        }
        match word.as_str() {
            "null" => {
                self.semicolon()?;
                Ok(None)
            }
            "return" => self.returned().map(Some),
            "if" => self.branches(depth).map(Some),
            "select" => {
                self.at -= 1;
                self.into().map(Some)
            }
            "raise" => {
                let level = self.peek().map(|token| token.kind.clone());
                if let Some(Kind::Word(level, false)) = level
                    && ["debug", "log", "info", "notice", "warning"].contains(&level.as_str())
                {
                    return Err(unread(&format!("RAISE {}", level.to_uppercase())));
                }
                self.until(|token| token.is_sign(';')).or_else(|_| {
                    let bare = self.peek().is_some_and(|token| token.is_sign(';'));
                    if bare {
                        Ok(0..0)
                    } else {
                        Err(unread("a RAISE that is not read"))
                    }
                })?;
                self.semicolon()?;
                Ok(Some(Statement::Raise))
            }
            "begin" | "declare" => Err(unread("a block inside its block")),
            "while" | "for" | "foreach" | "loop" => Err(unread("a loop")),
            "with" => Err(unread("a query that begins with WITH")),
            "perform" | "execute" | "insert" | "update" | "delete" | "merge" | "call" | "get"
            | "open" | "fetch" | "move" | "close" | "assert" | "commit" | "rollback" | "exit"
            | "continue" | "case" => Err(unread(&format!("the statement {}", word.to_uppercase()))),
            _ => Err(unread("a statement that is not read")),
        }
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
            (
                "begin return 1; exception when others then return 2; end",
                "EXCEPTION",
            ),
            ("begin execute 'drop table x'; return 1; end", "EXECUTE"),
            ("begin perform f(); return 1; end", "PERFORM"),
            ("begin raise notice 'x'; return 1; end", "RAISE NOTICE"),
            (
                "#variable_conflict use_column\nbegin return 1; end",
                "an option",
            ),
            ("begin return 1; end; drop table x", "behind its end"),
            ("begin return 'a; end", "does not end"),
            ("begin select 1; return 1; end", "without one INTO"),
            ("begin begin return 1; end; end", "a block inside"),
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
