//! `CallbackService`: what the gateway calls for every report of a provider's.

use proto::notifier::v1::{
    CallbackResult, ReceiveCallbackRequest, ReceiveCallbackResponse, callback_service_server::CallbackService,
};
use tonic::{Request, Response, Status};

use crate::{
    callback::Refused,
    receipt::{self, Answer, Receipts},
};

/// The service.
pub(crate) struct Callbacks(pub(crate) Receipts);

#[tonic::async_trait]
impl CallbackService for Callbacks {
    async fn receive_callback(
        &self,
        request: Request<ReceiveCallbackRequest>,
    ) -> Result<Response<ReceiveCallbackResponse>, Status> {
        let request = parse(request.into_inner());
        Ok(Response::new(print(self.0.receive(&request).await?)))
    }
}

fn parse(given: ReceiveCallbackRequest) -> receipt::Request {
    let headers = given.headers.into_iter().rev();
    let headers = headers
        .filter_map(|header| Some((header.name.to_ascii_lowercase(), String::from_utf8(header.value.into()).ok()?)));
    receipt::Request {
        provider: given.provider,
        query: given.query,
        handshake: given.handshake,
        headers: headers.collect(),
        body: given.body,
    }
}

fn print(answer: Answer) -> ReceiveCallbackResponse {
    let (result, content_type, answer) = match answer {
        Answer::Unknown => (CallbackResult::Unknown, "", String::new()),
        Answer::Refused(Refused::Malformed) => (CallbackResult::Invalid, "", String::new()),
        Answer::Refused(Refused::Token) => (CallbackResult::Forbidden, "", String::new()),
        Answer::Refused(Refused::Signature | Refused::Stale) => (CallbackResult::Unverified, "", String::new()),
        Answer::Taken { content_type, text } => (CallbackResult::Taken, content_type, text),
    };
    ReceiveCallbackResponse { result: result.into(), content_type: content_type.to_owned(), answer }
}
