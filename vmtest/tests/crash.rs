//! The engine dies and is replaced under a stock guest, which must notice nothing but the time.

use std::time::Duration;

use anyhow::{Result, ensure};
use vmtest::bed::{Bed, Drive, with_guest};
use vmtest::daemon::{Backend, Ssd};

const LOAD_PATIENCE: Duration = Duration::from_secs(300);
const KILLS: u32 = 20;
const UPGRADES: u32 = 5;

/// Two loads that end when /tmp/stop is there: fio's verify on one raw drive, and files on the other, written, copied,
/// compared from the drive, deleted and trimmed. The status goes to /tmp/status.
const LOAD: &str = r#"
mkfs.ext4 -q -E nodiscard /dev/nvme0n1 && mount /dev/nvme0n1 /mnt || exit 1
cat > /tmp/load <<'END'
raw() {
    while [ ! -e /tmp/stop ]; do
        fio --name=raw --filename=/dev/nvme1n1 --size=16m --rw=randwrite --bsrange=512-128k --blockalign=512 --iodepth=16 \
            --ioengine=io_uring --direct=1 --verify=crc32c --verify_fatal=1 --randrepeat=0 > /tmp/raw 2>&1 || return 7
        echo >> /tmp/rounds
    done
}
files() {
    n=0
    while [ ! -e /tmp/stop ]; do
        n=$((n + 1)); d=/mnt/$((n % 4))
        rm -rf $d && mkdir $d && head -c 2M /dev/urandom > /tmp/data && cp /tmp/data $d/data && cp $d/data $d/copy || return 8
        sync && echo 3 > /proc/sys/vm/drop_caches
        cmp /tmp/data $d/data && cmp /tmp/data $d/copy || return 9
        [ $((n % 4)) != 0 ] || fstrim /mnt || return 10
        echo >> /tmp/rounds
    done
}
raw & one=$!
files & two=$!
wait $one; one=$?; wait $two; two=$?
echo $one $two > /tmp/status
END
sh /tmp/load > /tmp/said 2>&1 &
while [ ! -s /tmp/rounds ]; do sleep 0.1; done
"#;

const END: &str = "touch /tmp/stop; while [ ! -s /tmp/status ]; do sleep 0.1; done; \
    [ \"$(cat /tmp/status)\" = '0 0' ] || { cat /tmp/status /tmp/said /tmp/raw; exit 1; }; \
    umount /mnt && e2fsck -fn /dev/nvme0n1 && wc -l < /tmp/rounds";

/// Kills and upgrades under load, at moments that differ from test to test but not from run to run.
fn disturb(bed: &mut Bed, kills: u32, upgrades: u32) -> Result<()> {
    let mut moment = 12_345_u64;
    let mut pause = || {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(200 + (moment >> 33) % 500));
    };
    let all = kills + upgrades;
    for event in 0..all {
        pause();
        // Spread evenly among the kills.
        if (event + 1) * upgrades / all > event * upgrades / all {
            bed.daemon().upgrade()?;
        } else {
            bed.daemon().kill_engine()?;
        }
    }
    pause();
    Ok(())
}

#[test]
fn a_guest_under_load_notices_neither_twenty_kills_nor_five_upgrades_of_the_engine() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 256), Ssd::new("b", 64).on(Backend::Ram)], |bed| {
        bed.vm().run_within(LOAD_PATIENCE, LOAD)?.into_ok("load")?;
        disturb(bed, KILLS, UPGRADES)?;
        let rounds = bed.vm().run_within(LOAD_PATIENCE, END)?.into_ok("end of load")?;
        ensure!(!rounds.contains("reset"), "{rounds}");
        Ok(())
    })
}

#[test]
fn an_idle_guest_and_a_booting_one_outlive_the_engine() -> Result<()> {
    if Drive::chosen() == Drive::Qemu {
        return Ok(());
    }
    with_guest(&[Ssd::new("a", 128)], |bed| {
        bed.vm().run_ok(
            "head -c 8M /dev/urandom > /tmp/d && dd if=/tmp/d of=/dev/nvme0n1 bs=1M oflag=direct status=none",
        )?;
        // Idle: the next engine must find the doorbells without being told.
        for _ in 0..3 {
            bed.daemon().kill_engine()?;
            std::thread::sleep(Duration::from_secs(1));
            bed.vm().run_ok("dd if=/dev/nvme0n1 bs=1M count=8 iflag=direct status=none | cmp - /tmp/d")?;
        }
        // Unbound and bound again: registers, admin queue, interrupts anew, with a kill in the middle of each.
        for _ in 0..3 {
            bed.vm().run_ok(
                "dev=$(basename $(readlink -f /sys/class/nvme/nvme0/device)); cd /sys/bus/pci/drivers/nvme; \
                 rm -f /tmp/bound; (sleep 0.05; echo $dev > unbind; echo $dev > bind; touch /tmp/bound) > /dev/null 2>&1 &",
            )?;
            std::thread::sleep(Duration::from_millis(100));
            bed.daemon().kill_engine()?;
            // Until then it is the device that goes.
            bed.vm().run_ok(
                "for n in $(seq 600); do [ -e /tmp/bound ] && [ -b /dev/nvme0n1 ] && break; sleep 0.1; done; cmp -n 8388608 /tmp/d /dev/nvme0n1",
            )?;
        }
        Ok(())
    })
}
