//! As many ssds as an engine is meant for.

use crate::house::House;
use guest::nvme::{Driver, Options};

const SSDS: usize = 256;
const QUEUES: u16 = 4;

fn one_read_on_each_queue(drivers: &mut [Driver]) {
    for driver in drivers {
        let buffer = driver.ram().clone().alloc(4096).unwrap();
        for qid in 1..=QUEUES {
            driver.read(qid, 1, u64::from(qid) * 8, 8, &buffer).unwrap().ok().unwrap();
        }
    }
}

#[test]
fn an_engine_serves_256_ssds_with_four_queue_pairs_each_and_so_does_the_next_one() {
    let names: Vec<String> = (0..SSDS).map(|at| format!("ssd{at}")).collect();
    let ssds: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "{ type = \"null\" }")).collect();
    let house = House::start(&ssds, 2);
    let options = Options { ram_bytes: 1 << 20, ..Options::default() };
    let mut drivers: Vec<Driver> = names.iter().map(|name| house.connect_with(name, options)).collect();
    for driver in &mut drivers {
        (1..=QUEUES).for_each(|qid| driver.create_queue_pair(qid, 16).unwrap());
    }
    one_read_on_each_queue(&mut drivers);
    let threads = |pid: rustix::process::Pid| {
        std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap().count()
    };
    let count = threads(house.pid().unwrap());
    // A reader and a worker for each client, the reactors, and a few more.
    assert!(count <= 2 * SSDS + 16, "{count} threads");
    house.kill();
    one_read_on_each_queue(&mut drivers);
    house.stop();
}
