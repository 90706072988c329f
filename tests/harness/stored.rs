//! What stands in vendor-sync's store, looked at from beside it: for what no call shows.

use std::str::FromStr as _;

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, postgres::PgConnectOptions,
    sqlite::SqliteConnectOptions,
};

use super::Wedsync;

impl Wedsync {
    /// How many rows of a table are so.
    pub(crate) async fn stored(&self, table: &str, condition: &str) -> i64 {
        let query = |table: &str| AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE {condition}"));
        let Some(url) = self.setting("WEDSYNC_VENDOR_SYNC__STORE__URL") else {
            let file = SqliteConnectOptions::new().filename(self.data().join("vendor-sync.db")).read_only(true);
            let mut store = SqliteConnection::connect_with(&file).await.expect("the store's file");
            return sqlx::query_scalar(query(table)).fetch_one(&mut store).await.expect("a number");
        };
        let schema = self.setting("WEDSYNC_VENDOR_SYNC__STORE__SCHEMA").expect("one of its own");
        let server = PgConnectOptions::from_str(url).expect("the server's address");
        let mut store = PgConnection::connect_with(&server).await.expect("the server answers");
        sqlx::query_scalar(query(&format!("{schema}.{table}"))).fetch_one(&mut store).await.expect("a number")
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}
