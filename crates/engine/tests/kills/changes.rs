//! Ssds come and go while others are under load, whoever is killed in the middle of it.

use super::disk::{self, Checked};
use super::house::House;
use super::load::Load;
use super::{FILE, RAM};
use guest::PATIENCE;
use guest::vhost_user::{Driver, Options};
use std::time::{Duration, Instant};

const OTHER: &str = "{ type = \"uring\", path = \"DIR/other.img\", direct = false }";

/// Has the keeper serve these while the load goes on; with `kill`, an engine dies so long after it was asked.
fn change(house: &House, load: &mut Load, ssds: &[(&str, &str)], kill: Option<Duration>) {
    std::thread::scope(|scope| {
        let applied = scope.spawn(|| house.apply(ssds).unwrap());
        let begun = Instant::now();
        let mut kill = kill;
        while !applied.is_finished() || kill.is_some() {
            load.run_for(Duration::from_micros(300));
            if kill.take_if(|after| begun.elapsed() >= *after).is_some() {
                house.kill();
            }
        }
        applied.join().unwrap();
    });
}

fn a_disk_is_served(house: &House, name: &str, byte: u8) {
    let deadline = Instant::now() + PATIENCE;
    let mut driver = loop {
        match Driver::connect(house.socket(name), Options::default()) {
            Ok(driver) => break driver,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let before = disk::read(&mut driver, 8);
    assert!(before == vec![byte - 1; 4096], "{} instead of {}", before[0], byte - 1);
    disk::write(&mut driver, 8, byte);
}

#[test]
fn ssds_come_and_go_under_load_and_nothing_of_it_shows_on_another() {
    let house = House::start(&[("victim", RAM)], 2);
    let mut load = Load::new(house.connect("victim"), 3, 64, 11);
    load.run_for(Duration::from_millis(50));
    let pid = house.pid();
    for round in 1..=4 {
        change(
            &house,
            &mut load,
            &[("disk", &format!("virtio-blk on {OTHER}")), ("victim", RAM), ("nvme", FILE)],
            None,
        );
        // The data was there before: it is the same file.
        a_disk_is_served(&house, "disk", round);
        let mut other = Load::new(house.connect("nvme"), 1, 16, u64::from(round));
        other.run_for(Duration::from_millis(20));
        other.finish();
        change_when_free(&house, &mut load);
        assert!(!house.socket("disk").exists() && !house.socket("nvme").exists());
        // Others may have the file now: nobody holds its lock.
        let file = house.drive("other.img");
        let deadline = Instant::now() + PATIENCE;
        while file.try_lock().is_err() {
            assert!(Instant::now() < deadline, "the drive of a removed ssd is still locked");
            load.run_for(Duration::from_millis(2));
        }
        std::fs::remove_file(house.path("disk.img")).unwrap();
        std::fs::remove_file(house.path("nvme.state")).unwrap();
    }
    assert_eq!(house.pid(), pid, "one engine did all of it");
    load.finish();
    house.stop();
}

/// Back to one ssd, as soon as the others' clients have left.
fn change_when_free(house: &House, load: &mut Load) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = house.apply(&[("victim", RAM)]) {
        assert!(why.contains("a client is connected") && Instant::now() < deadline, "{why}");
        load.run_for(Duration::from_millis(2));
    }
}

#[test]
fn an_engine_killed_at_any_moment_of_a_change_leaves_all_of_it_to_the_next() {
    let house = House::start(&[("victim", RAM)], 2);
    let mut load = Load::new(house.connect("victim"), 3, 64, 12);
    let all = [("victim", RAM), ("disk", &format!("virtio-blk on {OTHER}")[..]), ("nvme", FILE)];
    for round in 0..12_u8 {
        let after = Duration::from_micros(u64::from(round) * 400);
        change(&house, &mut load, &all, Some(after));
        a_disk_is_served(&house, "disk", 2 * round + 1);
        house.connect("nvme");
        load.run_until_progress();
        a_disk_is_served(&house, "disk", 2 * round + 2);
        std::thread::scope(|scope| {
            let applied = scope.spawn(|| {
                let deadline = Instant::now() + PATIENCE;
                while let Err(why) = house.apply(&all[..1]) {
                    assert!(why.contains("a client is connected") && Instant::now() < deadline, "{why}");
                }
            });
            std::thread::sleep(after);
            house.kill();
            while !applied.is_finished() {
                load.run_for(Duration::from_millis(1));
            }
            applied.join().unwrap();
        });
        assert!(!house.socket("nvme").exists());
    }
    load.finish();
    house.stop();
}

#[test]
fn a_change_that_cannot_be_is_refused_before_anything_of_it_is_done() {
    let house = House::start(&[("victim", RAM)], 1);
    let mut load = Load::new(house.connect("victim"), 1, 16, 13);
    let pid = house.pid();
    let files = || {
        let mut names: Vec<_> =
            std::fs::read_dir(house.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        // What was there before writes its record when it has time to.
        names.retain(|name| !name.to_string_lossy().starts_with("victim"));
        names.sort();
        names
    };
    std::fs::write(house.path("mine.img"), vec![7; 8192]).unwrap();
    let before = files();
    let missing = "{ type = \"uring\", path = \"DIR/missing/x.img\", direct = false }";
    let mine = "{ type = \"uring\", path = \"DIR/mine.img\", direct = false }";
    for wrong in [missing, "virtio-blk on { type = \"uring\", path = \"DIR\", direct = false }"] {
        let said =
            house.apply(&[("good", FILE), ("mine", mine), ("victim", RAM), ("wrong", wrong)]).unwrap_err();
        assert!(said.contains("ssd \"wrong\"") && said.ends_with("nothing has changed"), "{said}");
        load.run_for(Duration::from_millis(10));
        assert_eq!(files(), before, "no socket and no file is left");
        assert_eq!(std::fs::read(house.path("mine.img")).unwrap(), vec![7; 8192]);
    }
    // Somebody else's drive.
    let locked = house.drive("mine.img");
    locked.try_lock().unwrap();
    let said = house.apply(&[("victim", RAM), ("mine", mine)]).unwrap_err();
    assert!(said.contains("it is in use"), "{said}");
    drop(locked);
    house.apply(&[("victim", RAM), ("mine", mine)]).unwrap();
    assert_eq!(std::fs::metadata(house.path("mine.img")).unwrap().len(), 64 << 20);
    assert_eq!(house.pid(), pid);
    load.finish();
    house.stop();
}

#[test]
fn a_disk_under_load_goes_on_too() {
    let disk = format!("virtio-blk on {RAM}");
    let house = House::start(&[("first", RAM), ("victim", &disk)], 2);
    let mut load = Checked::connect(&house.socket("victim"), 3, 16, Options::default(), 9);
    for round in 0..6_u32 {
        let ssds: &[(&str, &str)] =
            if round % 2 == 0 { &[("victim", &disk), ("new", FILE)] } else { &[("victim", &disk)] };
        std::thread::scope(|scope| {
            let applied = scope.spawn(|| house.apply(ssds).unwrap());
            while !applied.is_finished() {
                load.turn();
            }
            applied.join().unwrap();
        });
        if round % 3 == 1 {
            house.kill();
            load.run_until_progress();
        }
    }
    load.finish();
    drop(load);
    house.stop();
}
