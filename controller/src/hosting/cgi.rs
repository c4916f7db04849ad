//! The little of the Common Gateway Interface (RFC 3875) that `git http-backend` speaks.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// The largest head of an answer, in bytes. Git's have a few hundred.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// What Git's answers say of themselves. Anything else stays here.
const PASSED: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::EXPIRES,
    header::PRAGMA,
];

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where the body begins.
    pub(super) length: usize,
}

/// Reads the head of an answer; `None` while it is not whole, or where it is none.
pub(super) fn head(answer: &[u8]) -> Option<Head> {
    let mut head = Head {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        length: 0,
    };
    for line in answer.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n")?;
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        head.length += line.len();
        if text.is_empty() {
            return Some(head);
        }
        let (name, value) = std::str::from_utf8(text).ok()?.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            // RFC 3875, 6.3.3: the code, a space, a phrase.
            let code = value.get(..3)?.parse().ok()?;
            head.status = StatusCode::from_u16(code).ok()?;
        } else if let Some(known) = PASSED
            .iter()
            .find(|known| name.eq_ignore_ascii_case(known.as_str()))
        {
            let value = HeaderValue::from_str(value).ok()?;
            head.headers.insert(known.clone(), value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_head_and_the_rest() {
        let answer = b"Expires: Fri, 01 Jan 1980 00:00:00 GMT\r\nContent-Type: application/x-git-upload-pack-result\r\nSet-Cookie: a=b\r\n\r\n0008NAK\n";
        let head = head(answer).unwrap();
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.headers.len(), 2, "no cookies from Git");
        assert_eq!(
            head.headers[header::CONTENT_TYPE],
            "application/x-git-upload-pack-result"
        );
        assert_eq!(&answer[head.length..], b"0008NAK\n");
    }

    #[test]
    fn a_status_is_the_answers() {
        let head = head(b"Status: 404 Not Found\n\n").unwrap();
        assert_eq!(head.status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_head_is_whole_or_none() {
        let answer = b"Status: 403 Forbidden\r\nPragma: no-cache\r\n\r\n";
        for length in 0..answer.len() {
            assert_eq!(head(&answer[..length]), None, "{length}");
        }
        assert!(head(answer).is_some());
        for wrong in [
            &b"no colon\r\n\r\n"[..],
            b"Status: nine\r\n\r\n",
            b"Status: 9\r\n\r\n",
            b"Status: 99\xc3\xa4\r\n\r\n",
            b"Pragma: \x01\r\n\r\n",
            b"\xff: x\r\n\r\n",
        ] {
            assert_eq!(head(wrong), None, "{wrong:?}");
        }
    }
}
