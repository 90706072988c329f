//! `TemplateService`: an organization's own texts, over gRPC.

use std::sync::Arc;

use chassis::{
    auth::caller,
    error::{Error, Result},
    id::OrganizationId,
};
use proto::notifier::v1::{
    self as wire, DeleteTemplateRequest, DeleteTemplateResponse, GetTemplateRequest, GetTemplateResponse,
    ListTemplatesRequest, ListTemplatesResponse, PreviewTemplateRequest, PreviewTemplateResponse, PutTemplateRequest,
    PutTemplateResponse, RollbackTemplateRequest, RollbackTemplateResponse, template_service_server::TemplateService,
};
use tonic::{Request, Response, Status};

use super::{cut, notifications::variables, page_size, timestamp};
use crate::{
    channel::preview::{Limits, Measure, Said, preview},
    settings::check_locale,
    tell::Notifier,
    template::{
        Templates, Texts, Wording,
        check::{check, check_key, names},
        own::{Key, Version, compile},
        sample,
        texts::normal,
    },
    workflow::find,
};

/// How many texts may be given for a preview: one for each part.
const SOURCES: usize = crate::template::check::PARTS.len();

/// The service.
pub(crate) struct Words(pub(crate) Arc<Notifier>);

#[tonic::async_trait]
impl TemplateService for Words {
    async fn put_template(
        &self,
        request: Request<PutTemplateRequest>,
    ) -> Result<Response<PutTemplateResponse>, Status> {
        let caller = caller(&request)?;
        let (organization, request) = (caller.organization("")?, request.into_inner());
        let key = key(request.workflow, request.part, &request.locale)?;
        self.check(&organization, &key, &request.source).await?;
        let (source, expected) = (Some(&*request.source), request.expected_version);
        let version = self.0.wordings.put(&organization, &key, source, expected, &caller.name).await?;
        Ok(Response::new(PutTemplateResponse { template: Some(print(version)) }))
    }

    async fn get_template(
        &self,
        request: Request<GetTemplateRequest>,
    ) -> Result<Response<GetTemplateResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let key = key(request.workflow, request.part, &request.locale)?;
        let versions = self.0.wordings.versions(&organization, &key).await?;
        let template = match request.version {
            0 => match versions.first().filter(|latest| latest.source.is_some()) {
                Some(latest) => print(latest.clone()),
                None => shipped(&key)?,
            },
            version => print(of(&versions, version)?.clone()),
        };
        let bare = |version: Version| wire::Template { source: String::new(), ..print(version) };
        let variables = names(find(&key.workflow)).into_iter().map(str::to_owned).collect();
        let versions = versions.into_iter().map(bare).collect();
        Ok(Response::new(GetTemplateResponse { template: Some(template), versions, variables }))
    }

    async fn list_templates(
        &self,
        request: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let (workflow, after) = (&request.workflow, &request.page_token);
        let listed = self.0.wordings.list(&organization, workflow, after, i64::from(size) + 1).await?;
        let name = |key: &Key| format!("{}/{}/{}", key.workflow, key.part, key.locale);
        let mut listed: Vec<_> = listed.into_iter().map(|version| (name(&version.key), version)).collect();
        let next_page_token = cut(&mut listed, size, |(name, _)| name);
        let templates = listed.into_iter().map(|(_, version)| print(version)).collect();
        Ok(Response::new(ListTemplatesResponse { templates, next_page_token }))
    }

    async fn delete_template(
        &self,
        request: Request<DeleteTemplateRequest>,
    ) -> Result<Response<DeleteTemplateResponse>, Status> {
        let caller = caller(&request)?;
        let (organization, request) = (caller.organization("")?, request.into_inner());
        let key = key(request.workflow, request.part, &request.locale)?;
        let versions = self.0.wordings.versions(&organization, &key).await?;
        if versions.first().is_none_or(|latest| latest.source.is_none()) {
            return Err(Error::NotFound("template".into()).into());
        }
        let version = self.0.wordings.put(&organization, &key, None, request.expected_version, &caller.name).await?;
        Ok(Response::new(DeleteTemplateResponse { template: Some(print(version)) }))
    }

    async fn rollback_template(
        &self,
        request: Request<RollbackTemplateRequest>,
    ) -> Result<Response<RollbackTemplateResponse>, Status> {
        let caller = caller(&request)?;
        let (organization, request) = (caller.organization("")?, request.into_inner());
        let key = key(request.workflow, request.part, &request.locale)?;
        let versions = self.0.wordings.versions(&organization, &key).await?;
        let earlier = of(&versions, request.version)?;
        let source = earlier.source.as_deref();
        if let Some(source) = source {
            self.check(&organization, &key, source).await?;
        }
        let expected = request.expected_version;
        let version = self.0.wordings.put(&organization, &key, source, expected, &caller.name).await?;
        Ok(Response::new(RollbackTemplateResponse { template: Some(print(version)) }))
    }

    async fn preview_template(
        &self,
        request: Request<PreviewTemplateRequest>,
    ) -> Result<Response<PreviewTemplateResponse>, Status> {
        let organization = caller(&request)?.organization("")?;
        let request = request.into_inner();
        check_locale("locale", &request.locale)?;
        if request.sources.len() > SOURCES {
            return Err(Error::invalid("sources", format!("must be at most {SOURCES}")).into());
        }
        let given = variables(&request.variables)?;
        let mut wording = (*self.0.wordings.of(&organization).await?).clone();
        let locale = match (&*request.locale, &*wording.settings.locale) {
            ("", "") => "en".to_owned(),
            ("", default) => default.to_owned(),
            (locale, _) => locale.to_owned(),
        };
        for text in request.sources {
            let key = key(request.workflow.clone(), text.part, &locale)?;
            wording = with(wording, key, &text.source)?;
        }
        let workflow = find(&key(request.workflow, "email.subject".to_owned(), &locale)?.workflow);
        let texts = Texts::new(&self.0.templates, &wording, workflow, &locale).strict();
        let limits = self.limits();
        let variables = sample::all(workflow, &given, &locale, limits.public_name);
        let said =
            preview(&texts, &variables, &limits).map_err(|error| Error::invalid("sources", error.to_string()))?;
        Ok(Response::new(PreviewTemplateResponse { previews: said.into_iter().map(print_said).collect() }))
    }
}

