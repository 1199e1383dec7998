//! Why subscribers see nothing, too little or too late, and what mends it.
//!
//! Everything is read as the relay itself reads it: the source's own checks, the catalog, what each
//! role may see of each table, what keeps a table from being mirrored. So what is said here is what
//! the relay does. Nothing is written; a function that policies call is resolved in a transaction
//! that is rolled back, as the relay does it.

mod checks;

mod clients;

mod cost;

mod filters;

mod finding;

mod identity;

mod locks;

mod lookups;

mod names;

mod old_rows;

mod plugins;

mod publication;

mod refused;

mod server;

mod slot;

mod table;

mod token;

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_postgres::Client;

pub use self::finding::{Finding, Severity};
pub(crate) use self::locks::locked;
pub(crate) use self::lookups::unmirrored;
use self::server::Facts;
pub(crate) use self::slot::waits as slot_waits;
use crate::auth::{self, Authenticator};
use crate::config::{Config, Secret};
use crate::pg::connect::{ConnectError, Database};
use crate::pg::quote_identifier;
use crate::pg::refusal::{Retry, with_causes};
use crate::policy::reader::CatalogReader;
use crate::router::picture::Filtered;
use crate::source::{self, SourceError};
use crate::subscription::Events;

/// How long one statement may take. Nothing here needs longer, and nobody is to wait for a doctor.
const STATEMENT: Duration = Duration::from_secs(10);

/// What the session is like that everything is read over.
const SESSION: &str = "set search_path = ''; set jit = off; set lock_timeout = '1s'; \
     set default_transaction_read_only = on; set client_min_messages = warning";

/// What is to be examined.
#[derive(Debug, Clone)]
pub struct Patient {
    /// The settings of the relay, which need not be complete.
    pub config: Config,
    /// What there is to be said of the settings.
    pub warnings: Vec<String>,
    /// A token of somebody who receives nothing.
    pub token: Option<Secret>,
    /// The tables that are meant, as SQL names with their schema; all that are published where
    /// there are none.
    pub tables: Vec<String>,
    /// Filters of subscribers of the one table that is meant, as clients word them.
    pub filters: Vec<String>,
    /// What subscribers with these filters ask for.
    pub events: Events,
    /// What those filter by who are subscribed now, where a relay is asked that runs.
    pub filtered: Vec<Filtered>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Of this shape of the report.
    pub format: u32,
    /// The most severe findings first.
    pub findings: Vec<Finding>,
    /// The server's version, as it says it; `None` where there is none to ask.
    pub server: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// The login that everything was seen with.
    pub login: Option<String>,
    /// The publication that the relay follows.
    pub publication: Option<String>,
    /// How many tables can be subscribed to.
    pub tables: usize,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

impl Report {
    /// The worst that was found.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|one| one.severity).min()
    }

    /// Findings of one severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        let findings = self.findings.iter();
        findings.filter(|one| one.severity == severity).count()
    }

    /// Adds findings, each once, and puts all in order.
    pub fn add(&mut self, more: impl IntoIterator<Item = Finding>) {
        for mut one in more {
            one.keep_comments();
            // What keeps two sessions out is found twice.
            if !self.findings.contains(&one) {
                self.findings.push(one);
            }
        }
        self.findings
            .sort_by(|a, b| (a.severity, a.place()).cmp(&(b.severity, b.place())));
    }
}

/// Everything that is known so far.
struct Examination<'a> {
    patient: &'a Patient,
    findings: Vec<Finding>,
    unseen: Vec<String>,
    report: Report,
}

