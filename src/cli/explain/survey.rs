//! Reads what is to be explained.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Client;

use super::checks::Checks;
use super::report::{ByRole, Lookup, Policy, Report, Role, Server, Table, Totals};
use super::{Trouble, Wish, old_rows, row};
use crate::config::Config;
use crate::doctor;
use crate::lookup::Wanted;
use crate::pg::Oid;
use crate::pg::connect::Database;
use crate::policy::access::{Access, Rules};
use crate::policy::catalog::{self, Catalog};
use crate::policy::explain::{Explained, How, by_name, explain, found};
use crate::policy::reader::CatalogReader;

/// Roles that policies name are explained up to so many.
const MOST_ROLES: usize = 16;

const SERVER: &str = "select current_setting('server_version_num')::int, pg_is_in_recovery(), \
     current_user::text, has_database_privilege(current_database(), 'temporary'), \
     array(select pubname::text from pg_publication where pubname = any ($1::text[]))";

/// Published tables, and those with policies for SELECT.
const ALL: &str = "select c.oid from pg_class c where c.relkind in ('r', 'p') and (\
     exists (select from pg_publication_tables p join pg_namespace n on n.nspname = p.schemaname \
             where p.pubname = $1 and n.oid = c.relnamespace and p.tablename = c.relname) \
     or exists (select from pg_policy p where p.polrelid = c.oid and p.polcmd in ('r', '*'))) \
     order by c.oid";

/// The roles that policies of tables name, the most named first.
const NAMED: &str = "select r.rolname::text from pg_policy p cross join unnest(p.polroles) as m(oid) \
     join pg_roles r on r.oid = m.oid where p.polrelid = any ($1::oid[]) \
     and p.polcmd in ('r', '*') group by 1 order by count(*) desc, 1";

pub(super) async fn report(
    config: &Config,
    wish: &Wish,
    mut notes: Vec<String>,
) -> Result<Report, Trouble> {
    let database = Database::parse(config.database_url.expose())
        .map_err(|error| Trouble::Usage(error.to_string()))?;
    let client = database
        .connect("rowcast explain")
        .await
        .map_err(|error| Trouble::Database(error.to_string()))?;
    let named = config.publication.clone();
    let wanted: Vec<String> = named.map_or_else(
        || vec!["rowcast".to_owned(), "supabase_realtime".to_owned()],
        |name| vec![name],
    );
    let about = client.query_one(SERVER, &[&wanted]).await?;
    let (version, standby): (i32, bool) = (about.get(0), about.get(1));
    let (login, temporary): (String, bool) = (about.get(2), about.get(3));
    let there: Vec<String> = about.get(4);
    let publication = wanted.into_iter().find(|name| there.contains(name));
    if publication.is_none() {
        notes.push("there is no publication: no table is published yet".to_owned());
    }
    if standby {
        notes.push(
            "this is a standby: function bodies that are kept as text, and rules, are resolved on \
             a primary only, so what calls such functions counts as asked"
                .to_owned(),
        );
    } else if !temporary {
        notes.push(format!(
            "{login} may not make temporary objects in this database: function bodies that are \
             kept as text, and rules, are not resolved, so what calls such functions counts as \
             asked"
        ));
    }
    let tables = match &wish.table {
        Some(name) => vec![one_table(&client, name).await?],
        None => {
            let name = publication.clone().unwrap_or_default();
            let rows = client.query(ALL, &[&name]).await?;
            rows.iter().map(|row| Oid(row.get(0))).collect()
        }
    };
    let roles = roles(&client, config, wish, &tables).await?;
    let names = (publication.clone().unwrap_or_default(), config.slot.clone());
    let mut reader = CatalogReader::new(database, names, roles.clone())
        .with_rules(config.rules.clone())
        .describing(tables.clone());
    let catalog = reader.look_closely().await.map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        Trouble::Database(text)
    })?;
    notes.extend(catalog.unruled.iter().cloned());
    for role in &roles {
        if !catalog.roles.contains_key(role) {
            if wish.role.is_some() || wish.principal.is_some() {
                return Err(Trouble::Usage(format!("There is no role {role}.")));
            }
            notes.push(format!("role {role} does not exist"));
        }
    }
    let mut checks = Checks::default();
    if config.policy_check {
        checks.make(&client, &catalog, (&tables, &roles)).await?;
    }
    let catalog = catalog.refuting(&checks.refuted());
    let published = published(&client, publication.as_deref()).await?;
    let mut report = Report {
        version: 1,
        server: Server {
            version: u32::try_from(version).unwrap_or_default(),
            standby,
            login,
            publication,
        },
        notes,
        roles: roles.clone(),
        tables: Vec::with_capacity(tables.len()),
        totals: Totals::default(),
        row: None,
    };
    for oid in &tables {
        let Some(table) = catalog.tables.get(oid) else {
            report
                .notes
                .push(format!("table {oid} went away meanwhile"));
            continue;
        };
        let place = (config, published.contains(oid));
        let mut explained = one(&catalog, table, &roles, place);
        for policy in &mut explained.policies {
            checks.tell(*oid, policy);
        }
        report.totals.add(&explained.totals);
        report.tables.push(explained);
    }
    look_whether_mirrored(&client, config, &mut report).await?;
    report
        .tables
        .sort_by(|a, b| (&a.schema, &a.table).cmp(&(&b.schema, &b.table)));
    if let (Some(key), Some(principal)) = (&wish.row, &wish.principal) {
        let table = tables.first().and_then(|oid| catalog.tables.get(oid));
        if let Some(table) = table {
            report.row =
                Some(row::judge(&client, (&catalog, table), principal, key, config).await?);
        }
    }
    let row = report.row.iter_mut().flat_map(|row| &mut row.policies);
    let row = row.filter_map(|one| one.undecided_because.as_mut());
    let reasons = report.tables.iter_mut().flat_map(Table::reasons);
    by_name(&client, reasons.chain(row).collect()).await?;
    Ok(report)
}

