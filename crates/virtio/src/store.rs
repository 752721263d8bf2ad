//! Stores that a successor or the guest reads: each is a point where a simulated process can end (see [`crate::crash`]).
//!
//! Every one is a release store followed by a release fence: none moves before an earlier or behind a later one. That costs
//! no instruction on x86.

use core::sync::atomic::{Ordering, fence};

use memory::{Fault, Window};

use crate::crash;

#[inline(always)]
pub(crate) fn put16(window: &Window, offset: usize, value: u16) -> Result<(), Fault> {
    crash::point();
    window.store_u16(offset, value)?;
    fence(Ordering::Release);
    Ok(())
}

#[inline(always)]
pub(crate) fn put32(window: &Window, offset: usize, value: u32) -> Result<(), Fault> {
    crash::point();
    window.store_u32(offset, value)?;
    fence(Ordering::Release);
    Ok(())
}

#[inline(always)]
pub(crate) fn put64(window: &Window, offset: usize, value: u64) -> Result<(), Fault> {
    crash::point();
    window.store_u64(offset, value)?;
    fence(Ordering::Release);
    Ok(())
}