impl Words {
    fn limits(&self) -> Limits<'_> {
        Limits { public_name: &self.0.public_name, max_segments: self.0.max_segments }
    }

    /// Holds a text, among the organization's others, to everything.
    async fn check(&self, organization: &OrganizationId, key: &Key, source: &str) -> Result<()> {
        let wording = (*self.0.wordings.of(organization).await?).clone();
        let wording = with(wording, key.clone(), source)?;
        let texts = Texts::new(&self.0.templates, &wording, find(&key.workflow), &key.locale).strict();
        check(&texts, &key.locale, &self.limits())
    }
}

fn with(wording: Wording, key: Key, source: &str) -> Result<Wording> {
    let template = compile(&key, source).map_err(|error| Error::invalid("source", error.to_string()))?;
    Ok(wording.with(key, template))
}

fn key(workflow: String, part: String, locale: &str) -> Result<Key> {
    let key = Key { workflow, part, locale: normal(locale) };
    check_key(&key)?;
    Ok(key)
}

fn of(versions: &[Version], version: i64) -> Result<&Version> {
    let found = versions.iter().find(|known| known.version == version);
    found.ok_or_else(|| Error::NotFound("version of the template".into()))
}

/// What is said where the organization has no text of its own.
fn shipped(key: &Key) -> Result<wire::Template> {
    let source = Templates::source(find(&key.workflow).templates, &key.part);
    let source = source.ok_or_else(|| Error::NotFound("template".into()))?;
    Ok(wire::Template {
        workflow: key.workflow.clone(),
        part: key.part.clone(),
        locale: "en".to_owned(),
        source: source.to_owned(),
        ..wire::Template::default()
    })
}

fn print(version: Version) -> wire::Template {
    wire::Template {
        workflow: version.key.workflow,
        part: version.key.part,
        locale: version.key.locale,
        version: version.version,
        deleted: version.source.is_none(),
        source: version.source.unwrap_or_default(),
        author: version.author,
        created_at: Some(timestamp(version.created_at)),
    }
}

fn print_said(said: Said) -> wire::TemplatePreview {
    let print = |Measure { what, size, limit, unit }| wire::TemplateMeasure {
        what: String::from(what),
        size: u32::try_from(size).unwrap_or(u32::MAX),
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        unit: String::from(unit),
    };
    wire::TemplatePreview {
        channel: said.channel.to_owned(),
        title: said.title,
        text: said.text,
        html: said.html,
        payload: said.payload,
        measures: said.measures.into_iter().map(print).collect(),
    }
}
