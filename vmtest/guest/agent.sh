# The agent of a test guest. A request is one line: an id and a base64 shell script. The answer is one line,
# "= ID STATUS BYTES_OF_STDOUT BYTES_OF_STDERR", followed by those bytes. Everything goes over one virtio-serial port.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
hostname guest
port=/dev/vport0p1
while [ ! -e $port ]; do sleep 0.1; done
exec 3<>$port
echo "ready" >&3
while read -r id script <&3; do
    echo "$script" | base64 -d > /run/script
    sh /run/script > "/run/out.$id" 2> "/run/err.$id" < /dev/null
    status=$?
    echo "= $id $status $(stat -c %s "/run/out.$id") $(stat -c %s "/run/err.$id")" >&3
    cat "/run/out.$id" "/run/err.$id" >&3
    rm -f "/run/out.$id" "/run/err.$id"
done
