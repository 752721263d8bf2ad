//! The web page: the files of `crates/agent/page`, in the program. Nothing comes from anywhere else, and the browser is told so.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// What a browser may do with the page: load its own files, ask its own agent, and nothing else.
///
/// Trusted types: markup cannot be made from text at all, whatever a name says.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The files: path, type, content. A new one needs a line here.
const FILES: [(&str, &str, &[u8]); 8] = [
    ("/", HTML, include_bytes!("../page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../page/style.css")),
    ("/icon.svg", "image/svg+xml", include_bytes!("../page/icon.svg")),
    ("/app.js", SCRIPT, include_bytes!("../page/app.js")),
    ("/view.js", SCRIPT, include_bytes!("../page/view.js")),
    ("/live.js", SCRIPT, include_bytes!("../page/live.js")),
    ("/heat.js", SCRIPT, include_bytes!("../page/heat.js")),
    ("/timeline.js", SCRIPT, include_bytes!("../page/timeline.js")),
];
const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

fn file(content_type: &'static str, content: &'static [u8]) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}

pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, content)| {
        router.route(path, get(move || std::future::ready(file(content_type, content))))
    })
}
