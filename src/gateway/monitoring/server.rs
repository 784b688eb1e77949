//! The port that monitoring has for itself: plain HTTP, nobody is asked for a key, nothing can be changed.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::debug;

use super::health::Readiness;
use super::readings;
use crate::state::Gateway;
use jetway_base::limits;
use jetway_metrics::MEDIA_TYPE;

/// A monitor asks every few seconds, and there are two or three of them.
const CONNECTIONS: usize = 16;

/// A connection of a monitor lasts no longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers monitors until it is dropped.
pub async fn serve(gateway: Arc<Gateway>, socket: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, peer)) = socket.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let router = router(Arc::clone(&gateway));
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::IDENTIFY_TIMEOUT)
                .max_buf_size(limits::HTTP_HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            let served = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            if let Ok(Err(error)) = served {
                debug!(%peer, %error, "Monitoring connection failed");
            }
            drop(place);
        });
    }
}

fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/metrics", get(|State(gateway)| metrics(gateway)))
        .route("/health/live", get(live))
        .route(
            "/health/ready",
            get(|State(gateway): State<Arc<Gateway>>| async move { ready(&gateway, true) }),
        )
        .with_state(gateway)
}

/// Handles `GET /metrics`.
pub async fn metrics(gateway: Arc<Gateway>) -> Response {
    match spawn_blocking(move || readings::text(&gateway)).await {
        Ok(text) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Handles `GET /health/live`: whoever answers lives.
pub async fn live() -> impl IntoResponse {
    axum::Json(serde_json::json!({ "status": "live" }))
}

/// Handles `GET /health/ready`: 200 or 503, and `reasons` for those who may know them.
pub fn ready(gateway: &Gateway, reasons: bool) -> Response {
    let readiness = Readiness::of(gateway);
    let (code, status) = if readiness.is_ready() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not-ready")
    };
    let mut body = serde_json::json!({ "status": status });
    if reasons {
        body["reasons"] = serde_json::json!(readiness.reasons);
        body["warnings"] = serde_json::json!(readiness.warnings);
    }
    (code, axum::Json(body)).into_response()
}
