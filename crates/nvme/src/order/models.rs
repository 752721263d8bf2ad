//! What loom goes through: `RUSTFLAGS="--cfg loom" cargo test -p nvme --lib models`.

use std::cell::RefCell;
use std::rc::Rc;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::{Word, meet};
use crate::queue::steps;

/// The words of one slot, its queues' records, and the entry in the guest's completion queue.
#[derive(Default)]
struct Places<W> {
    command: [W; 2],
    completion: [W; 2],
    word: W,
    head: W,
    entry: [W; 2],
    tail: W,
}

const PLACES: usize = 9;

impl<W> Places<W> {
    fn all(&self) -> [&W; PLACES] {
        let Self { command: [c0, c1], completion: [a0, a1], word, head, entry: [e0, e1], tail } = self;
        [c0, c1, a0, a1, word, head, e0, e1, tail]
    }
}

/// Two commands in one slot, one after the other: the steps of `docs/formats/controller-region.md` by the code that makes them.
/// Every value a word gets is another one, and greater.
fn protocol<W: Word<Value = u64>>(at: &Places<W>) {
    for round in 0..2 {
        let value = |n: u64| round * 10 + n;
        let [c0, c1] = &at.command;
        steps::copy_then([(c0, value(1)), (c1, value(1))], &at.word, value(1)); // a1, a2: ACCEPTED
        steps::advance(&at.head, value(1)); // a3
        let [a0, a1] = &at.completion;
        steps::copy_then([(a0, value(1)), (a1, value(1))], &at.word, value(2)); // p1, p2: POSTING
        let [e0, e1] = &at.entry;
        e0.put(value(1), Ordering::Relaxed); // p3, p4: as `memory::Window::write_completion`
        e1.put(value(1), Ordering::Release);
        steps::advance(&at.tail, value(1)); // p5
        steps::retire(&at.word, value(3)); // r1: FREE
    }
}

/// Notes what is stored where, and whether that store is a step.
#[derive(Default)]
struct Noted {
    place: usize,
    trace: Rc<RefCell<Vec<(usize, u64, bool)>>>,
}

impl Word for Noted {
    type Value = u64;
    fn put(&self, value: u64, order: Ordering) {
        self.trace.borrow_mut().push((self.place, value, order == Ordering::Release));
    }
}

fn trace() -> Vec<(usize, u64, bool)> {
    let trace = Rc::new(RefCell::new(Vec::new()));
    let mut place = 0..;
    let mut word = || Noted { place: place.next().unwrap_or(0), trace: Rc::clone(&trace) };
    let at = Places {
        command: [word(), word()],
        completion: [word(), word()],
        word: word(),
        head: word(),
        entry: [word(), word()],
        tail: word(),
    };
    protocol(&at);
    trace.take()
}

/// The value that `earlier` must have by the time the store at `index` of the trace is seen: of the last store to it that a step
/// stands behind.
fn owed(trace: &[(usize, u64, bool)], index: usize, earlier: usize) -> u64 {
    let before = |at: usize| trace[index].2 || trace[at..index].iter().any(|store| store.2);
    let stores = trace[..index].iter().enumerate().filter(|(at, store)| store.0 == earlier && before(*at));
    stores.map(|(_, store)| store.1).max().unwrap_or(0)
}

/// Whoever sees a store of the protocol, and then looks at another word, sees all that was stored there before: what a successor
/// finds after a kill at any instant is the state between two steps, and no other. Tried: without the fence of `publish`, loom finds
/// the second command in a slot before the steps of the first; with its Release made Relaxed, a tail that has passed an entry which is
/// not there. That the steps are the right ones is proved by ending the world between any two (`queue/tests.rs`, crate `sim`).
#[test]
fn a_successor_finds_a_state_between_two_steps_and_no_other() {
    for (later, earlier) in (0..PLACES).flat_map(|a| (0..PLACES).map(move |b| (a, b))).filter(|(a, b)| a != b)
    {
        loom::model(move || {
            let trace = trace();
            let at = Arc::new(Places::<AtomicU64>::default());
            let writer = {
                let at = Arc::clone(&at);
                loom::thread::spawn(move || protocol(&at))
            };
            let seen = at.all()[later].load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            let then = at.all()[earlier].load(Ordering::Relaxed);
            if let Some(index) = trace.iter().position(|store| (store.0, store.1) == (later, seen)) {
                let owed = owed(&trace, index, earlier);
                assert!(
                    then >= owed,
                    "word {later} = {seen} was seen before word {earlier} = {owed}: {then}"
                );
            }
            writer.join().unwrap();
        });
    }
}

/// Base 2.1, annex B.5: the controller tells by EventIdx up to where it has seen, and looks again; the host stores its tail,
/// fences, looks at EventIdx and rings if its tail passes that. The controller never sleeps on a tail it was not rung for. Tried:
/// without the fence of `meet`, loom finds the wake-up that is lost.
#[test]
fn a_shadow_doorbell_and_an_event_index_that_cross_are_seen_by_one_side() {
    loom::model(|| {
        // The controller has seen tail 1; EventIdx is from an earlier time.
        let (tail, event) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicU32::new(0)));
        let host = {
            let (tail, event) = (Arc::clone(&tail), Arc::clone(&event));
            loom::thread::spawn(move || {
                tail.store(2, Ordering::Release);
                fence(Ordering::SeqCst);
                event.load(Ordering::Acquire) == 1
            })
        };
        let looked = meet(|| event.store(1, Ordering::Release), || tail.load(Ordering::Acquire));
        let rung = host.join().unwrap();
        assert!(looked == 2 || rung, "asleep with a command in the queue");
    });
}
