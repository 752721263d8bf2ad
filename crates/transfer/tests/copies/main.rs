//! Copies from one end to the other: what was written meanwhile, what breaks on the way, and what a hostile peer says.

mod peers;
mod rig;

use std::sync::atomic::Ordering::Relaxed;

use dirty::Map;
use proptest::prelude::*;
use rig::{Fate, Guest, Host, PAGES, assert_same, copy, options};
use transfer::copy::{Error, Verdict};
use transfer::frame::{Reason, STRIPE_PAGES};
use transfer::wire::Fault;

fn missing(pages: &[u64]) -> Map {
    let map = Map::new(PAGES).expect("small");
    pages.iter().for_each(|page| map.mark(*page, 1));
    map
}

fn fate() -> impl Strategy<Value = Fate> {
    let place = || prop::option::weighted(0.5, 0_u64..400_000);
    (place(), prop::option::weighted(0.3, 0_u64..300), prop::option::weighted(0.3, 0_u64..400_000))
        .prop_map(|(cut_sent, cut_said, flip)| Fate { cut_sent, cut_said, flip })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn however_the_line_breaks_and_whatever_is_written_the_end_is_the_same_on_both_sides(
        seed in any::<u64>(),
        streams in 1_u16..5,
        runs in prop::collection::vec((0..PAGES, 1_u64..120), 0..8),
        fates in prop::collection::vec(fate(), 0..12),
        eager in 0_u64..4,
        rounds in 1_u32..4,
    ) {
        let (guest, host) = (Guest::new(seed, &runs), Host::default());
        guest.eager.store(eager, Relaxed);
        let (done, _) = copy(&guest, &host, &|_| Ok(()), options(streams), &fates, |precopy, _, receiver| {
            for _ in 0..rounds {
                precopy.round()?;
            }
            guest.eager.store(0, Relaxed);
            guest.scribble(20);
            assert!(receiver.arrived().is_none(), "not all is there");
            precopy.last(&missing(&[7, PAGES - 1]), b"state")?;
            Ok(receiver.arrived())
        });
        let arrived = done.expect("it gets through in the end").expect("every stream ended");
        prop_assert_eq!(&arrived.state[..], b"state");
        prop_assert_eq!(arrived.missing.count(), 2);
        assert_same(&guest, &host);
    }
}

/// Noise, so that each page costs its size.
fn full_guest() -> Guest {
    let guest = Guest::new(2, &[(0, 2000), (STRIPE_PAGES, 2000)]);
    guest.scribble(10);
    guest
}

/// What a copy of that guest over such lines costs, in bytes; the first round may be in vain.
fn bytes_over(fates: &[Fate], attempts_max: u32) -> u64 {
    let (guest, host) = (full_guest(), Host::default());
    let options = transfer::copy::Options { attempts_max, compress: false, ..options(1) };
    let (done, _) = copy(&guest, &host, &|_| Ok(()), options, fates, |precopy, control, _| {
        match precopy.round() {
            Err(Error::Lost { stream: 0, .. }) => drop(precopy.round()?),
            done => drop(done?),
        }
        precopy.last(&missing(&[]), &[])?;
        Ok(control.progress().bytes_sent)
    });
    assert_same(&guest, &host);
    done.expect("it gets through")
}

#[test]
fn after_a_break_only_what_was_not_acknowledged_is_sent_again() {
    let whole = bytes_over(&[], 0);
    assert!(whole > 6 << 20, "{whole}");
    let cut = Fate { cut_sent: Some(5 << 20), ..Fate::default() };
    let broken = bytes_over(&[cut], 1);
    // A frame that was cut is not counted, and no more than a window of 256 KiB was not answered: all before it was written, and the receiver makes that durable when it is asked where to go on.
    assert!((whole - (40 << 10)..whole + (300 << 10)).contains(&broken), "{broken} instead of {whole}");
}

#[test]
fn a_copy_that_lost_its_network_goes_on_when_it_is_told_to() {
    let dead = Fate { cut_sent: Some(0), ..Fate::default() };
    let cut = Fate { cut_sent: Some(3 << 20), ..Fate::default() };
    let (whole, broken) = (bytes_over(&[], 0), bytes_over(&[cut, dead, dead, dead], 2));
    assert!((whole - (40 << 10)..whole + (300 << 10)).contains(&broken), "{broken} instead of {whole}");
}

#[test]
fn a_source_that_is_written_faster_than_pages_move_is_to_be_throttled() {
    let (guest, host) = (Guest::new(1, &[(0, 600)]), Host::default());
    guest.eager.store(16, Relaxed);
    let options = transfer::copy::Options { stun_max: std::time::Duration::from_micros(300), ..options(2) };
    let (done, _) = copy(&guest, &host, &|_| Ok(()), options, &[], |precopy, control, _| {
        let Verdict::Throttle { to, from } = precopy.run()? else { panic!("it does not converge") };
        assert!(to < from && to > 0, "{to} {from}");
        assert!(control.progress().predicted_stun.is_some_and(|stun| stun > options.stun_max));
        guest.eager.store(0, Relaxed);
        let Verdict::Ready(stun) = precopy.run()? else { panic!("nobody writes any more") };
        assert!(stun <= options.stun_max);
        precopy.last(&missing(&[]), &[])
    });
    done.expect("it gets through");
    assert_same(&guest, &host);
}