/// Looks at everything. Never fails: what keeps it from looking is a finding.
pub async fn examine(patient: &Patient) -> Report {
    let began = Instant::now();
    let mut examination = Examination {
        patient,
        findings: Vec::new(),
        unseen: Vec::new(),
        report: Report {
            format: 1,
            findings: Vec::new(),
            server: None,
            database: None,
            login: None,
            publication: None,
            tables: 0,
            unseen: Vec::new(),
            milliseconds: 0,
        },
    };
    let holder = examination.claims().await;
    if let Err(fault) = examination.database(holder.as_ref()).await {
        let unexamined = || {
            let text = format!("not everything could be looked at: {fault}");
            Finding::error("unexamined", text)
                .advice("Run it again; the server's log may say more.")
        };
        let locked = match Database::parse(patient.config.database_url.expose()) {
            Ok(database) => locked(&database, &fault).await,
            Err(_) => None,
        };
        examination.findings.push(locked.unwrap_or_else(unexamined));
    }
    let Examination {
        findings,
        unseen,
        mut report,
        ..
    } = examination;
    report.add(findings);
    report.unseen = unseen;
    report.milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    report
}

impl Examination<'_> {
    /// What needs no database: the keys, and the token.
    async fn claims(&mut self) -> Option<token::Holder> {
        let config = &self.patient.config;
        self.findings
            .extend(token::keys(&self.patient.warnings, config));
        let settings = auth::Settings {
            jwt_secret: config
                .jwt_secret
                .as_ref()
                .map(|secret| secret.expose().to_owned())
                .filter(|secret| !secret.is_empty()),
            jwks_url: config.jwks_url.clone(),
            default_role: config.default_role.clone(),
            role_claim: config.role_claim.clone(),
            api_keys: config.api_keys.clone(),
            ..auth::Settings::default()
        };
        let authenticator = match Authenticator::new(settings) {
            Ok(authenticator) => authenticator,
            Err(error) => {
                self.findings.push(
                    Finding::error(
                        "jwt_settings",
                        format!("tokens cannot be verified: {error}"),
                    )
                    .advice("Correct JWT_SECRET or JWKS_URL."),
                );
                return None;
            }
        };
        self.findings
            .extend(token::issuer(&authenticator, config).await);
        let token = self.patient.token.as_ref()?;
        let (holder, findings) = token::examine(&authenticator, token, config).await;
        self.findings.extend(findings);
        holder
    }

    async fn database(&mut self, holder: Option<&token::Holder>) -> Result<(), String> {
        let config = &self.patient.config;
        let url = config.database_url.expose();
        if url.is_empty() {
            self.findings.push(
                Finding::error(
                    "database_url",
                    "DATABASE_URL is not set; it must say where PostgreSQL is, such as \
                     postgres://user:password@host:5432/database.",
                )
                .advice("Set DATABASE_URL, as for rowcast serve."),
            );
            return Ok(());
        }
        let database = match Database::parse(url) {
            Ok(database) => database,
            Err(error) => {
                self.findings.push(
                    Finding::error("database_url", error.to_string())
                        .advice("Correct DATABASE_URL."),
                );
                return Ok(());
            }
        };
        let client = match database.connect("rowcast doctor").await {
            Ok(client) => client,
            Err(error) => {
                self.findings.push(unconnected(&error));
                return Ok(());
            }
        };
        let words = |error: tokio_postgres::Error| with_causes(&error);
        if !crate::pg::connect::is_direct(&client)
            .await
            .map_err(words)?
        {
            self.findings.push(pooler(
                "a connection pooler answers, which drops what a session asks for at its start: \
                 DATABASE_URL must lead to PostgreSQL itself",
            ));
            return Ok(());
        }
        let facts = Facts::read(&client, &config.slot).await?;
        self.report.server = Some(facts.version.clone());
        self.report.database = Some(facts.database.clone());
        self.report.login = Some(facts.login.clone());
        let settle = format!(
            "{SESSION}; set statement_timeout = {}",
            STATEMENT.as_millis()
        );
        client.batch_execute(&settle).await.map_err(words)?;
        self.findings.extend(facts.findings(config));
        self.unseen.extend(facts.unseen());
        for fault in source::faults(&client, &config.slot)
            .await
            .map_err(|error| error.to_string())?
        {
            self.findings.push(refusal(&fault));
        }
        if !facts.standby {
            self.session(&database, &facts).await;
            self.findings
                .extend(slot::findings(&client, &facts, config).await);
        }
        let publication =
            match source::choose_publication(&client, config.publication.as_deref()).await {
                Ok(publication) => publication,
                Err(fault) => {
                    let candidates = publication::candidates(&client, self.patient)
                        .await
                        .map_err(words)?;
                    self.findings
                        .push(publication::missing(&fault, &candidates, config));
                    return Ok(());
                }
            };
        self.report.publication = Some(publication.clone());
        self.published(&database, &client, (&publication, &facts), holder)
            .await
    }

    /// A replication session, unless all of them are taken by the relay itself.
    async fn session(&mut self, database: &Database, facts: &Facts) {
        match source::try_session(database).await {
            Ok(None) => self.findings.push(
                Finding::warning(
                    "wal_sender_timeout",
                    "wal_sender_timeout is 0 for this login: the session of a relay whose machine \
                     died holds the slot for ever, and no other relay can read it",
                )
                .advice("Take wal_sender_timeout out of the options in DATABASE_URL."),
            ),
            Ok(Some(limit)) if limit < Duration::from_secs(2) => self.findings.push(
                Finding::warning(
                    "wal_sender_timeout",
                    format!(
                        "wal_sender_timeout is {} ms for this login: a relay that pauses as long is \
                         disconnected, and its clients wait",
                        limit.as_millis()
                    ),
                )
                .advice("Take wal_sender_timeout out of the options in DATABASE_URL."),
            ),
            Ok(Some(_)) => {}
            // Said already, in words of its own.
            Err(_) if facts.lacks_replication() => {}
            Err(SourceError::Connect(ConnectError::Refused(refusal)))
                if refusal.sqlstate == "53300" =>
            {
                // The relay has its own already. The server's words name its setting in all languages.
                let senders = refusal.message.contains("max_wal_senders");
                if senders && !facts.is_read() {
                    self.findings.push(facts.no_senders_left());
                } else if !senders && !facts.is_read() {
                    self.findings.push(unconnected(&ConnectError::Refused(refusal)));
                }
            }
            Err(SourceError::Connect(ConnectError::Refused(refusal)))
                if refusal.sqlstate.starts_with("28") =>
            {
                self.findings.push(
                    Finding::error(
                        "replication_refused",
                        format!("the server lets this login have no replication session: {refusal}"),
                    )
                    .advice(
                        "Add a line for this login and database to pg_hba.conf (the database's own, \
                         not \"replication\"), and reload PostgreSQL.",
                    ),
                );
            }
            Err(error) => self.findings.push(pooler(&format!(
                "there is no replication session to be had, though an ordinary one is: {error}. A \
                 connection pooler does that; DATABASE_URL must lead to PostgreSQL itself"
            ))),
        }
    }

    /// Everything that is said of the tables of a publication.
    async fn published(
        &mut self,
        database: &Database,
        client: &Client,
        (publication, facts): (&str, &Facts),
        holder: Option<&token::Holder>,
    ) -> Result<(), String> {
        let config = &self.patient.config;
        let words = |error: tokio_postgres::Error| with_causes(&error);
        let roles = clients::named(config, holder);
        if facts.standby {
            // The relay reads its catalog from a primary only, which was said.
            return Ok(());
        }
        let followed = (publication.to_owned(), config.slot.clone());
        let mut reader =
            CatalogReader::new(database.clone(), followed, roles).with_rules(config.rules.clone());
        let catalog = reader
            .look_closely()
            .await
            .map_err(|error| with_causes(&error))?;
        drop(reader);
        let mut checked = checks::Checks::default();
        if config.policy_check {
            checked.make(database, &catalog).await;
        }
        let catalog = catalog.refuting(&checked.refuted());
        let names = names::Names::read(client, &catalog).await.map_err(words)?;
        self.findings.extend(checked.findings(&catalog, &names));
        self.unseen.extend(checked.unseen(&catalog, &names));
        self.report.tables = catalog.tables.values().filter(|one| one.published).count();
        let listed = publication::Listed::read(client, publication, self.patient)
            .await
            .map_err(words)?;
        self.findings
            .extend(listed.findings(&catalog, &names, self.patient));
        let refused = refused::findings(client, &catalog, publication, &names).await;
        self.findings.extend(refused.map_err(words)?);
        if self.report.tables == 0 {
            let candidates = publication::candidates(client, self.patient);
            let candidates = candidates.await.map_err(words)?;
            self.findings
                .push(publication::empty(publication, &candidates));
        }
        self.findings
            .extend(clients::findings(&catalog, facts, config, holder));
        if !catalog.marked {
            self.findings.push(untold(config));
        }
        if catalog.major > 18 {
            self.findings.push(Finding::note(
                "version_unknown",
                format!(
                    "PostgreSQL {} is newer than what policies are compiled for: all of them are \
                     asked of PostgreSQL",
                    facts.version
                ),
            ));
        }
        let meant = listed.meant(&catalog);
        let functions = table::functions(client, &catalog).await.map_err(words)?;
        let (kept, found) = old_rows::findings(
            client,
            &catalog,
            (publication, config, &facts.login),
            &names,
        )
        .await
        .map_err(words)?;
        self.findings.extend(found);
        let mut all = table::Tables::new(&catalog, config, holder, (facts, &names), &kept);
        for (one, named) in &meant {
            all.examine(one, *named);
        }
        let mut lacking = identity::Lacking::default();
        let mut found = all.findings(&functions, &listed, &mut lacking);
        let filters = filters::Examined {
            catalog: &catalog,
            tables: &all,
            listed: &listed,
            patient: self.patient,
            kept: &kept,
        };
        found.extend(
            filters
                .findings(database, &mut lacking, &mut self.unseen)
                .await,
        );
        found.extend(filters.of_subscribers(&mut lacking));
        lacking
            .mend(client, (&catalog, publication), &mut found)
            .await;
        self.findings.extend(found);
        let wanted = all.wanted();
        self.findings.extend(
            lookups::findings(
                client,
                &catalog,
                &wanted,
                (publication, config, &facts.login),
                &names,
            )
            .await
            .map_err(words)?,
        );
        self.findings
            .extend(cost::findings(client, &all, facts, config).await);
        for reason in &catalog.unruled {
            let said = |finding: &Finding| finding.text.contains(reason.as_str());
            if !self.findings.iter().any(said) {
                self.findings.push(unruled(reason));
            }
        }
        Ok(())
    }
}

