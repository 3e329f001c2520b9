# Four Debian hosts on one machine, each with systemd as its first process: made, started, cut off, crashed.
#
# Sourced by `run`, inside namespaces of their own for mounts and processes: when the first process of these ends, however that
# is, all hosts end, and their mounts and network namespaces are gone. Addresses exist in these namespaces only.
#
# host N is 10.77.0.N on a bridge in the namespace `switch`, where port pN leads to it. Links are cut in the bridge:
# a rule on the host itself would make its sends fail, which no network does.

readonly HOSTS="1 2 3 4"

# Adds a host to the bridge, and puts a file system of its own above the common tree.
add_host() {
  local n=$1 home=$WORK/h$1
  mkdir -p "$home"/{upper,work,root}
  ip netns add "h$n"
  ip -n "h$n" link set lo up
  ip link add eth0 netns "h$n" type veth peer name "p$n" netns switch
  ip -n switch link set "p$n" master br0 up
  ip -n "h$n" addr add "10.77.0.$n/24" dev eth0
  ip -n "h$n" link set eth0 up
  mount -t overlay overlay -o "lowerdir=$TREE,upperdir=$home/upper,workdir=$home/work" "$home/root"
  echo "h$n" >"$home/root/etc/hostname"
  rm -f "$home/root/etc/machine-id"
  systemd-id128 new >"$home/root/etc/machine-id"
}

add_hosts() {
  mount -t tmpfs tmpfs /run/netns 2>/dev/null || { mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns; }
  ip netns add switch
  ip -n switch link add br0 type bridge forward_delay 0
  ip -n switch link set br0 up
  for n in $HOSTS; do add_host "$n"; done
}

# Switches a host on. It is up when `wait_boot` says so.
switch_on() {
  local n=$1 home=$WORK/h$1
  rm -f "$home/init"
  # A fresh view of cgroups, v2 alone whatever the machine has.
  setsid unshare --mount --propagation private bash -c '
    set -e
    umount -R /sys/fs/cgroup 2>/dev/null || umount -lR /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    mkdir -p "/sys/fs/cgroup/$1"
    echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
    mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd
    exec systemd-nspawn -q -D "$2/root" -M "$1" --boot --register=no --keep-unit \
      --network-namespace-path="/run/netns/$3" --resolv-conf=off --timezone=off --console=pipe
  ' - "$CGROUP-h$n" "$home" "h$n" </dev/null >>"$home/console" 2>&1 &
  echo $! >"$home/nspawn"
}

wait_boot() {
  local n=$1 home=$WORK/h$1 nspawn init
  nspawn=$(<"$home/nspawn")
  for _ in $(seq 600); do
    kill -0 "$nspawn" 2>/dev/null || { tail -5 "$home/console" >&2; die "host $n does not boot"; }
    init=$(pgrep -P "$nspawn" -o || true)
    if [ -n "$init" ] && nsenter -t "$init" -a -r -w systemctl is-system-running 2>/dev/null | grep -qE '^(running|degraded)'; then
      echo "$init" >"$home/init"
      return
    fi
    sleep 0.05
  done
  die "host $n does not boot within 30 s"
}

# Runs a command as root on a host.
on() {
  local n=$1
  shift
  nsenter -t "$(<"$WORK/h$n/init")" -a -r -w -- "$@"
}

# Runs a command on a host as one of its users.
as() {
  local n=$1 user=$2
  shift 2
  on "$n" runuser -u "$user" -- "$@"
}

# Cuts a host's power: its processes die at once.
pull_the_plug() {
  local n=$1 nspawn
  nspawn=$(<"$WORK/h$n/nspawn")
  kill -KILL "$(<"$WORK/h$n/init")"
  for _ in $(seq 200); do
    kill -0 "$nspawn" 2>/dev/null || return 0
    sleep 0.05
  done
  die "host $n is still on"
}

# Takes a host off the network.
cut_off() {
  ip netns exec switch nft -f - <<EOF
table bridge cuts {
  chain forward {
    type filter hook forward priority 0; policy accept
    iifname "p$1" counter drop
    oifname "p$1" counter drop
  }
}
EOF
}

heal() {
  ip netns exec switch nft delete table bridge cuts
}
