# What happens to the hosts. Sourced by `run`; every step says what it shows, and ends the test when that is not so.

property() { on "$1" systemctl show -P "$2" bftd; }
is_active() { [ "$(property "$1" ActiveState)" = active ]; }
state() { on "$1" bftctl status -o value; }
is_healthy() { [ "$(state "$1" || true)" = HEALTHY ]; }
wait_healthy() {
  for n in $HOSTS; do within 20 "host $n sees a healthy cluster" is_healthy "$n"; done
}
field() { grep -o "\"$2\":[^,}]*" <<<"$1" | head -1 | cut -d: -f2- | tr -d '"'; }
executed() { field "$(on "$1" bftctl status -o json)" executed; }
has_caught_up() { [ "$(executed "$1")" -ge "$2" ]; }
journal() { on "$1" journalctl -u bftd -o json --no-pager; }

# ---- installed ----
add_hosts
for n in $HOSTS; do switch_on "$n"; done
for n in $HOSTS; do wait_boot "$n"; done
say "four hosts are up"

for n in $HOSTS; do
  cp "$WORK/bftd.deb" "$WORK/h$n/root/root/"
  expect 0 "systemctl enable --now bftd" on "$n" dpkg -i /root/bftd.deb
  is_active "$n" && die "host $n: the package started the daemon"
done
on 1 getent group bftd bftd-admin >/dev/null || die "the groups are missing"
[ "$(on 1 stat -c '%a %U:%G' /var/lib/bftd)" = "700 bftd:bftd" ] || die "the data directory is open to others"
say "installed: nothing is started, the next commands are printed"

# ---- formed ----
for n in $HOSTS; do
  on "$n" useradd -m -G bftd alice
  on "$n" useradd -m eve
done
start_all() {
  local n start took slowest=0
  for n in $HOSTS; do
    on "$n" systemctl stop bftd
    start=$(now_ms)
    on "$n" systemctl start bftd
    took=$(($(now_ms) - start))
    [ "$took" -le "$slowest" ] || slowest=$took
    is_active "$n" || die "host $n: the daemon is not there"
  done
  echo "$slowest"
}
slowest=$(start_all)
[ "$slowest" -lt 1000 ] || die "systemctl start took $slowest ms until READY"
expect 11 UNINITIALISED on 1 bftctl status
on 1 systemctl status bftd --no-pager | grep -q 'Status: "UNINITIALISED' || die "systemctl status does not say UNINITIALISED"
say "started: READY without a cluster after $slowest ms at most"

expect 9 "" as 1 alice bftctl init --name hosts --expect 4 --advertise 10.77.0.1:7000
token=$(on 1 bftctl -q init --name hosts --expect 4 --advertise 10.77.0.1:7000 --no-wait -o value)
for n in 2 3; do on "$n" bftctl -q join "$token" --advertise "10.77.0.$n:7000" --no-wait; done
token=$(on 1 bftctl token create --uses 1 -o value)
formed=$(on 4 bftctl -q join "$token" --advertise 10.77.0.4:7000 -o value)
wait_healthy
for n in $HOSTS; do
  [ "$(field "$(on "$n" bftctl status -o json)" fingerprint)" = "$formed" ] || die "host $n: another fingerprint"
done
slowest=$(start_all)
[ "$slowest" -lt 1000 ] || die "a member's systemctl start took $slowest ms until READY"
wait_healthy
say "formed with init, token and join; systemctl start of a member to READY in $slowest ms at most"

# ---- systemd shows how it is ----
within 3 "the state is in systemctl status" \
  eval 'on 1 systemctl status bftd --no-pager | grep -E "Status: \"hosts HEALTHY 4/4 members, tolerates 1 fault · term [0-9]+ · leader h[1-4] · block [0-9]+\""'
on 1 systemctl status bftd --no-pager | grep Status: | sed 's/^/          /'
exposure=$(on 1 systemd-analyze security bftd --no-pager | tail -1 | grep -oE '[0-9]+\.[0-9]+')
on 1 systemd-analyze security --threshold=20 bftd >/dev/null || die "the unit is exposed: $exposure"
[ "$(on 1 stat -c '%a %U:%G' /run/bftd/admin.sock)" = "660 bftd:bftd" ] || die "the socket's mode"
[ -z "$(on 1 find /var/lib/bftd -perm /077)" ] || die "data is open to others: $(on 1 find /var/lib/bftd -perm /077)"
say "systemctl status has the state; systemd-analyze security: $exposure"

