//! How long a server may take to answer. One that vanishes, host and all, while it owes an answer sends nothing that would
//! end the wait, and the kernel asks nobody: it has nothing to send again.

use std::{io::ErrorKind, time::Duration};

use tokio::time::timeout;

/// Longer than it takes to get a connection (5 s) and than the server lets a statement run (30 s).
const ANSWERED_WITHIN: Duration = Duration::from_secs(45);

/// What a server answers; at the bound an error of the connection, whereupon it is not known what the server did.
///
/// # Errors
/// Those of what is asked; `sqlx::Error::Io` at the bound.
pub async fn answered<T, E: From<sqlx::Error>>(asked: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let unanswered = |_| Err(sqlx::Error::Io(ErrorKind::TimedOut.into()).into());
    timeout(ANSWERED_WITHIN, asked).await.unwrap_or_else(unanswered)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::net::SocketAddr;

    use sqlx::{ConnectOptions as _, postgres::PgConnectOptions};
    use tokio::{
        io::copy_bidirectional,
        net::{TcpListener, TcpStream},
    };
    use tokio_util::sync::CancellationToken;

    use crate::{
        config::StoreSettings,
        store::{MIGRATIONS, Store},
        tasks::Tasks,
        testing, with,
    };

    /// Passes bytes to the server until `vanished`; from then on the connections are open, and nobody is behind them.
    async fn pass(listener: TcpListener, server: SocketAddr, vanished: CancellationToken, tasks: Tasks) {
        while let Ok((mut client, _)) = listener.accept().await {
            let vanished = vanished.clone();
            tasks.spawn("pass", async move {
                let mut server = TcpStream::connect(server).await.expect("the server is there");
                let passing = copy_bidirectional(&mut client, &mut server);
                if vanished.run_until_cancelled(passing).await.is_none() {
                    std::future::pending::<()>().await;
                }
            });
        }
    }

    /// A store behind such a host, where there is a server.
    async fn behind(vanished: &CancellationToken) -> Option<(tempfile::TempDir, Store)> {
        let (folder, engines) = testing::engines();
        let settings = engines.get(1)?;
        let options: PgConnectOptions = settings.url.expose().parse().expect("the harness gives a URL");
        let server = (options.get_host(), options.get_port());
        let server = tokio::net::lookup_host(server).await.expect("a host").next().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let tasks = Tasks::default();
        tasks.spawn("listen", pass(listener, server, vanished.clone(), tasks.clone()));
        let url = options.host("127.0.0.1").port(port).to_url_lossy().to_string().into();
        let settings = StoreSettings { url, ..settings.clone() };
        Some((folder, Store::open(&settings, &[&MIGRATIONS]).await.expect("it opens through the host")))
    }

    #[tokio::test]
    async fn a_commit_that_a_vanished_host_never_answers_ends_in_an_error() {
        let vanished = CancellationToken::new();
        let Some((_folder, store)) = behind(&vanished).await else { return };
        let mut tx = store.begin().await.expect("the server is there");
        with!(tx.on(), c => sqlx::query("DELETE FROM data_keys").execute(c).await.map(drop)).expect("it still is");
        vanished.cancel();
        // Nothing else is to happen, so the clock is moved to the bound at once.
        tokio::time::pause();
        let error = tx.commit().await.expect_err("nobody answers");
        assert!(error.is_retryable(), "{error}");
    }
}
