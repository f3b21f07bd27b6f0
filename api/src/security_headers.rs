//! What every answer tells a browser that shows it: nothing but what the answer itself allows. A page says more
//! about itself, in `pages`; what a route has said is left as it is.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::AppState;

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const CROSS_ORIGIN_OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// For what is no page: nothing is loaded, nothing shows it in a frame.
const NO_PAGE: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// For the page that tries the API: its own scripts, and the styles and pictures that they make.
const DOCS: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
);

/// Adds to an answer what it does not say itself.
pub async fn add(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let docs = request.uri().path().starts_with("/docs");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let mut default = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    default(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    default(header::CONTENT_SECURITY_POLICY, if docs { DOCS } else { NO_PAGE });
    // For browsers that do not know frame-ancestors.
    default(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    default(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    default(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    default(CROSS_ORIGIN_OPENER_POLICY, HeaderValue::from_static("same-origin"));
    if !docs {
        // Names and reasons must stay in no cache between here and whoever asked, nor in the browser's own.
        default(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Some(hsts) = &state.hsts {
        default(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    response
}

/// Returns the header that tells browsers to come back by TLS only; none for 0 seconds.
pub fn hsts(seconds: u64) -> Option<HeaderValue> {
    let value = || HeaderValue::from_str(&format!("max-age={seconds}; includeSubDomains"));
    (seconds > 0).then(|| value().expect("digits and words are printable ASCII"))
}
