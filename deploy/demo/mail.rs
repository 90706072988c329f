//! A mail server on loopback that takes every message (RFC 5321: EHLO, MAIL, RCPT, DATA, RSET, NOOP, QUIT) and tells who
//! got it, and under which subject.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// A message as it came in.
pub(super) struct Mail {
    /// Whose address it is, as the demo knows them.
    pub(super) who: &'static str,
    pub(super) subject: String,
    /// All of it, with line ends that only mail needs taken out.
    pub(super) text: String,
}

pub(super) struct MailServer {
    pub(super) address: SocketAddr,
    pub(super) received: mpsc::Receiver<Mail>,
    people: People,
}

type People = Arc<Mutex<HashMap<String, &'static str>>>;

impl MailServer {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (sender, received) = mpsc::channel(1_000);
        let people = People::default();
        let known = people.clone();
        #[expect(clippy::disallowed_methods, reason = "a server of the demo, which no chassis drains")]
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(converse(connection, known.clone(), sender.clone()));
            }
        });
        Ok(Self { address, received, people })
    }

    /// Tells whose address `email` is.
    pub(super) fn know(&self, email: &str, who: &'static str) {
        self.people.lock().unwrap_or_else(PoisonError::into_inner).insert(email.to_owned(), who);
    }
}

/// One connection, until it ends or breaks.
async fn converse(connection: TcpStream, people: People, received: mpsc::Sender<Mail>) -> std::io::Result<()> {
    let (reading, mut writing) = connection.into_split();
    let mut lines = BufReader::new(reading).lines();
    writing.write_all(b"220 demo ESMTP\r\n").await?;
    let mut to: Vec<String> = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" => "250-demo\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
            "DATA" => {
                writing.write_all(b"354 go on\r\n").await?;
                let (subject, text) = message(&mut lines).await?;
                for address in to.drain(..) {
                    let who = people
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get(&address)
                        .copied()
                        .unwrap_or("somebody unknown");
                    // At the bound the demo has long failed.
                    let _ = received.try_send(Mail { who, subject: subject.clone(), text: text.clone() });
                }
                "250 taken\r\n"
            }
            "RCPT" => {
                to.extend(
                    line.split_once('<')
                        .and_then(|(_, rest)| rest.split_once('>'))
                        .map(|(address, _)| address.to_owned()),
                );
                "250 ok\r\n"
            }
            "RSET" => {
                to.clear();
                "250 ok\r\n"
            }
            "QUIT" => {
                writing.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            "HELO" | "MAIL" | "NOOP" => "250 ok\r\n",
            _ => "502 not known here\r\n",
        };
        writing.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// Reads a message to its final dot; gives its subject, and all of it.
async fn message(
    lines: &mut tokio::io::Lines<BufReader<tokio::net::tcp::OwnedReadHalf>>,
) -> std::io::Result<(String, String)> {
    let (mut subject, mut in_subject, mut text) = (String::new(), false, String::new());
    while let Some(line) = lines.next_line().await? {
        if line == "." {
            break;
        }
        match line.strip_prefix("Subject: ") {
            Some(text) => subject = text.to_owned(),
            // A header goes on in lines that begin with white space (RFC 5322, 2.2.3).
            None if in_subject && line.starts_with(' ') => subject.push_str(&line),
            None => {}
        }
        in_subject = line.starts_with("Subject: ") || in_subject && line.starts_with(' ');
        // Quoted-printable: a line that ends in = goes on (RFC 2045, 6.7).
        match line.strip_suffix('=') {
            Some(begun) => text.push_str(begun),
            None => text.push_str(&(line + "\n")),
        }
    }
    Ok((subject, text.replace("=3D", "=")))
}
