//! What the catalog says of a table that is to be mirrored, and whether it can be.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokio_postgres::types::{ToSql, Type as PgType};
use tokio_postgres::{Client, Row};

use super::follow::{Followed, Shape};
use super::reason::{Cause, Refusal};
use super::{Purpose, Settings};
use crate::datum::{Collation, Type, Types};
use crate::lookup::{Column, Wanted};
use crate::pg::{Oid, quote_identifier};

const LOOK: &str = include_str!("../../../sql/lookups.sql");
const PARTITIONS: &str = include_str!("../../../sql/partitions.sql");

/// The collation `C`.
const COLLATION_C: Oid = Oid(950);

/// A table as the catalog has it.
#[derive(Debug, Deserialize)]
pub(super) struct Found {
    /// As in SQL, with its schema.
    pub(super) name: String,
    kind: String,
    persistence: String,
    system: bool,
    partition: bool,
    children: bool,
    /// Whether there are partitions whose rows are not in the stream.
    unstreamed: bool,
    owned: bool,
    readable: bool,
    secured: bool,
    open: bool,
    login: String,
    identity: String,
    /// The replica identities of the partitions and of the table.
    identities: String,
    key: Option<Key>,
    columns: BTreeMap<String, Attribute>,
    members: String,
    publications: HashMap<String, Publication>,
}

#[derive(Debug, Deserialize)]
struct Key {
    index: u32,
    columns: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Attribute {
    number: i16,
    #[serde(rename = "type")]
    type_oid: u32,
    modifier: i32,
    generated: bool,
    version: String,
}

#[derive(Debug, Deserialize)]
struct Publication {
    oid: u32,
    version: String,
    complete: bool,
    owned: bool,
    listed: bool,
    touched: bool,
    columns: bool,
    filter: bool,
    members: String,
}

/// How a table can be mirrored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) shape: Shape,
    /// All that has to stay as it is for the stream to tell all that happens to the table.
    pub(super) identity: Arc<str>,
    /// Whether it is the lookups' publication that has it.
    pub(super) beside: bool,
    /// Whether rows are read under row-level security, of which is known that it keeps none.
    pub(super) under_policy: bool,
    /// Its partitions, where it has some. It can lose rows without a word in the stream and without any
    /// DDL then: a TRUNCATE of a partition is not published where its rows are as the root's.
    pub(super) members: Option<Arc<str>>,
}

/// What an identity says besides the partitions, which it ends with.
pub(super) fn but_partitions<'a>(identity: &'a str, members: Option<&Arc<str>>) -> Option<&'a str> {
    let rest = identity.strip_suffix(']')?;
    rest.strip_suffix(members.map_or("", |members| members))
}

/// Whether it can be mirrored.
#[derive(Debug)]
pub(super) enum Verdict {
    Fits(Way),
    /// It could be, were it in the lookups' publication.
    Unpublished,
    Refused(Refusal),
}

/// Asks for all tables at once; those that are missing do not exist.
pub(super) async fn look(
    client: &Client,
    tables: &[Oid],
    settings: &Settings,
) -> Result<HashMap<Oid, Found>, tokio_postgres::Error> {
    let oids: Vec<u32> = tables.iter().map(|oid| oid.0).collect();
    let (first, second) = (&settings.publication, &settings.lookup_publication);
    let rows = client.query(LOOK, &[&oids, first, second]).await?;
    let mut all = HashMap::new();
    for row in rows {
        let said: Value = row.try_get(1)?;
        match serde_json::from_value(said) {
            Ok(found) => {
                all.insert(Oid(row.try_get(0)?), found);
            }
            Err(error) => tracing::error!(%error, "the catalog's answer on a lookup is not read"),
        }
    }
    Ok(all)
}

/// The partitions of these tables, as [`Way::members`] has them.
pub(super) async fn partitions(
    client: &Client,
    tables: &[Oid],
) -> Result<HashMap<Oid, Arc<str>>, tokio_postgres::Error> {
    let oids: Vec<u32> = tables.iter().map(|oid| oid.0).collect();
    // Without a statement of its own: one way to the server and back.
    let oids: (&(dyn ToSql + Sync), _) = (&oids, PgType::OID_ARRAY);
    let rows = client.query_typed(PARTITIONS, &[oids]).await?;
    let members = |row: Row| Ok((Oid(row.try_get(0)?), row.try_get::<_, &str>(1)?.into()));
    rows.into_iter().map(members).collect()
}

