#!/bin/busybox sh
# First process of a test guest: mounts the host's root folder (9p, read-only) under a tmpfs overlay and becomes its agent.
# With `godwit.root=memory` it copies busybox, fio and cmp into memory and lets the host's folder go: QEMU migrates no guest that has one mounted.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
while read -r module; do
    $bb insmod "/modules/$module" || echo "init: $module does not load"
done < /modules/order
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose root9p /lower
if $bb grep -q godwit.root=memory /proc/cmdline; then
    $bb mount -t tmpfs -o size=60% root /newroot
    for d in bin dev proc sys run tmp root mnt; do $bb mkdir /newroot/$d; done
    $bb cp $bb /newroot/bin/busybox
    $bb chroot /newroot /bin/busybox --install -s /bin
    loader=/lib64/ld-linux-x86-64.so.2
    for program in /usr/bin/fio /usr/bin/cmp; do
        libraries=$($bb chroot /lower $loader --list $program | $bb sed -n 's|.* \(/[^ ]*\) (0x.*|\1|p')
        for file in $program $loader $libraries; do
            $bb mkdir -p "/newroot${file%/*}"
            $bb cp "/lower$file" "/newroot$file"
        done
    done
    $bb chroot /lower /sbin/modprobe virtio_blk
    $bb umount /lower
else
    $bb mount -t tmpfs tmpfs /upper
    $bb mkdir /upper/data /upper/work
    $bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /newroot
fi
for d in proc sys dev; do $bb mount --move /$d /newroot/$d; done
$bb mount -t tmpfs run /newroot/run
$bb mount -t tmpfs tmp /newroot/tmp
$bb cp /agent /newroot/run/agent
# The image has no init system, so no reboot and no poweroff of its own.
$bb cp $bb /newroot/run/busybox
exec $bb switch_root /newroot /bin/sh /run/agent