/// A rule that does nothing for the table that somebody wrote it for.
fn unruled(reason: &str) -> Finding {
    Finding::error("rule_not_in_force", reason.to_owned())
        .advice("See to its table's name, with its schema, and to what it says; or take it out.")
}

/// There is no event trigger.
fn untold(config: &Config) -> Finding {
    let slot = match config.slot.as_str() {
        "rowcast" => String::new(),
        other => format!(" --slot {other}"),
    };
    Finding::note(
        "ddl_untold",
        "no event trigger tells the relay of changed policies: rows that commit within a second of \
         such a change may be hidden, and their clients told to read again",
    )
    .advice(format!(
        "Run `rowcast setup --only ddl{slot}` as a superuser; everything works without it."
    ))
}

/// What keeps the relay from having a session at all.
fn unconnected(error: &ConnectError) -> Finding {
    let text = error.to_string();
    match error {
        ConnectError::Refused(refusal) => match refusal.sqlstate.as_str() {
            "53300" => limited(
                Finding::error("connections_exhausted", text),
                &refusal.message,
            )
            .advice(
                "End sessions that nobody needs, or raise the limit that is named \
                     (max_connections where it is none of the login or the database).",
            ),
            "28P01" | "28000" => barred(Finding::error("database_login", text), &refusal.message)
                .advice("Correct user and password in DATABASE_URL, or the server's pg_hba.conf."),
            "42501" => Finding::error("database_login", text).advice(
                "The login lacks a right on the database: grant connect on database … to it.",
            ),
            "3D000" => Finding::error("database_missing", text)
                .advice("Correct the database in DATABASE_URL."),
            _ if refusal.retry() == Retry::Never => pooler(&text),
            _ => Finding::error("database_refused", text)
                .advice("The server's own log says more; it may only be starting."),
        },
        ConnectError::Certificate { .. }
        | ConnectError::NoTls { .. }
        | ConnectError::NoChannelBinding { .. } => Finding::error("database_tls", text)
            .advice("Correct sslmode or sslrootcert in DATABASE_URL."),
        ConnectError::Authentication { .. } => {
            Finding::error("database_login", text).advice("Change the server's pg_hba.conf.")
        }
        ConnectError::WrongServer { .. } => Finding::error("database_server", text)
            .advice("Correct the hosts or target_session_attrs in DATABASE_URL."),
        ConnectError::Unreachable { .. } => Finding::error("database_unreachable", text)
            .advice("Correct host and port in DATABASE_URL, or start PostgreSQL."),
    }
}