/// Notes of the tables that policies look into which cannot be mirrored.
async fn look_whether_mirrored(
    client: &Client,
    config: &Config,
    report: &mut Report,
) -> Result<(), Trouble> {
    let publication = report.server.publication.as_deref().unwrap_or_default();
    let policies = || report.tables.iter().flat_map(|table| &table.policies);
    let mut wanted: BTreeMap<Oid, Wanted> = BTreeMap::new();
    for one in policies().flat_map(|policy| &policy.lookups) {
        let known = wanted.entry(one.wanted.table);
        let known = known.or_insert_with(|| one.wanted.clone());
        known.merge(&one.wanted);
    }
    let wanted: Vec<Wanted> = wanted.into_values().collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let refused = doctor::unmirrored(client, &wanted, (publication, config)).await?;
    let refused: BTreeMap<Oid, String> = refused
        .into_iter()
        .map(|(oid, _, refusal)| (oid, refusal.text.to_string()))
        .collect();
    let tables = report.tables.iter_mut();
    let policies = tables.flat_map(|table| &mut table.policies);
    for one in policies.flat_map(|policy| &mut policy.lookups) {
        one.not_mirrored = refused.get(&one.wanted.table).cloned();
    }
    Ok(())
}

async fn one_table(client: &Client, name: &str) -> Result<Oid, Trouble> {
    let found = client
        .query_opt(
            "select c.oid, c.relkind in ('r', 'p') from pg_class c \
             where c.oid = to_regclass($1::text)::oid",
            &[&name],
        )
        .await;
    let found = match found {
        Err(error) if error.as_db_error().is_some() => None,
        other => other?,
    };
    match found {
        None => Err(Trouble::Usage(format!(
            "There is no table {name} that this login sees; write it as in SQL, with its schema."
        ))),
        Some(row) if row.get(1) => Ok(Oid(row.get(0))),
        Some(_) => Err(Trouble::Usage(format!(
            "{name} is no table: replication carries rows of tables only."
        ))),
    }
}

