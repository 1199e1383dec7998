//! The types whose values are understood natively.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Collation, Datum};
use crate::pg::Oid;

/// A type whose values are understood natively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `oid`
    Oid,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`
    Numeric,
    /// `text` and `varchar`
    Text(Collation),
    /// `character(n)`
    Bpchar(Collation),
    /// `name`
    Name,
    /// `uuid`
    Uuid,
    /// `date`
    Date,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    Timestamptz,
    /// An enum
    Enum(Arc<Labels>),
    /// `json`: no equality
    Json,
    /// `jsonb`: equality only
    Jsonb,
    /// `bytea`
    Bytea,
    /// The extension `citext`'s: text whose equality is that of `lower`
    Citext,
    /// An array, of what it is of
    Array(Arc<Self>),
}

/// Array types and their elements, as far as the text of these depends on no setting.
const ARRAYS: [(u32, u32); 11] = [
    (1000, 16),
    (1003, 19),
    (1005, 21),
    (1007, 23),
    (1009, 25),
    (1015, 1043),
    (1016, 20),
    (1028, 26),
    (1231, 1700),
    (2951, 2950),
    (3807, 3802),
];

impl Type {
    /// The type of an oid, a domain being its base type; `None` where values of the type are not
    /// understood natively.
    #[must_use]
    pub fn of(oid: Oid, collation: Oid, types: &Types) -> Option<Self> {
        Some(match oid.0 {
            16 => Self::Bool,
            17 => Self::Bytea,
            // It orders as C does, and is cut at 63 bytes.
            19 if types.encoding != Encoding::Utf8 => return None,
            19 => Self::Name,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            26 => Self::Oid,
            25 | 1043 => Self::Text(types.collation(collation)?),
            1042 => Self::Bpchar(types.collation(collation)?),
            114 => Self::Json,
            700 => Self::Float4,
            701 => Self::Float8,
            1082 => Self::Date,
            1114 => Self::Timestamp,
            1184 => Self::Timestamptz,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ if types.element(oid).is_some() => {
                let element = Self::of(types.element(oid)?, collation, types)?;
                Self::Array(Arc::new(element))
            }
            _ => match types.user.get(&oid)? {
                UserType::Enum(labels) => Self::Enum(Arc::clone(labels)),
                UserType::Citext { .. } => Self::Citext,
                // The base is the bottom of a stack of domains, so this ends.
                UserType::Domain { base } if !types.user_domain(*base) => {
                    return Self::of(*base, collation, types);
                }
                UserType::Domain { .. } | UserType::Array { .. } => return None,
            },
        })
    }

    /// Whether `=` is defined and decided natively where a filter asks for it.
    #[must_use]
    pub const fn has_equality(&self) -> bool {
        match self {
            Self::Json | Self::Citext | Self::Array(_) => false,
            Self::Text(collation) | Self::Bpchar(collation) => collation.deterministic,
            _ => true,
        }
    }

    /// Whether `<` is defined and decided natively.
    #[must_use]
    pub const fn has_order(&self) -> bool {
        match self {
            Self::Json | Self::Jsonb | Self::Citext | Self::Array(_) => false,
            Self::Text(collation) | Self::Bpchar(collation) => collation.bytewise,
            _ => true,
        }
    }

    /// How two values of this type order under its btree operators; `None` where the order is not
    /// known natively (see [`Type::has_order`]).
    #[must_use]
    pub fn compare(&self, a: &Datum, b: &Datum) -> Option<Ordering> {
        if self.has_order() { a.order(b) } else { None }
    }
}

/// The types and collations of a database that are not the same everywhere.
#[derive(Debug, Clone, Default)]
pub struct Types {
    /// How the database keeps text.
    pub encoding: Encoding,
    /// Enums and domains.
    pub user: HashMap<Oid, UserType>,
    /// Collations other than `C` and `POSIX`; for the default collation (100) at least
    /// [`Collation::DEFAULT`] holds, an entry here may say more.
    pub collations: HashMap<Oid, Collation>,
}

impl Types {
    /// What is known of a collation.
    #[must_use]
    pub fn collation(&self, oid: Oid) -> Option<Collation> {
        let known = self.collations.get(&oid).copied();
        let known = known.or_else(|| Collation::built_in(oid))?;
        Some(match self.encoding {
            Encoding::Utf8 => known,
            // The bytes whose order counts are not those that the stream carries.
            Encoding::SingleByte => Collation {
                bytewise: false,
                ..known
            },
            Encoding::Other => Collation {
                deterministic: false,
                bytewise: false,
                plain_case: false,
            },
        })
    }

    /// What an array type is of; `None` for other types, and where its values are not understood
    /// natively.
    #[must_use]
    pub fn element(&self, array: Oid) -> Option<Oid> {
        if let Some((_, element)) = ARRAYS.iter().find(|(known, _)| *known == array.0) {
            return Some(Oid(*element));
        }
        match self.user.get(&array) {
            Some(UserType::Array { element }) => Some(*element),
            _ => None,
        }
    }

    /// The type of arrays of a type.
    #[must_use]
    pub fn array(&self, element: Oid) -> Option<Oid> {
        if let Some((array, _)) = ARRAYS.iter().find(|(_, known)| *known == element.0) {
            return Some(Oid(*array));
        }
        let mut user = self.user.iter();
        let is = |ty: &UserType| matches!(ty, UserType::Array { element: of } if *of == element);
        user.find(|(_, ty)| is(ty)).map(|(oid, _)| *oid)
    }

    fn user_domain(&self, oid: Oid) -> bool {
        matches!(self.user.get(&oid), Some(UserType::Domain { .. }))
    }
}

/// How a database keeps text (`pg_database.encoding`). The stream and clients speak UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// As UTF-8.
    #[default]
    Utf8,
    /// In an encoding with one byte for each character, each of which is one of Unicode's: what is
    /// equal in the one is equal in the other, but their bytes order otherwise.
    SingleByte,
    /// In any other, or in none that is known (`SQL_ASCII`).
    Other,
}

impl Encoding {
    /// An encoding by the name that `pg_encoding_to_char` gives it.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let single = ["LATIN", "WIN", "ISO_8859_", "KOI8"];
        if name == "UTF8" {
            Self::Utf8
        } else if single.iter().any(|family| name.starts_with(family)) {
            Self::SingleByte
        } else {
            Self::Other
        }
    }

    /// Text from the bytes that the server keeps; `None` where what they mean is not known here.
    #[must_use]
    pub fn text(self, bytes: &[u8]) -> Option<&str> {
        let text = std::str::from_utf8(bytes).ok()?;
        (self == Self::Utf8 || text.is_ascii()).then_some(text)
    }
}

/// A type that a user made.
#[derive(Debug, Clone)]
pub enum UserType {
    /// An enum.
    Enum(Arc<Labels>),
    /// A domain over `base`, which is no domain itself.
    Domain {
        /// The type at the bottom of the stack of domains.
        base: Oid,
    },
    /// The extension `citext`'s, by its operators.
    Citext {
        /// `=`
        equal: Oid,
        /// `<>`
        unequal: Oid,
    },
    /// The arrays of an enum.
    Array {
        /// The enum.
        element: Oid,
    },
}

/// The labels of an enum in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(Vec<(Oid, Label)>);

impl Labels {
    /// Takes `pg_enum`'s oid and label in the order of `enumsortorder`.
    #[must_use]
    pub fn in_order<'a>(labels: impl IntoIterator<Item = (Oid, &'a str)>) -> Self {
        let label = |(position, (oid, name)): (u32, (Oid, &'a str))| {
            let name = Arc::from(name);
            (oid, Label { position, name })
        };
        Self((0..).zip(labels).map(label).collect())
    }

    /// The label of that name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Label> {
        let found = self.0.iter().find(|(_, label)| &*label.name == name)?;
        Some(&found.1)
    }

    /// The label of that `pg_enum` row.
    #[must_use]
    pub fn by_oid(&self, oid: Oid) -> Option<&Label> {
        let found = self.0.iter().find(|(candidate, _)| *candidate == oid)?;
        Some(&found.1)
    }
}

/// A label of an enum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Its place in the enum's order.
    pub position: u32,
    /// Its text.
    pub name: Arc<str>,
}
