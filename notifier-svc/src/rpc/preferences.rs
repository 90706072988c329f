//! `PreferenceService`: what people wish, over gRPC.

use std::sync::Arc;

use chassis::{
    auth::caller,
    error::{Error, Result},
};
use jiff::{Timestamp, civil::Time};
use proto::notifier::v1::{
    self as wire, DigestFrequency, GetPreferenceRequest, GetPreferenceResponse, UnsubscribeRequest,
    UnsubscribeResponse, UpdatePreferenceRequest, UpdatePreferenceResponse,
    preference_service_server::PreferenceService,
};
use tonic::{Request, Response, Status};

use super::timestamp;
use crate::{
    category,
    preference::{Consent, Digest, Preference, Preferences, Rule},
    recipient::Directory,
    tell::Notifier,
    token::Purpose,
    when::Quiet,
};

/// The service.
pub(crate) struct Wishes {
    pub(crate) preferences: Preferences,
    pub(crate) directory: Directory,
    pub(crate) notifier: Arc<Notifier>,
}

#[tonic::async_trait]
impl PreferenceService for Wishes {
    async fn get_preference(
        &self,
        request: Request<GetPreferenceRequest>,
    ) -> Result<Response<GetPreferenceResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let recipient = &request.get_ref().recipient_id;
        self.directory.get(&organization, recipient).await?;
        let preference = self.preferences.get(&organization, recipient).await?;
        Ok(Response::new(GetPreferenceResponse { preference: Some(print(preference)) }))
    }

    async fn update_preference(
        &self,
        request: Request<UpdatePreferenceRequest>,
    ) -> Result<Response<UpdatePreferenceResponse>, Status> {
        let caller = caller(&request)?;
        let organization = caller.organization("")?;
        let request = request.into_inner();
        self.directory.get(&organization, &request.recipient_id).await?;
        let given = request.preference.ok_or_else(|| Error::invalid("preference", "must be given"))?;
        let preference = parse(given).map_err(|error| error.within("preference"))?;
        for contact in &preference.contacts {
            self.directory.get(&organization, contact).await?;
        }
        self.preferences.put(&organization, &request.recipient_id, &preference, Some(&caller.name)).await?;
        Ok(Response::new(UpdatePreferenceResponse { preference: Some(print(preference)) }))
    }

    async fn unsubscribe(&self, request: Request<UnsubscribeRequest>) -> Result<Response<UnsubscribeResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        // A link is in its reader's own hands.
        let by = request.token.is_empty().then(|| caller.name.clone());
        let (organization, recipient, category) = if request.token.is_empty() {
            (caller.organization("")?, request.recipient_id, request.category)
        } else {
            let (organization, owner) = self.notifier.owner(&caller, Purpose::Unsubscribe, &request.token).await?;
            let of_workflow = category::of(&owner.workflow).to_owned();
            let category = if owner.category.is_empty() { of_workflow } else { owner.category };
            (organization, owner.recipient_id, category)
        };
        if !category::ALL.contains(&&*category) {
            return Err(Error::invalid("category", format!("must be one of {}", category::ALL.join(", "))).into());
        }
        self.directory.get(&organization, &recipient).await?;
        let mut preference = self.preferences.get(&organization, &recipient).await?;
        preference.unsubscribe(&category);
        self.preferences.put(&organization, &recipient, &preference, by.as_deref()).await?;
        Ok(Response::new(UnsubscribeResponse { category }))
    }
}

fn parse(given: wire::Preference) -> Result<Preference> {
    let quiet = given.quiet_hours.as_ref().map(|quiet| {
        Ok::<_, Error>(Quiet {
            from: time("quiet_hours.from", &quiet.from)?,
            until: time("quiet_hours.until", &quiet.until)?,
        })
    });
    let consent = given.consent_at.map(|at| {
        let nanos = at.nanos;
        let given_at =
            Timestamp::new(at.seconds, nanos).map_err(|_| Error::invalid("consent_at", "is out of range"))?;
        Ok::<_, Error>(Consent { given_at, source: given.consent_source.clone() })
    });
    let daily_at = (!given.daily_at.is_empty()).then(|| time("daily_at", &given.daily_at)).transpose()?;
    let preference = Preference {
        quiet: quiet.transpose()?,
        digest: digest(given.digest()).unwrap_or_default(),
        daily_at,
        consent: consent.transpose()?,
        rules: given.rules.into_iter().map(rule).collect(),
        time_zone: given.time_zone,
        locale: given.locale,
        contacts: given.contact_ids,
    };
    preference.check()?;
    Ok(preference)
}

fn rule(given: wire::PreferenceRule) -> Rule {
    Rule {
        digest: digest(given.digest()),
        subject: given.subject,
        channels: given.channels,
        also: given.also,
        off: given.off,
    }
}

/// HH:MM.
fn time(field: &'static str, text: &str) -> Result<Time> {
    let given = Some(text).filter(|text| text.len() == 5).and_then(|text| Time::strptime("%H:%M", text).ok());
    given.ok_or_else(|| Error::invalid(field, "must be HH:MM"))
}

fn digest(given: DigestFrequency) -> Option<Digest> {
    match given {
        DigestFrequency::Unspecified => None,
        DigestFrequency::Immediate => Some(Digest::Immediate),
        DigestFrequency::Hourly => Some(Digest::Hourly),
        DigestFrequency::Daily => Some(Digest::Daily),
    }
}

fn print(preference: Preference) -> wire::Preference {
    let hour = |time: Time| time.strftime("%H:%M").to_string();
    wire::Preference {
        rules: preference.rules.into_iter().map(print_rule).collect(),
        quiet_hours: preference
            .quiet
            .map(|quiet| wire::QuietHours { from: hour(quiet.from), until: hour(quiet.until) }),
        digest: print_digest(Some(preference.digest)).into(),
        daily_at: preference.daily_at.map(hour).unwrap_or_default(),
        time_zone: preference.time_zone,
        locale: preference.locale,
        contact_ids: preference.contacts,
        consent_at: preference.consent.as_ref().map(|consent| timestamp(consent.given_at)),
        consent_source: preference.consent.map(|consent| consent.source).unwrap_or_default(),
    }
}

fn print_rule(rule: Rule) -> wire::PreferenceRule {
    wire::PreferenceRule {
        subject: rule.subject,
        channels: rule.channels,
        also: rule.also,
        off: rule.off,
        digest: print_digest(rule.digest).into(),
    }
}

fn print_digest(digest: Option<Digest>) -> DigestFrequency {
    match digest {
        None => DigestFrequency::Unspecified,
        Some(Digest::Immediate) => DigestFrequency::Immediate,
        Some(Digest::Hourly) => DigestFrequency::Hourly,
        Some(Digest::Daily) => DigestFrequency::Daily,
    }
}
