//! The files of `sql/`, and the steps that they come to in one database.

use tokio_postgres::Client;

/// A file of `sql/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Script {
    /// Its path.
    pub(super) path: &'static str,
    /// Its text.
    pub(super) text: &'static str,
}

macro_rules! script {
    ($path:literal) => {
        Script {
            path: $path,
            text: include_str!(concat!("../../../", $path)),
        }
    };
}

/// Run as it is.
pub(super) const AUTH: Script = script!("sql/auth.sql");
/// Run as it is.
pub(super) const EXAMPLE: Script = script!("sql/examples/agent_tasks.sql");
/// Its queries write the statements that are missing.
pub(super) const ROLE: Script = script!("sql/role.sql");
/// Its queries write the statements that are missing.
pub(super) const PUBLICATION: Script = script!("sql/publication.sql");
/// Its queries write the statements that are missing.
pub(super) const IDENTITY: Script = script!("sql/identity.sql");
/// Its query writes the statements that are missing.
pub(super) const DDL: Script = script!("sql/ddl.sql");
/// Its query writes what is never run here.
pub(super) const ADMINISTRATOR: Script = script!("sql/administrator.sql");
/// Its query writes the statements that undo.
pub(super) const REMOVE: Script = script!("sql/remove.sql");

impl Script {
    /// The queries whose results are statements: psql's `\gexec` ends each. Other commands of
    /// psql's are left out.
    fn queries(self) -> Vec<String> {
        let mut queries = vec![String::new()];
        for line in self.text.lines() {
            if line.trim() == "\\gexec" {
                queries.push(String::new());
            } else if !line.starts_with('\\')
                && let Some(query) = queries.last_mut()
            {
                query.push_str(line);
                query.push('\n');
            }
        }
        queries.retain(|query| {
            query
                .lines()
                .any(|line| !line.trim().is_empty() && !line.starts_with("--"))
        });
        queries
    }

    /// The steps that are missing in the database as it is now.
    ///
    /// # Errors
    /// PostgreSQL's, for a name that cannot be one, or a connection that broke.
    pub(super) async fn steps(self, client: &Client) -> Result<Vec<Step>, tokio_postgres::Error> {
        let mut steps = Vec::new();
        for query in self.queries() {
            for row in client
                .query(query.trim_end().trim_end_matches(';'), &[])
                .await?
            {
                steps.push(Step::read(row.try_get(0)?));
            }
        }
        Ok(steps)
    }
}

/// Who a step is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whoever runs setup.
    Run,
    /// Somebody else, once; without it something that was asked for does not work.
    Administrator,
    /// Somebody else, and it can be left.
    Advice,
    /// Nobody: a sentence.
    Note,
    /// Nobody: what was asked for and is not done, and why.
    Refused,
}

/// One statement (or a few that belong together) with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) kind: Kind,
    /// What is lost without it, or the sentence; empty for what is run.
    pub(super) word: String,
    /// Why, in lines.
    pub(super) reason: String,
    /// Empty for a sentence.
    pub(super) sql: String,
}

/// The words that begin the first line of what is not simply run.
const KINDS: [(&str, Kind); 4] = [
    ("-- administrator: ", Kind::Administrator),
    ("-- advice: ", Kind::Advice),
    ("-- note: ", Kind::Note),
    ("-- refused: ", Kind::Refused),
];

impl Step {
    /// Reads what a query wrote: comment lines, then SQL.
    fn read(text: &str) -> Self {
        let mut step = Self {
            kind: Kind::Run,
            word: String::new(),
            reason: String::new(),
            sql: String::new(),
        };
        for (number, line) in text.lines().enumerate() {
            let tagged = KINDS
                .iter()
                .filter(|_| number == 0)
                .find_map(|(tag, kind)| Some((*kind, line.strip_prefix(tag)?)));
            if let Some((kind, word)) = tagged {
                step.kind = kind;
                step.word = word.to_owned();
            } else if matches!(step.kind, Kind::Note | Kind::Refused) {
                // A sentence never turns into a statement, whatever names it quotes.
                step.word.push(' ');
                step.word.push_str(line);
            } else if let Some(comment) = line.strip_prefix("-- ").filter(|_| step.sql.is_empty()) {
                if !step.reason.is_empty() {
                    step.reason.push('\n');
                }
                step.reason.push_str(comment);
            } else {
                if !step.sql.is_empty() {
                    step.sql.push('\n');
                }
                step.sql.push_str(line);
            }
        }
        step
    }

    /// Something to run.
    pub(super) fn run(reason: &str, sql: String) -> Self {
        Self {
            kind: Kind::Run,
            word: String::new(),
            reason: reason.to_owned(),
            sql,
        }
    }

    /// A sentence.
    pub(super) fn note(word: String) -> Self {
        Self {
            kind: Kind::Note,
            word,
            reason: String::new(),
            sql: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_query_wrote_is_told_apart() {
        let step = Step::read(
            "-- administrator: only X may; without it nothing.\n-- Why,\n-- in lines.\n\
             create role a;\n-- not a reason\ncomment on role a is 'b';",
        );
        assert_eq!(step.kind, Kind::Administrator);
        assert_eq!(step.word, "only X may; without it nothing.");
        assert_eq!(step.reason, "Why,\nin lines.");
        assert_eq!(
            step.sql,
            "create role a;\n-- not a reason\ncomment on role a is 'b';"
        );
        let step = Step::read("-- Why.\nalter table a replica identity full;");
        assert_eq!((step.kind, step.word.as_str()), (Kind::Run, ""));
        let step = Step::read("-- refused: no.\ndrop table b;");
        assert_eq!((step.kind, step.sql.as_str()), (Kind::Refused, ""));
    }

    #[test]
    fn psql_and_setup_run_the_same_queries() {
        for script in [ROLE, PUBLICATION, IDENTITY, DDL, ADMINISTRATOR, REMOVE] {
            let queries = script.queries();
            assert_eq!(queries.len(), 1, "{}", script.path);
            assert!(!queries[0].contains("\n\\"), "{}", script.path);
        }
        for script in [AUTH, EXAMPLE] {
            assert!(
                !script.text.lines().any(|line| line.starts_with('\\')),
                "{}: run as it is, without psql",
                script.path
            );
        }
    }
}
