//! Types that users make, and the texts that their input functions take.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rowcast::pg::{quote_identifier, quote_literal};

use crate::generate::{self, extremes, ordered, random};

/// A type, as far as values are made of it.
#[derive(Debug, Clone)]
pub(crate) struct Ty {
    /// As SQL.
    pub(crate) sql: String,
    shape: Shape,
    /// How many types are nested in it.
    depth: usize,
}

#[derive(Debug, Clone)]
enum Shape {
    Base(String),
    Array(Box<Ty>, char),
    Composite(Vec<Ty>),
    /// A domain is written as what it is over.
    Same(Box<Ty>),
    Enum(Vec<String>),
    Range(Box<Ty>),
    Multirange(Box<Ty>),
}

/// A text in double quotes, as arrays, rows and ranges take it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Ty {
    pub(crate) fn base(kind: &str, sql: &str) -> Self {
        let (sql, shape) = (sql.to_owned(), Shape::Base(kind.to_owned()));
        Self {
            sql,
            shape,
            depth: 0,
        }
    }

    pub(crate) fn range(sql: &str, of: Self) -> Self {
        let (sql, shape) = (sql.to_owned(), Shape::Range(of.into()));
        Self {
            sql,
            shape,
            depth: 1,
        }
    }

    pub(crate) fn multirange(sql: &str, range: Self) -> Self {
        let (sql, shape) = (sql.to_owned(), Shape::Multirange(range.into()));
        Self {
            sql,
            shape,
            depth: 2,
        }
    }

    pub(crate) fn array(of: Self) -> Self {
        let delimiter = if of.innermost() == "box" { ';' } else { ',' };
        Self {
            sql: format!("{}[]", of.sql),
            depth: of.depth + 1,
            shape: Shape::Array(of.into(), delimiter),
        }
    }

    /// The name of the built-in type that a domain is over in the end.
    fn innermost(&self) -> &str {
        match &self.shape {
            Shape::Base(kind) => kind,
            Shape::Same(base) => base.innermost(),
            _ => "",
        }
    }

    fn is_array(&self) -> bool {
        matches!(self.shape, Shape::Array(..))
    }

    /// The text of the value number `nth`: first the extremes of the type, then random ones.
    pub(crate) fn input(&self, nth: usize, rng: &mut StdRng) -> String {
        match &self.shape {
            Shape::Base(kind) => extremes(kind)
                .get(nth)
                .map_or_else(|| random(kind, rng), |text| (*text).to_owned()),
            Shape::Same(base) => base.input(nth, rng),
            Shape::Enum(labels) => labels.choose(rng).unwrap().clone(),
            Shape::Array(element, delimiter) => {
                let (sizes, bounds) = match nth {
                    0 => (vec![0], false),
                    1 => (vec![1], false),
                    2 => (vec![2, 2], false),
                    3 => (vec![2], true),
                    _ => match rng.random_range(0..10) {
                        0 => (vec![1, 2, 1], rng.random()),
                        1 => (vec![2, 1], rng.random()),
                        _ => (vec![rng.random_range(0..4)], rng.random_bool(0.2)),
                    },
                };
                let mut text = String::new();
                if bounds && sizes[0] > 0 {
                    for size in &sizes {
                        let low = rng.random_range(-3..5);
                        text += &format!("[{low}:{}]", low + size - 1);
                    }
                    text.push('=');
                }
                element.elements(&sizes, *delimiter, rng, &mut text);
                text
            }
            Shape::Composite(attributes) => {
                let all: Vec<String> = attributes
                    .iter()
                    .map(|attribute| {
                        if rng.random_bool(0.15) {
                            return String::new();
                        }
                        quoted(&attribute.input(rng.random_range(0..12), rng))
                    })
                    .collect();
                format!("({})", all.join(","))
            }
            Shape::Range(of) => of.bounds(rng),
            Shape::Multirange(range) => match nth {
                0 => "{}".to_owned(),
                _ => {
                    let all: Vec<String> = (0..rng.random_range(1..4))
                        .map(|_| range.input(9, rng))
                        .collect();
                    format!("{{{}}}", all.join(","))
                }
            },
        }
    }

    fn elements(&self, sizes: &[i32], delimiter: char, rng: &mut StdRng, text: &mut String) {
        text.push('{');
        let (size, inner) = sizes.split_first().unwrap();
        for number in 0..*size {
            if number > 0 {
                text.push(delimiter);
            }
            if !inner.is_empty() {
                self.elements(inner, delimiter, rng, text);
            } else if rng.random_bool(0.15) {
                text.push_str("NULL");
            } else {
                *text += &quoted(&self.input(rng.random_range(0..12), rng));
            }
        }
        text.push('}');
    }

    fn bounds(&self, rng: &mut StdRng) -> String {
        let kind = match &self.shape {
            Shape::Base(kind) => kind,
            _ => self.innermost(),
        };
        let Some((low, high)) = ordered(kind, rng) else {
            // Whatever the order of the type is, these are in it.
            let value = quoted(&self.input(99, rng));
            return match rng.random_range(0..4) {
                0 => "empty".to_owned(),
                1 => format!("[{value},)"),
                2 => format!("(,{value}]"),
                _ => format!("[{value},{value}]"),
            };
        };
        let (low, high) = (quoted(&low), quoted(&high));
        match rng.random_range(0..8) {
            0 => "empty".to_owned(),
            1 => "(,)".to_owned(),
            2 => format!("[{low},)"),
            3 => format!("(,{high})"),
            4 => format!("({low},{high}]"),
            5 => format!("[{low},{high}]"),
            _ => format!("[{low},{high})"),
        }
    }
}

