//! PostgreSQL's own syntax trees in their text form (`pg_node_tree`), read strictly.
//!
//! The format is not promised to stay: every node that is used must have exactly the fields, in
//! their order, that the server's major version writes. Anything else is refused.

mod fields;

use super::Refusal;
pub use fields::MAJORS;

/// A tree with more nodes, fields and list items than this is refused.
const MAX_PARTS: usize = 100_000;

/// A tree nested deeper than this is refused.
const MAX_DEPTH: usize = 200;

/// A piece of a node tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// `<>`
    Null,
    /// `{NAME :field value …}`
    Node(Node),
    /// `(…)`
    List(Vec<Self>),
    /// `(i 1 2)`, `(o 1 2)`, `(b 1 2)`
    Numbers(Vec<i64>),
    /// `4 [ 1 0 0 0 ]`
    Bytes(Vec<u8>),
    /// Anything else: a number, a word, a string without its backslashes
    Atom(String),
}

/// A node: its name and its fields in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The name, in capitals.
    pub name: String,
    /// The fields.
    pub fields: Vec<(String, Tree)>,
}

/// Reads a tree's text.
///
/// # Errors
/// When the text is no tree, or one beyond the bounds.
pub fn read(text: &str) -> Result<Tree, Refusal> {
    let mut reader = Reader {
        rest: text,
        parts: 0,
    };
    let token = reader.token().ok_or_else(malformed)?;
    let tree = reader.tree(token, 0)?;
    match reader.token() {
        None => Ok(tree),
        Some(_) => Err(malformed()),
    }
}

fn malformed() -> Refusal {
    Refusal::new("the node tree is malformed")
}

struct Reader<'t> {
    rest: &'t str,
    parts: usize,
}

impl<'t> Reader<'t> {
    /// The next token: a bracket, or a run of other characters in which a backslash protects the
    /// next.
    fn token(&mut self) -> Option<&'t str> {
        self.rest = self.rest.trim_start_matches([' ', '\n', '\t']);
        let mut escaped = false;
        let mut end = 0;
        for (at, character) in self.rest.char_indices() {
            if escaped {
                escaped = false;
            } else {
                match character {
                    ' ' | '\n' | '\t' => break,
                    '(' | ')' | '{' | '}' => {
                        end = end.max(usize::from(at == 0));
                        break;
                    }
                    '\\' => escaped = true,
                    _ => {}
                }
            }
            end = at + character.len_utf8();
        }
        let (token, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    fn tree(&mut self, token: &'t str, depth: usize) -> Result<Tree, Refusal> {
        self.parts += 1;
        if self.parts > MAX_PARTS || depth > MAX_DEPTH {
            return Err(Refusal::new("the node tree is too large"));
        }
        match token {
            "<>" => Ok(Tree::Null),
            "{" => self.node(depth),
            "(" => self.list(depth),
            ")" | "}" => Err(malformed()),
            atom => {
                let number = atom.bytes().all(|byte| byte.is_ascii_digit());
                let next = self.rest.trim_start_matches(' ');
                if number && next.starts_with("[ ") {
                    return self.bytes(atom);
                }
                Ok(Tree::Atom(unescaped(atom)))
            }
        }
    }

    fn node(&mut self, depth: usize) -> Result<Tree, Refusal> {
        let name = self.token().ok_or_else(malformed)?;
        if !name.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(malformed());
        }
        let mut fields = Vec::new();
        loop {
            let label = match self.token().ok_or_else(malformed)? {
                "}" => break,
                token => token.strip_prefix(':').ok_or_else(malformed)?,
            };
            let value = self.token().ok_or_else(malformed)?;
            fields.push((label.to_owned(), self.tree(value, depth + 1)?));
        }
        let name = name.to_owned();
        Ok(Tree::Node(Node { name, fields }))
    }

    fn list(&mut self, depth: usize) -> Result<Tree, Refusal> {
        let first = self.token().ok_or_else(malformed)?;
        if let "i" | "o" | "b" = first {
            let mut numbers = Vec::new();
            loop {
                match self.token().ok_or_else(malformed)? {
                    ")" => return Ok(Tree::Numbers(numbers)),
                    number => numbers.push(number.parse().map_err(|_| malformed())?),
                }
                self.parts += 1;
                if self.parts > MAX_PARTS {
                    return Err(Refusal::new("the node tree is too large"));
                }
            }
        }
        let mut items = Vec::new();
        let mut token = first;
        while token != ")" {
            items.push(self.tree(token, depth + 1)?);
            token = self.token().ok_or_else(malformed)?;
        }
        Ok(Tree::List(items))
    }

    /// A value's bytes, written as signed numbers; a value passed by value is written as a whole
    /// machine word whatever its length.
    fn bytes(&mut self, length: &str) -> Result<Tree, Refusal> {
        let length: usize = length.parse().map_err(|_| malformed())?;
        let mut bytes = Vec::new();
        if self.token() != Some("[") {
            return Err(malformed());
        }
        loop {
            match self.token().ok_or_else(malformed)? {
                "]" => break,
                byte => {
                    let byte: i16 = byte.parse().map_err(|_| malformed())?;
                    bytes.push(u8::try_from(byte & 0xFF).map_err(|_| malformed())?);
                }
            }
            self.parts += 1;
            if self.parts > MAX_PARTS {
                return Err(Refusal::new("the node tree is too large"));
            }
        }
        if bytes.len() < length || bytes.len() > length.max(8) {
            return Err(malformed());
        }
        bytes.truncate(length);
        Ok(Tree::Bytes(bytes))
    }
}

