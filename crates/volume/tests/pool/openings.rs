//! Who has a pool, and who does not any more.

use volume::{FormatOptions, HostId, OpenOptions, Pool, PoolError, Provisioning};

use crate::drive::SimDisk;
use crate::world::{HOST, MIB, format_options, formatted, open_as, spec};

const OTHER: HostId = HostId([8; 16]);

fn open_from(disk: &SimDisk, host: HostId, take_over: bool) -> Result<Pool, PoolError> {
    Pool::open(Box::new(disk.clone()), &OpenOptions { host, nonce: 77, take_over })
}

#[test]
fn who_opened_a_pool_first_is_fenced_off_by_who_opens_it_next() {
    let disk = formatted(8);
    let mut first = open_as(&disk, 1).expect("sound");
    first.create(&spec("mine", 1, Provisioning::Thin)).expect("it is alone");
    let mut second = open_as(&disk, 2).expect("sound");
    assert!(second.info().epoch > first.info().epoch);
    let refused = first.create(&spec("late", 1, Provisioning::Thin)).expect_err("fenced");
    assert!(matches!(refused, PoolError::Fenced { ours: 1, theirs: 2 }), "{refused}");
    assert!(matches!(first.export(), Err(PoolError::Stopped)));
    second.create(&spec("next", 1, Provisioning::Thin)).expect("it has the pool");
    let names: Vec<String> = second.volumes().into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, ["mine", "next"]);
}

#[test]
fn a_store_of_a_fenced_owner_that_lands_late_never_happened() {
    let disk = formatted(8);
    let mut first = open_as(&disk, 1).expect("sound");
    first.create(&spec("mine", 1, Provisioning::Thin)).expect("it is alone");
    drop(first);
    // Two futures of one drive: in one the owner writes a change, in the other somebody else opens the pool.
    let mut stale = open_as(&disk, 3).expect("sound");
    let before = disk.fork();
    stale.create(&spec("ghost", 2, Provisioning::Full)).expect("not fenced yet");
    let late = disk.changed_since(&before);
    assert!(!late.is_empty());
    drop(open_as(&before, 4).expect("sound"));
    before.land(&late);
    let mut third = open_as(&before, 5).expect("a late store does no harm");
    assert_eq!(third.find("ghost"), None);
    // The next change goes where the ghost is.
    third.create(&spec("real", 2, Provisioning::Full)).expect("space is there");
    let fourth = open_as(&before, 6).expect("sound");
    assert_eq!((fourth.find("ghost").is_some(), fourth.find("real").is_some()), (false, true));
}

#[test]
fn a_change_of_the_owner_that_was_durable_before_it_was_fenced_off_is_kept() {
    let disk = formatted(8);
    let mut first = open_as(&disk, 1).expect("sound");
    first.create(&spec("mine", 3, Provisioning::Full)).expect("it is alone");
    let next = open_as(&disk, 2).expect("sound");
    assert_eq!(next.info().used, 3);
}

#[test]
fn two_that_open_at_the_same_moment_do_not_both_have_it() {
    let disk = formatted(8);
    let (left, right) = (disk.fork(), disk.fork());
    drop(open_as(&left, 10).expect("sound"));
    drop(open_as(&right, 11).expect("sound"));
    // One header of each landed.
    disk.poke(0, &left.peek(0, 4096));
    disk.poke(MIB, &right.peek(MIB, 4096));
    let mut pool = open_as(&disk, 12).expect("whoever comes next gets it");
    pool.create(&spec("a", 1, Provisioning::Thin)).expect("it has it alone");
    assert!(volume::check(&disk, None).expect("there").is_sound());
}

#[test]
fn another_hosts_pool_is_refused_until_it_is_exported_or_taken_over() {
    let disk = formatted(8);
    let mut pool = open_as(&disk, 1).expect("sound");
    pool.create(&spec("mine", 1, Provisioning::Thin)).expect("space is there");
    let refused = open_from(&disk, OTHER, false).expect_err("not its own");
    assert!(matches!(refused, PoolError::ForeignHost { owner: HOST }), "{refused}");
    pool.create(&spec("still", 1, Provisioning::Thin)).expect("a refused opening fences nobody off");
    pool.export().expect("it has it");
    let moved = open_from(&disk, OTHER, false).expect("exported");
    assert_eq!((moved.volumes().len(), moved.info().owner), (2, Some(OTHER)));
    assert!(open_from(&disk, HOST, false).is_err());
    let back = open_from(&disk, HOST, true).expect("taken over");
    assert_eq!(back.info().owner, Some(HOST));
}

#[test]
fn a_look_at_a_pool_takes_nothing_and_writes_nothing() {
    let disk = formatted(8);
    let mut pool = open_as(&disk, 1).expect("sound");
    pool.create(&spec("mine", 2, Provisioning::Full)).expect("space is there");
    let before = disk.fork();
    assert_eq!(Pool::peek(&disk).expect("there").used, 2);
    assert!(volume::check(&disk, None).expect("there").is_sound());
    assert!(disk.changed_since(&before).is_empty());
    pool.create(&spec("more", 2, Provisioning::Full)).expect("nobody was fenced off");
}

#[test]
fn a_drive_that_carries_a_pool_is_not_formatted_by_accident() {
    let disk = formatted(8);
    let again = FormatOptions { uuid: [5; 16], ..format_options() };
    assert!(matches!(Pool::format(&disk, &again), Err(PoolError::Exists { name }) if name == "tank"));
    let same = FormatOptions { overwrite: true, ..format_options() };
    assert!(matches!(Pool::format(&disk, &same), Err(PoolError::Invalid(_))), "an identity is used once");
    Pool::format(&disk, &FormatOptions { overwrite: true, ..again }).expect("it was asked for");
}

#[test]
fn a_drive_that_may_hold_somebodys_data_is_wiped_before_anyone_gets_an_extent() {
    let disk = crate::world::drive(8);
    Pool::format(&disk, &FormatOptions { zeroed: false, ..format_options() }).expect("large enough");
    let mut pool = open_as(&disk, 1).expect("sound");
    let info = pool.info();
    assert_eq!((info.free, info.wiping), (0, info.extents));
    let refused = pool.create(&spec("early", 1, Provisioning::Full)).expect_err("nothing is free yet");
    assert!(matches!(refused, PoolError::NoSpace { wanted: 1, free: 0, wiping } if wiping == info.extents));
    let order = pool.next_wipe(3).expect("all are to be wiped");
    pool.wiped(order).expect("ordered");
    pool.create(&spec("now", 3, Provisioning::Full)).expect("three are free");
}