/// A name of at most 63 bytes that needs its quotes, and differs from those of other numbers.
pub(crate) fn odd_name(number: usize, rng: &mut StdRng) -> String {
    let mut name = format!("{number} ");
    for character in generate::text(rng).chars() {
        if name.len() + character.len_utf8() <= 63 {
            name.push(character);
        }
    }
    name
}

/// Random types over each other, and the statements that make them.
pub(crate) struct Declared {
    pub(crate) ddl: Vec<String>,
    pub(crate) types: Vec<Ty>,
}

impl Declared {
    /// `count` types, the first dozen of which are one of each kind.
    pub(crate) fn random(count: usize, with_hstore: bool, rng: &mut StdRng) -> Self {
        let mut made = Self {
            ddl: Vec::new(),
            types: Vec::new(),
        };
        if with_hstore {
            made.ddl
                .push("create extension hstore schema public".to_owned());
            made.types.push(Ty::base("hstore", "public.hstore"));
        }
        for number in 0..count {
            match number {
                0 | 1 => made.add_enum(number, rng),
                2..=4 => made.add_domain(number, rng),
                5..=7 => made.add_composite(number, rng),
                8 | 9 => made.add_range(number, rng),
                _ => match rng.random_range(0..10) {
                    0 => made.add_enum(number, rng),
                    1..=3 => made.add_domain(number, rng),
                    4 => made.add_range(number, rng),
                    _ => made.add_composite(number, rng),
                },
            }
        }
        made
    }

    /// One that there is, or one that is built in, or an array of it.
    fn any(&self, rng: &mut StdRng) -> Ty {
        let ty = match self.types.choose(rng) {
            Some(ty) if rng.random_bool(0.6) && ty.depth < 4 => ty.clone(),
            _ => {
                let (kind, sql) = generate::BASE.choose(rng).unwrap();
                Ty::base(kind, sql)
            }
        };
        if rng.random_bool(0.35) && !ty.is_array() && ty.depth < 4 {
            Ty::array(ty)
        } else {
            ty
        }
    }

    fn add_enum(&mut self, number: usize, rng: &mut StdRng) {
        let sql = quote_identifier(&odd_name(number, rng));
        let labels: Vec<String> = (0..5).map(|label| odd_name(label, rng)).collect();
        let quoted: Vec<String> = labels.iter().map(|label| quote_literal(label)).collect();
        self.ddl
            .push(format!("create type {sql} as enum ({})", quoted.join(", ")));
        let shape = Shape::Enum(labels);
        self.types.push(Ty {
            sql,
            shape,
            depth: 0,
        });
    }

    fn add_domain(&mut self, number: usize, rng: &mut StdRng) {
        let sql = quote_identifier(&odd_name(number, rng));
        let base = self.any(rng);
        self.ddl
            .push(format!("create domain {sql} as {}", base.sql));
        let depth = base.depth + 1;
        let shape = Shape::Same(base.into());
        self.types.push(Ty { sql, shape, depth });
    }

    fn add_composite(&mut self, number: usize, rng: &mut StdRng) {
        let sql = quote_identifier(&odd_name(number, rng));
        let attributes: Vec<Ty> = (0..rng.random_range(0..5)).map(|_| self.any(rng)).collect();
        let mut parts: Vec<String> = attributes
            .iter()
            .enumerate()
            .map(|(number, ty)| format!("{} {}", quote_identifier(&odd_name(number, rng)), ty.sql))
            .collect();
        let drop = rng.random_bool(0.4);
        if drop {
            parts.insert(
                rng.random_range(0..=parts.len()),
                "\"dropped\" text".to_owned(),
            );
        }
        self.ddl
            .push(format!("create type {sql} as ({})", parts.join(", ")));
        if drop {
            self.ddl
                .push(format!("alter type {sql} drop attribute \"dropped\""));
        }
        let depth = attributes.iter().map(|ty| ty.depth).max().unwrap_or(0) + 1;
        let shape = Shape::Composite(attributes);
        self.types.push(Ty { sql, shape, depth });
    }

    fn add_range(&mut self, number: usize, rng: &mut StdRng) {
        let name = odd_name(number, rng);
        let (sql, multi) = (
            quote_identifier(&name),
            quote_identifier(&format!("{number} multi")),
        );
        let ordered = [
            ("text", "text"),
            ("int4", "int4"),
            ("uuid", "uuid"),
            ("numeric", "numeric"),
            ("bytea", "bytea"),
        ];
        let own: Vec<&Ty> = self
            .types
            .iter()
            .filter(|ty| matches!(ty.shape, Shape::Enum(_)))
            .collect();
        let of = match own.choose(rng) {
            Some(own) if rng.random() => (*own).clone(),
            _ => {
                let (kind, sql) = ordered.choose(rng).unwrap();
                Ty::base(kind, sql)
            }
        };
        self.ddl.push(format!(
            "create type {sql} as range (subtype = {}, multirange_type_name = {multi})",
            of.sql
        ));
        let range = Ty::range(&sql, of);
        self.types.push(Ty::multirange(&multi, range.clone()));
        self.types.push(range);
    }
}
