//! The search over all courses, and each rule broken once.

use std::collections::BTreeSet;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::model::{Bounds, HALF_A_GUEST, LOST_WRITES, ONE_EPOCH, ONE_OWNER, TWO_OWNERS};
use super::*;

fn bounds() -> Bounds {
    let rules = Rules::default();
    Bounds { rules, source_crashes: 1, destination_crashes: 1, writes: 1, rounds: 2, force: false }
}

/// All courses within the bounds keep all promises, and there are that many states.
fn holds(bounds: Bounds, states_min: usize) {
    let began = Instant::now();
    let checker = bounds.checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} steps deep, {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    checker.assert_properties();
    assert!(checker.unique_state_count() >= states_min, "{} states", checker.unique_state_count());
}

#[test]
fn every_course_without_force_ends_with_one_owner_who_has_every_acknowledged_write() {
    holds(bounds(), 150_000);
}

#[test]
fn every_course_with_operators_who_force_ends_with_one_owner_when_the_two_have_met() {
    holds(Bounds { force: true, rounds: 1, ..bounds() }, 100_000);
    holds(Bounds { force: true, source_crashes: 0, destination_crashes: 0, ..bounds() }, 80_000);
}

/// A minute or more: `cargo test -p transfer --lib wider -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn wider_searches_find_nothing_either() {
    holds(Bounds { source_crashes: 2, ..bounds() }, 500_000);
    holds(Bounds { force: true, ..bounds() }, 1_000_000);
}

#[test]
fn an_open_of_a_migration_that_is_long_over_reserves_nothing() {
    let pledge = Pledge { migration: [7; 16], epoch: 5 };
    assert_eq!(Destination::begin(pledge, 1, Some(5)).err(), Some(Refusal::Stale { seen: 5 }));
    assert!(Destination::begin(pledge, 1, Some(4)).is_ok());
}

const FORMER: SourceRecord = SourceRecord {
    pledge: Pledge { migration: [1; 16], epoch: 5 },
    held: 4,
    round: 1,
    step: SourceStep::Cancelled,
};

#[test]
fn a_number_that_was_pledged_once_is_not_pledged_again() {
    let (source, _) = Source::begin([2; 16], 4, Some(Former::From(&FORMER))).expect("epochs are left");
    assert_eq!(source.pledge().epoch, 6);
}

#[test]
fn no_migration_begins_while_the_destination_of_the_one_before_may_still_own() {
    for step in [SourceStep::Offered, SourceStep::Granted, SourceStep::Cancelling] {
        let former = SourceRecord { step, ..FORMER };
        assert_eq!(again(4, &former), Err(Refusal::Unheard), "{step:?}");
    }
}

/// The epoch that the next migration pledges.
fn again(held: u64, former: &SourceRecord) -> Result<u64, Refusal> {
    Source::begin([2; 16], held, Some(Former::From(former))).map(|(source, _)| source.pledge().epoch)
}

#[test]
fn only_the_owner_begins_a_migration_and_by_the_epoch_it_owns_the_ssd_by() {
    for step in [SourceStep::Gone, SourceStep::Superseded] {
        let former = SourceRecord { step, ..FORMER };
        assert_eq!(again(4, &former), Err(Refusal::OwnedElsewhere), "{step:?}");
    }
    for step in [SourceStep::TakenBack, SourceStep::TakenBackHeard] {
        let former = SourceRecord { step, held: 6, ..FORMER };
        assert_eq!(
            (again(4, &former), again(6, &former)),
            (Err(Refusal::Stale { seen: 6 }), Ok(7)),
            "{step:?}"
        );
    }
}

/// A grants to B, and does not hear that B owns it. B moves it to C. Were that allowed, A could be taken by force by the epoch that C has.
#[test]
fn who_was_granted_an_ssd_moves_it_on_only_when_the_source_has_heard_of_it() {
    let begin = |destination: &Destination, held| {
        let begun = Source::begin([2; 16], held, Some(Former::To(destination)));
        begun.map(|(source, _)| source.pledge().epoch)
    };
    for step in [DestinationStep::Owned, DestinationStep::Forced] {
        let record = DestinationRecord { pledge: FORMER.pledge, round: 1, step };
        let (mut owner, _) = Destination::recover(record);
        assert_eq!(begin(&owner, 5), Err(Refusal::Unclosed), "{step:?}");
        let closed = Message { pledge: FORMER.pledge, word: ToDestination::Closed };
        owner.handle(DestinationEvent::Message(closed));
        assert_eq!(
            (begin(&owner, 5), begin(&owner, 4)),
            (Ok(6), Err(Refusal::Stale { seen: 5 })),
            "{step:?}"
        );
    }
    for step in
        [DestinationStep::Incoming, DestinationStep::Dropped, DestinationStep::Superseded { epoch: 6 }]
    {
        let (other, _) = Destination::recover(DestinationRecord { pledge: FORMER.pledge, round: 1, step });
        assert_eq!(begin(&other, 5), Err(Refusal::OwnedElsewhere), "{step:?}");
    }
}