# ---- who may ----
expect 0 revision as 1 alice bftctl put greeting hello
expect 0 hello as 3 alice bftctl get greeting
expect 0 "hosts HEALTHY" as 4 alice bftctl status
expect 9 "you may not use" as 1 eve bftctl get greeting
expect 9 "bftd-admin" as 1 alice bftctl inject fault --node 1 slow
on 1 usermod -aG bftd-admin alice
expect 9 "faults" as 1 alice bftctl inject fault --node 1 slow
grep -q "bftd-admin" "$WORK/out" && die "a member of bftd-admin is refused as if she were none"
say "group bftd may use it, another user is denied (9), faults need bftd-admin"

# ---- reloaded ----
sed -i 's/^#level = .*/level = "debug"/' "$WORK/h2/root/etc/bftd/bftd.toml"
on 2 systemctl reload bftd
within 3 "the level is read again" eval 'journal 2 | grep -q "\"LEVEL\":\"debug\""'
[ "$(property 2 NRestarts)" = 0 ] && is_active 2 || die "a reload ended the daemon"
sed -i 's/^level = .*/#level = "info"/' "$WORK/h2/root/etc/bftd/bftd.toml"
on 2 systemctl reload bftd
say "systemctl reload changes the log level"

# ---- harmed ----
pull_the_plug 3
expect 0 revision as 1 alice bftctl put without h3
within 10 "host 1 sees it" eval '[ "$(state 1)" = DEGRADED ]'
switch_on 3
wait_boot 3
is_active 3 && die "a unit that is not enabled was started"
on 3 systemctl enable --now bftd 2>/dev/null
within 20 "host 3 has caught up" has_caught_up 3 "$(executed 1)"
expect 0 h3 as 3 alice bftctl get without --consistency local
wait_healthy
say "the plug pulled on a host: writes went on, it caught up"

cut_off 4
within 15 "host 1 misses it" eval '[ "$(state 1)" = DEGRADED ]'
expect 0 revision as 2 alice bftctl put without h4
within 15 "host 4 knows that it is alone" eval '[ "$(state 4)" = "NO QUORUM" ]'
expect 6 "quorum" as 4 alice bftctl put alone h4
heal
within 20 "host 4 has caught up" has_caught_up 4 "$(executed 1)"
wait_healthy
expect 3 "" as 4 alice bftctl get alone
say "a host cut off: the others went on, it refused (6), and caught up when healed"

main=$(property 2 MainPID)
start=$(now_ms)
on 2 sh -c "kill -STOP $main"
within 30 "the watchdog restarts a stopped daemon" eval '[ "$(property 2 NRestarts)" = 1 ] && is_active 2'
hung=$(($(now_ms) - start))
[ "$(property 2 MainPID)" != "$main" ] || die "the daemon was not restarted"
on 2 journalctl -u bftd --no-pager | grep -q "Watchdog timeout" || die "it was not the watchdog"
wait_healthy
say "kill -STOP: the watchdog restarted it after $((hung / 1000)) s"

on 1 sh -c "kill -9 $(property 1 MainPID)"
expect 0 revision as 3 alice bftctl put without h1
within 10 "systemd restarts a killed daemon" eval '[ "$(property 1 NRestarts)" = 1 ] && is_active 1'
within 20 "host 1 has caught up" has_caught_up 1 "$(executed 3)"
wait_healthy
say "kill -9: systemd restarted it, it caught up"

echo 'nonsense = 1' >"$WORK/bad" && cat "$WORK/h4/root/etc/bftd/bftd.toml" >>"$WORK/bad"
cp "$WORK/h4/root/etc/bftd/bftd.toml" "$WORK/good"
cp "$WORK/bad" "$WORK/h4/root/etc/bftd/bftd.toml"
on 4 systemctl restart bftd 2>/dev/null && die "a daemon with a bad configuration starts"
sleep 2.5
[ "$(property 4 ActiveState) $(property 4 ExecMainStatus) $(property 4 NRestarts)" = "failed 78 0" ] ||
  die "bad configuration: $(property 4 ActiveState) $(property 4 ExecMainStatus) $(property 4 NRestarts)"
cp "$WORK/good" "$WORK/h4/root/etc/bftd/bftd.toml"
on 4 systemctl start bftd
wait_healthy
say "a bad configuration: exit 78, no restart"

# ---- upgraded, one host at a time, under load ----
mkdir "$WORK/next"
dpkg-deb -R "$WORK/bftd.deb" "$WORK/next"
sed -i 's/^Version: .*/&+next/' "$WORK/next/DEBIAN/control"
dpkg-deb --root-owner-group -Zgzip -b "$WORK/next" "$WORK/next.deb" >/dev/null

