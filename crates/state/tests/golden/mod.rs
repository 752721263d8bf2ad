//! Files that stay as they are: what a build once wrote is read for ever, and what is written now is compared with it.

/// The bytes of a golden file.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The bytes of a golden file, which this build writes like this. With `GODWIT_WRITE_GOLDEN` in the environment it does: for a new file only.
pub(crate) fn written_now(name: &str, bytes: &[u8]) -> Vec<u8> {
    if std::env::var_os("GODWIT_WRITE_GOLDEN").is_some() {
        std::fs::write(path(name), bytes).expect("written");
    }
    let golden = golden(name);
    assert!(bytes == golden, "this build does not write {name} as it is");
    golden
}

fn path(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}
