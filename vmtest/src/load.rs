//! What a guest does with its disks and its memory while it moves, and looks at: each byte must be as it was written.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::kernel_log::nvme_complaints;
use crate::vm::Vm;

const PATIENCE: Duration = Duration::from_secs(300);
const KNOWN_MIB: u32 = 4;

/// Reads known data through the page cache, which the device writes to.
const READER: &str = r"
until [ -e /run/stop ]; do
    echo 1 > /proc/sys/vm/drop_caches
    cmp -n $bytes /tmp/known $disk >> /run/bad 2>&1 || echo 'as it was read' >> /run/bad
    cmp -n $bytes /tmp/known $disk >> /run/bad 2>&1 || echo 'as it was kept' >> /run/bad
    echo >> $0.rounds
done
touch $0.done
";
/// Writes and verifies, past the page cache.
const WRITER: &str = "
until [ -e /run/stop ]; do
    fio --name=verify --filename=$disk --offset=48m --size=2m --rw=randrw --bs=4k --iodepth=16 --ioengine=io_uring \
        --direct=1 --verify=crc32c --verify_fatal=1 --randrepeat=0 > $0.fio 2>&1 || cat $0.fio >> /run/bad
    echo >> $0.rounds
done
touch $0.done
";
/// Memory that the guest's own processors write, and that must be as they wrote it.
const CHECKER: &str = r"
until [ -e /run/stop ]; do
    head -c 4m /dev/urandom > /run/memory
    sum=$(md5sum < /run/memory)
    for i in 1 2 3 4 5; do [ $(md5sum < /run/memory | cut -c1-32) = ${sum%% *} ] || echo 'memory' >> /run/bad; done
    echo >> $0.rounds
done
touch $0.done
";

/// A guest's work.
pub struct Load {
    names: Vec<String>,
    boot: String,
}

impl Load {
    /// Begins to read from, and to write to, each of these disks (`/dev/nvme0n1`), which have 64 MiB or more.
    pub fn begin(vm: &mut Vm, disks: &[&str]) -> Result<Load> {
        let mut load = Load { names: Vec::new(), boot: boot_id(vm)? };
        vm.run_ok(&format!("dd if=/dev/urandom of=/tmp/known bs=1M count={KNOWN_MIB} 2>&1"))?;
        load.work(vm, "checker", "", CHECKER)?;
        for (number, disk) in (1..).zip(disks) {
            vm.run_ok(&format!("for i in $(seq 600); do [ -b {disk} ] && exit; sleep 0.1; done; exit 1"))?;
            vm.run_ok(&format!("dd if=/tmp/known of={disk} bs=1M oflag=direct 2>&1"))?;
            load.work(vm, &format!("reader{number}"), disk, READER)?;
            load.work(vm, &format!("writer{number}"), disk, WRITER)?;
        }
        load.wait(vm, 1)?;
        Ok(load)
    }

    fn work(&mut self, vm: &mut Vm, name: &str, disk: &str, script: &str) -> Result<()> {
        let bytes = u64::from(KNOWN_MIB) << 20;
        vm.run_ok(&format!(
            "cat > /run/{name} <<'END'\ndisk={disk}\nbytes={bytes}\n{script}\nEND\nsetsid sh /run/{name} < /dev/null > /run/{name}.out 2>&1 &"
        ))?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Until each part of it has gone round so often again.
    pub fn goes_on(&self, vm: &mut Vm, rounds: usize) -> Result<()> {
        vm.run_ok(&format!(
            "cd /run; for name in {}; do cat $name.rounds | wc -l > $name.before; done",
            self.names.join(" ")
        ))?;
        self.wait(vm, rounds)
    }

    /// Until each has gone round so often since it was last counted, or began.
    fn wait(&self, vm: &mut Vm, rounds: usize) -> Result<()> {
        let script = format!(
            "cd /run
            count() {{ cat $1.rounds 2>/dev/null | wc -l; }}
            for i in $(seq 600); do
                late=
                for name in {}; do
                    [ $(count $name) -ge $(($(cat $name.before 2>/dev/null || echo 0) + {rounds})) ] || late=1
                done
                [ $late ] || exit 0
                sleep 0.2
            done
            ps; wc -l *.rounds; cat bad *.out /sys/block/*/inflight; echo w > /proc/sysrq-trigger; dmesg | tail -60; exit 1",
            self.names.join(" ")
        );
        vm.run_within(PATIENCE, &script)?.into_ok(&script).map(drop)
    }

    /// Ends it: all that was read was as it was written, the kernel is the one that began it, and complained of nothing.
    pub fn end(self, vm: &mut Vm) -> Result<()> {
        let all =
            format!("cd /run; for name in {}; do [ -e $name.done ] || exit 1; done", self.names.join(" "));
        let script =
            format!("touch /run/stop; for i in $(seq 600); do ({all}) && exit; sleep 0.2; done; exit 1");
        vm.run_within(PATIENCE, &script)?.into_ok(&script)?;
        ensure!(boot_id(vm)? == self.boot, "another kernel runs");
        let bad = vm.run_ok("cat /run/bad 2>/dev/null || true")?;
        ensure!(bad.is_empty(), "the guest read what it should not: {bad}");
        let log = vm.kernel_log()?;
        let complaints = nvme_complaints(&log, &[]);
        ensure!(complaints.is_empty(), "the guest's kernel complains:\n{}", complaints.join("\n"));
        Ok(())
    }
}

fn boot_id(vm: &mut Vm) -> Result<String> {
    vm.run_ok("cat /proc/sys/kernel/random/boot_id")
}
