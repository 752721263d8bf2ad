//! What is asked of every request before anybody looks at it.
//!
//! The socket's permissions say who may ask. A browser that reaches it (through `ssh -L`, say) asks for any page that the person
//! has open: so a request that another site's page made is refused, and one that says it is for another host. Over TLS the
//! certificate says which host it is; another site's page could still ask by the browser's certificate, and is refused, too.

use crate::refusal::Refusal;
use crate::serve::OverTls;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::time::Duration;

/// How long a request may take, its body and any waiting included.
const PATIENCE: Duration = Duration::from_secs(150);

/// What the agent may be called in a browser or by `godwit`.
const HOSTS: [&str; 4] = ["localhost", "127.0.0.1", "[::1]", "godwit"];

pub(super) async fn check(request: Request, next: Next) -> Response {
    let over_tls = request.extensions().get::<OverTls>().is_some();
    if let Err(refusal) = is_our_own(request.headers(), over_tls) {
        return refusal.into_response();
    }
    let Ok(mut response) = tokio::time::timeout(PATIENCE, next.run(request)).await else {
        let text = "this request took too long".to_owned();
        return Refusal::new(408, "timeout", text, "send its body faster, or ask again").into_response();
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, axum::http::HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(axum::http::HeaderValue::from_static("no-store"));
    response
}

fn is_our_own(headers: &HeaderMap, over_tls: bool) -> Result<(), Refusal> {
    let foreign = |what: &str| {
        let text = format!("this request's {what} is of another site");
        Refusal::new(
            403,
            "foreign",
            text,
            "ask as http://localhost, from the agent's own page or from a program",
        )
    };
    let all = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    if !over_tls && !all(header::HOST).all(|host| HOSTS.contains(&name_of(host))) {
        return Err(foreign("Host"));
    }
    let scheme = if over_tls { "https://" } else { "http://" };
    if !all(header::ORIGIN).all(|origin| {
        let site = origin.strip_prefix(scheme);
        site.is_some_and(|site| over_tls || HOSTS.contains(&name_of(site)))
            && all(header::HOST).any(|host| site == Some(host))
    }) {
        return Err(foreign("Origin"));
    }
    match headers.get("sec-fetch-site").map(|site| site.to_str().unwrap_or("?")) {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(foreign("Sec-Fetch-Site")),
    }
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn another_sites_page_cannot_ask() {
        for bad in [
            &[("host", "evil.example")][..],
            &[("host", "evil.example:8080")],
            &[("host", "localhost.evil.example")],
            &[("host", "localhost"), ("origin", "http://evil.example")],
            &[("host", "localhost:8080"), ("origin", "http://localhost:9090")],
            &[("host", "localhost"), ("origin", "null")],
            &[("host", "localhost"), ("origin", "https://localhost")],
            &[("host", "localhost"), ("sec-fetch-site", "cross-site")],
            &[("host", "localhost"), ("sec-fetch-site", "same-site")],
            &[("origin", "http://localhost")],
        ] {
            assert!(is_our_own(&headers(bad), false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn over_tls_the_host_is_what_the_certificate_says_and_another_sites_page_still_cannot_ask() {
        let host = ("host", "node1.example:8443");
        let good = [("origin", "https://node1.example:8443"), ("sec-fetch-site", "same-origin")];
        assert!(is_our_own(&headers(&[host]), true).is_ok());
        assert!(is_our_own(&headers(&[host, good[0], good[1]]), true).is_ok());
        assert!(is_our_own(&headers(&[host]), false).is_err());
        for bad in [
            ("origin", "https://evil.example"),
            ("origin", "http://node1.example:8443"),
            ("sec-fetch-site", "cross-site"),
        ] {
            assert!(is_our_own(&headers(&[host, bad]), true).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn programs_and_the_own_page_can() {
        for good in [
            &[][..],
            &[("host", "godwit")],
            &[
                ("host", "localhost:8080"),
                ("origin", "http://localhost:8080"),
                ("sec-fetch-site", "same-origin"),
            ],
            &[("host", "127.0.0.1:1"), ("sec-fetch-site", "none")],
            &[("host", "[::1]:80")],
        ] {
            assert!(is_our_own(&headers(good), false).is_ok(), "{good:?}");
        }
    }
}
