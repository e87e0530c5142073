//! The status page: one document without anything from elsewhere, and the policy that holds it to that.

use std::sync::LazyLock;

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

/// The page. Its style and its script are the only ones the [`POLICY`] lets run, by their digests; it asks for nothing
/// but this server's own documents, and it may not make elements of text: a peer's words stay words.
pub const PAGE: &str = include_str!("page.html");

/// The `Content-Security-Policy` of the page.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        digest(inside("<style>", "</style>")),
        digest(inside("<script>", "</script>")),
    )
});

/// The policy of everything else, should a browser ever take it for a page.
pub const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// What is between two tags, of which the page has one each.
fn inside(open: &str, close: &str) -> &'static str {
    let after = PAGE.split_once(open).map_or("", |(_, after)| after);
    after.split_once(close).map_or("", |(inside, _)| inside)
}

/// As a source of a policy (CSP level 3, section 2.3.1).
fn digest(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(&Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_style_and_one_script_and_nothing_from_elsewhere() {
        for tag in ["<style", "</style>", "<script", "</script>"] {
            assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
        }
        assert!(inside("<style>", "</style>").len() > 1000 && inside("<script>", "</script>").len() > 1000);
        // The one address is a name: the namespace of SVG.
        assert_eq!(PAGE.replace("http://www.w3.org/2000/svg", "").matches("://").count(), 0);
        for loads in ["@import", "url(", " src=", "style=", " onclick", "import("] {
            assert!(!PAGE.contains(loads), "{loads}");
        }
    }

    #[test]
    fn the_page_never_makes_elements_of_text() {
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "cookie",
            "localStorage",
        ] {
            assert!(!PAGE.contains(way), "{way}");
        }
    }

    #[test]
    fn a_digest_is_what_browsers_compute() {
        // The example of the specification, CSP level 2, section 4.2.5: `alert('Hello, world.');`
        assert_eq!(digest("alert('Hello, world.');"), "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=");
    }
}