/// What PostgreSQL's words name in quotes behind others, where they are English.
fn named_in<'m>(message: &'m str, before: &str) -> Option<&'m str> {
    let (_, rest) = message.split_once(before)?;
    let (name, _) = rest.rsplit_once('"')?;
    Some(name)
}

/// The limit that a login or a database has of its own.
fn limited(finding: Finding, message: &str) -> Finding {
    let of = |before| named_in(message, before).map(quote_identifier);
    let limits = [
        ("role", of("too many connections for role \"")),
        ("database", of("too many connections for database \"")),
    ];
    let limit = limits
        .into_iter()
        .find_map(|(kind, name)| Some((kind, name?)));
    match limit {
        Some((kind, name)) => finding.sql(format!("alter {kind} {name} connection limit -1")),
        None => finding,
    }
}

/// A role that may not log in at all.
fn barred(finding: Finding, message: &str) -> Finding {
    let name =
        named_in(message, "role \"").filter(|_| message.ends_with("is not permitted to log in"));
    match name {
        Some(name) => finding.sql(format!("alter role {} login", quote_identifier(name))),
        None => finding,
    }
}

fn pooler(text: &str) -> Finding {
    Finding::error("pooler", text).advice(
        "Take the address of PostgreSQL itself, which hosts often call the direct connection.",
    )
}

