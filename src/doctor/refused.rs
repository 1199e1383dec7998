//! Tables whose UPDATEs and DELETEs PostgreSQL refuses: a publication shows something of them that does
//! not go with their replica identity.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::Finding;
use crate::pg::{Oid, quote_identifier};
use crate::policy::catalog::Catalog;

const LOOK: &str = include_str!("../../sql/doctor_refused.sql");

/// What of a publication is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// Its list of columns leaves out what old rows carry.
    Columns,
    /// Its row filter reads what they do not carry.
    Filter,
    /// It leaves out generated columns that they carry.
    Generated,
    /// They carry virtual generated columns, which nothing publishes.
    Virtual,
}

/// A table that rows are in, and how a publication shows it.
struct Refused {
    root: Oid,
    /// As in SQL, as is `item`.
    leaf: String,
    publication: String,
    /// Whether the relay follows that one.
    followed: bool,
    /// The table by which the publication has it: itself, or one that it is a partition of.
    item: String,
    /// Whether its replica identity is FULL.
    whole: bool,
    /// Whether it has a primary key that would do.
    keyed: bool,
    filter: Option<String>,
    why: Vec<Why>,
    could_be_whole: bool,
    /// The columns that a list needs.
    wanted: String,
}

impl Refused {
    fn read(row: &Row, followed: &str) -> Result<Self, tokio_postgres::Error> {
        let mut why = Vec::new();
        for (place, one) in [Why::Columns, Why::Filter, Why::Generated, Why::Virtual]
            .into_iter()
            .enumerate()
        {
            if row.try_get(7 + place)? {
                why.push(one);
            }
        }
        let publication: String = row.try_get(2)?;
        Ok(Self {
            root: Oid(row.try_get(0)?),
            leaf: row.try_get(1)?,
            followed: publication == followed,
            publication,
            item: row.try_get(3)?,
            whole: row.try_get(4)?,
            keyed: row.try_get(5)?,
            filter: row.try_get(6)?,
            why,
            could_be_whole: row.try_get(11)?,
            wanted: row.try_get::<_, Option<String>>(12)?.unwrap_or_default(),
        })
    }

    /// Has the publication show the table with these columns and rows instead. That which the relay
    /// follows shows it whole, as findings about its lists and filters have it.
    fn again(&self, columns: Option<&str>, filter: Option<&str>) -> Vec<String> {
        let (publication, item) = (quote_identifier(&self.publication), &self.item);
        let (columns, filter) = match self.followed {
            true => (None, None),
            false => (columns, filter),
        };
        let columns = columns.map_or_else(String::new, |list| format!(" ({list})"));
        let filter = filter.map_or_else(String::new, |filter| format!(" where ({filter})"));
        vec![
            format!("alter publication {publication} drop table only {item}"),
            format!("alter publication {publication} add table only {item}{columns}{filter}"),
        ]
    }

    /// What is wrong, and the statements that mend it.
    fn mended(&self, why: Why) -> (&'static str, Vec<String>) {
        let wanted = (!self.whole).then_some(self.wanted.as_str());
        let filter = self.filter.as_deref();
        let filter = filter.filter(|_| !self.why.contains(&Why::Filter));
        match why {
            Why::Columns if self.whole => (
                "shows it by a list of columns, which does not go with REPLICA IDENTITY FULL",
                self.again(None, filter),
            ),
            Why::Columns => (
                "leaves out columns of its replica identity",
                self.again(wanted, filter),
            ),
            Why::Filter => (
                "has a row filter that reads columns which are not in its replica identity",
                if self.could_be_whole {
                    vec![format!("alter table {} replica identity full", self.leaf)]
                } else {
                    self.again(wanted, None)
                },
            ),
            Why::Generated => (
                "leaves out generated columns of its replica identity",
                vec![format!(
                    "alter publication {} set (publish_generated_columns = stored)",
                    quote_identifier(&self.publication)
                )],
            ),
            Why::Virtual => (
                "cannot show virtual generated columns, and REPLICA IDENTITY FULL has them",
                if self.keyed {
                    vec![format!(
                        "alter table {} replica identity default",
                        self.leaf
                    )]
                } else {
                    Vec::new()
                },
            ),
        }
    }
}

pub(super) async fn findings(
    client: &Client,
    catalog: &Catalog,
    publication: &str,
    names: &super::names::Names,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut by_item: BTreeMap<(Why, String, String), Vec<Refused>> = BTreeMap::new();
    for row in client.query(LOOK, &[&publication]).await? {
        let refused = Refused::read(&row, publication)?;
        // What mends a list of columns mends the filter beside it.
        let Some(why) = refused.why.first().copied() else {
            continue;
        };
        let key = (why, refused.publication.clone(), refused.item.clone());
        by_item.entry(key).or_default().push(refused);
    }
    let mut found = Vec::new();
    for ((why, ..), all) in by_item {
        let Some(first) = all.first() else { continue };
        let leaves: Vec<&str> = all.iter().map(|one| one.leaf.as_str()).collect();
        let (what, _) = first.mended(why);
        let root = catalog.tables.get(&first.root);
        let mut finding = Finding::error(
            "identity_unpublished",
            format!(
                "PostgreSQL refuses UPDATE and DELETE of {}: publication {} {what}",
                leaves.join(", "),
                first.publication
            ),
        )
        .table(root.map_or_else(|| first.item.clone(), |root| names.of(root)));
        for one in &all {
            let (_, sql) = one.mended(why);
            for statement in sql {
                if !finding.sql.contains(&statement) {
                    finding.sql.push(statement);
                }
            }
        }
        found.push(if finding.sql.is_empty() {
            finding.advice("Give it a primary key, or a replica identity by an index without them.")
        } else {
            finding.advice("Or change the table's replica identity.")
        });
    }
    Ok(found)
}
