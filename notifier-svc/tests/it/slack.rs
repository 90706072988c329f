//! A Slack workspace on loopback, as far as rooms and what is posted go: names, members and purposes are held to Slack's rules, and a method's
//! errors come with 200. What is to go wrong is said beforehand.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use chassis::tasks::Tasks;
use notifier_svc::Config;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// The bot's own id.
pub(crate) const BOT: &str = "UBOT";

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    /// It is refused, to be tried again after so many seconds.
    Limited(u32),
    /// It is done, and the connection is cut before the answer.
    CutAfter,
    /// It isn't done, and no answer ever comes.
    HeldBefore,
    /// It is done, and no answer ever comes.
    HeldAfter,
}

/// A room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) creator: String,
    pub(crate) purpose: String,
    pub(crate) members: BTreeSet<String>,
    pub(crate) archived: bool,
    created: i64,
    private: bool,
}

#[derive(Default)]
struct State {
    users: BTreeSet<String>,
    rooms: Vec<Room>,
    calls: Vec<String>,
    /// Where messages were posted, and what they say.
    posts: Vec<(String, String)>,
    troubles: HashMap<String, VecDeque<Trouble>>,
    /// Members whom nobody takes out.
    stuck: BTreeSet<String>,
    now: i64,
}

/// The workspace.
#[derive(Clone)]
pub(crate) struct Workspace {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    held: Arc<Notify>,
}

impl Workspace {
    pub(crate) async fn start(tasks: &Tasks, users: &[&str], now: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let users = users.iter().map(|id| (*id).to_owned()).collect();
        let state = Arc::new(Mutex::new(State { users, now, ..State::default() }));
        let workspace = Self { address: listener.local_addr().unwrap(), state, held: Arc::default() };
        let (serving, spawning, stopping) = (workspace.clone(), tasks.clone(), tasks.stopping());
        tasks.spawn("test.slack", async move {
            while let Some(Ok((stream, _))) = stopping.run_until_cancelled(listener.accept()).await {
                let (serving, stopping) = (serving.clone(), stopping.clone());
                spawning.spawn("test.slack.connection", async move {
                    drop(stopping.run_until_cancelled(serving.serve(stream)).await);
                });
            }
        });
        workspace
    }

    pub(crate) fn configure(&self, config: &mut Config) {
        config.slack.bot_token = "xoxb-1".to_owned().into();
        config.slack.base_url = self.base();
        config.slack.per_second = 0;
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until a call is held.
    pub(crate) async fn holds(&self) {
        tokio::time::timeout(Duration::from_secs(120), self.held.notified()).await.expect("a call within two minutes");
    }

    /// The next call of this method goes wrong.
    pub(crate) fn next(&self, method: &str, trouble: Trouble) {
        self.state.lock().unwrap().troubles.entry(method.to_owned()).or_default().push_back(trouble);
    }

    /// This member can't be taken out of a room.
    pub(crate) fn sticks(&self, user: &str) {
        self.state.lock().unwrap().stuck.insert(user.to_owned());
    }

    /// Somebody else's room.
    pub(crate) fn foreign(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        let id = format!("G{}", state.rooms.len());
        state.rooms.push(Room { id, name: name.to_owned(), creator: "UX".to_owned(), ..Room::default() });
    }

    pub(crate) fn rooms(&self) -> Vec<Room> {
        self.state.lock().unwrap().rooms.clone()
    }

    /// Somebody closes a room by hand.
    pub(crate) fn archive(&self, at: usize) {
        self.state.lock().unwrap().rooms[at].archived = true;
    }

    /// What was posted to a room or a member, oldest first.
    pub(crate) fn posts(&self, to: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.posts.iter().filter(|(known, _)| known == to).map(|(_, text)| text.clone()).collect()
    }

    pub(crate) fn calls(&self, method: &str) -> usize {
        self.state.lock().unwrap().calls.iter().filter(|call| *call == method).count()
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut length, mut is_let_in) = (String::new(), 0, false);
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            loop {
                let mut header = String::new();
                stream.read_line(&mut header).await?;
                let Some((name, value)) = header.trim_end().split_once(": ") else { break };
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse().unwrap_or(0),
                    "authorization" => is_let_in = value == "Bearer xoxb-1",
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let target = line.split(' ').nth(1).unwrap_or_default();
            let (method, query) =
                target.trim_start_matches('/').split_once('?').unwrap_or_else(|| (target.trim_start_matches('/'), ""));
            let mut asked: Value = serde_json::from_slice(&body).unwrap_or_default();
            if asked.is_null() {
                asked = url::form_urlencoded::parse(query.as_bytes())
                    .into_owned()
                    .collect::<HashMap<_, _>>()
                    .into_iter()
                    .map(|(name, value)| (name, Value::from(value)))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
            }
            let answer = self.state.lock().unwrap().answer(method, &asked, is_let_in);
            match answer {
                Answer::Said(answer) => stream.write_all(answer.as_bytes()).await?,
                Answer::Cut => return Ok(()),
                Answer::Held => {
                    self.held.notify_one();
                    // Whoever asked hangs up, or is killed.
                    stream.read_u8().await?;
                }
            }
        }
    }
}