/// What `rowcast serve` would end with, in its words.
fn refusal(fault: &SourceError) -> Finding {
    let text = fault.to_string();
    match fault {
        SourceError::TooOld { .. } => {
            Finding::error("version_old", text).advice("Upgrade PostgreSQL.")
        }
        SourceError::WalLevel { .. } => Finding::error("wal_level", text)
            .sql("alter system set wal_level = logical")
            .advice("Then restart PostgreSQL. Managed hosts have a parameter for it."),
        SourceError::NoReplication { role } => {
            let role = quote_identifier(role);
            Finding::error("login_replication", text)
                .sql(format!("alter role {role} replication"))
                .advice(format!(
                    "Only a superuser may; on Amazon RDS it is: grant rds_replication to {role}."
                ))
        }
        SourceError::OtherPlugin { slot } => Finding::error("slot_plugin", text)
            .sql(slot::drop_sql(slot))
            .advice("Drop it only where no other program needs it; else set ROWCAST_SLOT."),
        SourceError::OtherDatabase { slot, .. } => Finding::error("slot_other_database", text)
            .sql(slot::drop_sql(slot))
            .advice(
                "Run it in that database, if nothing there needs the slot; or set ROWCAST_SLOT.",
            ),
        SourceError::SlotsExhausted => Finding::error("slots_exhausted", text)
            .advice("Drop a slot that nobody needs, or raise max_replication_slots."),
        _ => Finding::error("source", text),
    }
}
