//! What a story expects, what came, and the table that shows both.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};

use super::mail::MailServer;
use crate::{
    listen::Received,
    table::{say, show},
};

/// How something reached somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Via {
    Webhook,
    Email,
    InApp,
    Slack,
    Sms,
    Teams,
    Whatsapp,
    /// In a vendor's own system.
    System,
    /// In WedSync's own rows.
    Database,
    /// On a page that is open.
    Live,
}

impl Via {
    fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Email => "e-mail",
            Self::InApp => "in-app",
            Self::Slack => "Slack",
            Self::Sms => "SMS",
            Self::Teams => "Teams",
            Self::Whatsapp => "WhatsApp",
            Self::System => "own system",
            Self::Database => "row",
            Self::Live => "live",
        }
    }
}

#[derive(Debug)]
struct Arrival {
    at: Instant,
    who: &'static str,
    via: Via,
    what: String,
    /// What is needed to answer it: a text with a link, what a button names.
    body: String,
    verified: Result<(), String>,
}

/// Where arrivals are noted. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Arrivals(Arc<(Mutex<Vec<Arrival>>, Notify)>);

impl Arrivals {
    pub(super) fn note(&self, who: &'static str, via: Via, what: String, verified: Result<(), String>) {
        self.add(Arrival { at: Instant::now(), who, via, what, body: String::new(), verified });
    }

    /// A message that can be answered.
    pub(super) fn note_message(&self, who: &'static str, via: Via, what: String, body: String) {
        self.add(Arrival { at: Instant::now(), who, via, what, body, verified: Ok(()) });
    }

    fn add(&self, arrival: Arrival) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        self.0.1.notify_one();
    }
}

/// One story at a time.
#[derive(Default)]
pub(super) struct Tally {
    arrivals: Arrivals,
    expected: Vec<(&'static str, Via)>,
    began: Option<Instant>,
}

impl Tally {
    pub(super) fn arrivals(&self) -> Arrivals {
        self.arrivals.clone()
    }

    pub(super) fn collect_webhooks(&self, who: &'static str, mut received: mpsc::Receiver<Received>) {
        let arrivals = self.arrivals();
        #[expect(clippy::disallowed_methods, reason = "a reader of the demo, which no chassis drains")]
        tokio::spawn(async move {
            while let Some(Received { event, verified, .. }) = received.recv().await {
                arrivals.note(who, Via::Webhook, event, verified);
            }
        });
    }

    pub(super) fn collect_mail(&self, mut mail: MailServer) {
        let arrivals = self.arrivals();
        #[expect(clippy::disallowed_methods, reason = "as above")]
        tokio::spawn(async move {
            while let Some(message) = mail.received.recv().await {
                arrivals.note_message(message.who, Via::Email, message.subject, message.text);
            }
        });
    }

    /// Begins a story.
    pub(super) fn begin(&mut self, title: &str) {
        say(&format!("\n{title}"));
        self.forget();
    }

    /// Begins anew within a story.
    pub(super) fn forget(&mut self) {
        self.expected.clear();
        self.arrivals.0.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.began = Some(Instant::now());
    }

    /// Each of these must be reached once this way.
    pub(super) fn expect(&mut self, who: &[&'static str], via: Via) {
        self.expected.extend(who.iter().map(|who| (*who, via)));
    }

    /// What somebody was told one way, as it can be answered; empty if nothing.
    pub(super) fn body(&self, who: &str, via: Via) -> String {
        let arrivals = self.arrivals.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = arrivals.iter().find(|arrival| arrival.who == who && arrival.via == via);
        found.map(|arrival| arrival.body.clone()).unwrap_or_default()
    }

    /// Waits until everything expected came, and a little longer for what shouldn't; shows it. True if all is well.
    pub(super) async fn finish(&mut self, patience: Duration, aftermath: Duration) -> bool {
        self.wait(patience).await;
        tokio::time::sleep(aftermath).await;
        self.show()
    }

    /// Waits until everything expected came. Running out of patience is no error here: the table shows what is missing.
    pub(super) async fn wait(&self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.all_came()).await;
    }

    async fn all_came(&self) {
        loop {
            let noted = self.arrivals.0.1.notified();
            if self.missing().is_empty() {
                return;
            }
            noted.await;
        }
    }

    fn missing(&self) -> Vec<(&'static str, Via)> {
        let arrivals = self.arrivals.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let came = |(who, via): &&(&'static str, Via)| {
            arrivals.iter().any(|arrival| arrival.who == *who && arrival.via == *via)
        };
        self.expected.iter().filter(|expected| !came(expected)).copied().collect()
    }

    fn show(&self) -> bool {
        let began = self.began.unwrap_or_else(Instant::now);
        let missing = self.missing();
        let arrivals = self.arrivals.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all_well = missing.is_empty();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (index, arrival) in arrivals.iter().enumerate() {
            // Only what a story expects can come twice: notices beside it are its consequences.
            let expected = self.expected.contains(&(arrival.who, arrival.via));
            let again = expected
                && arrivals[..index].iter().any(|earlier| (earlier.who, earlier.via) == (arrival.who, arrival.via));
            all_well &= arrival.verified.is_ok() && !again;
            let verdict = match (&arrival.verified, again, arrival.via) {
                (Err(reason), ..) => format!("NOT VERIFIED: {reason}"),
                (_, true, _) => "CAME TWICE".to_owned(),
                (_, _, Via::Webhook | Via::System) => "✓ signature verified".to_owned(),
                _ => "✓ received".to_owned(),
            };
            let after = arrival.at.saturating_duration_since(began).as_secs_f64() * 1e3;
            rows.push(vec![
                format!("+{after:.1} ms"),
                arrival.who.to_owned(),
                arrival.via.name().to_owned(),
                arrival.what.clone(),
                verdict,
            ]);
        }
        rows.extend(missing.iter().map(|(who, via)| {
            vec!["never".to_owned(), (*who).to_owned(), via.name().to_owned(), String::new(), "MISSING".to_owned()]
        }));
        show(&["when", "who", "via", "what", ""], rows);
        all_well
    }
}