/// Why tables could not be mirrored for this login, of those that are wanted, each with its name as in
/// SQL: what the keeper itself would find, without changing anything. A table that it would publish
/// by itself is none of them.
///
/// # Errors
/// PostgreSQL's.
pub async fn examine(
    client: &Client,
    wanted: &[Wanted],
    settings: &Settings,
) -> Result<Vec<(Oid, Arc<str>, Refusal)>, tokio_postgres::Error> {
    let oids: Vec<Oid> = wanted.iter().map(|one| one.table).collect();
    let found = look(client, &oids, settings).await?;
    let mut refused = Vec::new();
    for one in wanted {
        let Some(found) = found.get(&one.table) else {
            continue;
        };
        match found.judge(one, settings) {
            Verdict::Fits(_) => {}
            Verdict::Refused(refusal) => refused.push((one.table, found.name(), refusal)),
            Verdict::Unpublished => {
                if !found.is_owned() {
                    refused.push((one.table, found.name(), found.unpublished(settings)));
                }
            }
        }
    }
    Ok(refused)
}

impl Found {
    /// Its name as in SQL, with its schema.
    pub(super) fn name(&self) -> Arc<str> {
        self.name.as_str().into()
    }

    /// Whether the table can be mirrored as it is wanted.
    pub(super) fn judge(&self, wanted: &Wanted, settings: &Settings) -> Verdict {
        match self.way(wanted, settings) {
            Ok(Some(way)) => Verdict::Fits(way),
            Ok(None) => Verdict::Unpublished,
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    fn way(&self, wanted: &Wanted, settings: &Settings) -> Result<Option<Way>, Refusal> {
        self.look_at_kind(settings)?;
        let shape = self.shape(wanted)?;
        if shape.key.is_empty() && settings.purpose == Purpose::OldRows {
            return Err(Cause::Identity.because(format!(
                "{} has no primary key, by which the row before a change is found",
                self.name
            )));
        }
        self.look_at_rights()?;
        let Some(beside) = self.publication(settings)? else {
            return Ok(None);
        };
        let identity = self.identity(&shape, wanted, settings, beside);
        Ok(Some(Way {
            shape,
            identity,
            beside,
            under_policy: self.secured,
            members: (self.kind == "p").then(|| self.members.as_str().into()),
        }))
    }

    fn look_at_kind(&self, settings: &Settings) -> Result<(), Refusal> {
        let name = &self.name;
        let old_rows = settings.purpose == Purpose::OldRows;
        let first = self.publications.get(&settings.publication);
        // One that is published as itself is in the stream as itself.
        let by_root = self.partition && !(old_rows && first.is_some_and(|first| first.listed));
        let what = match (self.kind.as_str(), self.persistence.as_str()) {
            _ if self.system => "is one of the system's",
            ("r" | "p", "p") if by_root && old_rows => {
                "is a partition, whose rows are in the stream as its parent's: name that"
            }
            ("r" | "p", "p") if by_root => {
                "is a partition, whose rows are in the stream as its parent's; let policies read \
                 the parent"
            }
            ("p", "p") if self.unstreamed => {
                "has a partition that is a foreign table or not logged, whose rows are not in the stream"
            }
            ("r" | "p", "p") if self.children => {
                "has tables that inherit from it, whose rows are in the stream as theirs"
            }
            ("r" | "p", "p") => return Ok(()),
            ("r" | "p", _) => "is not logged: run \"alter table … set logged\"",
            _ => "is no table: its rows are not in the stream",
        };
        Err(Cause::Kind.because(format!("{name} {what}")))
    }

    fn look_at_rights(&self) -> Result<(), Refusal> {
        let (name, login) = (&self.name, quote_identifier(&self.login));
        if !self.readable {
            return Err(Cause::Privilege.because(format!(
                "the relay may not read {name}: run \"grant select on table {name} to {login}\" \
                 (and \"grant usage\" on its schema), or \"rowcast setup --lookups\""
            )));
        }
        if self.secured && !self.open {
            return Err(Cause::RowSecurity.because(format!(
                "row-level security keeps rows of {name} from the relay: run \"create policy \
                 \"rowcast reads lookups\" on {name} for select to {login} using (true)\", or \
                 \"rowcast setup --lookups\" (where a restrictive policy keeps them, only \"alter \
                 role {login} bypassrls\" helps)"
            )));
        }
        Ok(())
    }

    /// The columns that tell rows apart, as the stream carries them.
    fn shape(&self, wanted: &Wanted) -> Result<Shape, Refusal> {
        let name = &self.name;
        for column in &wanted.columns {
            match self.columns.get(&*column.name) {
                Some(found) if found.generated => {
                    return Err(Cause::Generated.because(format!(
                        "column {} of {name} is generated: its values are not in the stream",
                        quote_identifier(&column.name)
                    )));
                }
                Some(found) if found.type_oid == column.type_oid.0 => {}
                _ => {
                    return Err(Cause::Shape.because(format!(
                        "column {} of {name} is not what the policies were compiled with",
                        quote_identifier(&column.name)
                    )));
                }
            }
        }
        let key = match (self.identity.as_str(), &self.key) {
            ("d" | "i" | "f", Some(key)) => self.key_columns(wanted, &key.columns),
            ("f", None) => Vec::new(),
            _ => {
                // A key that it has is enough.
                let identity = if self.key.is_some() {
                    "default"
                } else {
                    "full"
                };
                let text = format!(
                    "{name} has no replica identity: add a primary key, or run \"alter table {name} \
                     replica identity {identity}\""
                );
                return Err(Cause::Identity
                    .because(text)
                    .mended(&self.identified(identity)));
            }
        };
        // What a partition's old row carries is as its own identity says.
        let partitions = self.identities.chars();
        if self.kind == "p"
            && !partitions
                .clone()
                .all(|one| one == 'f' || one == 'd' && !key.is_empty())
        {
            let identity = if key.is_empty() { "full" } else { "default" };
            let text = format!(
                "partitions of {name} have another replica identity than it has: run \"alter table … \
                 replica identity {identity}\" on them"
            );
            return Err(Cause::Identity
                .because(text)
                .mended(&self.identified(identity)));
        }
        let inexact = |of: &Type| {
            matches!(
                of,
                Type::Numeric | Type::Jsonb | Type::Float4 | Type::Float8
            )
        };
        if key.is_empty() && wanted.columns.iter().any(|column| inexact(&column.of)) {
            return Err(Cause::Identity.because(format!(
                "rows of {name} cannot be told apart by values that are equal without being the \
                 same: add a primary key"
            )));
        }
        let columns = Followed::columns_of(wanted, &key);
        let modifiers = columns.iter().map(|column| {
            let found = self.columns.get(&*column.name);
            found.map_or(-1, |found| found.modifier)
        });
        Ok(Shape {
            modifiers: modifiers.collect(),
            key: key.into(),
        })
    }

    /// What gives the table, and its partitions where it has some, a replica identity.
    fn identified(&self, identity: &str) -> Vec<String> {
        let name = &self.name;
        let mut statements = vec![format!("alter table {name} replica identity {identity}")];
        if self.kind == "p" {
            let letter = identity.get(..1).unwrap_or_default();
            let root = name.replace('\'', "''");
            statements.push(format!(
                "do $$ declare partition regclass; begin for partition in select t.relid from \
                 pg_partition_tree('{root}') t join pg_class c on c.oid = t.relid where \
                 c.relreplident not in ('{letter}', 'f') loop execute format('alter table %s replica \
                 identity {identity}', partition); end loop; end $$"
            ));
        }
        statements
    }

    /// The key's columns: as they are wanted, else as something whose equality is no coarser than
    /// the index's.
    fn key_columns(&self, wanted: &Wanted, names: &[String]) -> Vec<Column> {
        let column = |name: &String| {
            let known = wanted.columns.iter().find(|column| *column.name == **name);
            let found = self.columns.get(name);
            let type_oid = Oid(found.map_or(0, |found| found.type_oid));
            known.cloned().unwrap_or_else(|| Column {
                name: name.as_str().into(),
                type_oid,
                of: Type::of(type_oid, COLLATION_C, &Types::default())
                    .unwrap_or(Type::Text(Collation::C)),
            })
        };
        names.iter().map(column).collect()
    }

    /// Whether the lookups' publication has it (`true`) or the subscribers' (`false`); `None` where
    /// neither does.
    fn publication(&self, settings: &Settings) -> Result<Option<bool>, Refusal> {
        let name = &self.name;
        let (first_name, second_name) = (
            quote_identifier(&settings.publication),
            quote_identifier(&settings.lookup_publication),
        );
        let narrowed = |text: String, mend: &[String]| Err(Refusal::narrowed(&text, mend));
        let anew = |publication: &str| {
            ["drop", "add"]
                .map(|what| format!("alter publication {publication} {what} table {name}"))
        };
        let all = |publication: &str| {
            format!(
                "alter publication {publication} set (publish = 'insert, update, delete, truncate')"
            )
        };
        let by_root = |publication: &str| {
            format!("alter publication {publication} set (publish_via_partition_root = true)")
        };
        if let Some(first) = self.publications.get(&settings.publication)
            && first.touched
        {
            // In both, the wider of the two would hold for subscribers too, and PostgreSQL refuses
            // different lists of columns.
            return if first.columns {
                narrowed(
                    format!("publication {first_name} carries only some of {name}'s columns"),
                    &anew(&first_name),
                )
            } else if first.filter {
                narrowed(
                    format!("publication {first_name} carries only some of {name}'s rows"),
                    &anew(&first_name),
                )
            } else if !first.complete {
                narrowed(
                    format!(
                        "publication {first_name}, which has {name}, does not carry all changes"
                    ),
                    &[all(&first_name)],
                )
            } else if !first.listed {
                narrowed(
                    format!(
                        "publication {first_name} carries the partitions of {name} as themselves"
                    ),
                    &[by_root(&first_name)],
                )
            } else if self.conflicts(settings) {
                narrowed(
                    format!(
                        "{name} is in publication {second_name} with less than in {first_name}"
                    ),
                    &[format!("alter publication {second_name} drop table {name}")],
                )
            } else {
                Ok(Some(false))
            };
        }
        if settings.purpose == Purpose::OldRows {
            return Err(Cause::Publication.because(format!(
                "{name} is not in publication {first_name}: nobody is told of its rows"
            )));
        }
        let Some(second) = self.publications.get(&settings.lookup_publication) else {
            return Ok(None);
        };
        if !second.touched {
            return Ok(None);
        }
        let mut mend = Vec::new();
        if second.columns || second.filter {
            mend.extend(anew(&second_name));
        }
        if !second.complete {
            mend.push(all(&second_name));
        }
        if !second.listed {
            mend.push(by_root(&second_name));
        }
        if !mend.is_empty() {
            return narrowed(
                format!("publication {second_name} does not carry all of {name}"),
                &mend,
            );
        }
        Ok(Some(true))
    }

    /// Whether the lookups' publication has it in another way than the subscribers'.
    fn conflicts(&self, settings: &Settings) -> bool {
        let second = self.publications.get(&settings.lookup_publication);
        second.is_some_and(|second| second.touched && (second.columns || second.filter))
    }

    /// Whether it is to be taken out of the lookups' publication, where it does harm: it would keep
    /// the application from writing, or the stream from going on, or show subscribers more.
    pub(super) fn harms(&self, refusal: &Refusal, settings: &Settings) -> bool {
        let second = self.publications.get(&settings.lookup_publication);
        let there = second.is_some_and(|second| second.touched && second.owned);
        let first = self.publications.get(&settings.publication);
        let both = first.is_some_and(|first| first.touched);
        let ours = settings.purpose == Purpose::Lookups;
        ours && there
            && (refusal.cause == Cause::Identity || both && refusal.cause == Cause::Narrowed)
    }

    /// The statement that adds the table.
    pub(super) fn addition(&self, settings: &Settings) -> String {
        format!(
            "alter publication {} add table {}",
            quote_identifier(&settings.lookup_publication),
            self.name
        )
    }

    /// Why it is not in the lookups' publication, and what puts it there.
    pub(super) fn unpublished(&self, settings: &Settings) -> Refusal {
        let publication = quote_identifier(&settings.lookup_publication);
        let name = &self.name;
        let second = self.publications.get(&settings.lookup_publication);
        Cause::Publication.because(match second {
            None => format!(
                "the relay may not make the publication of the lookups: run \"create publication \
                 {publication} for table {name} with (publish_via_partition_root = true)\", or \
                 \"rowcast setup --lookups\""
            ),
            Some(_) => format!(
                "the relay may not publish {name}, which takes the owner of the table and of \
                 publication {publication}: run \"{}\", or \"rowcast setup --lookups\"",
                self.addition(settings)
            ),
        })
    }

    /// Whether the login owns the table, as adding it takes.
    pub(super) const fn is_owned(&self) -> bool {
        self.owned
    }

    pub(super) fn second_exists(&self, settings: &Settings) -> bool {
        self.publications.contains_key(&settings.lookup_publication)
    }

    fn identity(
        &self,
        shape: &Shape,
        wanted: &Wanted,
        settings: &Settings,
        beside: bool,
    ) -> Arc<str> {
        let name = if beside {
            &settings.lookup_publication
        } else {
            &settings.publication
        };
        let publication = self.publications.get(name).map(|one| {
            let Publication {
                oid,
                version,
                members,
                ..
            } = one;
            format!("{name:?} {oid} {version} [{members}]")
        });
        let columns = Followed::columns_of(wanted, &shape.key);
        let columns: Vec<String> = columns
            .iter()
            .filter_map(|column| {
                let found = self.columns.get(&*column.name)?;
                let Attribute {
                    number,
                    type_oid,
                    modifier,
                    version,
                    ..
                } = found;
                Some(format!("{number}:{type_oid}:{modifier}:{version}"))
            })
            .collect();
        let key: Vec<&str> = shape.key.iter().map(|column| &*column.name).collect();
        let index = self.key.as_ref().map_or(0, |key| key.index);
        format!(
            "{} {} {index} {key:?} {columns:?} [{}]",
            publication.unwrap_or_default(),
            self.identity,
            self.members
        )
        .into()
    }
}
