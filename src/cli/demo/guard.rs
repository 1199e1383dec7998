//! Who may use the page's endpoints. They hand out tokens and write to a database, so a page of
//! another site that happens to be open in the same browser must get nothing from them.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What the page needs and nothing else: its own files, its own sockets, and an icon in its markup.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; \
img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Refuses a request that another site could have made, and marks every answer as for this page
/// only. `listen` is the address that the demo listens on.
pub(super) async fn check(State(listen): State<IpAddr>, request: Request, next: Next) -> Response {
    let mut response = match judge(request.method(), request.headers(), listen) {
        Ok(()) => next.run(request).await,
        Err(reason) => (StatusCode::FORBIDDEN, reason).into_response(),
    };
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn judge(method: &Method, headers: &HeaderMap, listen: IpAddr) -> Result<(), &'static str> {
    let host = text(headers, header::HOST).ok_or("a Host header is needed\n")?;
    if !host_is_ours(host, listen) {
        return Err("this page answers to its own address and to localhost only\n");
    }
    // Browsers send Origin with every POST, and with every request that one site makes to another.
    match text(headers, header::ORIGIN) {
        Some(origin) if is_origin_of(origin, host) => Ok(()),
        Some(_) => Err("only the demo's own page may ask for this\n"),
        None if matches!(*method, Method::GET | Method::HEAD) => Ok(()),
        None => Err("an Origin header is needed\n"),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether a Host header names this machine by address. A site whose name was made to resolve to
/// this machine ("DNS rebinding") sends its own name.
fn host_is_ours(host: &str, listen: IpAddr) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let literal = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    match literal.parse::<IpAddr>() {
        // Listening everywhere, the demo cannot know which of the machine's addresses was used.
        Ok(address) => listen.is_unspecified() || address == listen || address.is_loopback(),
        Err(_) => false,
    }
}

fn is_origin_of(origin: &str, host: &str) -> bool {
    origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"))
        .is_some_and(|name| name.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(method: Method, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        judge(&method, &headers, "127.0.0.1".parse().unwrap()).is_ok()
    }

    #[test]
    fn the_page_itself_is_let_through() {
        assert!(judged(Method::GET, "127.0.0.1:4000", None));
        assert!(judged(Method::GET, "localhost:4000", None));
        assert!(judged(Method::GET, "[::1]:4000", None));
        assert!(judged(
            Method::POST,
            "localhost:4000",
            Some("http://localhost:4000")
        ));
    }

    #[test]
    fn other_sites_are_not() {
        assert!(!judged(Method::GET, "evil.example:4000", None), "rebinding");
        assert!(!judged(Method::GET, "10.0.0.1:4000", None));
        assert!(!judged(Method::GET, "127.0.0.1.evil.example", None));
        assert!(!judged(Method::POST, "localhost:4000", None), "no origin");
        assert!(!judged(Method::POST, "localhost:4000", Some("null")));
        assert!(!judged(
            Method::POST,
            "localhost:4000",
            Some("http://evil.example")
        ));
        assert!(!judged(
            Method::POST,
            "localhost:4000",
            Some("http://localhost:3000")
        ));
        assert!(!judged(
            Method::GET,
            "localhost:4000",
            Some("https://evil.example")
        ));
    }

    #[test]
    fn listening_everywhere_takes_any_address_but_no_name() {
        let everywhere = "0.0.0.0".parse().unwrap();
        assert!(host_is_ours("192.168.1.5:4000", everywhere));
        assert!(!host_is_ours("evil.example", everywhere));
    }
}
