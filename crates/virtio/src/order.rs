//! The one order between a device and its driver that needs a fence: each tells something, and then looks for what the other
//! told. One of the two sees it, so neither sleeps on the other's news.
//!
//! Module [`store`](crate::store) has the other order, of stores by one writer.

#[cfg(loom)]
use loom::sync::atomic as cells;

#[cfg(not(loom))]
use core::sync::atomic as cells;

/// Between what we told (a used index, a wish for kicks) and our look at what the driver told (a wish for calls, an
/// available index). The driver has the same between its own two (virtio 1.2, 2.7.13.4.1 and 2.7.14).
#[inline(always)]
pub(crate) fn meet() {
    cells::fence(core::sync::atomic::Ordering::SeqCst);
}

/// What loom goes through: `RUSTFLAGS="--cfg loom" cargo test -p virtio --lib models`. Tried: without the fence of [`meet`] it finds
/// the lost notification in each of the four.
#[cfg(all(test, loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU16, Ordering, fence};

    use super::meet;
    use crate::split::need_event;

    /// Two words, one that the device stores and one that the driver stores.
    fn words(device: u16, driver: u16) -> [Arc<AtomicU16>; 2] {
        [Arc::new(AtomicU16::new(device)), Arc::new(AtomicU16::new(driver))]
    }

    /// The driver stores a word, fences, and looks at the device's.
    fn driver(own: &Arc<AtomicU16>, value: u16, other: &Arc<AtomicU16>) -> loom::thread::JoinHandle<u16> {
        let (own, other) = (Arc::clone(own), Arc::clone(other));
        loom::thread::spawn(move || {
            own.store(value, Ordering::Release);
            fence(Ordering::SeqCst);
            other.load(Ordering::Acquire)
        })
    }

    /// virtio 1.2, 2.7.7: `VirtQueueGroup::call`, after `Split::publish` stored the used index; used_event is the driver's.
    #[test]
    fn a_driver_that_asks_for_a_call_while_a_batch_is_published_gets_it_or_sees_the_batch() {
        loom::model(|| {
            // One entry published, of which the driver knows; used_event is from before it.
            let [used, event] = words(1, 0);
            let sees = driver(&event, 1, &used);
            used.store(2, Ordering::Release);
            meet();
            let calls = need_event(event.load(Ordering::Acquire), 2, 1);
            assert!(calls || sees.join().unwrap() == 2, "a used buffer, and nobody was told");
        });
    }

    /// virtio 1.2, 2.7.7: the same with VRING_AVAIL_F_NO_INTERRUPT.
    #[test]
    fn a_driver_that_enables_calls_while_a_batch_is_published_gets_one_or_sees_the_batch() {
        loom::model(|| {
            let [used, flags] = words(1, 1);
            let sees = driver(&flags, 0, &used);
            used.store(2, Ordering::Release);
            meet();
            let calls = flags.load(Ordering::Acquire) & 1 == 0;
            assert!(calls || sees.join().unwrap() == 2, "a used buffer, and nobody was told");
        });
    }

    /// virtio 1.2, 2.7.10 and 2.7.13.4.1: `VirtQueueGroup::arm`; avail_event is the device's.
    #[test]
    fn a_device_that_asks_for_a_kick_before_it_sleeps_gets_it_or_sees_the_buffer() {
        loom::model(|| {
            // The device has taken one buffer, and told so; avail_event is from before it.
            let [event, available] = words(0, 1);
            let looks = driver(&available, 2, &event);
            event.store(1, Ordering::Release);
            meet();
            let sees = available.load(Ordering::Acquire) == 2;
            let kicks = need_event(looks.join().unwrap(), 2, 1);
            assert!(sees || kicks, "asleep with a buffer in the ring");
        });
    }

    /// virtio 1.2, 2.7.10: the same with VRING_USED_F_NO_NOTIFY.
    #[test]
    fn a_device_that_enables_kicks_before_it_sleeps_gets_one_or_sees_the_buffer() {
        loom::model(|| {
            let [flags, available] = words(1, 1);
            let looks = driver(&available, 2, &flags);
            flags.store(0, Ordering::Release);
            meet();
            let sees = available.load(Ordering::Acquire) == 2;
            assert!(sees || looks.join().unwrap() & 1 == 0, "asleep with a buffer in the ring");
        });
    }
}
