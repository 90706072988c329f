//! A server that speaks just enough of PostgreSQL to be connected to, and means no good.

use std::{process::Command, time::Duration};

use chassis::{config::Secret, tasks::Tasks};
use sqlx::ConnectOptions as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    super::pool::{Pools, Said, options},
    *,
};

const VARIABLE: &str = "WEDSYNC_TEST_INHERITED";

/// What it does once it is asked what it has.
#[derive(Clone, Copy)]
enum Mischief {
    Silence,
    /// Rows without end.
    Flood,
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
    [&[kind][..], &length, body].concat()
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

/// Of six columns: five texts and a truth.
fn described() -> Vec<u8> {
    let columns = [25_u32, 25, 25, 25, 25, 16].map(|type_| {
        [b"c\0".as_slice(), &[0; 6], &type_.to_be_bytes(), &(-1_i16).to_be_bytes(), &(-1_i32).to_be_bytes(), &[0, 1]]
            .concat()
    });
    let parameters = [2_u16.to_be_bytes().as_slice(), &25_u32.to_be_bytes(), &25_u32.to_be_bytes()].concat();
    let columns = [6_u16.to_be_bytes().as_slice(), &columns.concat()].concat();
    [message(b'1', &[]), message(b't', &parameters), message(b'T', &columns), ready()].concat()
}

fn a_row() -> Vec<u8> {
    let text = [1_u32.to_be_bytes().as_slice(), b"x"].concat().repeat(5);
    message(b'D', &[6_u16.to_be_bytes().as_slice(), &text, &1_u32.to_be_bytes(), &[0]].concat())
}

async fn serve(mut socket: TcpStream, mischief: Mischief) -> std::io::Result<()> {
    let length = socket.read_u32().await?;
    socket.read_exact(&mut vec![0; length as usize - 4]).await?;
    socket.write_all(&[message(b'R', &[0; 4]), ready()].concat()).await?;
    loop {
        let kind = socket.read_u8().await?;
        let length = socket.read_u32().await?;
        socket.read_exact(&mut vec![0; length as usize - 4]).await?;
        match (mischief, kind) {
            (Mischief::Silence, _) | (_, b'P' | b'B' | b'C' | b'S') => {}
            (Mischief::Flood, b'D') => socket.write_all(&described()).await?,
            (Mischief::Flood, _) => {
                socket.write_all(&message(b'2', &[])).await?;
                let rows = a_row().repeat(1_000);
                loop {
                    socket.write_all(&rows).await?;
                }
            }
        }
    }
}

async fn refusal(mischief: Mischief) -> CallError {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    Tasks::default().spawn("hostile", async move {
        while let Ok((socket, _)) = listener.accept().await {
            Tasks::default().spawn("hostile", async move { drop(serve(socket, mischief).await) });
        }
    });
    let url = Secret::from(format!("postgres://u:p@{address}/x?sslmode=disable"));
    let pools = Pools::patient(Duration::from_secs(2));
    pools
        .get("i", &Said { url: &url, mapping: "", authority: "" }, &outbound(true))
        .await
        .expect_err("it is no database")
}

#[tokio::test]
async fn a_server_that_falls_silent_keeps_nobody() {
    let refused = refusal(Mischief::Silence).await;
    assert_eq!((refused.class, refused.reason.as_str()), (Class::Retry, "the database didn't answer in time"));
}

#[tokio::test]
async fn a_server_that_never_ends_what_it_lists_is_heard_to_a_bound() {
    let refused = refusal(Mischief::Flood).await;
    assert_eq!(refused.class, Class::Permanent, "{refused:?}");
    assert!(refused.reason.contains("more than 2000 columns"), "{refused:?}");
}

/// Not a test: it looks where a linked database would be connected to, in an environment that the test below makes.
#[tokio::test]
#[ignore = "started by the test below"]
async fn inherits() {
    #[expect(clippy::disallowed_methods, reason = "how the test tells it what to do")]
    let Ok(expected) = std::env::var(VARIABLE) else { return };
    let said = async |text: String| {
        options(&Secret::from(text), &outbound(true)).await.map(|options| options.to_url_lossy().to_string())
    };
    for text in ["postgres://:p@127.0.0.1/x", "postgres://u:p@127.0.0.1"] {
        assert!(said(format!("{text}?sslmode=disable")).await.is_err(), "{text}");
    }
    for (text, given) in [("u%40x:p%3Aw", "u%40x:p%3Aw"), ("u", "u")] {
        let whole = said(format!("postgres://{text}@127.0.0.1/x?sslmode=disable")).await;
        let whole = whole.map_err(|refused| refused.reason).unwrap_or_else(|reason| reason);
        assert!(whole.starts_with(&expected.replace("{}", given)), "{whole}");
    }
}

#[test]
fn nothing_of_our_own_environment_is_said_to_a_linked_database() {
    let program = std::env::current_exe().expect("a test is a program");
    let ours =
        [("PGPASSWORD", "ours"), ("PGUSER", "ours"), ("PGDATABASE", "ours"), ("PGPORT", "1"), ("PGHOST", "ours")];
    let refused = "linked databases are not connected to";
    for (more, expected) in [
        ("PGAPPNAME", "postgres://{}@127.0.0.1:5432/x"),
        ("PGOPTIONS", refused),
        ("PGSSLCERT", refused),
        ("PGSSLKEY", refused),
    ] {
        let ran = Command::new(&program)
            .args(["--exact", "database::tests::hostile::inherits", "--ignored"])
            .envs(ours)
            .env(more, "ours")
            .env(VARIABLE, expected)
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && text.contains("1 passed"), "{more}: {text}");
    }
}
