//! Errors of the HTTP interface ([RFC 9457], problem details).
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457

use axum::Json;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::state::ApiState;
use crate::refusal::Refusal;
use jetway_base::session_id::SessionId;
use jetway_jet::exchange::Status;
use jetway_metrics::METRICS;

/// A parameter of the path.
#[derive(Debug)]
pub struct Parameter<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<ApiState> for Parameter<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => Err(Problem::new(
                error.status(),
                "path",
                error.body_text(),
                state.sender.id,
            )),
        }
    }
}

/// A problem document.
#[derive(Debug, Serialize)]
pub struct Problem {
    title: &'static str,
    status: u16,
    /// Stable name of what went wrong.
    rule: &'static str,
    /// For people.
    detail: String,
    /// Correlation id: the log says more under it.
    session: SessionId,
}

impl Problem {
    /// Why something was refused.
    #[must_use]
    pub fn of(refusal: &Refusal, session: SessionId) -> Self {
        Self::answer(
            refusal.status(),
            refusal.rule(),
            refusal.to_string(),
            session,
        )
    }

    /// A problem with the status that peers of a rendezvous are answered with.
    #[must_use]
    pub fn answer(status: Status, rule: &'static str, detail: String, session: SessionId) -> Self {
        let status = StatusCode::from_u16(status.into());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, rule, detail, session)
    }

    /// A problem with its HTTP status, its stable name and words for people.
    #[must_use]
    pub fn new(
        status: StatusCode,
        rule: &'static str,
        detail: impl Into<String>,
        session: SessionId,
    ) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            title,
            status: status.as_u16(),
            rule,
            detail: detail.into(),
            session,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        METRICS.problem(self.title, self.rule);
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
