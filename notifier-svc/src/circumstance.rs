//! What is known of the people whom something concerns, gathered for `resolve`: wishes, suppressed addresses, history.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chassis::{error::Result, id::OrganizationId};
use jiff::Timestamp;

use crate::{
    fact::{Belief, Fact, beliefs},
    kept::Kept,
    limit,
    policy::{Circumstances, Stage},
    recipient::Person,
    resolve::{Question, Room},
    room,
    settings::Settings,
    suppression::hash,
    tell::{Notifier, Subject},
    template::Wording,
    wedding, window,
};

/// Every channel that may be asked about, whatever a route offers.
const CHANNELS: &[&str] = &["email", "in_app", "sms", "whatsapp", "push", "slack", "teams"];

/// What is known, by the people's ids.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) people: HashMap<String, Circumstances>,
    pub(crate) beliefs: HashMap<String, HashMap<String, Belief>>,
    /// How their organization puts things.
    pub(crate) wording: Arc<Wording>,
    /// Until when free text reaches them by WhatsApp.
    windows: HashMap<String, i64>,
}

impl Known {
    /// The language that people wish for goes before the directory's; whoever has no clock there lives by their
    /// organization's.
    pub(crate) fn localize(&self, people: &mut [Person]) {
        for person in people {
            let wished = self.people.get(&person.id).map(|known| &known.preference.locale);
            if let (Some(recipient), Some(wished)) = (&mut person.recipient, wished.filter(|wished| !wished.is_empty()))
            {
                recipient.locale.clone_from(wished);
            }
            if let (Some(recipient), Some(until)) = (&mut person.recipient, self.windows.get(&person.id)) {
                recipient.contact.whatsapp_open_until = *until;
            }
            if let Some(recipient) = person.recipient.as_mut().filter(|recipient| recipient.time_zone.is_empty()) {
                recipient.time_zone.clone_from(&self.wording.settings.time_zone);
            }
        }
    }
}

impl Notifier {
    /// What is known of these people; `except` is the message that is being decided about.
    pub(crate) async fn known_of(
        &self,
        organization: &OrganizationId,
        people: &[Person],
        fact: Option<&Fact>,
        except: Option<&[u8; 16]>,
    ) -> Result<Known> {
        let mut known = Known { wording: self.wordings.of(organization).await?, ..Known::default() };
        for person in people.iter().filter(|person| person.recipient.is_some()) {
            let mut circumstances = self.circumstances(organization, person).await?;
            if let Some(fact) = fact {
                let beliefs = beliefs(&self.store, organization, &person.id, &fact.key, except).await?;
                let values =
                    beliefs.iter().filter_map(|(channel, belief)| Some((channel.clone(), belief.value.clone()?)));
                circumstances.knows = values.collect();
                known.beliefs.insert(person.id.clone(), beliefs);
            }
            known.people.insert(person.id.clone(), circumstances);
            let number = person.recipient.as_ref().map_or("", |known| &known.contact.whatsapp);
            if !number.is_empty() {
                let until = window::until(&self.store, organization, &hash(organization, number)).await?;
                known.windows.insert(person.id.clone(), until);
            }
        }
        Ok(known)
    }

    async fn circumstances(&self, organization: &OrganizationId, person: &Person) -> Result<Circumstances> {
        let preference = self.preferences.get(organization, &person.id).await?;
        let addresses = self.addresses(person, &preference.rules.iter().flat_map(|rule| &rule.also).collect());
        Ok(Circumstances {
            suppressed: self.suppressions.among(organization, &addresses).await?,
            told: limit::told(&self.store, organization, &person.id, self.clock.now()).await?,
            waits: limit::waits(&self.store, organization, &person.id).await?,
            knows: HashMap::new(),
            preference,
        })
    }

    /// Where a person is reached, by channel. The inbox has no address that could be suppressed.
    pub(crate) fn addresses(&self, person: &Person, also: &HashSet<&String>) -> HashMap<String, String> {
        let Some(recipient) = &person.recipient else { return HashMap::new() };
        let own = recipient.channels.iter().chain(also.iter().copied()).map(String::as_str);
        let names: HashSet<&str> = CHANNELS.iter().copied().chain(own).filter(|name| *name != "in_app").collect();
        let address = |name: &str| Some((name.to_owned(), self.channels.address(name, recipient).ok()?));
        names.into_iter().filter_map(address).collect()
    }

    /// The room of the wedding that something is about, where the organization tells in it and it is open.
    pub(crate) async fn room_of(
        &self,
        organization: &OrganizationId,
        kept: &Kept,
        settings: &Settings,
    ) -> Result<Option<Room>> {
        let Some(wedding) = kept.wedding.as_deref().filter(|_| settings.slack_weddings && settings.slack_notices)
        else {
            return Ok(None);
        };
        let open = room::open(&self.store, organization, wedding).await?;
        Ok(open.map(|(id, members)| Room { person: room::as_person(wedding, &id, settings), members }))
    }

    pub(crate) async fn wedding_day(&self, organization: &OrganizationId, kept: &Kept) -> Result<bool> {
        wedding::is_its_day(&self.store, organization, kept.wedding.as_deref(), self.clock.now()).await
    }
}

impl<'a> Subject<'a> {
    pub(crate) fn question(
        &self,
        people: &'a [Person],
        known: &'a Known,
        now: Timestamp,
        stage: Stage,
        wedding_day: bool,
    ) -> Question<'a> {
        Question {
            workflow: self.workflow,
            asked: self.asked,
            category: self.kept.category(self.asked),
            offered: &self.kept.offered,
            people,
            chosen: !self.kept.chosen.is_empty(),
            told_by: None,
            now,
            urgency: self.kept.urgency(self.asked, self.priority),
            wedding_day,
            stage,
            known: &known.people,
            advertises: false,
            news: None,
            room: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        preference::Preference,
        recipient::{Relation, tests::supplier},
    };

    #[test]
    fn a_wished_language_goes_before_the_directorys_and_none_leaves_it() {
        let person = |id: &str| Person {
            id: id.to_owned(),
            relation: Relation::default(),
            recipient: Some(supplier(id)),
            vendor_types: Vec::new(),
        };
        let mut people = [person("a"), person("b")];
        people.iter_mut().for_each(|person| person.recipient.as_mut().unwrap().locale = "en".to_owned());
        let preference = Preference { locale: "de-AT".to_owned(), ..Preference::default() };
        let mut known = Known::default();
        known.people.insert("a".to_owned(), Circumstances { preference, ..Circumstances::default() });
        known.people.insert("b".to_owned(), Circumstances::default());
        known.localize(&mut people);
        let locales = people.map(|person| person.recipient.unwrap().locale);
        assert_eq!(locales, ["de-AT", "en"]);
    }
}
