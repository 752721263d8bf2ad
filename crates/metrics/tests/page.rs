//! A page as its writers and readers share it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use memory::SharedRegion;
use metrics::{
    Engine, Facts, Observed, Op, PRIVATE_LANE, Page, PageError, Part, Snapshot, bucket_of, prometheus,
};
use std::fs::File;

fn page() -> SharedRegion<Page> {
    let page = SharedRegion::<Page>::memfd("test").unwrap();
    page.begin(&Facts { serial: "GW1".to_owned(), device: "/dev/nvme0n1".to_owned(), namespaces: true });
    page
}

fn read(page: &SharedRegion<Page>) -> Snapshot {
    Snapshot::read(&File::from(page.fd().unwrap().try_clone_to_owned().unwrap())).unwrap()
}

fn io(page: &Page, lane: usize, op: Op, (queue_ns, drive_ns): (u64, u64), bytes: u64) {
    page.open_lane(lane);
    let class = page.lane(lane).class(op);
    class.time(Part::Queue, bucket_of(queue_ns));
    class.time(Part::Drive, bucket_of(drive_ns));
    class.moved(bytes);
}

#[test]
fn what_several_reactors_count_is_read_as_one() {
    let page = page();
    io(&page, 0, Op::Read, (1_000, 80_000), 4096);
    io(&page, 7, Op::Read, (1_000, 90_000), 8192);
    io(&page, PRIVATE_LANE, Op::Write, (0, 0), 512);
    page.lane(7).class(Op::Read).failed();
    let snapshot = read(&page);
    let reads = snapshot.of(Op::Read);
    assert_eq!((reads.ios(), reads.bytes, reads.errors), (2, 12288, 1));
    assert_eq!((snapshot.of(Op::Write).ios(), snapshot.of(Op::Other).ios()), (1, 0));
    assert_eq!((snapshot.all().ios(), snapshot.all().bytes), (3, 12800));
    assert_eq!(snapshot.facts.serial, "GW1");
    let p99 = reads.time(Part::Drive).quantile_ns(0.99).unwrap();
    assert!((80_000..100_000).contains(&p99), "{p99}");
}

#[test]
fn an_io_that_was_not_held_back_was_so_for_no_time() {
    let page = page();
    (0..99).for_each(|_| io(&page, 0, Op::Read, (0, 50_000), 512));
    io(&page, 0, Op::Read, (0, 50_000), 512);
    page.lane(0).class(Op::Read).time(Part::Throttle, bucket_of(5_000_000));
    let throttled = read(&page).of(Op::Read).time(Part::Throttle);
    assert_eq!((throttled.total(), throttled.quantile_ns(0.5)), (100, Some(0)));
    assert!(throttled.quantile_ns(0.999).unwrap() > 4_000_000);
}

#[test]
fn the_difference_of_two_looks_is_what_came_between() {
    let page = page();
    io(&page, 0, Op::Write, (0, 1_000_000), 4096);
    let earlier = read(&page);
    io(&page, 0, Op::Write, (0, 50_000), 512);
    let between = read(&page).since(&earlier);
    let writes = between.of(Op::Write);
    assert_eq!((writes.ios(), writes.bytes), (1, 512));
    assert!(writes.time(Part::Drive).quantile_ns(1.0).unwrap() < 60_000);
}

#[test]
fn other_files_are_no_pages() {
    let read = |file: File| Snapshot::read(&file).unwrap_err();
    let foreign = SharedRegion::<Page>::memfd("test").unwrap();
    assert!(!foreign.is_sound());
    let foreign = File::from(foreign.fd().unwrap().try_clone_to_owned().unwrap());
    assert!(matches!(read(foreign), PageError::Foreign), "zeros");
    assert!(matches!(read(File::open("/dev/null").unwrap()), PageError::Io(_)), "too short");
}

#[test]
fn prometheus_gets_cumulative_buckets_that_agree_with_their_count() {
    let page = page();
    io(&page, 0, Op::Read, (0, 1_000), 512);
    io(&page, 0, Op::Read, (0, 3_000_000), 512);
    io(&page, 0, Op::Read, (0, 60_000_000_000), 512);
    let ssd = Observed {
        ssd: "a\"b".to_owned(),
        state: "serving".to_owned(),
        page: Some(read(&page)),
        ..Observed::default()
    };
    let text = prometheus(&Engine::default(), &[ssd, Observed::default()]);
    let labels = "ssd=\"a\\\"b\",serial=\"GW1\",device=\"/dev/nvme0n1\",nsid=\"all\",op=\"read\"";
    let value = |name: &str, more: &str| {
        let start = format!("{name}{{{labels}{more}}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start} in {text}")).to_owned()
    };
    assert_eq!(value("godwit_ssd_ios_total", ""), "3");
    assert_eq!(value("godwit_ssd_bytes_total", ""), "1536");
    let bucket =
        |le: &str| value("godwit_ssd_latency_seconds_bucket", &format!(",part=\"drive\",le=\"{le}\""));
    assert_eq!(
        [bucket("0.000001024"), bucket("0.002097152"), bucket("0.004194304"), bucket("+Inf")],
        ["1", "1", "2", "3"]
    );
    assert_eq!(value("godwit_ssd_latency_seconds_count", ",part=\"drive\""), "3");
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(names.len(), 12, "each metric once: {names:?}");
}

#[test]
fn the_dashboard_asks_only_for_what_there_is() {
    let dashboard = include_str!("../../../packaging/grafana/godwit.json");
    let text = prometheus(&Engine::default(), &[]);
    let known: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let words = dashboard
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("godwit_"));
    let mut asked = 0;
    for word in words {
        let part_of = |known: &str| {
            ["", "_bucket", "_sum", "_count"].iter().any(|part| word.strip_suffix(part) == Some(known))
        };
        assert!(known.iter().any(|known| part_of(known)), "{word} is no metric of {known:?}");
        asked += 1;
    }
    assert!(asked > 15);
}