#[test]
fn a_destination_that_was_forced_long_ago_stops_when_it_meets_a_source_that_has_gone_on() {
    let pledge = FORMER.pledge;
    let record = DestinationRecord { pledge, round: 1, step: DestinationStep::Forced };
    let (mut forced, effects) = Destination::recover(record);
    assert!(effects.contains(&DestinationEffect::Serve { epoch: 5 }));
    // The source was taken back by the epoch after it, and knows that migration no more.
    let fenced = fence(6, Message { pledge, word: ToSource::Owned }).expect("answered");
    let effects = forced.handle(DestinationEvent::Message(fenced));
    let superseded = DestinationRecord { step: DestinationStep::Superseded { epoch: 6 }, ..record };
    assert_eq!(effects, [DestinationEffect::Stop, DestinationEffect::Write(superseded)]);
    assert_eq!(fence(5, Message { pledge, word: ToSource::Owned }), None, "the owner itself is not fenced");
}

#[test]
fn an_ssd_without_epochs_to_pledge_and_to_force_does_not_begin() {
    for held in [u64::MAX, u64::MAX - 1] {
        assert_eq!(Source::begin([1; 16], held, None).err(), Some(Refusal::Exhausted));
    }
    assert!(Source::begin([1; 16], u64::MAX - 2, None).is_ok());
}

#[test]
fn a_source_without_rounds_left_thaws_and_cancels() {
    let pledge = Pledge { migration: [1; 16], epoch: 5 };
    let record = SourceRecord { pledge, held: 4, round: u32::MAX, step: SourceStep::Offered };
    let (_, effects) = Source::recover(record);
    let cancelling = SourceRecord { step: SourceStep::Cancelling, ..record };
    assert_eq!(effects, [SourceEffect::Thaw { epoch: 4 }, SourceEffect::Write(cancelling)]);
}

#[test]
fn a_source_whose_guest_has_gone_without_it_asks_for_what_was_ready_and_grants_it() {
    let pledge = Pledge { migration: [1; 16], epoch: 5 };
    let record = SourceRecord { pledge, held: 4, round: 1, step: SourceStep::Offered };
    let (mut source, effects) = Source::recover_completed(record);
    let word = ToDestination::Seal { round: 1 };
    assert_eq!(effects, [SourceEffect::Freeze, SourceEffect::Send(Message { pledge, word })]);
    let effects = source.handle(SourceEvent::Message(Message { pledge, word: ToSource::Ready { round: 1 } }));
    let granted = SourceRecord { step: SourceStep::Granted, ..record };
    assert_eq!(effects.last(), Some(&SourceEffect::Write(granted)));
    // What is further than that goes on by its record.
    for step in [SourceStep::Granted, SourceStep::Gone, SourceStep::TakenBack, SourceStep::Cancelling] {
        let record = SourceRecord { step, ..record };
        assert_eq!(Source::recover_completed(record).1, Source::recover(record).1, "{step:?}");
    }
}

#[test]
fn what_is_asked_for_after_the_grant_is_refused_with_the_way_on() {
    let pledge = Pledge { migration: [1; 16], epoch: 5 };
    let record = SourceRecord { pledge, held: 4, round: 1, step: SourceStep::Granted };
    let (mut source, effects) = Source::recover(record);
    assert!(effects.contains(&SourceEffect::Freeze) && !effects.contains(&SourceEffect::Thaw { epoch: 4 }));
    assert_eq!(source.handle(SourceEvent::Cancel), [SourceEffect::Refuse(Refusal::Granted)]);
    assert!(source.handle(SourceEvent::Expired).is_empty());
    assert!(Refusal::Granted.to_string().contains("cancel at the destination"));
}

/// What is seen when a rule is broken.
fn consequence(rule: Rule) -> &'static str {
    match rule {
        Rule::GrantIsFinal | Rule::GrantAfterJournal | Rule::ServeAfterJournal | Rule::OnlyThisMigration => {
            TWO_OWNERS
        }
        Rule::ReadyAfterData | Rule::RoundsAreNew | Rule::ReopenAfterJournal | Rule::OnlyWhileItRests => {
            LOST_WRITES
        }
        Rule::WordOfThisRound => HALF_A_GUEST,
        Rule::ForceSkipsThePledge => ONE_EPOCH,
        Rule::LaterEpochWins => ONE_OWNER,
    }
}

#[test]
fn each_rule_is_needed_and_breaking_it_is_caught() {
    for rule in Rule::ALL {
        let rules = Rules { broken: Some(rule) };
        let needs = |rules: &[Rule]| rules.contains(&rule);
        // No more than it takes: what is not needed only widens the search.
        let bounds = Bounds {
            rules,
            force: needs(&[Rule::ForceSkipsThePledge, Rule::LaterEpochWins, Rule::ReopenAfterJournal]),
            source_crashes: needs(&[Rule::GrantAfterJournal, Rule::OnlyWhileItRests]).into(),
            destination_crashes: needs(&[
                Rule::ServeAfterJournal,
                Rule::ReadyAfterData,
                Rule::ReopenAfterJournal,
            ])
            .into(),
            ..bounds()
        };
        let seen = HasDiscoveries::AnyOf(BTreeSet::from([consequence(rule)]));
        let checker = bounds.checker().threads(2).finish_when(seen).spawn_bfs().join();
        println!("{rule:?}: caught after {} states", checker.unique_state_count());
        assert!(checker.discovery(consequence(rule)).is_some(), "{rule:?} broken and nothing seen");
    }
}
