//! The repository's compose file with an `.env` that somebody has filled in.

use crate::dockerfile::Dockerfile;
use crate::file::{Environment, File, dotenv};
use crate::read;

pub(crate) const SUPERUSER: &str = "0superuser0password0";
pub(crate) const RELAY: &str = "1relay1password1";
pub(crate) const SECRET: &str = "2secret2of2at2least2thirty2two2bytes2";

/// `.env.example` filled in as its first lines say, and with these besides.
pub(crate) fn environment(more: &[(&str, &str)]) -> Environment {
    let (mut environment, optional) = dotenv(&read(".env.example"));
    let filled = [
        ("POSTGRES_PASSWORD", SUPERUSER),
        ("ROWCAST_RELAY_PASSWORD", RELAY),
        ("JWT_SECRET", SECRET),
    ];
    for (name, value) in filled.iter().chain(more) {
        assert!(
            environment.contains_key(*name) || optional.iter().any(|known| known == name),
            "{name} is not in .env.example"
        );
        environment.insert((*name).to_owned(), (*value).to_owned());
    }
    environment
}

pub(crate) struct Stack {
    pub(crate) file: File,
    pub(crate) dockerfile: Dockerfile,
}

impl Stack {
    pub(crate) fn new(environment: &Environment) -> Self {
        Self::of(&read("docker-compose.yml"), environment).unwrap()
    }

    pub(crate) fn of(text: &str, environment: &Environment) -> Result<Self, String> {
        Ok(Self {
            file: File::parse(text, environment)?,
            dockerfile: Dockerfile::of_repository(),
        })
    }

    /// Program and arguments of a service of our image.
    pub(crate) fn argv(&self, service: &str) -> Vec<String> {
        let service = &self.file.services[service];
        let mut argv = match &service.entrypoint {
            Some(entrypoint) => entrypoint.clone(),
            None => self.dockerfile.entrypoint(),
        };
        if service.command.is_empty() && service.entrypoint.is_none() {
            argv.extend(self.dockerfile.command());
        } else {
            argv.extend(service.command.iter().cloned());
        }
        argv
    }

    /// What its health check runs; `None` where it has none.
    pub(crate) fn healthcheck(&self, service: &str) -> Option<Vec<String>> {
        match &self.file.services[service].healthcheck {
            None => Some(self.dockerfile.healthcheck()),
            Some(check) if check.disable => None,
            Some(check) => {
                let (first, rest) = check.test.split_first().expect("a test");
                assert_eq!(first, "CMD", "a shell is not there");
                Some(rest.to_vec())
            }
        }
    }

    /// Whether a service runs our image.
    pub(crate) fn is_ours(&self, service: &str) -> bool {
        self.file.services[service].build.is_some()
    }
}
