//! HTTP on the same port: tickets, live sessions, health.

pub mod jet;
pub mod operator;
pub mod problem;
pub mod sessions;
pub mod tickets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tracing::debug;

use crate::api::problem::Problem;
use crate::config::PlainHttp;
use crate::gateway::Gateway;
use crate::limits;
use crate::listener::admission::Admission;
use crate::session::SessionId;
use crate::stream::Stream;

/// An HTTP connection lasts no longer, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What handlers share.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Correlation id of the connection, also in every problem document.
    pub id: SessionId,
    /// The client.
    pub peer: SocketAddr,
}

/// Serves HTTP/1.1 on a connection whose first request is in `stream`.
pub async fn serve(state: ApiState, stream: Stream, tls: bool, admission: Admission) {
    let ApiState { id, peer, .. } = state;
    let plain_allowed = match state.gateway.config.api.plain_http {
        PlainHttp::Off => false,
        PlainHttp::Loopback => peer.ip().is_loopback(),
        PlainHttp::Any => true,
    };
    let stopping = state.gateway.stopping.clone();
    let router = if tls || plain_allowed {
        router(state)
    } else {
        Router::new().fallback(move || async move {
            Problem::new(
                StatusCode::FORBIDDEN,
                "plain-http",
                "use HTTPS: requests carry tokens",
                id,
            )
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::IDENTIFY_TIMEOUT)
        .max_buf_size(limits::HTTP_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        result = connection => if let Err(error) = result {
            debug!(session = %id, %peer, %error, "HTTP connection failed");
        },
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
        () = stopping.cancelled() => {}
    }
    drop(admission);
}

fn router(state: ApiState) -> Router {
    let id = state.id;
    Router::new()
        .route("/jet/health", get(health))
        .route("/jet/sessions", get(sessions::list))
        .route("/jet/sessions/{id}", delete(sessions::end))
        .route("/jet/tickets", post(tickets::create))
        .fallback(move |headers: HeaderMap| async move { not_found(&headers, id) })
        .method_not_allowed_fallback(move || async move {
            let (status, detail) = (
                StatusCode::METHOD_NOT_ALLOWED,
                "this path has other methods",
            );
            Problem::new(status, "method", detail, id)
        })
        .layer(DefaultBodyLimit::max(limits::HTTP_BODY_BYTES))
        .with_state(state)
}

/// Says that the process serves; no more, as anybody may ask.
async fn health() -> impl IntoResponse {
    Json(serde_json::json!({ "status": "ok" }))
}

fn not_found(headers: &HeaderMap, id: SessionId) -> Problem {
    if headers.contains_key(header::UPGRADE) {
        let (status, detail) = (
            StatusCode::NOT_IMPLEMENTED,
            "WebSocket is not offered by this gateway",
        );
        return Problem::new(status, "not-offered", detail, id);
    }
    Problem::new(
        StatusCode::NOT_FOUND,
        "path",
        "there is nothing at this path",
        id,
    )
}