async fn published(client: &Client, publication: Option<&str>) -> Result<Vec<Oid>, Trouble> {
    let rows = client
        .query(
            "select c.oid from pg_publication_tables p join pg_namespace n on n.nspname = p.schemaname \
             join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename \
             where p.pubname = $1",
            &[&publication.unwrap_or_default()],
        )
        .await?;
    Ok(rows.iter().map(|row| Oid(row.get(0))).collect())
}

/// Whom to explain it for, the most usual first.
async fn roles(
    client: &Client,
    config: &Config,
    wish: &Wish,
    tables: &[Oid],
) -> Result<Vec<String>, Trouble> {
    if let Some(role) = &wish.role {
        return Ok(vec![role.clone()]);
    }
    if let Some(principal) = &wish.principal {
        return Ok(vec![principal.role.to_string()]);
    }
    let mut roles = vec![config.default_role.clone()];
    roles.extend(["authenticated", "anon", "service_role"].map(str::to_owned));
    let oids: Vec<u32> = tables.iter().map(|oid| oid.0).collect();
    let named = client.query(NAMED, &[&oids]).await?;
    roles.extend(named.iter().map(|row| row.get::<_, String>(0)));
    let there = client
        .query(
            "select rolname::text from pg_roles where rolname = any ($1::text[])",
            &[&roles],
        )
        .await?;
    let there: Vec<String> = there.iter().map(|row| row.get(0)).collect();
    let mut kept: Vec<String> = Vec::new();
    for role in roles {
        if there.contains(&role) && !kept.contains(&role) && kept.len() < MOST_ROLES {
            kept.push(role);
        }
    }
    if kept.is_empty() {
        // Somebody at least: policies for everybody apply to the login as well.
        let login = client.query_one("select current_user::text", &[]).await?;
        kept.push(login.get(0));
    }
    Ok(kept)
}

fn one(
    catalog: &Catalog,
    table: &Arc<catalog::Table>,
    roles: &[String],
    (config, published): (&Config, bool),
) -> Table {
    let mut totals = Totals {
        tables: 1,
        ..Totals::default()
    };
    let policies = table.policies.iter().map(|policy| {
        let applies = |role: &&String| {
            let mut rights = table.rights.iter();
            rights.any(|one| one.role == **role && one.policies.contains(&policy.name))
        };
        (policy, "policy", roles.iter().filter(applies).collect())
    });
    let rules = table.rules.iter().filter_map(|rule| {
        let applies = roles.iter().filter(|role| rule.applies_to(role));
        Some((rule.policy.as_ref().ok()?, "rule", applies.collect()))
    });
    let policies: Vec<Policy> = together(catalog, table, policies.chain(rules), roles);
    policies.iter().for_each(|policy| totals.count(policy));
    let known = roles
        .iter()
        .filter(|role| catalog.roles.contains_key(*role));
    let accesses: Vec<Access> = known
        .clone()
        .map(|role| Access::new(catalog, table, role))
        .collect();
    Table {
        schema: table.schema.clone(),
        table: table.name.clone(),
        published,
        row_security: table.row_security,
        force_row_security: table.force_row_security,
        old_rows: old_rows::of(catalog, table, &config.old_rows, &accesses),
        policies,
        roles: known
            .zip(&accesses)
            .map(|(role, access)| match config.require.lacks(table, role) {
                Some(reason) => Role {
                    role: role.to_owned(),
                    sees: "nothing",
                    reason: Some(reason),
                    asked: false,
                    audience: None,
                },
                None => role_of(role, access),
            })
            .collect(),
        totals,
    }
}

