//! The conversation with a mail server (RFC 5321), step by step, so that it is known how far it came when it broke.
//!
//! Guarantee: a message is tried again only if the server can't have taken it. Until the message was handed over whole,
//! any failure says so; a reply after it decides; and a connection that is lost between the two leaves an unknown outcome.
//!
//! Who is at fault: replies to the greeting, to the login and to our own address concern the server or our settings, so
//! the lane waits as a whole; replies about a recipient concern that message alone.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use chassis::lane::{Attempted, Blame, Outcome};
use lettre::{
    Address,
    transport::smtp::{
        Error,
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, TlsParameters},
        commands::{Data, Mail, Rcpt},
        extension::{ClientId, Extension, MailParameter},
    },
};

use tokio::{sync::Semaphore, time::timeout};

use super::provider::Class;
use crate::config::{Smtp, Tls};

/// How long a connection may lie idle and be used again: servers hang up after minutes (RFC 5321, 4.5.3.2.7: five).
const IDLE: Duration = Duration::from_secs(60);

/// One mail server, with the connections to it that lie idle.
pub(super) struct Relay {
    settings: Smtp,
    tls: TlsParameters,
    from: Address,
    idle: Mutex<Vec<(AsyncSmtpConnection, Instant)>>,
    /// As many as connections may be open.
    free: Semaphore,
}

/// How far a conversation had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Connecting, encrypting, logging in.
    Connect,
    /// `MAIL FROM`: our own address.
    Sender,
    /// `RCPT TO`
    Recipient,
    /// `DATA`, before anything of the message.
    Data,
    /// The message, until its reply.
    Message,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "the connection",
            Self::Sender => "our address (MAIL FROM)",
            Self::Recipient => "the recipient (RCPT TO)",
            Self::Data => "the message (DATA)",
            Self::Message => "the message",
        }
    }
}

/// Why a conversation ended.
struct Broken {
    step: Step,
    why: Why,
}

enum Why {
    /// What the server said, or how the connection broke.
    Failed(Error),
    TimeUp,
    /// The address has other characters than ASCII, and the server can't take those (RFC 6531).
    International,
}

impl Relay {
    /// # Errors
    /// A host that no certificate can be for.
    pub(super) fn new(settings: &Smtp, from: Address) -> Result<Self> {
        let tls = TlsParameters::new_rustls(settings.host.clone()).context("[notifier.smtp] host")?;
        let free = Semaphore::new(settings.connections as usize);
        Ok(Self { settings: settings.clone(), tls, from, idle: Mutex::default(), free })
    }

    /// Tries to hand over one message.
    pub(super) async fn send(&self, to: Address, message: &[u8]) -> Attempted {
        match self.converse(to, message).await {
            Ok(response) => Attempted {
                outcome: Outcome::Delivered,
                status_code: Some(250),
                class: "delivered",
                error: String::new(),
                response,
            },
            Err(broken) => concluded(&broken),
        }
    }

    /// Gives what the server said when it took the message.
    async fn converse(&self, to: Address, message: &[u8]) -> Result<Bytes, Broken> {
        let limit = Duration::from_millis(self.settings.timeout_ms);
        let Ok(Ok(_free)) = timeout(limit, self.free.acquire()).await else {
            return Err(Broken { step: Step::Connect, why: Why::TimeUp });
        };
        let mut connection = self.connection().await?;
        let is_plain = [&self.from, &to].iter().all(|address| address.to_string().is_ascii());
        if !is_plain && !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
            return Err(Broken { step: Step::Recipient, why: Why::International });
        }
        let parameters = if is_plain { Vec::new() } else { vec![MailParameter::SmtpUtfEight] };
        within(Step::Sender, limit, connection.command(Mail::new(Some(self.from.clone()), parameters))).await?;
        within(Step::Recipient, limit, connection.command(Rcpt::new(to, Vec::new()))).await?;
        within(Step::Data, limit, connection.command(Data)).await?;
        let accept = Duration::from_millis(self.settings.accept_timeout_ms);
        let reply = within(Step::Message, accept, connection.message(message)).await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
        Ok(reply.message().collect::<Vec<_>>().join("\n").into())
    }

    /// A connection that still answers, else a new one.
    async fn connection(&self) -> Result<AsyncSmtpConnection, Broken> {
        let limit = Duration::from_millis(self.settings.timeout_ms);
        while let Some((mut connection, since)) = self.pop() {
            let alive = since.elapsed() < IDLE && timeout(limit, connection.test_connected()).await.unwrap_or(false);
            if alive {
                return Ok(connection);
            }
        }
        within(Step::Connect, limit, self.connect()).await
    }

    fn pop(&self) -> Option<(AsyncSmtpConnection, Instant)> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let Smtp { host, port, username, password, .. } = &self.settings;
        let hello = ClientId::default();
        let implicit = (self.settings.tls == Tls::Implicit).then(|| self.tls.clone());
        let address = (host.trim_start_matches('[').trim_end_matches(']'), *port);
        let mut connection = AsyncSmtpConnection::connect_tokio1(address, None, &hello, implicit, None).await?;
        if self.settings.tls == Tls::Starttls {
            // A server without STARTTLS is an error here, never a reason to go on in the clear.
            connection.starttls(self.tls.clone(), &hello).await?;
        }
        if !username.is_empty() {
            let credentials = Credentials::new(username.clone(), password.expose().to_owned());
            connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await?;
        }
        Ok(connection)
    }
}

async fn within<T>(step: Step, limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Broken> {
    match timeout(limit, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Broken { step, why: Why::Failed(error) }),
        Err(_) => Err(Broken { step, why: Why::TimeUp }),
    }
}

