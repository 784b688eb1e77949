//! HTTP on the same port: tickets, live sessions, rendezvous, forward sessions by WebSocket, agents, health, metrics.

pub mod agents;
pub mod associations;
pub mod caller;
pub mod candidate_urls;
pub mod forward;
pub mod held;
pub mod jet;
pub mod operator;
pub mod problem;
pub mod revocations;
pub mod sessions;
pub mod state;
pub mod tickets;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::api::held::Held;
use crate::api::operator::Operator;
use crate::api::problem::Problem;
use crate::api::state::{ApiState, Sender};
use crate::connection::{Client, Connection};
use crate::monitoring::server;
use crate::state::Gateway;
use jetway_base::limits;
use jetway_base::session_id::SessionId;
use jetway_jet::exchange;

/// An HTTP connection lasts no longer, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves HTTP/1.1 on a connection whose first request is in its stream.
pub async fn serve(gateway: &Arc<Gateway>, client: Client, tls: bool) {
    let Client {
        id,
        peer,
        started,
        listener,
        stream,
        admission,
        ..
    } = client;
    let evicted = admission.evicted();
    let connection = Connection {
        started,
        listener: Arc::clone(&listener),
        admission,
    };
    let held = Held::new(stream, connection);
    let state = ApiState {
        gateway: Arc::clone(gateway),
        sender: Sender {
            id,
            peer,
            listener,
            tls,
            evicted,
        },
    };
    let plain_allowed = gateway.config.api.allows_plain_http(peer);
    let stopping = gateway.stopping.clone();
    let router = if tls || plain_allowed {
        router(state)
    } else {
        health_router(state).fallback(move || async move {
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
        .serve_connection(TokioIo::new(held), TowerToHyperService::new(router))
        .with_upgrades();
    tokio::select! {
        result = connection => if let Err(error) = result {
            debug!(session = %id, %peer, %error, "HTTP connection failed");
        },
        () = tokio::time::sleep(CONNECTION_TIMEOUT) => {}
        () = stopping.cancelled() => {}
    }
}

/// What is asked by balancers, without a token and so without TLS, too.
fn health_routes() -> Router<ApiState> {
    Router::new()
        .route("/jet/health", get(health))
        .route("/health/live", get(server::live))
        .route("/health/ready", get(ready))
}

fn health_router(state: ApiState) -> Router {
    health_routes().with_state(state)
}

fn router(state: ApiState) -> Router {
    let id = state.sender.id;
    health_routes()
        .route("/metrics", get(metrics))
        .route("/jet/association", get(associations::list))
        .route(
            "/jet/association/{id}",
            post(associations::create)
                .get(associations::read)
                .delete(associations::delete),
        )
        .route("/jet/gather/{id}", post(associations::gather))
        .route(
            "/jet/association/{id}/candidates",
            post(associations::gather),
        )
        .route("/jet/complete/{id}", post(associations::complete))
        .route("/jet/accept/{association}/{candidate}", get(jet::websocket))
        .route(
            "/jet/connect/{association}/{candidate}",
            get(jet::websocket),
        )
        .route("/jet/test/{association}/{candidate}", get(jet::websocket))
        .route("/jet/fwd/tcp/{association}", get(forward::tcp))
        .route("/jet/fwd/tls/{association}", get(forward::tls))
        .route("/jet/enrolments", post(agents::invite))
        .route("/jet/agents", post(agents::enrol).get(agents::list))
        .route("/jet/agents/{name}", delete(agents::revoke))
        .route("/jet/agent", get(agents::signal))
        .route("/jet/offer/{name}", post(agents::offer))
        .route("/jet/sessions", get(sessions::list))
        .route("/jet/sessions/{id}", delete(sessions::end))
        .route(
            "/jet/revocations",
            post(revocations::create).get(revocations::list),
        )
        .route("/jet/revocations/{id}", delete(revocations::withdraw))
        .route("/jet/tickets", post(tickets::create))
        .fallback(move || async move { not_found(id) })
        .method_not_allowed_fallback(move || async move {
            let (status, detail) = (
                StatusCode::METHOD_NOT_ALLOWED,
                "this path has other methods",
            );
            Problem::new(status, "method", detail, id)
        })
        .layer(DefaultBodyLimit::max(limits::HTTP_BODY_BYTES))
        .layer(middleware::from_fn_with_state(
            state.sender.clone(),
            read_body,
        ))
        .layer(middleware::from_fn_with_state(
            state.sender.clone(),
            refuse_token_in_url,
        ))
        .with_state(state)
}

/// Refuses a request that shows a token where none is read, and nothing else: to pass over it in silence would look like a token that
/// is not good enough.
async fn refuse_token_in_url(
    State(sender): State<Sender>,
    request: Request,
    next: Next,
) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let shows_nothing = !request.headers().contains_key(header::AUTHORIZATION)
        && !jet::has_bearer(request.headers())
        && !query
            .split('&')
            .any(|parameter| parameter.starts_with("ticket="));
    if !(shows_nothing && exchange::has_token(query)) {
        return next.run(request).await;
    }
    let (session, peer, rule) = (sender.id, sender.peer, "token-in-url");
    warn!(%session, %peer, rule, reason = exchange::TOKEN_IN_URL, "Request refused");
    Problem::new(
        StatusCode::UNAUTHORIZED,
        rule,
        exchange::TOKEN_IN_URL,
        session,
    )
    .into_response()
}

/// Reads the body of a request before anything is done with it: whole, and in time.
async fn read_body(State(sender): State<Sender>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, limits::HTTP_BODY_BYTES);
    let (status, detail) = match timeout(limits::HTTP_BODY_TIMEOUT, body).await {
        Ok(Ok(bytes)) => {
            let request = Request::from_parts(parts, Body::from(bytes));
            return next.run(request).await;
        }
        Ok(Err(_)) => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is too long, or was cut off",
        ),
        Err(_elapsed) => (StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let mut response = Problem::new(status, "body", detail, sender.id).into_response();
    // What is left of the body is not waited for.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// Says that the process serves, and where more is said.
async fn health() -> impl IntoResponse {
    Json(serde_json::json!({ "status": "ok", "live": "/health/live", "ready": "/health/ready" }))
}

/// Handles `GET /health/ready`; operators are told the reasons.
async fn ready(State(state): State<ApiState>, headers: HeaderMap) -> Response {
    let told = operator::bearer(&headers).is_some() && Operator::of(&state, &headers).is_ok();
    server::ready(&state.gateway, told)
}

/// Handles `GET /metrics`, for operators.
async fn metrics(_: Operator, State(gateway): State<Arc<Gateway>>) -> Response {
    server::metrics(gateway).await
}

fn not_found(id: SessionId) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "path",
        "there is nothing at this path",
        id,
    )
}
