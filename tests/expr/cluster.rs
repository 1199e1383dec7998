//! A PostgreSQL of this test's own.

use rowcast::pg::throwaway::{Options, Throwaway};
use tokio_postgres::{Client, NoTls};

pub struct Cluster(Throwaway);

impl Cluster {
    pub async fn start() -> Self {
        Self(
            Throwaway::start(Options::default())
                .await
                .expect("a cluster"),
        )
    }

    pub async fn connect(&self) -> Client {
        let url = self.0.url("postgres");
        let (client, connection) = tokio_postgres::connect(&url, NoTls)
            .await
            .expect("a session");
        tokio::spawn(connection);
        client
    }
}