/// What it means for the message that a conversation ended as it did. The server's own words may hold addresses: they go
/// into the response, which is sealed, and never into the reason.
fn concluded(broken: &Broken) -> Attempted {
    let failure = Failure::of(&broken.why);
    let outcome = judge(broken.step, failure);
    if broken.step == Step::Sender || broken.step == Step::Connect {
        tracing::warn!(step = broken.step.name(), ?failure, "the mail server doesn't take our mail; it waits");
    }
    let (class, said) = match failure {
        Failure::Refused(code) if broken.is_nobody() => {
            (Class::Dead.name(), format!("the mail server refused {} with {code}", broken.step.name()))
        }
        Failure::Refused(code) => ("refused", format!("the mail server refused {} with {code}", broken.step.name())),
        Failure::Postponed(code) => {
            ("postponed", format!("the mail server put {} off with {code}", broken.step.name()))
        }
        Failure::TimeUp => ("timeout", format!("the mail server didn't answer in time to {}", broken.step.name())),
        Failure::Lost => ("connection", format!("the mail server was lost at {}", broken.step.name())),
        Failure::International => ("refused", "the mail server can't take addresses outside ASCII".to_owned()),
    };
    let error = if outcome == Outcome::Unknown { format!("{said}; it may have been taken") } else { said };
    let status_code = match failure {
        Failure::Refused(code) | Failure::Postponed(code) => Some(code),
        Failure::TimeUp | Failure::Lost | Failure::International => None,
    };
    let response = match &broken.why {
        Why::Failed(error) => error.to_string().into(),
        Why::TimeUp | Why::International => Bytes::new(),
    };
    Attempted { outcome, status_code, class, error, response }
}

/// What servers say of a recipient that reaches nobody (RFC 3463 and 7505): no such mailbox, no address, moved, a domain without
/// mail, switched off. A bare 550 may be about us.
const NOBODY: &[&str] = &["5.1.1", "5.1.3", "5.1.6", "5.1.10", "5.2.1"];

impl Broken {
    fn is_nobody(&self) -> bool {
        let Why::Failed(error) = &self.why else { return false };
        let said = error.to_string();
        let code = said.split_once("): ").and_then(|(_, text)| text.split_whitespace().next());
        self.step == Step::Recipient && code.is_some_and(|code| NOBODY.contains(&code))
    }
}

/// Ends a message that can't be tried at all.
pub(super) fn refused(reason: &str) -> Attempted {
    Attempted {
        outcome: Outcome::Permanent,
        status_code: None,
        class: "refused",
        error: reason.to_owned(),
        response: Bytes::new(),
    }
}

/// Leaves a message to wait until somebody has mended the settings.
pub(super) fn waits(reason: &str) -> Attempted {
    let outcome = Outcome::Retry { after: None, blame: Blame::Destination };
    Attempted { outcome, class: "channel", ..refused(reason) }
}

/// What went wrong, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// 5yz
    Refused(u16),
    /// 4yz
    Postponed(u16),
    TimeUp,
    Lost,
    International,
}

impl Failure {
    fn of(why: &Why) -> Self {
        match why {
            Why::Failed(error) => match error.status().map(u16::from) {
                Some(code) if error.is_permanent() => Self::Refused(code),
                Some(code) => Self::Postponed(code),
                None => Self::Lost,
            },
            Why::TimeUp => Self::TimeUp,
            Why::International => Self::International,
        }
    }
}

fn judge(step: Step, failure: Failure) -> Outcome {
    let retry = |blame| Outcome::Retry { after: None, blame };
    match (step, failure) {
        (_, Failure::International) => Outcome::Permanent,
        // Login, encryption and our own address are matters of settings: once those are right, all of it goes.
        (Step::Connect | Step::Sender, _) => retry(Blame::Destination),
        (_, Failure::Refused(_)) => Outcome::Permanent,
        // 421: the server is closing, whoever the recipient is.
        (Step::Recipient, Failure::Postponed(code)) if code != 421 => retry(Blame::Message),
        (Step::Message, Failure::TimeUp | Failure::Lost) => Outcome::Unknown,
        (_, Failure::Postponed(_) | Failure::TimeUp | Failure::Lost) => retry(Blame::Destination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 5] = [Step::Connect, Step::Sender, Step::Recipient, Step::Data, Step::Message];

    #[test]
    fn only_a_message_handed_over_whole_has_an_unknown_outcome() {
        for step in STEPS {
            for failure in
                [Failure::Refused(550), Failure::Postponed(450), Failure::TimeUp, Failure::Lost, Failure::International]
            {
                let unknown = judge(step, failure) == Outcome::Unknown;
                let expected = step == Step::Message && matches!(failure, Failure::TimeUp | Failure::Lost);
                assert_eq!(unknown, expected, "{step:?} {failure:?}");
            }
        }
    }

    #[test]
    fn one_full_mailbox_never_holds_the_lane_and_a_wrong_password_never_ends_a_message() {
        let retry = |blame| Outcome::Retry { after: None, blame };
        assert_eq!(judge(Step::Recipient, Failure::Postponed(452)), retry(Blame::Message));
        assert_eq!(judge(Step::Recipient, Failure::Postponed(421)), retry(Blame::Destination));
        assert_eq!(judge(Step::Connect, Failure::Refused(535)), retry(Blame::Destination));
        assert_eq!(judge(Step::Recipient, Failure::Refused(550)), Outcome::Permanent);
        assert_eq!(judge(Step::Message, Failure::Refused(554)), Outcome::Permanent);
        assert_eq!(judge(Step::Message, Failure::Postponed(451)), retry(Blame::Destination));
    }
}
