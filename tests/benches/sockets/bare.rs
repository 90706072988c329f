//! What the machine itself takes to send one frame to thousands of sockets: a process of its own that writes it to one
//! after the other. It says where it listens, and sends each time that it is told a number.

use std::{
    io::{self, BufRead as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    sync::{Arc, Mutex},
};

use clap::Args;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
};

use super::content;
use crate::path::blocking;

/// A process that writes bare frames.
#[derive(Debug, Args)]
pub(crate) struct Bare {}

impl Bare {
    pub(crate) async fn run(self) -> bool {
        blocking(write).await.is_ok()
    }
}

fn write() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let taken = sockets.clone();
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            // Nagle's algorithm would hold frames back.
            let _ = socket.set_nodelay(true);
            taken.lock().expect("no panic").push(socket);
        }
    });
    for number in io::stdin().lock().lines() {
        let frame = frame(&content(number?.trim().parse().map_err(io::Error::other)?));
        for socket in sockets.lock().expect("no panic").iter_mut() {
            // Whoever has left isn't counted.
            let _ = socket.write_all(&frame);
        }
    }
    Ok(())
}

/// The frame that the gateway would send.
fn frame(content: &str) -> Vec<u8> {
    let payload = format!(r#"{{"type":"broadcast","event":"tick","payload":{content}}}"#);
    let text = format!(r#"[null,null,"realtime:bench","broadcast",{payload}]"#);
    let length = u16::try_from(text.len()).expect("a short frame");
    let mut bytes = vec![0x81, 126];
    bytes.extend(length.to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// One such process, while it runs.
pub(super) struct Writer {
    _child: Child,
    told: ChildStdin,
    pub(super) address: SocketAddr,
}

impl Writer {
    pub(super) async fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("bare")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let (told, said) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let said = BufReader::new(said).lines().next_line().await.expect("it is read").expect("a line");
        Self { _child: child, told, address: said.parse().expect("an address") }
    }

    pub(super) async fn send(&mut self, number: usize) {
        self.told.write_all(format!("{number}\n").as_bytes()).await.expect("it reads");
    }
}
