//! Follows the plugin's output: which transaction is under way, what its tables look like, and the number of each change
//! in it, which is the same whenever the same log is read again: every change counts, also one that nobody wants.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::json;

use super::{
    CaptureError, Session, TOO_LONG,
    config::{Table, Unlisted},
    intake::{Captured, Intake},
    notice::{Notice, concerned},
    pgoutput::{Begin, Message, Relation},
    position::{Origin, time},
    row::Rows,
    state::Refusal,
};
use crate::event::Origin as How;

pub(super) struct Decoder {
    origin: Origin,
    relations: HashMap<u32, Relation>,
    /// The transaction under way, and how many changes it had so far.
    inside: Option<(Begin, u64)>,
}

impl Decoder {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, relations: HashMap::new(), inside: None }
    }

    /// Whether a transaction is under way: what the server says about its place counts only between two of them.
    pub(super) fn is_inside(&self) -> bool {
        self.inside.is_some()
    }

    /// Takes a message of the plugin.
    pub(super) async fn take(
        &mut self,
        session: &mut Session<'_>,
        intake: &mut Intake<'_>,
        output: Bytes,
        is_cut: bool,
    ) -> Result<(), CaptureError> {
        if is_cut {
            return self.cut(session, intake, output).await;
        }
        match Message::parse(output)? {
            Message::Begin(begin) => self.inside = Some((begin, 0)),
            Message::Commit { end } => {
                let begin = self.inside.take();
                intake.mark(end, begin.map(|(begin, _)| time(begin)));
            }
            Message::Relation(relation) => {
                session.learn_types(&relation, self.inside.map_or(0, |(begin, _)| begin.xid)).await?;
                self.relations.insert(relation.id, relation);
            }
            Message::Insert { relation, new } => self.row(session, intake, relation, Rows::Insert(new)).await?,
            Message::Update { relation, old, new } => {
                self.row(session, intake, relation, Rows::Update(old, new)).await?;
            }
            Message::Delete { relation, old } => self.row(session, intake, relation, Rows::Delete(old)).await?,
            Message::Truncate { relations } => {
                for relation in relations {
                    self.truncate(session, intake, relation).await?;
                }
            }
            Message::Other => {}
        }
        Ok(())
    }

    /// The transaction of a change, and what the change is called.
    fn next(&mut self) -> Result<(Begin, String), CaptureError> {
        let (begin, ordinal) = self
            .inside
            .as_mut()
            .ok_or_else(|| CaptureError::Source("a change came outside of a transaction".to_owned()))?;
        let id = self.origin.of_change(*begin, *ordinal);
        *ordinal += 1;
        Ok((*begin, id))
    }

    fn relation(&self, id: u32) -> Result<&Relation, CaptureError> {
        let relation = self.relations.get(&id);
        relation.ok_or_else(|| CaptureError::Source("a change came of a table that wasn't described".to_owned()))
    }

    async fn row(
        &mut self,
        session: &Session<'_>,
        intake: &mut Intake<'_>,
        relation: u32,
        rows: Rows,
    ) -> Result<(), CaptureError> {
        let (begin, id) = self.next()?;
        let relation = self.relation(relation)?;
        let (operation, key) = (rows.operation().as_str(), rows.key(relation));
        let Some(owner) = session.source.owners.get(&name(relation)) else {
            return unlisted(session, intake, relation, id, operation, key).await;
        };
        let owned = rows.owned(relation, owner, &session.types);
        let at = time(begin);
        intake.change(Captured { id, at, origin: How::Realtime, relation, operation, key, owned }).await
    }

    /// A row too long to be kept: its event would be too long by far as well.
    async fn cut(&mut self, session: &Session<'_>, intake: &mut Intake<'_>, output: Bytes) -> Result<(), CaptureError> {
        let id = Message::relation_of_cut(output);
        let id = id.ok_or_else(|| CaptureError::Source("a message that is no row is too long".to_owned()))?;
        let (_, event_id) = self.next()?;
        let table = name(self.relation(id)?);
        if session.source.owners.contains_key(&table) {
            let (table, key) = (table.to_string(), String::new());
            intake.refuse(Refusal { event_id, table, operation: "change", key }, TOO_LONG).await?;
        }
        Ok(())
    }

    /// Nobody says which rows there were: whoever may have had some is told that the table is empty.
    async fn truncate(
        &mut self,
        session: &Session<'_>,
        intake: &mut Intake<'_>,
        relation: u32,
    ) -> Result<(), CaptureError> {
        let (begin, id) = self.next()?;
        let relation = self.relation(relation)?;
        let Some(owner) = session.source.owners.get(&name(relation)) else {
            return unlisted(session, intake, relation, id, "truncate", String::new()).await;
        };
        let (source, table) = (&session.source.name, name(relation).to_string());
        tracing::warn!(source, table, "a table was truncated: its rows are gone without a change of each");
        metrics::counter!("capture_truncates_total", "source" => source.clone()).increment(1);
        let content = json!({"source": source, "schema": relation.schema, "table": relation.table});
        let notice = Notice { id, type_: "capture.truncated", at: time(begin), content };
        let organizations = concerned(&session.publisher.organizations, std::iter::once(owner)).await?;
        notice.publish(intake, &table, organizations).await
    }
}

fn name(relation: &Relation) -> Table {
    Table { schema: relation.schema.clone(), name: relation.table.clone() }
}

/// A change of a table whose rows are nobody's.
async fn unlisted(
    session: &Session<'_>,
    intake: &mut Intake<'_>,
    relation: &Relation,
    event_id: String,
    operation: &'static str,
    key: String,
) -> Result<(), CaptureError> {
    let table = name(relation).to_string();
    match session.source.unlisted {
        Unlisted::Ignore => {
            let source = session.source.name.clone();
            metrics::counter!("capture_ignored_total", "source" => source, "table" => table).increment(1);
            Ok(())
        }
        Unlisted::Refuse => {
            let refusal = Refusal { event_id, table, operation, key };
            intake.refuse(refusal, "the table isn't among the source's tables").await
        }
    }
}