/// What comes of a call.
enum Answer {
    Said(String),
    Cut,
    Held,
}

impl State {
    fn answer(&mut self, method: &str, asked: &Value, is_let_in: bool) -> Answer {
        self.calls.push(method.to_owned());
        let trouble = self.troubles.get_mut(method).and_then(VecDeque::pop_front);
        if let Some(Trouble::Limited(seconds)) = trouble {
            let body = json!({"ok": false, "error": "ratelimited"}).to_string();
            return Answer::Said(format!(
                "HTTP/1.1 429 x\r\nRetry-After: {seconds}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        }
        if matches!(trouble, Some(Trouble::HeldBefore)) {
            return Answer::Held;
        }
        let body = match is_let_in {
            true => self.call(method, asked).unwrap_or_else(|error| json!({"ok": false, "error": error})),
            false => json!({"ok": false, "error": "invalid_auth"}),
        };
        match trouble {
            Some(Trouble::HeldAfter) => return Answer::Held,
            Some(_) => return Answer::Cut,
            None => {}
        }
        let body = body.to_string();
        Answer::Said(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    fn call(&mut self, method: &str, asked: &Value) -> Result<Value, &'static str> {
        let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
        match method {
            "auth.test" => Ok(json!({"ok": true, "user_id": BOT, "team_id": "T1"})),
            "conversations.create" => self.create(text("name"), asked["is_private"] == true),
            "conversations.list" => self.list(&text("cursor"), text("limit").parse().unwrap_or(100)),
            "conversations.setPurpose" => {
                let purpose = text("purpose");
                if purpose.chars().count() > 250 {
                    return Err("too_long");
                }
                self.open(&text("channel"))?.purpose = purpose;
                Ok(json!({"ok": true}))
            }
            "conversations.invite" => {
                let user = text("users");
                let is_known = self.users.contains(&user);
                let room = self.open(&text("channel"))?;
                if user == BOT {
                    return Err("cant_invite_self");
                }
                if !is_known {
                    return Err("user_not_found");
                }
                if room.members.insert(user) { Ok(json!({"ok": true})) } else { Err("already_in_channel") }
            }
            "conversations.kick" => {
                let user = text("user");
                if self.stuck.contains(&user) {
                    return Err("cant_kick_from_general");
                }
                let room = self.open(&text("channel"))?;
                if user == BOT {
                    return Err("cant_kick_self");
                }
                if room.members.remove(&user) { Ok(json!({"ok": true})) } else { Err("not_in_channel") }
            }
            "chat.postMessage" => {
                let channel = text("channel");
                if channel.starts_with('G') {
                    self.open(&channel)?;
                }
                let ts = format!("{}.{}", self.now, self.posts.len());
                self.posts.push((channel.clone(), text("text")));
                Ok(json!({"ok": true, "channel": channel, "ts": ts}))
            }
            "conversations.archive" => {
                let id = text("channel");
                let room = self.rooms.iter_mut().find(|room| room.id == id).ok_or("channel_not_found")?;
                if std::mem::replace(&mut room.archived, true) {
                    Err("already_archived")
                } else {
                    Ok(json!({"ok": true}))
                }
            }
            _ => Err("unknown_method"),
        }
    }

    fn create(&mut self, name: String, private: bool) -> Result<Value, &'static str> {
        if name.len() > 80 {
            return Err("invalid_name_maxlength");
        }
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b)) {
            return Err("invalid_name_specials");
        }
        if self.rooms.iter().any(|room| room.name == name) {
            return Err("name_taken");
        }
        let id = format!("G{}", self.rooms.len());
        let members = [BOT.to_owned()].into();
        let creator = BOT.to_owned();
        self.rooms.push(Room {
            id: id.clone(),
            name: name.clone(),
            creator,
            members,
            private,
            created: self.now,
            ..Room::default()
        });
        Ok(json!({"ok": true, "channel": {"id": id, "name": name, "is_private": private, "creator": BOT}}))
    }

    /// The private rooms that the bot is in, page by page.
    fn list(&self, cursor: &str, limit: usize) -> Result<Value, &'static str> {
        let from: usize = cursor.parse().unwrap_or(0);
        let seen: Vec<&Room> = self.rooms.iter().filter(|room| room.private && room.members.contains(BOT)).collect();
        let page: Vec<Value> = seen
            .iter()
            .skip(from)
            .take(limit)
            .map(|room| {
                json!({
                    "id": room.id, "name": room.name, "creator": room.creator, "created": room.created,
                    "is_archived": room.archived, "purpose": {"value": room.purpose},
                })
            })
            .collect();
        let next = if from + page.len() < seen.len() { (from + page.len()).to_string() } else { String::new() };
        Ok(json!({"ok": true, "channels": page, "response_metadata": {"next_cursor": next}}))
    }

    fn open(&mut self, id: &str) -> Result<&mut Room, &'static str> {
        let room = self.rooms.iter_mut().find(|room| room.id == id).ok_or("channel_not_found")?;
        if room.archived {
            return Err("is_archived");
        }
        if room.members.contains(BOT) { Ok(room) } else { Err("not_in_channel") }
    }
}
