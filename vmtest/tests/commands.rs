//! What nvme-cli can ask of the drive: identify, logs, features, and the commands no file system sends.

use anyhow::{Context, Result, ensure};
use vmtest::bed::{Drive, with_guest};
use vmtest::daemon::{Backend, Ssd};
use vmtest::vm::Vm;

/// Runs every script and reports all that fail, not only the first.
fn all_ok(vm: &mut Vm, scripts: &[&str]) -> Result<()> {
    let mut failures = Vec::new();
    for script in scripts {
        if let Err(error) = vm.run_ok(script) {
            failures.push(format!("{error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), scripts.len(), failures.join("\n"));
    Ok(())
}

/// The namespace's patterns: /tmp/d holds random data that blocks 0 to 127 hold too.
fn fill(vm: &mut Vm) -> Result<()> {
    vm.run_ok(
        "head -c 64k /dev/urandom > /tmp/d && dd if=/tmp/d of=/dev/nvme0n1 bs=64k oflag=direct status=none",
    )
    .map(drop)
}

#[test]
fn identify_logs_and_features_answer_as_nvme_cli_expects() -> Result<()> {
    with_guest(&[Ssd::new("a", 128)], |bed| {
        let vm = bed.vm();
        all_ok(
            vm,
            &[
                "nvme id-ctrl /dev/nvme0 | grep -E '^mdts +: *[1-9]'",
                "nvme id-ctrl -H /dev/nvme0 > /dev/null",
                "nvme id-ns /dev/nvme0n1 | grep 'in use'",
                "nvme id-ns -H /dev/nvme0n1 > /dev/null",
                "nvme ns-descs /dev/nvme0n1",
                "nvme list-ns /dev/nvme0 | grep 0x1",
                "nvme list-ns --all /dev/nvme0 | grep 0x1",
                "nvme list-ctrl /dev/nvme0",
                "nvme show-regs /dev/nvme0 | grep -i csts",
                "nvme error-log /dev/nvme0 -e 1",
                "nvme smart-log /dev/nvme0 | grep -E '^critical_warning[[:space:]]+: 0'",
                "nvme fw-log /dev/nvme0",
                "nvme changed-ns-list-log /dev/nvme0",
                // Without --csi, nvme-cli also asks for the zoned command set of a drive that names command sets at all.
                "nvme effects-log /dev/nvme0 --csi=0",
                "nvme get-log /dev/nvme0 --log-id=5 --log-len=4096 > /dev/null",
                "nvme get-log /dev/nvme0 --log-id=2 --log-len=512 > /dev/null",
                "nvme get-log /dev/nvme0 --log-id=2 --log-len=8 --lpo=32 > /dev/null",
                "nvme get-feature /dev/nvme0 -f 1",
                "nvme get-feature /dev/nvme0 -f 2",
                "nvme get-feature /dev/nvme0 -f 4",
                "nvme get-feature /dev/nvme0n1 -n 1 -f 5",
                "nvme get-feature /dev/nvme0 -f 6",
                "nvme get-feature /dev/nvme0 -f 7",
                "nvme get-feature /dev/nvme0 -f 8",
                "nvme get-feature /dev/nvme0 -f 9",
                "nvme get-feature /dev/nvme0 -f 0xa",
                "nvme get-feature /dev/nvme0 -f 0xb",
                "for sel in 0 1 3; do nvme get-feature /dev/nvme0 -f 6 -s $sel || exit 1; done",
                "nvme set-feature /dev/nvme0 -f 4 -V 0x150 && nvme get-feature /dev/nvme0 -f 4 | grep -i 0x0*150",
                "nvme set-feature /dev/nvme0 -f 6 -V 0 && nvme get-feature /dev/nvme0 -f 6 | grep -E 'value:(0x)?0+$'",
                "nvme set-feature /dev/nvme0 -f 6 -V 1 && nvme get-feature /dev/nvme0 -f 6 | grep -E 'value:0x0*1$'",
            ],
        )?;
        if Drive::chosen() == Drive::Godwit {
            all_ok(
                vm,
                &[
                    "nvme self-test-log /dev/nvme0",
                    "nvme sanitize-log /dev/nvme0",
                    "nvme get-feature /dev/nvme0 -f 0xf",
                    "nvme get-feature /dev/nvme0 -f 0x81 -l 16",
                ],
            )?;
        }
        // An unknown log page or feature is refused (a status, not a transport error), and the drive goes on.
        ensure!(vm.run("nvme get-log /dev/nvme0 --log-id=0xb7 --log-len=512")?.status != 0);
        ensure!(vm.run("nvme get-feature /dev/nvme0 -f 0x77")?.status != 0);
        vm.run_ok("dd if=/dev/nvme0n1 of=/dev/null bs=1M count=4 iflag=direct status=none").map(drop)
    })
}

#[test]
fn smart_counts_what_the_guest_does() -> Result<()> {
    with_guest(&[Ssd::new("a", 128)], |bed| {
        let read = |vm: &mut Vm| -> Result<u64> {
            let script = "nvme smart-log -o json /dev/nvme0 | sed -n 's/.*\"host_write_commands\":\"\\{0,1\\}\\([0-9]*\\).*/\\1/p'";
            let text = vm.run_ok(script)?;
            text.trim().parse().with_context(|| format!("host_write_commands is `{text}`"))
        };
        let before = read(bed.vm())?;
        bed.vm().run_ok("dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=100 oflag=direct status=none")?;
        let written = read(bed.vm())? - before;
        ensure!(written >= 100, "100 writes, and the log counts {written}");
        Ok(())
    })
}

#[test]
fn the_optional_io_commands_do_what_they_say() -> Result<()> {
    with_guest(&[Ssd::new("a", 128)], |bed| {
        let vm = bed.vm();
        fill(vm)?;
        all_ok(
            vm,
            &[
                "nvme flush /dev/nvme0n1 -n 1",
                "head -c 4096 /tmp/d > /tmp/4k && nvme compare /dev/nvme0n1 -s 0 -c 7 -z 4096 -d /tmp/4k",
                "nvme compare /dev/nvme0n1 -s 0 -c 7 -z 4096 -d /dev/zero 2>&1 | grep -i compare",
                "nvme verify /dev/nvme0n1 -s 0 -c 127",
                "nvme write-zeroes /dev/nvme0n1 -s 8 -c 7 && nvme read /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/z && \
                 cmp -n 4096 /tmp/z /dev/zero",
                "nvme dsm /dev/nvme0n1 -n 1 --ad -s 16,32 -b 8,8 && \
                 nvme read /dev/nvme0n1 -s 32 -c 7 -z 4096 -d /tmp/z && cmp -n 4096 /tmp/z /dev/zero",
                // What lies between the deallocated ranges is untouched.
                "nvme read /dev/nvme0n1 -s 24 -c 7 -z 4096 -d /tmp/z && \
                 dd if=/tmp/d bs=512 skip=24 count=8 status=none | cmp - /tmp/z",
                "nvme read /dev/nvme0n1 -s 0 -c 7 -z 4096 -d /tmp/z --force-unit-access && cmp /tmp/z /tmp/4k",
            ],
        )?;
        // QEMU's own drive copies nothing: its limits are 0.
        if Drive::chosen() == Drive::Godwit {
            fill(vm)?;
            vm.run_ok(
                "nvme copy /dev/nvme0n1 --sdlba=1000 --slbs=0,64 --blocks=63,31 && \
                 nvme read /dev/nvme0n1 -s 1000 -c 95 -z 49152 -d /tmp/c && head -c 49152 /tmp/d | cmp - /tmp/c",
            )?;
        }
        // Out of range: refused, and the drive goes on.
        let blocks: u64 = vm.run_ok("blockdev --getsz /dev/nvme0n1")?.trim().parse()?;
        let beyond = vm.run(&format!("nvme read /dev/nvme0n1 -s {blocks} -c 0 -z 512 -d /tmp/z 2>&1"))?;
        ensure!(beyond.status != 0 && beyond.stdout.to_lowercase().contains("range"), "{beyond:?}");
        vm.run_ok("nvme verify /dev/nvme0n1 -s 0 -c 127").map(drop)
    })
}

/// First block and blocks of each descriptor, and the completion condition.
fn allocated(vm: &mut Vm, drive: u8, slba: u64, dwords: u32) -> Result<(Vec<(u64, u64)>, u64)> {
    let get = format!(
        "nvme admin-passthru /dev/nvme{drive} --opcode=0x86 --namespace-id=1 --cdw10={slba} --cdw12={} --cdw13=0x02000000 -l {} -r -b 2> /dev/null | od -An -v -tu8 -w8",
        dwords - 1,
        dwords * 4
    );
    let list = vm.run_ok(&get)?;
    let words: Vec<u64> = list.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let (head, descriptors) = words.split_first().context("no list")?;
    let count = usize::try_from(head & 0xffff_ffff)?;
    let runs = descriptors.chunks_exact(2).take(count);
    ensure!(runs.clone().all(|run| run[1] >> 40 == 0b010), "allocated is status 010b: {words:x?}");
    Ok((runs.map(|run| (run[0], (run[1] & 0xffff_ffff) + 1)).collect(), head >> 32))
}

/// The drive of that size: Linux may number drives in any order.
fn drive_of(vm: &mut Vm, size_mib: u64) -> Result<u8> {
    let found = vm.run_ok(&format!("grep -lx {} /sys/block/nvme*n1/size", size_mib * 2048))?;
    let number = found.trim().strip_prefix("/sys/block/nvme").and_then(|rest| rest.strip_suffix("n1/size"));
    number.context("no drive of that size")?.parse().with_context(|| found.clone())
}

/// NVM 1.1, 4.2.1.1.1, on a file, on extents given as they are written, and on extents given at the start.
fn what_is_allocated_is_told(vm: &mut Vm) -> Result<()> {
    let (file, thin, full) = (drive_of(vm, 128)?, drive_of(vm, 96)?, drive_of(vm, 64)?);
    let told = |vm: &mut Vm, drive| -> Result<Vec<(u64, u64)>> {
        let (runs, condition) = allocated(vm, drive, 0, 1024)?;
        ensure!(condition == 2, "all of it fits: {runs:?}");
        Ok(runs)
    };
    let covers =
        |runs: &[(u64, u64)], at: u64| runs.iter().any(|(slba, blocks)| (*slba..slba + blocks).contains(&at));
    // Whatever a test before wrote to one of them is given back.
    vm.run_ok(&format!(
        "blkdiscard /dev/nvme{file}n1 && blkdiscard /dev/nvme{thin}n1 && dd if=/tmp/d of=/dev/nvme{file}n1 bs=64k oflag=direct status=none && \
         nvme get-lba-status /dev/nvme{file}n1 -n 1 -s 0 -m 0x100 -a 0x02 -l 0 | grep -i nlsd"
    ))?;
    let runs = [told(vm, file)?, told(vm, thin)?, told(vm, full)?];
    ensure!(runs == [vec![(0, 128)], vec![], vec![(0, 64 * 2048)]], "{runs:?}");
    vm.run_ok(&format!(
        "for at in 10 70; do dd if=/tmp/d of=/dev/nvme{thin}n1 bs=64k seek=$((at * 16)) oflag=direct status=none; done"
    ))?;
    let all = told(vm, thin)?;
    ensure!(covers(&all, 10 * 2048 + 127) && covers(&all, 70 * 2048), "{all:?}");
    ensure!(!covers(&all, 0) && !covers(&all, 90 * 2048), "an extent is not as large as that: {all:?}");
    // No room for the second: it says so, and goes on behind the first.
    let (first, condition) = allocated(vm, thin, 0, 6)?;
    ensure!((first.len(), condition) == (1, 1) && first[0] == all[0], "{first:?} of {all:?}");
    let (rest, condition) = allocated(vm, thin, first[0].0 + first[0].1, 1024)?;
    ensure!(condition == 2 && rest == all[1..], "{rest:?} of {all:?}");
    // Given back, and marked where nothing was written.
    vm.run_ok(&format!(
        "blkdiscard -o 0 -l 32768 /dev/nvme{file}n1 && blkdiscard /dev/nvme{thin}n1 && nvme write-uncor /dev/nvme{file}n1 -s 4096 -c 7"
    ))?;
    let runs = [told(vm, file)?, told(vm, thin)?];
    ensure!(runs == [vec![(64, 64), (4096, 8)], vec![]], "{runs:?}");
    Ok(())
}

#[test]
fn blocks_marked_uncorrectable_fail_to_read_until_they_are_written() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    // On a file, and on extents given as they are written and at the start.
    let ssds = [("a", 128, Backend::Uring), ("b", 96, Backend::Thin), ("c", 64, Backend::Full)];
    let ssds = ssds.map(|(name, size, backend)| Ssd::new(name, size).on(backend).of_profile("godwit-2"));
    with_guest(&ssds, |bed| {
        let vm = bed.vm();
        fill(vm)?;
        what_is_allocated_is_told(vm)?;
        fill(vm)?;
        all_ok(
            vm,
            &[
                "nvme write-uncor /dev/nvme0n1 -s 64 -c 7",
                "nvme read /dev/nvme0n1 -s 64 -c 0 -z 512 -d /tmp/z 2>&1 | grep -i 'unrecovered'",
                "nvme get-lba-status /dev/nvme0n1 -n 1 -s 0 -m 0x100 -a 0x11 -l 0 > /tmp/status && grep -i nlsd /tmp/status",
                "nvme read /dev/nvme0n1 -s 63 -c 0 -z 512 -d /tmp/z",
                "nvme error-log /dev/nvme0 -e 4 > /dev/null",
                "head -c 4096 /tmp/d > /tmp/4k && nvme write /dev/nvme0n1 -s 64 -c 7 -z 4096 -d /tmp/4k",
                "nvme read /dev/nvme0n1 -s 64 -c 7 -z 4096 -d /tmp/z && cmp /tmp/z /tmp/4k",
            ],
        )
    })
}