/// Each policy for the first role that it holds back, and for the others where it is something else.
/// What is explained for the same role is compiled together.
fn together<'c>(
    catalog: &'c Catalog,
    table: &'c catalog::Table,
    policies: impl Iterator<Item = (&'c catalog::Policy, &'static str, Vec<&'c String>)>,
    roles: &'c [String],
) -> Vec<Policy> {
    let bypasses = |role: &str| catalog.roles.get(role).is_some_and(|role| role.bypass);
    let mut wanted = Vec::new();
    let mut by_role: BTreeMap<&str, Vec<(usize, &catalog::Policy)>> = BTreeMap::new();
    for (place, (policy, kind, applies)) in policies.enumerate() {
        let held = applies
            .iter()
            .copied()
            .filter(|role| kind == "rule" || !bypasses(role));
        let mut held: Vec<&String> = held.collect();
        if held.is_empty() {
            held.extend(applies.first().copied().or(roles.first()));
        }
        for role in &held {
            by_role.entry(role).or_default().push((place, policy));
        }
        wanted.push((kind, applies, held));
    }
    let mut explained: Vec<BTreeMap<&str, Explained<'_>>> = Vec::new();
    explained.resize_with(wanted.len(), BTreeMap::new);
    for (role, policies) in by_role {
        let list: Vec<&catalog::Policy> = policies.iter().map(|(_, policy)| *policy).collect();
        let all = explain(catalog, table, &list, role);
        for ((place, _), one) in policies.iter().zip(all) {
            if let Some(of) = explained.get_mut(*place) {
                of.insert(role, one);
            }
        }
    }
    let each = wanted.into_iter().zip(explained);
    each.filter_map(|((kind, applies, held), mut explained)| {
        let role = *held.first()?;
        let first = explained.remove(role.as_str())?;
        Some(policy_of(first, kind, &applies, role, explained))
    })
    .collect()
}

fn policy_of(
    explained: Explained<'_>,
    kind: &'static str,
    applies: &[&String],
    role: &str,
    others: BTreeMap<&str, Explained<'_>>,
) -> Policy {
    let others = others
        .into_iter()
        .filter(|(_, other)| other.how != explained.how);
    let by_role = others
        .map(|(role, other)| {
            let one = ByRole {
                status: other.how.as_str(),
                reasons: other.reasons,
            };
            (role.to_owned(), one)
        })
        .collect();
    let Explained {
        policy,
        level,
        how,
        mut reasons,
        raises,
        columns,
        claims,
        lookups,
        found,
        ..
    } = explained;
    if how != How::Native && reasons.is_empty() {
        reasons.push("not known".to_owned());
    }
    let lookups = lookups.into_iter().map(|one| Lookup {
        table: one.table,
        columns: one.columns,
        not_mirrored: None,
        wanted: one.wanted,
    });
    Policy {
        name: policy.name.clone(),
        kind,
        permissive: policy.permissive,
        applies_to: applies.iter().map(|role| (*role).clone()).collect(),
        explained_for: role.to_owned(),
        using: policy.condition.clone(),
        level: level.map(|level| level.as_str()),
        status: how.as_str(),
        reasons,
        raises,
        columns,
        claims: claims.into_iter().collect(),
        lookups: lookups.collect(),
        audience: found.as_str(),
        checked: None,
        not_checked: None,
        by_role,
    }
}

fn role_of(role: &str, access: &Access) -> Role {
    let (sees, reason, asked) = match &access.rules {
        Rules::Nothing(reason) => ("nothing", Some(reason.clone()), false),
        Rules::Everything => ("everything", None, false),
        Rules::Judged { .. } if access.hides_all => {
            let names: Vec<&str> = access
                .refusing
                .iter()
                .map(|(_, one)| one.as_str())
                .collect();
            let reason = match names.as_slice() {
                [] => "no policy lets it see a row, whatever the row".to_owned(),
                names => format!(
                    "{} must say yes as well, and never does",
                    names.join(" and ")
                ),
            };
            ("nothing", Some(reason), false)
        }
        Rules::Judged { asked, .. } => ("judged", None, *asked),
    };
    Role {
        role: role.to_owned(),
        sees,
        reason,
        asked,
        audience: found(access)
            .filter(|_| sees == "judged")
            .map(|found| found.as_str()),
    }
}
