//! A request's raw body: bounded in bytes, before more is read, and in the time it takes to arrive.

use axum::{
    body::Body,
    extract::{FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{HeaderMap, header::CONTENT_LENGTH};
use tokio::time::timeout;

use crate::{Gateway, problem::Problem};

/// How large a body may be.
pub(crate) const BODY_LIMIT: usize = 1024 * 1024;

/// The bytes as they came.
pub(crate) struct Raw(pub(crate) Bytes);

impl FromRequest<Gateway> for Raw {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        if announced(&parts.headers).is_some_and(|bytes| bytes > BODY_LIMIT as u64) {
            return Err(Problem::too_large(BODY_LIMIT));
        }
        timeout(gateway.edge.body_within, read(body)).await.map_err(|_elapsed| Problem::too_slow())?.map(Self)
    }
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let (mut chunks, mut read) = (body.into_data_stream(), BytesMut::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Problem::invalid("", "the body broke off"))?;
        if read.len() + chunk.len() > BODY_LIMIT {
            return Err(Problem::too_large(BODY_LIMIT));
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}
