//! Godwit beside the raw file and beside QEMU's own NVMe drive: same file, same job, rounds interleaved because disks drift.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmtest::fio::{Measured, measured};
use vmtest::image::Image;
use vmtest::vm::Vm;

use super::SIZE_MIB;
use super::show::Show;

const DEPTHS: [u32; 2] = [1, 32];
const ROUNDS: usize = 3;
const SECONDS: u32 = 3;
const NAMES: [&str; 3] = ["the file itself (host)", "Godwit (guest)", "QEMU's own nvme (guest)"];

/// Measures and returns the table.
pub(super) fn compare(
    show: &mut Show,
    image: &Image,
    vm: &mut Vm,
    file: &Path,
    guest: [&str; 2],
) -> Result<String> {
    show.step(&format!(
        "Speed: 4 KiB random reads, {ROUNDS} interleaved rounds of {SECONDS} s each, medians"
    ));
    let mut rows: [Vec<Measured>; 3] = Default::default();
    for depth in DEPTHS {
        let mut rounds: [Vec<Measured>; 3] = Default::default();
        for _ in 0..ROUNDS {
            rounds[0].push(on_host(image, file, depth)?);
            for (place, device) in guest.iter().enumerate() {
                rounds[place + 1].push(in_guest(vm, device, depth)?);
            }
        }
        show.note(&format!("depth {depth}: {rounds:?}"));
        for (row, rounds) in rows.iter_mut().zip(&rounds) {
            row.push(median(rounds));
        }
    }
    Ok(table(&rows))
}

fn job(target: &str, depth: u32) -> Vec<String> {
    let words = "--name=speed --rw=randread --bs=4k --direct=1 --ioengine=io_uring --time_based --norandommap \
                 --randrepeat=0 --output-format=json";
    let mut job: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    job.extend([format!("--filename={target}"), format!("--size={SIZE_MIB}m"), format!("--iodepth={depth}")]);
    job.push(format!("--runtime={SECONDS}"));
    job
}

fn on_host(image: &Image, file: &Path, depth: u32) -> Result<Measured> {
    let output =
        image.program("fio").args(job(&file.to_string_lossy(), depth)).output().context("start fio")?;
    ensure!(output.status.success(), "fio on the host: {}", String::from_utf8_lossy(&output.stderr));
    measured(&String::from_utf8_lossy(&output.stdout))
}

fn in_guest(vm: &mut Vm, device: &str, depth: u32) -> Result<Measured> {
    let script = format!("fio {}", job(device, depth).join(" "));
    let report = vm.run_within(Duration::from_secs(120), &script)?.into_ok(&script)?;
    measured(&report)
}

/// Of each figure by itself.
fn median(rounds: &[Measured]) -> Measured {
    let of = |figure: fn(&Measured) -> f64| {
        let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Measured { iops: of(|m| m.iops), p50_us: of(|m| m.p50_us), p99_us: of(|m| m.p99_us) }
}

fn table(rows: &[Vec<Measured>; 3]) -> String {
    let mut text = format!("{:<26}", "4 KiB random read");
    for depth in DEPTHS {
        let title = format!("depth {depth}");
        // Writing to a String cannot fail.
        let _ = write!(text, "|{title:>8} {:>7} {:>8} {:>8} ", "IOPS", "p50 µs", "p99 µs");
    }
    text.push('\n');
    for (name, row) in NAMES.iter().zip(rows) {
        let _ = write!(text, "{name:<26}");
        for m in row {
            let _ = write!(text, "|{:>16.0} {:>8.0} {:>8.0} ", m.iops, m.p50_us, m.p99_us);
        }
        text.push('\n');
    }
    text.push_str(
        "\nThe guest's processors are emulated here (TCG), and its driver and fio run on them: its rows compare the two\n\
         drives with each other. For Godwit without a guest in the way: cargo xtask bench.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::{Measured, median, table};

    #[test]
    fn the_median_is_taken_of_each_figure() {
        let of = |iops, p50_us, p99_us| Measured { iops, p50_us, p99_us };
        assert_eq!(median(&[of(3.0, 1.0, 9.0), of(1.0, 5.0, 2.0), of(2.0, 3.0, 4.0)]), of(2.0, 3.0, 4.0));
    }

    #[test]
    fn the_columns_of_the_table_line_up() {
        let row = vec![Measured { iops: 123_456.0, p50_us: 8.0, p99_us: 12.0 }; 2];
        let text = table(&[row.clone(), row.clone(), row]);
        let ends: Vec<usize> = text.lines().take(4).map(|line| line.chars().count()).collect();
        assert!(ends.iter().all(|end| *end == ends[0]), "{text}");
    }
}
