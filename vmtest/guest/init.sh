#!/bin/busybox sh
# First process of a test guest: mounts the host's root folder (9p, read-only) under a tmpfs overlay and becomes its agent.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
while read -r module; do
    $bb insmod "/modules/$module" || echo "init: $module does not load"
done < /modules/order
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose root9p /lower
$bb mount -t tmpfs tmpfs /upper
$bb mkdir /upper/data /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /newroot
for d in proc sys dev; do $bb mount --move /$d /newroot/$d; done
$bb mount -t tmpfs run /newroot/run
$bb mount -t tmpfs tmp /newroot/tmp
$bb cp /agent /newroot/run/agent
# The image has no init system, so no reboot and no poweroff of its own.
$bb cp $bb /newroot/run/busybox
exec $bb switch_root /newroot /bin/sh /run/agent
