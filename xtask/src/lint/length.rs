//! A file that cannot be read in one sitting says why.

use anyhow::Result;

use super::source::{code_only, lines_without_tests};
use super::{read, rust_files, short};
use crate::run::Metadata;

const LINES_MAX: usize = 800;

pub(super) fn findings(metadata: &Metadata) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (_, path) in rust_files(metadata)? {
        let text = read(&path)?;
        let lines = lines_without_tests(&code_only(&text));
        if lines > LINES_MAX && !text.contains("// LONG:") {
            findings.push(format!(
                "{}: {lines} lines without its tests, more than {LINES_MAX}: split it by idea, or say why not in a line \
                 `// LONG: reason`",
                short(&path)
            ));
        }
    }
    Ok(findings)
}