#[test]
fn the_source_stands_still_for_less_than_it_may_where_another_pass_leaves_less() {
    let passes = |rest_min| {
        let (guest, host) = (full_guest(), Host::default());
        guest.eager.store(1, Relaxed);
        let options = transfer::copy::Options { rest_min, ..options(1) };
        let (done, _) = copy(&guest, &host, &|_| Ok(()), options, &[], |precopy, control, _| {
            let verdict = precopy.run()?;
            assert!(matches!(verdict, Verdict::Ready(_)), "{verdict:?}");
            guest.eager.store(0, Relaxed);
            precopy.last(&missing(&[]), &[])?;
            Ok(control.progress().pass)
        });
        assert_same(&guest, &host);
        done.expect("it gets through")
    };
    assert_eq!(passes(std::time::Duration::MAX), 1, "the rest is small enough at once");
    // An eighth of each pass is written anew.
    assert!(passes(std::time::Duration::ZERO) > 3);
}

#[test]
fn a_link_whose_round_trip_alone_is_too_long_is_told() {
    let (guest, host) = (Guest::new(1, &[(0, 6)]), Host::default());
    let options = transfer::copy::Options { stun_max: std::time::Duration::ZERO, ..options(1) };
    let (done, _) = copy(&guest, &host, &|_| Ok(()), options, &[], |precopy, _, _| precopy.run());
    assert!(matches!(done, Ok(Verdict::Far(_))), "{done:?}");
}

#[test]
fn a_cancelled_copy_stops_on_both_sides_and_cannot_be_taken_up_again() {
    let (guest, host) = (full_guest(), Host::default());
    let (done, served) = copy(&guest, &host, &|_| Ok(()), options(2), &[], |precopy, control, _| {
        precopy.round()?;
        control.cancel();
        guest.scribble(50);
        let first = precopy.round();
        assert!(matches!(first, Err(Error::Cancelled | Error::Aside)), "{first:?}");
        precopy.round()
    });
    assert!(matches!(done, Err(Error::Cancelled | Error::Aside)), "{done:?}");
    assert!(served.iter().any(|end| matches!(end, Err(Fault::Cancelled(_)))), "{served:?}");
}

#[test]
fn what_is_read_after_a_cancel_makes_no_last_pass_whole() {
    let (guest, host) = (full_guest(), Host::default());
    let (arrived, _) = copy(&guest, &host, &|_| Ok(()), options(1), &[], |precopy, control, receiver| {
        precopy.round()?;
        guest.scribble(1);
        let (held, is_held) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let gate = guest.gate.lock();
                let before = guest.reads.load(Relaxed);
                held.send(()).expect("somebody waits for it");
                while guest.reads.load(Relaxed) == before {
                    std::thread::yield_now();
                }
                control.cancel();
                drop(gate);
            });
            is_held.recv().expect("it holds it");
            let last = precopy.last(&missing(&[]), &[]);
            assert!(matches!(last, Err(Error::Cancelled)), "{last:?}");
        });
        Ok(receiver.arrived())
    });
    assert!(
        arrived.expect("as far as it went").is_none(),
        "a host that is to wait would say that it has all"
    );
}

#[test]
fn a_refused_plan_and_a_full_drive_are_told_to_who_sends() {
    let guest = full_guest();
    let run = |host: &Host, accept: &transfer::receive::Accept<'_>| {
        let (done, _) = copy(&guest, host, accept, options(1), &[], |precopy, _, _| precopy.round());
        match done {
            Err(Error::Refused(cancel)) => cancel,
            other => panic!("{other:?}"),
        }
    };
    let refused = run(&Host::default(), &|plan| Err(format!("no room for {} pages", plan.pages)));
    assert_eq!((refused.reason, refused.text.contains("no room for")), (Reason::Refused, true));
    let host = Host::default();
    host.full.store(true, Relaxed);
    assert_eq!(run(&host, &|_| Ok(())).reason, Reason::Drive);
}

#[test]
fn the_last_pass_can_be_repeated_but_not_after_the_source_went_on() {
    let (guest, host) = (Guest::new(3, &[(0, 50)]), Host::default());
    let (done, _) = copy(&guest, &host, &|_| Ok(()), options(1), &[], |precopy, _, _| {
        precopy.round()?;
        precopy.last(&missing(&[]), b"one")?;
        precopy.last(&missing(&[]), b"one")?;
        assert!(matches!(precopy.round(), Err(Error::Closing)));
        guest.scribble(1);
        precopy.last(&missing(&[]), b"one")
    });
    assert!(matches!(done, Err(Error::Written)), "{done:?}");
}

#[test]
fn a_paced_copy_keeps_to_its_pace_and_predicts_the_stun_without_it() {
    let (guest, host) = (full_guest(), Host::default());
    let options = transfer::copy::Options { compress: false, ..options(1) };
    let (done, _) = copy(&guest, &host, &|_| Ok(()), options, &[], |precopy, control, _| {
        control.set_pace(4 << 20);
        precopy.round()?;
        Ok(control.progress())
    });
    let progress = done.expect("it gets through");
    // Zeros cost next to nothing on the wire, so pages are a little quicker than bytes.
    assert!((3 << 20..8 << 20).contains(&progress.rate), "{progress:?}");
    assert!(progress.rate_unpaced > 10 * progress.rate, "{progress:?}");
    assert_eq!(progress.bytes_left, 0);
}

#[test]
fn a_paused_copy_keeps_its_connection_and_goes_on() {
    let (guest, host) = (full_guest(), Host::default());
    let (done, served) = copy(&guest, &host, &|_| Ok(()), options(2), &[], |precopy, control, _| {
        control.pause();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while control.progress().bytes_sent == 0 {
                    std::thread::yield_now();
                }
                control.resume();
            });
            precopy.round()
        })?;
        precopy.last(&missing(&[]), &[])
    });
    done.expect("it gets through");
    assert!(served.len() == 2 && served.iter().all(Result::is_ok), "{served:?}");
    assert_same(&guest, &host);
}
