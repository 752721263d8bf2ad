//! How a pool's thread wakes the reactor of a door. A door is made on the thread that turns it and never leaves it, so that thread's
//! mailbox is the one.

use crate::message::{Address, Message};
use std::cell::RefCell;
use std::sync::Arc;
use volume::door::Waker;

thread_local! {
    static HERE: RefCell<Option<Address>> = const { RefCell::new(None) };
}

/// This thread is a reactor with that mailbox.
pub(crate) fn here(address: &Address) {
    HERE.with_borrow_mut(|here| *here = Some(Arc::clone(address)));
}

pub(super) fn waker() -> Waker {
    match HERE.with_borrow(Option::clone) {
        Some(address) => Arc::new(move || address.send(Message::Look)),
        // No reactor: whoever turns the door looks by itself.
        None => Arc::new(|| {}),
    }
}
