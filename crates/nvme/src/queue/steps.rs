//! The steps of ACCEPT, POST and RETIRE (`docs/formats/controller-region.md`): what is stored before what. Loom goes through
//! these functions (`crate::order::models`), the queues use them.

use core::sync::atomic::Ordering;

use crate::crash;
use crate::order::{Word, publish};

/// a1 and a2, or p1 and p2: the copy, and then the slot's word that says it is there.
#[inline(always)]
pub(crate) fn copy_then<'a, W: Word + 'a>(
    copy: impl IntoIterator<Item = (&'a W, W::Value)>,
    word: &W,
    says: W::Value,
) {
    for (place, value) in copy {
        crash::point();
        place.put(value, Ordering::Relaxed);
    }
    crash::point();
    publish(word, says);
}

/// a3 or p5: the head of the submission queue, or the tail of the completion queue, moves on.
#[inline(always)]
pub(crate) fn advance<W: Word>(word: &W, to: W::Value) {
    crash::point();
    publish(word, to);
}

/// r1: the slot is free.
#[inline(always)]
pub(crate) fn retire<W: Word>(word: &W, free: W::Value) {
    crash::point();
    publish(word, free);
}
