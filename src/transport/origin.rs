//! Which web pages may talk to the relay.
//!
//! A browser names the page's origin by itself and a page cannot change that; other clients send
//! none, or whatever they like. So the list protects users of browsers and nobody else.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Front;
use crate::metrics::Refused;

/// The origins that are let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// All of them.
    Any,
    /// These only.
    Listed(Arc<[Origin]>),
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: Box<str>,
    /// The host, and the port where it is not the scheme's own.
    authority: Box<str>,
    /// Whether it is the names below the host that are meant.
    below: bool,
}

/// The text is no list of origins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "* or a list of origins without a path, such as https://app.example.com,http://localhost:3000 \
     (https://*.example.com stands for all names below example.com)"
)]
pub struct InvalidOrigin;

/// As it is read.
impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Listed(listed) = self else {
            return f.write_str("*");
        };
        let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
        f.write_str(&listed.join(","))
    }
}

/// As it is read.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if &*self.scheme == "null" {
            return f.write_str("null");
        }
        let below = if self.below { "*." } else { "" };
        write!(f, "{}://{below}{}", self.scheme, self.authority)
    }
}

impl FromStr for Origins {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let entries = || text.split(',').map(str::trim).filter(|e| !e.is_empty());
        if entries().any(|entry| entry == "*") {
            return Ok(Self::Any);
        }
        let listed: Arc<[Origin]> = entries().map(str::parse).collect::<Result<_, _>>()?;
        // Nobody means to lock all browsers out by leaving the list empty.
        if listed.is_empty() {
            return Err(InvalidOrigin);
        }
        Ok(Self::Listed(listed))
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let text = text.to_ascii_lowercase();
        if text == "null" {
            // What a browser says for a file, or for a frame that it has locked in.
            return Ok(Self {
                scheme: "null".into(),
                authority: "".into(),
                below: false,
            });
        }
        let (scheme, authority) = text.split_once("://").ok_or(InvalidOrigin)?;
        let (below, authority) = match authority.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, authority),
        };
        let port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        // Browsers leave a scheme's own port out.
        let authority = authority.strip_suffix(port).unwrap_or(authority);
        let of_host = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        let of_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
        let right = !scheme.is_empty()
            && scheme.bytes().all(of_scheme)
            && !authority.is_empty()
            && !authority.starts_with([':', '.'])
            && authority.bytes().all(of_host);
        right
            .then(|| Self {
                scheme: scheme.into(),
                authority: authority.into(),
                below,
            })
            .ok_or(InvalidOrigin)
    }
}

impl Origin {
    fn takes(&self, origin: &str) -> bool {
        let Some((scheme, authority)) = origin.split_once("://") else {
            return origin == "null" && &*self.scheme == "null";
        };
        if scheme != &*self.scheme {
            return false;
        }
        if !self.below {
            return authority == &*self.authority;
        }
        let name = authority.strip_suffix(&*self.authority);
        name.is_some_and(|name| name.len() > 1 && name.ends_with('.'))
    }
}

impl Origins {
    fn take(&self, origin: &HeaderValue) -> bool {
        let Self::Listed(listed) = self else {
            return true;
        };
        origin.to_str().is_ok_and(|origin| {
            let origin = origin.to_ascii_lowercase();
            listed.iter().any(|entry| entry.takes(&origin))
        })
    }

    /// Whether a request may be served, whatever page it comes from.
    fn let_in(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::ORIGIN)
            .iter()
            .all(|origin| self.take(origin))
    }
}

/// Refuses requests of pages that are not let in, and has browsers show the answers to the others.
pub(super) async fn guard(State(front): State<Front>, request: Request, next: Next) -> Response {
    let origins = &front.0.settings.allowed_origins;
    if !origins.let_in(request.headers()) {
        front.0.metrics.refused(Refused::Origin);
        let body = Json(serde_json::json!({ "error": "Origin not allowed" }));
        return (StatusCode::FORBIDDEN, body).into_response();
    }
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return next.run(request).await;
    };
    let asked = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .cloned();
    let mut response = if request.method() == Method::OPTIONS {
        let mut preflight = StatusCode::NO_CONTENT.into_response();
        let headers = preflight.headers_mut();
        let methods = HeaderValue::from_static("GET");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        if let Some(asked) = asked {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
        preflight
    } else {
        next.run(request).await
    };
    let (allowed, vary) = match origins {
        Origins::Any => (HeaderValue::from_static("*"), None),
        Origins::Listed(_) => (origin, Some(HeaderValue::from_static("origin"))),
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if let Some(vary) = vary {
        headers.append(header::VARY, vary);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(list: &str, origin: &str) -> bool {
        let origins: Origins = list.parse().unwrap();
        origins.take(&HeaderValue::from_str(origin).unwrap())
    }

    #[test]
    fn an_origin_is_scheme_host_and_port_and_nothing_less() {
        let list = "https://app.example.com, http://localhost:3000,HTTPS://Upper.example:443";
        for good in [
            "https://app.example.com",
            "http://localhost:3000",
            "https://upper.example",
            "https://APP.example.com",
        ] {
            assert!(takes(list, good), "{good}");
        }
        for bad in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.example",
            "https://evil-app.example.com",
            "https://example.com",
            "http://localhost",
            "null",
            "",
        ] {
            assert!(!takes(list, bad), "{bad}");
        }
    }

    #[test]
    fn a_star_stands_for_names_below_and_never_for_the_name_itself_or_a_longer_one() {
        let list = "https://*.example.com,capacitor://localhost,null";
        for good in [
            "https://a.example.com",
            "https://a.b.example.com",
            "capacitor://localhost",
            "null",
        ] {
            assert!(takes(list, good), "{good}");
        }
        for bad in [
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "http://a.example.com",
            "https://a.example.com:8080",
            "https://a.example.com.evil.example",
        ] {
            assert!(!takes(list, bad), "{bad}");
        }
        assert!(takes("*", "https://anything.example"));
    }

    #[test]
    fn what_is_no_origin_is_refused_at_the_start() {
        for bad in [
            "",
            ",",
            "app.example.com",
            "https://",
            "https://app.example.com/",
            "https://app.example.com/path",
            "https://*",
            "https://a.*.example.com",
            "https://user@example.com",
            "://example.com",
            "https://münchen.example",
        ] {
            assert!(bad.parse::<Origins>().is_err(), "{bad}");
        }
    }
}