fn unescaped(atom: &str) -> String {
    let mut text = String::with_capacity(atom.len());
    let mut characters = atom.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => characters.next().unwrap_or('\\'),
            other => other,
        });
    }
    text
}

impl Tree {
    /// The node that this is, its fields checked against what the major version writes.
    ///
    /// # Errors
    /// When this is no node, an unknown one, or one with other fields.
    pub fn node(&self, major: u16) -> Result<&Node, Refusal> {
        let Self::Node(node) = self else {
            return Err(malformed());
        };
        if !MAJORS.contains(&major) {
            return Err(Refusal::new(format!("server version {major} is not known")));
        }
        let name = &node.name;
        let mut written = fields::written(name, major).peekable();
        if written.peek().is_none() {
            return Err(Refusal::new(format!("{name} is not compiled")));
        }
        let labels = || node.fields.iter().map(|(label, _)| &**label);
        if !written.any(|written| written.split(' ').eq(labels())) {
            return Err(Refusal::new(format!("{name} has unexpected fields")));
        }
        Ok(node)
    }

    fn is_nothing(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Numbers(numbers) => numbers.is_empty(),
            Self::Atom(atom) => matches!(&**atom, "false" | "0"),
            Self::List(_) | Self::Node(_) | Self::Bytes(_) => false,
        }
    }

    /// The items of a list; no list is an empty one.
    ///
    /// # Errors
    /// When this is something else.
    pub fn items(&self) -> Result<&[Self], Refusal> {
        match self {
            Self::Null => Ok(&[]),
            Self::List(items) => Ok(items),
            _ => Err(malformed()),
        }
    }
}

impl Node {
    /// Whether every field but the `named` ones says that there is nothing: `<>`, an empty set,
    /// `false` or 0.
    #[must_use]
    pub fn has_only(&self, named: &[&str]) -> bool {
        self.fields
            .iter()
            .filter(|(label, _)| !named.contains(&&**label))
            .all(|(_, value)| value.is_nothing())
    }

    /// The value of a field.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn field(&self, label: &str) -> Result<&Tree, Refusal> {
        let found = self.fields.iter().find(|(name, _)| name == label);
        Ok(&found.ok_or_else(malformed)?.1)
    }

    /// The value of a field that is a number.
    ///
    /// # Errors
    /// When there is none, or it is no number that fits.
    pub fn number<N: std::str::FromStr>(&self, label: &str) -> Result<N, Refusal> {
        match self.field(label)? {
            Tree::Atom(atom) => atom.parse().map_err(|_| malformed()),
            _ => Err(malformed()),
        }
    }

    /// The value of a field that is a boolean.
    ///
    /// # Errors
    /// When there is none, or it is no boolean.
    pub fn flag(&self, label: &str) -> Result<bool, Refusal> {
        self.number(label)
    }

    /// The value of a field that is an object identifier.
    ///
    /// # Errors
    /// When there is none, or it is no object identifier.
    pub fn oid(&self, label: &str) -> Result<crate::pg::Oid, Refusal> {
        self.number(label).map(crate::pg::Oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_node_is_read_whole() {
        let text =
            r"{CONST :consttype 25 :s a\ \(b\\ :l (i 1 -2) :e () :n <> :b 4 [ 8 0 0 -1 0 0 0 0 ]}";
        let Tree::Node(node) = read(text).unwrap() else {
            panic!("a node");
        };
        assert_eq!(node.name, "CONST");
        assert_eq!(node.oid("consttype").unwrap().0, 25);
        assert_eq!(node.field("s").unwrap(), &Tree::Atom(r"a (b\".to_owned()));
        assert_eq!(node.field("l").unwrap(), &Tree::Numbers(vec![1, -2]));
        assert_eq!(node.field("e").unwrap(), &Tree::List(vec![]));
        assert_eq!(node.field("b").unwrap(), &Tree::Bytes(vec![8, 0, 0, 255]));
    }

    #[test]
    fn what_is_unknown_is_refused() {
        let node = read("{NULLTEST :arg <> :nulltesttype 0 :argisrow false :location 3}").unwrap();
        assert!(node.node(15).is_ok());
        assert!(node.node(19).is_err(), "a major that was never seen");
        for text in [
            "{NULLTEST :arg <> :nulltesttype 0 :location 3}",
            "{NULLTEST :arg <> :nulltesttype 0 :argisrow false :new 1 :location 3}",
            "{NULLTEST :arg <> :argisrow false :nulltesttype 0 :location 3}",
            "{WINDOWFUNC :winfnoid 3}",
        ] {
            assert!(read(text).unwrap().node(15).is_err(), "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(read(&"(".repeat(1_000_000)).is_err());
        assert!(read(&format!("{}{}", "(".repeat(100), ")".repeat(100))).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_panics(text in r"([(){}:<>\[\] \\iob0-9A-Zé-]{1,3}| ){0,60}") {
            let _ = read(&text);
        }
    }
}
