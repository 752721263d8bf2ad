//! What nvme-cli can ask of the drive: identify, logs, features, and the commands no file system sends.

use anyhow::{Context, Result, ensure};
use vmtest::bed::{Drive, with_guest};
use vmtest::daemon::Ssd;
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

#[test]
fn blocks_marked_uncorrectable_fail_to_read_until_they_are_written() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 128)], |bed| {
        let vm = bed.vm();
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
