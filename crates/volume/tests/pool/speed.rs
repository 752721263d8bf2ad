//! How long blocking work takes on a large pool. Times are told, not asserted: `cargo test -p volume --release --test
//! pool speed -- --nocapture`. What is asserted is what makes it quick: few stores, whatever the size.

use std::time::Instant;

use volume::{FormatOptions, Pool, Provisioning};

use crate::drive::SimDisk;
use crate::world::{MIB, format_options, open_as, spec};

const TIB: u64 = 1 << 40;

fn timed<T>(what: &str, disk: &SimDisk, work: impl FnOnce() -> T) -> T {
    disk.die_at(u64::MAX);
    let start = Instant::now();
    let result = work();
    println!("{what}: {:?}, {} stores", start.elapsed(), disk.effects());
    assert!(disk.effects() <= 2, "{what} costs one record and one flush, not {}", disk.effects());
    result
}

fn times(extent_bytes: u64) {
    let disk = SimDisk::new(9 * TIB);
    let options = FormatOptions { extent_bytes: Some(extent_bytes), ..format_options() };
    Pool::format(&disk, &options).expect("large enough");
    let mut pool = open_as(&disk, 1).expect("sound");
    let size = 8 * TIB / MIB;
    println!("extents of {} MiB:", extent_bytes / MIB);
    let full = timed("create 8 TiB, full", &disk, || pool.create(&spec("full", size, Provisioning::Full)));
    let full = full.expect("space is there");
    let thin = timed("create 8 TiB, thin", &disk, || pool.create(&spec("thin", size, Provisioning::Thin)));
    let map = timed("map of 8 TiB for reactors", &disk, || pool.map(full)).expect("there");
    let clone = timed("clone 8 TiB that is served", &disk, || pool.clone_volume(full, "clone", [9; 16]));
    let _served = timed("map of the clone", &disk, || pool.map(clone.expect("there"))).expect("there");
    timed("snapshot 8 TiB that is served", &disk, || pool.snapshot(full, "snap", [9; 16])).expect("there");
    timed("delete 8 TiB that is shared", &disk, || pool.delete(full)).expect("there");
    timed("delete 8 TiB, thin", &disk, || pool.delete(thin.expect("made"))).expect("there");
    drop(map);
    for volume in pool.volumes() {
        timed("delete 8 TiB", &disk, || pool.delete(volume.id)).expect("there");
    }
    assert_eq!(pool.info().wiping, 8 * TIB / extent_bytes);
}

#[test]
fn eight_tebibytes_are_created_cloned_and_deleted_in_one_store_each() {
    times(32 * MIB);
    times(MIB);
}
