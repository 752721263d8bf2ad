//! Rust source with its comments and literals blanked, so that a word found in it is code.

/// The same text, line for line and byte for byte, with spaces for comments, strings and characters.
pub(super) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + literal_length(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in code[at..end].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        at = end;
    }
    String::from_utf8(code).unwrap_or_default()
}

/// How many bytes from here are a comment or a literal; 0 = here is code.
fn literal_length(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'r', b'"' | b'#', ..] if !after_word => raw_string(rest, 1),
        [b'b', b'r', b'"' | b'#', ..] if !after_word => raw_string(rest, 2),
        [b'"', ..] => quoted(rest, b'"'),
        // A character, not a lifetime: closed by a quote after one (escaped) character.
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        [b'\'', ..] => {
            let width = std::str::from_utf8(&rest[1..rest.len().min(5)])
                .map_or_else(|error| error.valid_up_to(), str::len)
                .min(4);
            let text = std::str::from_utf8(&rest[1..=width]).unwrap_or_default();
            let first = text.chars().next().map_or(1, char::len_utf8);
            if rest.get(1 + first) == Some(&b'\'') { first + 2 } else { 0 }
        }
        _ => 0,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// `r##"..."##`; a raw identifier (`r#type`) is code.
fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|&&byte| byte == b'#').count();
    let body = prefix + hashes + 1;
    if rest.get(body - 1) != Some(&b'"') {
        return 0;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let length = rest[body..].windows(close.len()).position(|window| window == close);
    length.map_or(rest.len(), |length| body + length + close.len())
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Whether the word stands in the code, as a whole word.
pub(super) fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

/// The number of lines outside `#[cfg(test)] mod ... { ... }`.
pub(super) fn lines_without_tests(code: &str) -> usize {
    let mut lines = code.lines().count();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let item = &rest[at..];
        let length = item_length(item);
        lines -= item[..length].lines().count();
        rest = &item[length..];
    }
    lines
}

/// To the end of the item's braces, or of its `;` if that comes first.
fn item_length(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in item.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

#[cfg(test)]
mod tests {
    use super::{code_only, has_word, lines_without_tests};

    #[test]
    fn words_in_comments_and_literals_are_not_code() {
        for text in [
            "// unsafe",
            "/* a /* unsafe */ unsafe */ let x;",
            r#"let s = "a \" unsafe";"#,
            "let s = r##\"unsafe \"# unsafe\"##;",
            "let c = b\"unsafe\";",
            "#![forbid(unsafe_code)]",
        ] {
            assert!(!has_word(&code_only(text), "unsafe"), "{text}");
        }
    }

    #[test]
    fn code_after_lifetimes_characters_and_raw_names_is_seen() {
        for text in [
            "fn f<'a>(x: &'a u8) { unsafe { } }",
            "let c = '\"'; unsafe {}",
            "let c = '\\''; unsafe {}",
            "let c = 'µ'; unsafe {}",
            "let r#type = 1; unsafe {}",
            "let s = \"µ\"; unsafe {}",
        ] {
            assert!(has_word(&code_only(text), "unsafe"), "{text}");
        }
    }

    #[test]
    fn test_modules_do_not_count_as_length() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        assert_eq!(lines_without_tests(&code_only(text)), 2);
        assert_eq!(lines_without_tests("#[cfg(test)]\nmod tests;\nfn a() {}\n"), 1);
    }
}
