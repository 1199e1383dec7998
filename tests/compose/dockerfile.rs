//! The Dockerfile, as far as it is used.

use crate::read;

#[derive(Debug, Clone)]
pub(crate) struct Dockerfile {
    stages: Vec<Stage>,
}

#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) base: String,
    /// The word and what follows it.
    pub(crate) instructions: Vec<(String, String)>,
}

impl Stage {
    /// The last instruction of that name: it wins.
    fn last(&self, name: &str) -> Option<&str> {
        let found = self
            .instructions
            .iter()
            .rev()
            .find(|(word, _)| word == name);
        found.map(|(_, rest)| rest.as_str())
    }

    fn list(&self, name: &str) -> Option<Vec<String>> {
        self.last(name).map(|text| exec(name, text))
    }
}

/// The exec form; the shell form needs a shell, which the image does not have.
fn exec(name: &str, text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("{name} {text} is not in the exec form"))
}

impl Dockerfile {
    pub(crate) fn of_repository() -> Self {
        Self::parse(&read("Dockerfile"))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
            .collect();
        let joined = lines.join("\n").replace("\\\n", " ");
        let mut stages: Vec<Stage> = Vec::new();
        for line in joined.lines() {
            let (word, rest) = line.trim().split_once(' ').unwrap();
            let rest = rest.trim().to_owned();
            if word == "FROM" {
                stages.push(Stage {
                    base: rest,
                    instructions: Vec::new(),
                });
            } else {
                let stage = stages.last_mut().expect("FROM comes first");
                stage.instructions.push((word.to_owned(), rest));
            }
        }
        Self { stages }
    }

    pub(crate) fn build(&self) -> &Stage {
        &self.stages[0]
    }

    pub(crate) fn image(&self) -> &Stage {
        self.stages.last().unwrap()
    }

    pub(crate) fn entrypoint(&self) -> Vec<String> {
        self.image().list("ENTRYPOINT").expect("an ENTRYPOINT")
    }

    pub(crate) fn command(&self) -> Vec<String> {
        self.image().list("CMD").expect("a CMD")
    }

    /// What every container of the image finds in its environment.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let set = self.image().instructions.iter();
        set.filter(|(word, _)| word == "ENV")
            .map(|(_, rest)| rest.split_once('=').expect("NAME=value"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// The folders of the image that its user owns.
    pub(crate) fn owned(&self) -> Vec<String> {
        let (user, group) = self.user();
        let to_user = format!("--chown={user}:{group} ");
        let copied = self.image().instructions.iter();
        copied
            .filter(|(word, rest)| word == "COPY" && rest.contains(&to_user))
            .map(|(_, rest)| rest.rsplit(' ').next().unwrap().to_owned())
            .collect()
    }

    /// User and group, as numbers.
    pub(crate) fn user(&self) -> (u32, u32) {
        let user = self.image().last("USER").expect("a USER");
        let (user, group) = user.split_once(':').expect("user and group");
        (user.parse().unwrap(), group.parse().unwrap())
    }

    /// What the health check runs.
    pub(crate) fn healthcheck(&self) -> Vec<String> {
        let check = self.image().last("HEALTHCHECK").expect("a HEALTHCHECK");
        let (_, command) = check.split_once("CMD ").expect("a command");
        exec("HEALTHCHECK", command)
    }

    pub(crate) fn stop_signal(&self) -> &str {
        let signal = self.image().last("STOPSIGNAL").expect("a STOPSIGNAL");
        signal.trim_start_matches("SIG")
    }
}

#[test]
fn the_image_is_built_in_stages_and_ends_without_a_shell_and_without_root() {
    let dockerfile = Dockerfile::of_repository();
    assert!(dockerfile.stages.len() > 1, "multi-stage");
    assert_eq!(dockerfile.image().base, "scratch");
    let (user, group) = dockerfile.user();
    assert!(user > 0 && group > 0);
    // What runs in the last stage would need a shell there.
    let words: Vec<&str> = dockerfile
        .image()
        .instructions
        .iter()
        .map(|(word, _)| word.as_str())
        .collect();
    assert!(!words.contains(&"RUN"), "{words:?}");
    let text = read("Dockerfile");
    for word in ["SECRET", "PASSWORD", "ARG "] {
        assert!(!text.contains(word), "{word} does not belong in an image");
    }
}

#[test]
fn the_builder_has_the_rust_that_the_crate_asks_for() {
    let dockerfile = Dockerfile::of_repository();
    let base = dockerfile.build().base.clone();
    let version = base
        .strip_prefix("rust:")
        .and_then(|rest| rest.split_once("-bookworm AS "))
        .unwrap_or_else(|| panic!("{base} is no Rust on Debian 12"));
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    assert_eq!(
        version.0,
        manifest["package"]["rust-version"].as_str().unwrap()
    );
}

/// Whether `.dockerignore` lets a path into the build.
fn is_in_context(name: &str) -> bool {
    let mut inside = true;
    for line in read(".dockerignore").lines() {
        let (pattern, verdict) = match line.strip_prefix('!') {
            Some(pattern) => (pattern, true),
            None => (line, false),
        };
        if pattern.is_empty() || pattern.starts_with('#') {
            continue;
        }
        if pattern == "*" || name == pattern || name.starts_with(&format!("{pattern}/")) {
            inside = verdict;
        }
    }
    inside
}

#[test]
fn what_is_copied_exists_and_is_all_that_the_build_reads() {
    let dockerfile = Dockerfile::of_repository();
    let mut copied = Vec::new();
    for (word, rest) in &dockerfile.build().instructions {
        if word == "COPY" {
            let mut names: Vec<&str> = rest.split_whitespace().collect();
            names.pop();
            copied.extend(names);
        }
    }
    for name in &copied {
        assert!(crate::path(name).exists(), "{name} is not there");
        assert!(is_in_context(name), "{name} is kept out by .dockerignore");
    }
    for secret in [".env", "target", "tests", ".git", "README.md"] {
        assert!(!is_in_context(secret), "{secret}");
    }
    // Files that the source includes lie in folders that are copied.
    for needed in ["src", "sql", "Cargo.toml", "Cargo.lock"] {
        assert!(copied.contains(&needed), "{needed}");
    }
    let included = std::process::Command::new("grep")
        .args(["-rhoE", r#"include_(str|bytes)!\("[^"]*"#, "src"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let included = String::from_utf8(included.stdout).unwrap();
    assert!(included.lines().count() > 3);
    for line in included.lines() {
        let (_, name) = line.split_once('"').unwrap();
        let top = name.trim_start_matches("../");
        assert!(
            !name.starts_with("..") || top.starts_with("sql/"),
            "{name} is not copied into the build"
        );
    }
}
