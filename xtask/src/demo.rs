//! `cargo xtask demo`
use anyhow::Result;
pub(crate) fn command() -> Result<()> {
    anyhow::bail!("not yet")
}
