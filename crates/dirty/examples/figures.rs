//! What marking costs, and how large and how fast the compact form of 6 TiB is. `cargo run --release -p dirty --example figures`,
//! and `-- forms 0.1` for one share alone.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a measurement that cannot be made ends")]

use dirty::codec::{decode, encode};
use dirty::{Map, settle};
use std::hint::black_box;
use std::time::{Duration, Instant};

const PAGES: u64 = (6 << 40) / 4096;
/// Each time is the least of so many, and of as many as this takes.
const REPEATS: usize = 15;
const ENOUGH: Duration = Duration::from_millis(700);

struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// The least of several times: what it costs where nothing else runs.
fn least(mut run: impl FnMut() -> f64) -> f64 {
    let begin = Instant::now();
    let mut least = f64::INFINITY;
    for repeat in 0.. {
        if repeat >= REPEATS && begin.elapsed() >= ENOUGH {
            break;
        }
        least = least.min(run());
    }
    least
}

fn marks() {
    println!("marking, nanoseconds a mark of one page (a fence for sixteen):");
    for (name, pages) in [("1 GiB", 1_u64 << 18), ("1 TiB", 1 << 28), ("6 TiB", PAGES)] {
        let map = Map::new(pages).unwrap();
        let places: Vec<u64> = {
            let mut chance = Chance(88_172_645_463_325_252);
            (0..1 << 16).map(|_| chance.below(pages)).collect()
        };
        let run = |map: &Map| {
            let begin = Instant::now();
            for places in places.chunks(16) {
                settle();
                places.iter().for_each(|page| map.mark(black_box(*page), 1));
            }
            begin.elapsed().as_nanos() as f64 / places.len() as f64
        };
        let first = least(|| {
            map.take(|_, marks| _ = black_box(marks.count()));
            run(&map)
        });
        run(&map);
        println!("  {name:6} first {first:6.1}   again {:6.1}", least(|| run(&map)));
    }
}

fn forms(only: Option<&str>) {
    println!("6 TiB:      dirty    bytes a page   of plain     encode     decode");
    for (share, one_in) in [("0.01 %", 10_000), ("0.1 %", 1000), ("1 %", 100), ("10 %", 10), ("50 %", 2)] {
        if only.is_some_and(|only| share.trim_end_matches(" %") != only) {
            continue;
        }
        for (shape, run) in [("scattered", 1), ("clustered", 256)] {
            let map = Map::new(PAGES).unwrap();
            let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
            // At one half random marks would meet: every second run instead.
            for at in 0..PAGES / one_in / run {
                let first = if one_in == 2 { at * 2 * run } else { chance.below(PAGES) / run * run };
                map.mark(first, run);
            }
            let count = map.count() as f64;
            let mut bytes = Vec::new();
            let encoding = least(|| {
                let begin = Instant::now();
                bytes = encode(&map);
                begin.elapsed().as_secs_f64() * 1e3
            });
            let mut other = Map::new(PAGES).unwrap();
            decode(&bytes, &mut other).unwrap();
            let decoding = least(|| {
                other.take(|_, _| ());
                let begin = Instant::now();
                decode(&bytes, &mut other).unwrap();
                begin.elapsed().as_secs_f64() * 1e3
            });
            let plain = PAGES as f64 / 8.0;
            println!(
                "  {shape:9} {share:>6} {:14.3} {:9.2} % {encoding:7.2} ms {decoding:7.2} ms",
                bytes.len() as f64 / count,
                bytes.len() as f64 * 100.0 / plain,
            );
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_none_or(|what| what != "forms") {
        marks();
    }
    forms(args.get(1).map(String::as_str));
}
