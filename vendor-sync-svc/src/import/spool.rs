//! What an import takes in, kept sealed until it has ended: a file in pieces of 256 KiB, a vendor's list record by record.
//!
//! Neither is ever in memory as a whole: a file is written as it comes and read a piece at a time.

use std::time::Duration;

use chassis::{
    error::{Error, Result},
    secret::place,
    store::Store,
    with,
};

use super::{Import, Phase, State, hold::Arriving, store::Imports, text::Detector};

/// Bytes of a piece.
pub(super) const CHUNK: usize = 256 << 10;
/// Bytes of a file.
pub(crate) const FILE_BYTES: u64 = 100 << 20;
/// Sealed bytes of a list; of all that an organization's imports hold; and how long to wait where that is reached.
pub(super) const LIST_BYTES: i64 = 1 << 30;
pub(super) const ORGANIZATION_BYTES: i64 = 4 << 30;
pub(super) const FULL_WAIT: Duration = Duration::from_secs(600);

/// What forgets an import's pieces and records, and how many of them at a time.
const FORGETS: [(&str, i64); 2] = [
    (
        "DELETE FROM import_chunks WHERE import_id = $1 \
         AND number IN (SELECT number FROM import_chunks WHERE import_id = $1 ORDER BY number LIMIT $2)",
        16,
    ),
    (
        "DELETE FROM import_items WHERE import_id = $1 \
         AND number IN (SELECT number FROM import_items WHERE import_id = $1 ORDER BY number LIMIT $2)",
        500,
    ),
];

/// A file on its way in.
#[derive(Debug)]
pub(crate) struct Upload {
    imports: Imports,
    import: Import,
    buffer: Vec<u8>,
    number: i64,
    bytes: u64,
    detector: Detector,
    _arriving: Arriving,
}

impl Upload {
    pub(crate) fn new(imports: Imports, import: Import) -> Self {
        let (buffer, detector, _arriving) =
            (Vec::with_capacity(CHUNK), Detector::default(), imports.arrives(&import.id));
        Self { imports, import, buffer, number: 0, bytes: 0, detector, _arriving }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Error::Invalid` over 100 MiB; `Error::Exhausted` where the organization's imports hold too much already;
    /// `Error::Aborted` if the import was cancelled; `Error::Unavailable` while the store is away.
    pub(crate) async fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        if self.bytes > FILE_BYTES {
            return Err(Error::invalid("content", "must be at most 100 MiB: import it in parts"));
        }
        self.detector.push(bytes);
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(piece);
            bytes = rest;
            if self.buffer.len() == CHUNK {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// The file is whole: the import runs.
    ///
    /// # Errors
    /// `Error::Invalid` for what is no text that we read; `Error::Aborted` if the import was cancelled.
    pub(crate) async fn complete(&mut self) -> Result<Import> {
        let (encoding, _) = self.detector.end().map_err(|reason| Error::invalid("content", reason))?;
        if !self.buffer.is_empty() {
            self.flush().await?;
        }
        let mut import = self.import.clone();
        (import.encoding, import.total, import.state) = (encoding, self.bytes, State::Running);
        import.enter(Phase::Counting);
        self.imports.save(State::Receiving, &import).await?;
        Ok(import)
    }

    /// It won't be whole, for this reason.
    pub(crate) async fn fail(mut self, error: &Error) {
        (self.import.state, self.import.reason) = (State::Failed, Import::explained(error));
        match self.imports.save(State::Receiving, &self.import).await {
            // It was cancelled, or is complete after all.
            Ok(()) | Err(Error::Aborted(_)) => {}
            Err(error) => {
                tracing::warn!(%error, import.id = self.import.id, "a broken upload is noted in some minutes")
            }
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let (imports, id) = (&self.imports, &self.import.id);
        let key = imports.keys.of(&self.import.order.organization).await?;
        let sealed = key.seal(&place("import_chunks", "body", &row(id, self.number)), &self.buffer);
        let mut tx = imports.store.begin().await?;
        imports.spooled_in(&mut tx, &self.import, sealed.len()).await?;
        with!(tx.on(), c => {
            sqlx::query("INSERT INTO import_chunks (import_id, number, body) VALUES ($1, $2, $3)")
                .bind(id)
                .bind(self.number)
                .bind(sealed)
                .execute(c)
                .await
                .map(drop)
        })?;
        tx.commit().await?;
        self.number += 1;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads a spooled file from some place on.
#[derive(Debug)]
pub(super) struct File {
    imports: Imports,
    piece: Vec<u8>,
    /// Where the piece begins, and how much of it is used.
    start: u64,
    used: usize,
}

impl File {
    pub(super) fn new(imports: Imports, position: u64) -> Self {
        Self { imports, piece: Vec::new(), start: position, used: 0 }
    }

    /// What isn't used yet of the piece at hand, or of the next; empty at the file's end.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn rest(&mut self, import: &Import) -> Result<&[u8]> {
        if self.used == self.piece.len() {
            let position = self.position();
            let number = i64::try_from(position / CHUNK as u64).map_err(Error::internal)?;
            let piece = self.load(import, number).await?;
            let skipped = usize::try_from(position % CHUNK as u64).map_err(Error::internal)?;
            (self.start, self.used) = (position - skipped as u64, skipped.min(piece.len()));
            self.piece = piece;
        }
        Ok(&self.piece[self.used..])
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// How much of the file is used.
    pub(super) fn position(&self) -> u64 {
        self.start + self.used as u64
    }

    async fn load(&self, import: &Import, number: i64) -> Result<Vec<u8>> {
        let sealed: Option<Vec<u8>> = with!(self.imports.store.reader(), c => {
            sqlx::query_scalar("SELECT body FROM import_chunks WHERE import_id = $1 AND number = $2")
                .bind(&import.id)
                .bind(number)
                .fetch_optional(c)
                .await
        })?;
        let Some(sealed) = sealed else { return Ok(Vec::new()) };
        let key = self.imports.keys.of(&import.order.organization).await?;
        key.open(&place("import_chunks", "body", &row(&import.id, number)), &sealed)
    }
}

/// What was spooled for an import is of no use any more: it goes in small steps, between which others may write.
///
/// # Errors
/// `Error::Unavailable` while the store is away; what is left then goes another time.
pub(crate) async fn forget(store: &Store, import: &str) -> Result<()> {
    for (text, step) in FORGETS {
        let mut gone = step.unsigned_abs();
        while gone == step.unsigned_abs() {
            gone = with!(store.writer(), c => {
                sqlx::query(text).bind(import).bind(step).execute(c).await.map(|done| done.rows_affected())
            })?;
        }
    }
    with!(store.writer(), c => {
        sqlx::query("UPDATE imports SET spooled = 0 WHERE id = $1").bind(import).execute(c).await.map(drop)
    })?;
    Ok(())
}

pub(crate) fn row(import: &str, number: i64) -> String {
    format!("{import}/{number}")
}