# Writes on a host, one put after another, until told to stop. An acknowledged one is noted with its time.
write_on() {
  local n=$1 i=0
  while [ ! -e "$WORK/stop" ]; do
    i=$((i + 1))
    local code=0
    on "$n" bftctl put "upgrade-$n-$i" x --timeout 5s >"$WORK/put-$n" 2>&1 || code=$?
    if [ "$code" = 0 ]; then
      echo "$(now_ms) upgrade-$n-$i" >>"$WORK/acknowledged-$n"
    else
      echo "$(now_ms) $code: $(head -1 "$WORK/put-$n")" >>"$WORK/refused-$n"
      sleep 0.05
    fi
  done
}
for n in $HOSTS; do touch "$WORK/acknowledged-$n" "$WORK/refused-$n"; write_on "$n" & done
written() { cat "$WORK"/acknowledged-? | wc -l; }
sleep 1
for n in $HOSTS; do
  cp "$WORK/next.deb" "$WORK/h$n/root/root/"
  main=$(property "$n" MainPID)
  expect 0 "was not restarted" on "$n" dpkg -i /root/next.deb
  [ "$(property "$n" MainPID)" = "$main" ] || die "the upgrade restarted host $n"
  before=$(written)
  on "$n" systemctl restart bftd
  [ "$(property "$n" MainPID)" != "$main" ] || die "host $n runs the old program"
  wait_healthy
  [ "$(written)" -gt "$before" ] || die "no write while host $n was upgraded"
done
sleep 0.5
touch "$WORK/stop"
wait $(jobs -p | grep -vxF "$(cat "$WORK"/h?/nspawn)") || true
# Another host's client waits for a term change at most; one of the host itself for its daemon.
pause=$(cat "$WORK"/acknowledged-? | sort -n | awk 'NR > 1 && $1 - last > most { most = $1 - last } { last = $1 } END { print most }')
[ "$pause" -lt 5000 ] || die "no write anywhere for $pause ms"
unknown=$(cat "$WORK"/refused-? | grep -c ' 7: ' || true)
[ "$unknown" = 0 ] || { cat "$WORK"/refused-?; die "$unknown writes of unknown outcome in an orderly upgrade"; }
total=$(written)
found=$(as 1 alice bftctl ls upgrade- --count)
[ "${found//[^0-9]/}" -ge "$total" ] || die "$total writes were acknowledged, $found are there"
say "upgraded one host at a time: $total writes, the longest pause $pause ms, $(cat "$WORK"/refused-? | wc -l) refused, none in doubt"

# The leaders left their terms on the way, so there is something to say of terms.
lines=$(journal 1)
for wanted in '"TERM":"[0-9]+"' '"LEADER":"[1-4]"' '"PEER":"[234]"' '"MESSAGE_ID":"6dcfb3e1c9b84ed9a5ab1fd2d1b5a001"' '"INDEX":"'; do
  grep -qE "$wanted" <<<"$lines" || die "the journal lacks $wanted"
done
say "journalctl -o json has TERM, INDEX, LEADER, PEER and MESSAGE_ID"

# ---- removed ----
# Host 3's daemon is enabled.
on 3 apt-get -q --no-download remove -y bftd >"$WORK/out" 2>&1 || { cat "$WORK/out"; die "remove"; }
is_active 3 && die "a removed daemon runs"
on 3 test -f /var/lib/bftd/identity.key || die "remove deleted the key"
on 3 test -f /etc/bftd/bftd.toml || die "remove deleted the configuration"
expect 0 "systemctl enable --now bftd" on 3 dpkg -i /root/next.deb
on 3 systemctl start bftd
wait_healthy
# An operator has put the data elsewhere, beside something of his own.
on 3 sh -c 'systemctl stop bftd && mv /var/lib/bftd /srv/bftd && ln -s /srv/bftd /var/lib/bftd'
on 3 sh -c 'mkdir /srv/bftd/his && touch /srv/bftd/his/own'
on 3 dpkg --purge bftd >"$WORK/out" 2>&1 || { cat "$WORK/out"; die "purge"; }
grep -qiE "warning|error|failed" "$WORK/out" && { cat "$WORK/out"; die "purge complains"; }
left=$(on 3 find /etc /usr /var /run -xdev -name '*bftd*' -not -path '/var/log/*')
[ -z "$left" ] || die "purge left $left"
left=$(on 3 find /srv/bftd -mindepth 1 | sort | xargs)
[ "$left" = "/srv/bftd/his /srv/bftd/his/own" ] || die "purge left $left where the data was"
within 15 "host 1 misses it" eval '[ "$(state 1)" = DEGRADED ]'
expect 0 revision as 1 alice bftctl put the end
say "remove keeps key, data and configuration; purge deletes them; the others go on"
