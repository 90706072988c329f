//! A mail server that keeps what it gets (RFC 5321: EHLO, MAIL, RCPT, DATA with dot-stuffing, RSET, NOOP, QUIT) and can be
//! told to misbehave, one transaction at a time.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use chassis::tasks::Tasks;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// What it does with one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers `RCPT` with this code.
    Recipient(u16),
    /// Says that the recipient has no mailbox.
    Nobody,
    /// Takes the message and answers with this code.
    Message(u16),
    /// Hangs up when `DATA` comes.
    HangUpBeforeData,
    /// Keeps the message and hangs up without an answer.
    HangUpAfterMessage,
}

/// A message that it kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mail {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) text: String,
}

/// The server's memory.
#[derive(Clone, Default)]
pub(crate) struct Smtp {
    kept: Arc<Mutex<Vec<Mail>>>,
    moods: Arc<Mutex<VecDeque<Mood>>>,
}

impl Smtp {
    /// Listens on a port of its own, until the tasks stop.
    pub(crate) async fn start(tasks: &Tasks) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self::default();
        let (accepting, all) = (server.clone(), tasks.clone());
        let stopping = tasks.stopping();
        tasks.spawn("test.smtp", async move {
            while let Some(Ok((stream, _))) = stopping.run_until_cancelled(listener.accept()).await {
                let (server, stopping) = (accepting.clone(), all.stopping());
                all.spawn("test.smtp.connection", async move {
                    stopping.run_until_cancelled(server.converse(stream)).await;
                });
            }
        });
        (server, address)
    }

    /// What was kept, oldest first.
    pub(crate) fn kept(&self) -> Vec<Mail> {
        self.kept.lock().unwrap().clone()
    }

    /// How it treats the next transactions; after these it takes everything.
    pub(crate) fn next(&self, moods: impl IntoIterator<Item = Mood>) {
        self.moods.lock().unwrap().extend(moods);
    }

    async fn converse(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut mail, mut mood, mut begun) = (Mail::default(), None, false);
        stream.write_all(b"220 mail.test ESMTP\r\n").await?;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            assert!(line.ends_with("\r\n"), "a bare line end: {line:?}");
            let line = line.trim_end();
            let verb = line.get(..4).unwrap_or(line).to_uppercase();
            let answer = match verb.as_str() {
                "EHLO" => "250-mail.test\r\n250-8BITMIME\r\n250 SIZE 1048576".to_owned(),
                "MAIL" if begun => "503 a transaction is under way".to_owned(),
                "MAIL" => {
                    (mail, begun, mood) = (Mail::default(), true, self.moods.lock().unwrap().pop_front());
                    mail.from = path(line);
                    "250 2.1.0 ok".to_owned()
                }
                "RCPT" if !begun => "503 MAIL first".to_owned(),
                "RCPT" => match mood {
                    Some(Mood::Nobody) => format!("550 5.1.1 <{}> has no mailbox here", path(line)),
                    Some(Mood::Recipient(code)) => format!("{code} <{}> is not wanted here", path(line)),
                    _ => {
                        mail.to.push(path(line));
                        "250 2.1.5 ok".to_owned()
                    }
                },
                "DATA" if mail.to.is_empty() => "503 RCPT first".to_owned(),
                "DATA" if mood == Some(Mood::HangUpBeforeData) => return Ok(()),
                "DATA" => {
                    stream.write_all(b"354 go on\r\n").await?;
                    mail.text = message(&mut stream).await?;
                    begun = false;
                    match mood {
                        Some(Mood::Message(code)) => format!("{code} not this one"),
                        hang_up => {
                            self.kept.lock().unwrap().push(std::mem::take(&mut mail));
                            if hang_up == Some(Mood::HangUpAfterMessage) {
                                return Ok(());
                            }
                            "250 2.0.0 queued".to_owned()
                        }
                    }
                }
                "RSET" => {
                    (mail, begun) = (Mail::default(), false);
                    "250 ok".to_owned()
                }
                "NOOP" => "250 ok".to_owned(),
                "QUIT" => {
                    stream.write_all(b"221 bye\r\n").await?;
                    return Ok(());
                }
                _ => "500 unknown command".to_owned(),
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
    }
}

/// The address between the angle brackets.
fn path(line: &str) -> String {
    line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path.to_owned()).unwrap_or_default()
}

/// Everything up to the line with a single dot, with doubled dots undone.
async fn message(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        assert!(line.ends_with("\r\n") && line.len() <= 1000, "a line that mail can't carry: {line:?}");
        if line == ".\r\n" {
            return Ok(text);
        }
        text.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}
